'use strict'

// Volumes that come and go as bytes. What is refused of them is tested in the core.

const { execFileSync } = require('node:child_process')
const { createHash, randomBytes } = require('node:crypto')
const { createReadStream, createWriteStream, mkdirSync, readFileSync, readdirSync, realpathSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { Readable, Writable } = require('node:stream')
const { pipeline } = require('node:stream/promises')
const { LifecycleError, StorageError } = require('../..')
const { cleanUp, newDirectory, openInstance, rejection, runNode, startNode } = require('../kit')

jest.setTimeout(60_000)
afterEach(cleanUp)

const MIB = 2 ** 20
const bytes = randomBytes(3 * MIB + 512)
const sha256 = createHash('sha256').update(bytes).digest('hex')

async function scene () {
  const directory = realpathSync(newDirectory())
  const instance = await openInstance()
  await instance.definePool('p', { path: directory })
  return { directory, instance, given: path.join(instance.stateDir, 'given') }
}

// What is let go is let go behind the call.
async function isEmpty (directory) {
  for (let tries = 0; readdirSync(directory).length > 0 && tries < 500; tries++) await new Promise((resolve) => setTimeout(resolve, 10))
  expect(readdirSync(directory)).toEqual([])
}

async function * inPieces (length) {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length)
}

test('any source is a volume, and a volume any stream', async () => {
  const { directory, instance, given } = await scene()
  writeFileSync(given, bytes)
  const sources = {
    'stream.raw': () => createReadStream(given),
    'generator.raw': () => inPieces(70_001),
    'web.raw': () => Readable.toWeb(createReadStream(given)),
    'array.raw': () => [bytes.subarray(0, 5), new Uint8Array(), bytes.subarray(5)],
    'iterable.raw': () => ({ on: 'by name', [Symbol.iterator]: () => [bytes].values() }),
    'buffer.img': () => bytes
  }
  for (const [name, source] of Object.entries(sources)) {
    const told = []
    const volume = await instance.uploadVolume('p', name, source(), { sha256, size: bytes.length, onProgress: (progress) => told.push(progress) })
    expect(volume).toMatchObject({ name, path: path.join(directory, name), format: 'raw', capacity: bytes.length })
    expect(readFileSync(volume.path).equals(bytes)).toBe(true)
    expect(told.at(-1)).toEqual({ bytes: bytes.length, total: bytes.length, percent: 100 })
    expect(told.map((progress) => progress.bytes)).toEqual(told.map((progress) => progress.bytes).sort((a, b) => a - b))
  }
  const told = []
  const volume = await instance.downloadVolume('p', 'stream.raw', { onProgress: (progress) => told.push(progress.bytes) })
  expect(volume).toMatchObject({ size: bytes.length, format: 'raw' })
  await pipeline(volume, createWriteStream(given))
  expect(readFileSync(given).equals(bytes)).toBe(true)
  expect(told.at(-1)).toBe(bytes.length)
  const pieces = []
  for await (const piece of await instance.downloadVolume('p', 'buffer.img')) pieces.push(piece)
  expect(Buffer.concat(pieces).equals(bytes)).toBe(true)
  const copy = await instance.uploadVolume('p', 'copy.raw', await instance.downloadVolume('p', 'buffer.img'))
  expect(readFileSync(copy.path).equals(bytes)).toBe(true)
})

test('neither side runs ahead of the other', async () => {
  const { instance } = await scene()
  let [given, written] = [0, 0]
  async function * source () {
    for (; given < 40; given++) {
      expect(given - written).toBeLessThanOrEqual(1)
      yield Buffer.alloc(MIB, 1)
    }
  }
  await instance.uploadVolume('p', 'a.raw', source(), { onProgress: (progress) => { written = progress.bytes / MIB } })
  let read = 0
  const volume = await instance.downloadVolume('p', 'a.raw', { onProgress: (progress) => { read = progress.bytes } })
  const slow = new Writable({
    highWaterMark: MIB,
    write (piece, _encoding, done) {
      given -= piece.length / MIB
      expect(read - (40 - given) * MIB).toBeLessThanOrEqual(4 * MIB)
      setTimeout(done, 1)
    }
  })
  await pipeline(volume, slow)
  expect(given).toBe(0)
})

