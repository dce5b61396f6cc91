'use strict'

const { execFileSync } = require('node:child_process')
const { writeFileSync } = require('node:fs')
const path = require('node:path')
const { QemuImgService, SnapshotManager, StorageError } = require('../..')
const { cleanUp, files, newDirectory, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

const snapshots = new SnapshotManager()
const io = (image, command) => execFileSync('qemu-io', ['-c', command, image], { encoding: 'utf8' })

let image
beforeEach(async () => {
  image = path.join(newDirectory(), 'disk.qcow2')
  await new QemuImgService().createImage({ path: image, sizeGB: 1, format: 'qcow2' })
})

const take = (name) => snapshots.createSnapshot({ imagePath: image, name, description: 'for a test' })

test('taken, listed, reverted, deleted', async () => {
  io(image, 'write -P 0x11 0 64k')
  await take('before')
  io(image, 'write -P 0x22 0 64k')
  await take('after')
  const listed = await snapshots.listSnapshots(image)
  expect(listed).toEqual([
    { id: '1', name: 'before', vmSize: 0, date: expect.any(String), vmClock: '00:00:00.000' },
    { id: '2', name: 'after', vmSize: 0, date: expect.any(String), vmClock: '00:00:00.000' }
  ])
  for (const { date } of listed) expect(Math.abs(Date.now() - new Date(date).getTime())).toBeLessThan(60_000)
  await snapshots.revertSnapshot(image, 'before')
  io(image, 'read -P 0x11 0 64k')
  await snapshots.deleteSnapshot(image, 'after')
  expect(await snapshots.snapshotExists(image, 'after')).toBe(false)
  expect(await snapshots.snapshotExists(image, 'before')).toBe(true)
})

test('a copy of what was', async () => {
  io(image, 'write -P 0x11 0 64k')
  await take('before')
  io(image, 'write -P 0x22 0 64k')
  const copy = `${image}.copy`
  await snapshots.materializeSnapshot(image, 'before', copy)
  expect(io(copy, 'read -P 0x11 0 64k')).not.toContain('Pattern verification failed')
  expect(await rejection(snapshots.materializeSnapshot(image, 'before', copy))).toMatchObject({ code: 'IMAGE_ALREADY_EXISTS' })
  expect(await rejection(snapshots.materializeSnapshot(image, 'never', `${copy}2`))).toMatchObject({ code: 'SNAPSHOT_NOT_FOUND' })
  expect(files(path.dirname(image))).toEqual(['disk.qcow2', 'disk.qcow2.copy'])
})

test('F52: a signal ends a copy or a check before it begins, and nothing of it is left', async () => {
  await take('before')
  const signal = AbortSignal.abort()
  for (const call of [
    () => snapshots.materializeSnapshot(image, 'before', `${image}.copy`, { signal }),
    () => new QemuImgService().checkImage(image, 'qcow2', { signal })
  ]) {
    expect(await rejection(call())).toMatchObject({ name: 'StorageError', code: 'ABORTED' })
  }
  expect(files(path.dirname(image))).toEqual(['disk.qcow2'])
})

test('B16: a name that is taken is refused', async () => {
  await take('before')
  const error = await rejection(take('before'))
  expect(error).toBeInstanceOf(StorageError)
  expect(error).toMatchObject({ code: 'SNAPSHOT_ALREADY_EXISTS', path: image })
  expect(await snapshots.listSnapshots(image)).toHaveLength(1)
})

test.each(['', 'a/b', '-x', 'a b', '7', 'ä', 'a\n', 'x'.repeat(65)])('B16: %p is no name, for every verb', async (name) => {
  const calls = [
    () => take(name), () => snapshots.revertSnapshot(image, name), () => snapshots.deleteSnapshot(image, name),
    () => snapshots.snapshotExists(image, name), () => snapshots.materializeSnapshot(image, name, `${image}.copy`)
  ]
  for (const call of calls) expect(await rejection(call())).toMatchObject({ name: 'StorageError', code: 'INVALID_SNAPSHOT_NAME' })
})

test('B17: what does not exist', async () => {
  expect(await rejection(snapshots.revertSnapshot(image, 'never'))).toMatchObject({ code: 'SNAPSHOT_NOT_FOUND', path: image })
  await snapshots.deleteSnapshot(image, 'never')
  const missing = `${image}.missing`
  expect(await snapshots.snapshotExists(missing, 'never')).toBe(false)
  const calls = [
    () => snapshots.listSnapshots(missing), () => snapshots.revertSnapshot(missing, 'x'), () => snapshots.deleteSnapshot(missing, 'x')
  ]
  for (const call of calls) {
    expect(await rejection(call())).toMatchObject({ code: 'IMAGE_NOT_FOUND', path: missing })
  }
})

test('an image that cannot be read is an error, never "no"', async () => {
  writeFileSync(image, 'no image at all')
  expect(await rejection(snapshots.snapshotExists(image, 'x'))).toMatchObject({ code: 'INVALID_FORMAT' })
})

test('B20: arguments that are none', async () => {
  expect(await rejection(snapshots.createSnapshot())).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'options' }] } })
  expect(await rejection(snapshots.createSnapshot({ imagePath: 'relative', name: 'x' }))).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await rejection(snapshots.listSnapshots(5))).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'imagePath' }] } })
})

test('F21: the disk of a running machine is in use, for every verb', async () => {
  const instance = await openInstance()
  const { vmId, diskPaths: [disk], pid } = await running(instance)
  const calls = [
    () => snapshots.createSnapshot({ imagePath: disk, name: 'x' }), () => snapshots.listSnapshots(disk),
    () => snapshots.revertSnapshot(disk, 'x'), () => snapshots.deleteSnapshot(disk, 'x'), () => snapshots.snapshotExists(disk, 'x')
  ]
  for (const call of calls) {
    expect(await rejection(call())).toMatchObject({ name: 'StorageError', code: 'IMAGE_IN_USE', path: disk, context: { holder: { pid } } })
  }
  await instance.stopVM(vmId, { graceful: false })
  await snapshots.createSnapshot({ imagePath: disk, name: 'x' })
})

test('ten at once, of one image', async () => {
  const names = Array.from({ length: 10 }, (_, index) => `s${index}`)
  await Promise.all(names.map((name) => new SnapshotManager().createSnapshot({ imagePath: image, name })))
  expect((await snapshots.listSnapshots(image)).map(({ name }) => name).sort()).toEqual(names)
})
