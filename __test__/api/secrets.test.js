'use strict'

const { spawnSync } = require('node:child_process')
const { createDecipheriv, createCipheriv, randomBytes } = require('node:crypto')
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { InfinizationError, LifecycleError, QemuImgService, SnapshotManager, StorageError, decryptSecret, encryptSecret } = require('../..')

const key = randomBytes(32)

test.each([
  ['a Buffer', key],
  ['a Uint8Array', new Uint8Array(key)],
  ['part of a larger buffer', new Uint8Array([...Buffer.alloc(8), ...key]).subarray(8)],
  ['hexadecimal digits', key.toString('hex')],
  ['base64', key.toString('base64')]
])('a secret survives with its key as %s', (_name, form) => {
  for (const plain of ['', 'hunter2', 'ü : 漢字 \0']) {
    const text = encryptSecret(plain, form)
    expect(text).toMatch(/^[\w+/=]+:[\w+/=]+:[\w+/=]*$/)
    expect(encryptSecret(plain, form)).not.toBe(text)
    expect(decryptSecret(text, key)).toBe(plain)
  }
})

test('Node reads what it writes, and it reads what Node writes', () => {
  const [iv, tag, data] = encryptSecret('hunter2', key).split(':').map((part) => Buffer.from(part, 'base64'))
  expect([iv.length, tag.length]).toEqual([12, 16])
  const decipher = createDecipheriv('aes-256-gcm', key, iv).setAuthTag(tag)
  expect(decipher.update(data, undefined, 'utf8') + decipher.final('utf8')).toBe('hunter2')
  for (const length of [12, 16]) {
    const iv = randomBytes(length)
    const cipher = createCipheriv('aes-256-gcm', key, iv)
    const data = Buffer.concat([cipher.update('hunter2'), cipher.final()])
    const text = [iv, cipher.getAuthTag(), data].map((part) => part.toString('base64')).join(':')
    expect(decryptSecret(text, key)).toBe('hunter2')
  }
})

test('a key that is none is refused, and said which it is', () => {
  for (const bad of [randomBytes(31), randomBytes(33), 'short', 'g'.repeat(64), '', 5, null, undefined, {}, [1]]) {
    for (const call of [() => encryptSecret('x', bad), () => decryptSecret('x', bad)]) {
      expect(call).toThrow(InfinizationError)
      expect(call).toThrow(expect.objectContaining({ code: 'INVALID_KEY', context: { field: 'key' } }))
    }
  }
})

test('another key and a changed text are one error, which says nothing of the secret', () => {
  const text = encryptSecret('hunter2', key)
  // Not the digits before padding, some of whose bits stand for nothing.
  const digits = [...text.matchAll(/[^=](?!=)/g)].map((match) => match.index)
  const changed = digits.map((at) => text.slice(0, at) + (text[at] === 'A' ? 'B' : 'A') + text.slice(at + 1))
  for (const [bad, by] of [[text, randomBytes(32)], ['', key], ['a:b', key], [text + ':', key], ...changed.map((it) => [it, key])]) {
    let error
    try { decryptSecret(bad, by) } catch (caught) { error = caught }
    expect(error).toMatchObject({ name: 'InfinizationError', code: 'SECRET_UNREADABLE' })
    expect(error.message).not.toMatch(/hunter2/)
  }
  for (const bad of [5, null, undefined, {}]) {
    expect(() => encryptSecret(bad, key)).toThrow(LifecycleError)
    expect(() => decryptSecret(bad, key)).toThrow(LifecycleError)
  }
})

describe('an encrypted image', () => {
  const images = new QemuImgService()
  const folder = mkdtempSync(path.join(tmpdir(), 'infz-'))
  const image = path.join(folder, 'a.qcow2')
  afterAll(() => rmSync(folder, { recursive: true }))

  // Keys of ours take seconds of a core to open; this one is made to take none.
  function makeQuick () {
    const file = path.join(folder, 'key')
    writeFileSync(file, 'grün')
    const words = [
      'create', '-q', '--object', `secret,id=k,file=${file}`, '-f', 'qcow2',
      '-o', 'encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=100', image, '1M'
    ]
    // Some kernels tell a short time wrongly, and it gives up ("Unable to get accurate CPU usage").
    const made = () => spawnSync('qemu-img', words).status === 0
    expect(Array.from({ length: 12 }).some(made)).toBe(true)
  }

  test('takes its key as text or bytes', async () => {
    makeQuick()
    expect(await images.getImageInfo(image)).toMatchObject({ encrypted: true })
    for (const encryptionKey of ['grün', Buffer.from('grün')]) {
      expect(await images.checkImage(image, 'qcow2', { encryptionKey })).toMatchObject({ corruptions: 0 })
    }
    await expect(images.checkImage(image)).rejects.toMatchObject({ code: 'KEY_REQUIRED', path: image })
    const wrong = images.checkImage(image, 'qcow2', { encryptionKey: 'rot' })
    await expect(wrong).rejects.toBeInstanceOf(StorageError)
    await expect(wrong).rejects.toMatchObject({ code: 'AUTH_FAILED', path: image })
    for (const encryptionKey of ['', 'a\0', Buffer.from([0xff]), 5]) {
      await expect(images.resizeImage(image, 1, { encryptionKey })).rejects.toMatchObject({ code: 'INVALID_CONFIG' })
    }
    const copy = { sourcePath: image, destPath: path.join(folder, 'plain.raw'), destFormat: 'raw', encryptionKey: 'grün' }
    await expect(images.convertImage(copy)).rejects.toMatchObject({ code: 'PLAIN_TEXT_REFUSED' })
    await images.convertImage({ ...copy, decrypt: true })
    expect(readFileSync(copy.destPath).every((byte) => byte === 0)).toBe(true)
    await expect(images.changeKey(image, { encryptionKey: 'rot', newKey: Buffer.from('blau') }))
      .rejects.toMatchObject({ code: 'AUTH_FAILED' })
    await expect(images.changeKey(image, { encryptionKey: 'grün' })).rejects.toMatchObject({ code: 'INVALID_CONFIG' })
  }, 120_000)

  test('has snapshots with its key', async () => {
    const snapshots = new SnapshotManager()
    const taking = { imagePath: image, name: 'before' }
    await expect(snapshots.createSnapshot(taking)).rejects.toMatchObject({ code: 'KEY_REQUIRED', path: image })
    await expect(snapshots.createSnapshot({ ...taking, encryptionKey: 'rot' })).rejects.toMatchObject({ code: 'AUTH_FAILED' })
    const key = { encryptionKey: Buffer.from('grün') }
    await snapshots.createSnapshot({ ...taking, ...key })
    expect(await snapshots.snapshotExists(image, 'before')).toBe(true)
    const copy = path.join(folder, 'copy.qcow2')
    await expect(snapshots.materializeSnapshot(image, 'before', copy)).rejects.toMatchObject({ code: 'KEY_REQUIRED' })
    await snapshots.materializeSnapshot(image, 'before', copy, key)
    expect(await images.getImageInfo(copy)).toMatchObject({ encrypted: true })
    await expect(snapshots.revertSnapshot(image, 'before')).rejects.toMatchObject({ code: 'KEY_REQUIRED' })
    await snapshots.revertSnapshot(image, 'before', key)
    await expect(snapshots.deleteSnapshot(image, 'before')).rejects.toMatchObject({ code: 'KEY_REQUIRED' })
    await snapshots.deleteSnapshot(image, 'before', key)
    expect(await snapshots.listSnapshots(image)).toEqual([])
  }, 120_000)
})