test('what ends early leaves nothing and lets the source go', async () => {
  const { directory, instance, given } = await scene()
  writeFileSync(given, bytes)
  const upload = (source, options, name = 'x.raw') => rejection(instance.uploadVolume('p', name, source, options))

  const silent = new Readable({ read () {} })
  silent.push(Buffer.alloc(MIB, 1))
  const controller = new AbortController()
  const aborted = await upload(silent, { signal: controller.signal, onProgress: () => controller.abort() })
  expect(aborted).toBeInstanceOf(StorageError)
  expect(aborted.code).toBe('ABORTED')
  expect(silent.destroyed).toBe(true)
  await isEmpty(directory)

  const stuck = { [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}) }) }
  expect(await upload(stuck, { signal: AbortSignal.timeout(50) })).toMatchObject({ code: 'ABORTED' })
  await isEmpty(directory)
  expect(await upload(bytes, { signal: AbortSignal.abort() })).toMatchObject({ code: 'ABORTED' })

  const broken = new Error('the source broke')
  async function * breaks () { yield bytes; throw broken }
  expect(await upload(breaks())).toBe(broken)
  const clumsy = {
    * [Symbol.iterator] () { yield Buffer.alloc(MIB, 1); throw broken },
    destroy () { throw new Error('it cannot be let go') }
  }
  expect(await upload(clumsy)).toBe(broken)
  await isEmpty(directory)
  const refused = new Error('no more')
  expect(await upload(createReadStream(given), { onProgress () { throw refused } })).toBe(refused)
  for (const [source, options, Class, code] of [
    ['text', {}, LifecycleError, 'INVALID_CONFIG'],
    [undefined, {}, LifecycleError, 'INVALID_CONFIG'],
    [['text'], {}, LifecycleError, 'INVALID_CONFIG'],
    [bytes, { onProgress: 7 }, LifecycleError, 'INVALID_CONFIG'],
    [bytes, { signal: 7 }, LifecycleError, 'INVALID_CONFIG'],
    [bytes, { format: 'qcow2' }, LifecycleError, 'INVALID_CONFIG'],
    [bytes, { length: 7 }, LifecycleError, 'INVALID_CONFIG'],
    [bytes, 7, LifecycleError, 'INVALID_CONFIG'],
    [bytes, { size: 7 }, StorageError, 'INVALID_SIZE'],
    [bytes, { sha256: '0'.repeat(64) }, StorageError, 'CHECKSUM_MISMATCH'],
    [bytes.subarray(1), {}, StorageError, 'INVALID_SIZE']
  ]) {
    const error = await upload(source, options)
    expect([error.code, error.name]).toEqual([code, Class.name])
    expect(error).toBeInstanceOf(Class)
  }
  expect(await upload(bytes, {}, 'x.qcow2')).toMatchObject({ code: 'INVALID_FORMAT' })
  const unread = createReadStream(given)
  expect(await upload(unread, {}, '../x.raw')).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(unread.destroyed).toBe(true)
  await isEmpty(directory)
})

test('a stream that fails before it is read, or that nobody reads, fails the upload and nothing else', async () => {
  const { directory, instance } = await scene()
  const missing = () => createReadStream(path.join(directory, 'missing'))
  const upload = (name, source, options) => rejection(instance.uploadVolume('p', name, source, options))
  expect(await upload('x.raw', missing())).toMatchObject({ code: 'ENOENT' })
  const failed = missing()
  const error = new Promise((resolve) => failed.on('error', resolve))
  expect(await upload('../x.raw', failed)).toMatchObject({ code: 'INVALID_CONFIG' })
  await error
  expect(await upload('x.raw', missing(), { signal: AbortSignal.abort() })).toMatchObject({ code: 'ABORTED' })
  await isEmpty(directory)
})

