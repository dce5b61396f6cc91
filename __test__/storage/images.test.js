'use strict'

const { execFileSync, spawn } = require('node:child_process')
const { once } = require('node:events')
const { existsSync, readFileSync, statSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { QemuImgService, SnapshotManager, StorageError } = require('../..')
const { cleanUp, files, finally_, newDirectory, rejection } = require('../kit')

afterEach(cleanUp)

const images = new QemuImgService()
const snapshots = new SnapshotManager()
const qemuImg = (...words) => execFileSync('qemu-img', words, { encoding: 'utf8' })
const GIB = 2 ** 30

let directory
beforeEach(() => { directory = newDirectory() })
const at = (name) => path.join(directory, name)

async function newImage (name = 'disk.qcow2', more) {
  await images.createImage({ path: at(name), sizeGB: 1, format: 'qcow2', ...more })
  return at(name)
}

test('an image is created as asked, and told', async () => {
  const image = await newImage('disk.qcow2', { clusterSize: 131072, preallocation: 'metadata' })
  expect(statSync(image).mode & 0o777).toBe(0o600)
  expect(await images.getImageInfo(image)).toEqual({
    filename: image, format: 'qcow2', virtualSize: GIB, actualSize: expect.any(Number), clusterSize: 131072, encrypted: false
  })
  expect(JSON.parse(qemuImg('info', '--output=json', image))).toMatchObject({ format: 'qcow2', 'cluster-size': 131072 })
})

test('half a gigabyte is a size', async () => {
  const image = await newImage('half.raw', { format: 'raw', sizeGB: 0.5 })
  expect(statSync(image).size).toBe(GIB / 2)
  expect(await images.getImageInfo(image, 'raw')).toMatchObject({ format: 'raw', virtualSize: GIB / 2 })
})

test('an overlay has the size of what it lies on', async () => {
  const base = await newImage('base.qcow2', { sizeGB: 2 })
  const overlay = await newImage('overlay.qcow2', { sizeGB: undefined, backingFile: base })
  expect(await images.getImageInfo(overlay)).toMatchObject({ virtualSize: 2 * GIB, backingFile: base })
})

test('a file that exists is left alone', async () => {
  writeFileSync(at('precious'), 'data')
  const error = await rejection(newImage('precious'))
  expect(error).toBeInstanceOf(StorageError)
  expect(error).toMatchObject({ name: 'StorageError', code: 'IMAGE_ALREADY_EXISTS', path: at('precious') })
  expect(error.toInfo()).toMatchObject({ code: 'IMAGE_ALREADY_EXISTS', path: at('precious'), message: error.message })
  expect(readFileSync(at('precious'), 'utf8')).toBe('data')
})

test.each([
  ['B10: size 0', { sizeGB: 0 }, 'INVALID_SIZE'], ['B10: size -1', { sizeGB: -1 }, 'INVALID_SIZE'],
  ['B10: size 1e308', { sizeGB: 1e308 }, 'INVALID_SIZE'], ['B10: no size', { sizeGB: undefined }, 'INVALID_SIZE'],
  ['B10: size "50"', { sizeGB: '50' }, 'INVALID_CONFIG'], ['B10: NaN', { sizeGB: NaN }, 'INVALID_CONFIG'],
  ['a raw overlay', { format: 'raw', backingFile: '/x' }, 'INVALID_FORMAT'], ['B29: a format', { format: 'iso' }, 'INVALID_CONFIG'],
  ['clusters of 1000', { clusterSize: 1000 }, 'INVALID_SIZE'], ['B3: a comma', { path: '/x,file=/etc/passwd' }, 'INVALID_CONFIG'],
  ['B3: a protocol', { path: 'json:{}' }, 'INVALID_CONFIG'], ['no directory', { path: '/no/such/directory/x' }, 'IMAGE_NOT_FOUND'],
  ['no backing file', { sizeGB: undefined, backingFile: '/no/such/base' }, 'IMAGE_NOT_FOUND']
])('%s is refused, and nothing is made', async (_, more, code) => {
  expect(await rejection(newImage('x', more))).toMatchObject({ code })
  expect(files(directory)).toEqual([])
})

test('F52: a signal that has fired makes nothing', async () => {
  expect(await rejection(newImage('x', { signal: AbortSignal.abort() }))).toMatchObject({ name: 'StorageError', code: 'ABORTED' })
  expect(files(directory)).toEqual([])
})

test('F52: a signal ends a conversion under way, and nothing of it is left', async () => {
  const source = await newImage('source.raw', { format: 'raw', sizeGB: 8 })
  const controller = new AbortController()
  const converting = rejection(images.convertImage({
    sourcePath: source, sourceFormat: 'raw', destPath: at('copy.qcow2'), destFormat: 'qcow2', compress: true, signal: controller.signal
  }))
  setImmediate(() => controller.abort())
  expect(await converting).toMatchObject({ code: 'ABORTED' })
  expect(files(directory)).toEqual(['source.raw'])
})

test('an image grows, and shrinks only with consent', async () => {
  const image = await newImage()
  await images.resizeImage(image, 3)
  expect((await images.getImageInfo(image)).virtualSize).toBe(3 * GIB)
  expect(await rejection(images.resizeImage(image, 2))).toMatchObject({ code: 'DATA_LOSS_REFUSED', path: image })
  await images.resizeImage(image, 2, { shrink: true })
  expect((await images.getImageInfo(image)).virtualSize).toBe(2 * GIB)
  expect(await rejection(images.resizeImage(image, 0))).toMatchObject({ code: 'INVALID_SIZE' })
  expect(await rejection(images.resizeImage(at('none'), 2))).toMatchObject({ code: 'IMAGE_NOT_FOUND' })
})

test('a copy in another format holds the same', async () => {
  const image = await newImage()
  execFileSync('qemu-io', ['-c', 'write -P 0x5a 1M 64k', image])
  await images.convertImage({ sourcePath: image, destPath: at('copy.raw'), destFormat: 'raw' })
  expect(qemuImg('compare', '-f', 'qcow2', '-F', 'raw', image, at('copy.raw'))).toContain('identical')
  expect(await rejection(images.convertImage({ sourcePath: image, destPath: at('copy.raw'), destFormat: 'raw' }))).toMatchObject({ code: 'IMAGE_ALREADY_EXISTS' })
})

test('a copy says how much of the disk is done, and ends with what onProgress throws', async () => {
  const image = await newImage()
  execFileSync('qemu-io', ['-c', 'write -P 0x5a 1M 64k', image])
  await snapshots.createSnapshot({ imagePath: image, name: 'then' })
  const told = []
  const onProgress = (progress) => told.push(progress)
  const whole = { bytes: GIB, total: GIB, percent: 100 }
  await images.convertImage({ sourcePath: image, destPath: at('copy.raw'), destFormat: 'raw', onProgress })
  expect(told.at(-1)).toEqual(whole)
  await snapshots.materializeSnapshot(image, 'then', at('then.qcow2'), { onProgress: (progress) => told.push({ then: progress }) })
  expect(told.at(-1)).toEqual({ then: whole })
  const thrown = new Error('mine')
  const throwing = { sourcePath: image, destPath: at('none.raw'), destFormat: 'raw', onProgress: () => { throw thrown } }
  expect(await rejection(images.convertImage(throwing))).toBe(thrown)
  expect(await rejection(images.convertImage({ ...throwing, onProgress: 5 }))).toMatchObject({ code: 'INVALID_CONFIG' })
})

test('damage is a result, not an error', async () => {
  const image = await newImage()
  expect(await images.checkImage(image)).toEqual({ errors: 0, leaks: 0, corruptions: 0, totalClusters: 16384, allocatedClusters: 0 })
  expect(await rejection(images.checkImage(await newImage('x.raw', { format: 'raw' }), 'raw'))).toMatchObject({ code: 'INVALID_FORMAT' })
  writeFileSync(at('junk'), 'not an image')
  expect(await rejection(images.checkImage(at('junk')))).toMatchObject({ code: 'INVALID_FORMAT', path: at('junk') })
})

test('F20: an image that a process has open is in use, for every verb', async () => {
  const image = await newImage()
  const holder = spawn('qemu-io', [image], { stdio: ['pipe', 'pipe', 'ignore'] })
  const gone = once(holder, 'exit')
  finally_(async () => { holder.stdin.end('quit\n'); await gone })
  // Its prompt comes when it has the image open.
  await once(holder.stdout, 'data')
  const calls = [
    () => images.getImageInfo(image), () => images.resizeImage(image, 2), () => images.checkImage(image),
    () => images.convertImage({ sourcePath: image, destPath: at('copy'), destFormat: 'raw' })
  ]
  for (const call of calls) {
    const error = await rejection(call())
    expect(error).toMatchObject({ code: 'IMAGE_IN_USE', path: image, context: { holder: { pid: holder.pid } } })
  }
  expect(existsSync(at('copy'))).toBe(false)
})

test('one image, many calls at once, from several instances', async () => {
  const image = await newImage()
  const sizes = [2, 3, 4, 5, 6]
  await Promise.all(sizes.map((size) => new QemuImgService().resizeImage(image, size, { shrink: true })))
  expect(sizes.map((size) => size * GIB)).toContain((await images.getImageInfo(image)).virtualSize)
  expect((await images.checkImage(image)).errors).toBe(0)
})
