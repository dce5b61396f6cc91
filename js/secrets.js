'use strict'

// Keys as callers have them, text or bytes, and secrets at rest. Bytes cannot cross to native code as
// plain data, so they become text here.

const { InfinizationError, LifecycleError } = require('./errors')
const native = require('./native')
const { tracedFunction } = require('./traced')

const encrypt = tracedFunction(native, 'encryptSecret')
const decrypt = tracedFunction(native, 'decryptSecret')

const encryptSecret = (plain, key) => encrypt(plain, requireKey(key))

const decryptSecret = (text, key) => decrypt(text, requireKey(key))

// A key of 32 bytes as text; of another type it is left for the reader to refuse.
const keyText = (key) => isBytes(key) ? Buffer.from(key.buffer, key.byteOffset, key.byteLength).toString('base64') : key

function requireKey (key, field = 'key') {
  const text = keyText(key)
  if (typeof text === 'string') return text
  throw new InfinizationError('INVALID_KEY', `${field} must be 32 bytes, or 64 hexadecimal digits or base64 of as many`, { field })
}

const isBytes = (value) => ArrayBuffer.isView(value) && value.BYTES_PER_ELEMENT === 1

// The passphrase of a disk is UTF-8 text.
function passphrase (value, path) {
  if (!isBytes(value)) return value
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(value)
  } catch {
    const message = 'must have 1 to 512 bytes of UTF-8 text and no NUL'
    throw new LifecycleError('INVALID_CONFIG', `${path} ${message}`, undefined, { issues: [{ path, message }] })
  }
}

// `options` with the passphrases in its members `names` as text. What cannot be read is passed on whole, so that
// the native reader says what is wrong with it.
function withKeys (options, names, prefix = '') {
  if (!isObject(options)) return options
  const found = names.filter((name) => isBytes(member(options, name)))
  if (found.length === 0) return options
  return { ...options, ...Object.fromEntries(found.map((name) => [name, passphrase(options[name], prefix + name)])) }
}

function withDiskKeys (config) {
  const disks = member(config, 'disks')
  if (!Array.isArray(disks)) return config
  const read = disks.map((disk, index) => withKeys(disk, ['encryptionKey'], `disks[${index}].`))
  return read.every((disk, index) => disk === disks[index]) ? config : { ...config, disks: read }
}

function withStartKeys (config) {
  const keys = member(config, 'diskKeys')
  if (!isObject(keys)) return config
  const read = withKeys(keys, Object.keys(keys), 'diskKeys.')
  return read === keys ? config : { ...config, diskKeys: read }
}

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)

function member (object, name) {
  try {
    return isObject(object) ? object[name] : undefined
  } catch {
    return undefined
  }
}

module.exports = { decryptSecret, encryptSecret, keyText, requireKey, withDiskKeys, withKeys, withStartKeys }