test('a download holds its volume until it ends', async () => {
  const { instance } = await scene()
  await instance.uploadVolume('p', 'a.raw', bytes)
  const controller = new AbortController()
  const held = await instance.downloadVolume('p', 'a.raw', { signal: controller.signal })
  expect(await rejection(instance.deleteVolume('p', 'a.raw'))).toMatchObject({ code: 'IMAGE_IN_USE' })
  const ended = rejection(pipeline(held, new Writable({ write () { controller.abort() } })))
  expect(await ended).toMatchObject({ code: 'ABORTED', name: 'StorageError' })
  const left = await instance.downloadVolume('p', 'a.raw')
  await new Promise((resolve) => left.on('close', resolve).destroy())
  const refused = new Error('no more')
  const thrown = await instance.downloadVolume('p', 'a.raw', { onProgress () { throw refused } })
  expect(await rejection(pipeline(thrown, new Writable({ write () {} })))).toBe(refused)
  expect(await rejection(instance.downloadVolume('p', 'b.raw'))).toMatchObject({ code: 'IMAGE_NOT_FOUND' })
  expect(await rejection(instance.downloadVolume('p', 'a.raw', { offset: 1 }))).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await rejection(instance.downloadVolume('p', 'a.raw', { signal: AbortSignal.abort() }))).toMatchObject({ code: 'ABORTED' })
  expect(await instance.deleteVolume('p', 'a.raw')).toBeNull()
})

test('copies tell how far they are, in bytes of the disk', async () => {
  const { directory, instance } = await scene()
  await instance.uploadVolume('p', 'a.raw', Buffer.alloc(32 * MIB, 'some text'))
  const told = []
  const onProgress = (progress) => told.push(progress)
  await instance.convertVolume('p', { source: 'a.raw', name: 'b.qcow2', compress: true, onProgress })
  expect(told.at(-1)).toEqual({ bytes: 32 * MIB, total: 32 * MIB, percent: 100 })
  await instance.cloneVolume('p', { source: 'b.qcow2', name: 'c.raw', onProgress, signal: new AbortController().signal })
  execFileSync('qemu-img', ['compare', '-q', '-f', 'raw', '-F', 'raw', path.join(directory, 'a.raw'), path.join(directory, 'c.raw')])
  const refused = new Error('no more')
  const ended = { source: 'a.raw', name: 'x.qcow2', compress: true, onProgress () { throw refused } }
  expect(await rejection(instance.convertVolume('p', ended))).toBe(refused)
  const controller = new AbortController()
  const aborted = { source: 'a.raw', name: 'x.qcow2', compress: true, signal: controller.signal, onProgress: () => controller.abort() }
  expect(await rejection(instance.convertVolume('p', aborted))).toMatchObject({ code: 'ABORTED' })
  expect(readdirSync(directory).sort()).toEqual(['a.raw', 'b.qcow2', 'c.raw'])
})

test('F10: a copy that is refused before it begins keeps no process alive', async () => {
  const directory = realpathSync(newDirectory())
  const stateDir = newDirectory()
  const { code, stdout } = await runNode(`
    const { Infinization } = require('.')
    const instance = new Infinization(${JSON.stringify({ stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade' })})
    const options = { source: 'a.raw', name: 'b.qcow2', encryptionKey: Buffer.from([0xff]), onProgress () {} }
    instance.initialize()
      .then(() => instance.definePool('p', { path: ${JSON.stringify(directory)} }))
      .then(() => instance.convertVolume('p', options))
      .catch((error) => { console.log(error.code); return instance.shutdown() })
  `)
  expect({ code, stdout }).toEqual({ code: 0, stdout: 'INVALID_CONFIG\n' })
})

test('F9: killed in the middle of an upload, the next process finds nothing of it', async () => {
  const directory = realpathSync(newDirectory())
  const stateDir = newDirectory()
  const pool = path.join(directory, 'pool')
  mkdirSync(pool)
  const { child, ended, said } = startNode(`
    const { Infinization } = require('.')
    const instance = new Infinization(${JSON.stringify({ stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade' })})
    // The pieces before the last that was asked for are written.
    async function * source () { for (let n = 0; n < 8; n++) yield Buffer.alloc(1048576, 1); console.log('halfway'); await new Promise(() => setInterval(() => {}, 1000)) }
    instance.initialize()
      .then(() => instance.definePool('p', { path: ${JSON.stringify(pool)} }))
      .then(() => instance.uploadVolume('p', 'a.raw', source()))
  `)
  await said(/halfway/)
  expect(readdirSync(pool)).toHaveLength(1)
  child.kill('SIGKILL')
  await ended
  expect(readdirSync(pool)).toHaveLength(1)
  const instance = await openInstance({ stateDir })
  expect(readdirSync(pool)).toEqual([])
  expect(await instance.listVolumes('p')).toEqual([])
})
