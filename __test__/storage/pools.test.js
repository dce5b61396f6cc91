'use strict'

// Storage pools and volumes; what they do to files is tested in the core.

const { mkdtempSync, realpathSync, rmSync } = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { LifecycleError, StorageError } = require('../..')
const { cleanUp, openInstance, rejection } = require('../kit')

jest.setTimeout(60_000)

const MIB = 2 ** 20
const directory = realpathSync(mkdtempSync(path.join(os.tmpdir(), 'pools-')))

afterEach(cleanUp)
afterAll(() => rmSync(directory, { recursive: true }))

test('a pool and its volumes, from the first to the last', async () => {
  const instance = await openInstance()
  const number = expect.any(Number)
  const pool = { name: 'images', path: directory, capacity: number, allocation: number, available: number }
  expect(await instance.definePool('images', { path: directory })).toEqual(pool)
  expect(await instance.listPools()).toEqual([pool])
  expect(await instance.getPool('images')).toEqual(pool)
  const golden = {
    name: 'golden.qcow2', path: path.join(directory, 'golden.qcow2'), format: 'qcow2', capacity: 4 * MIB,
    allocation: number, encrypted: false, backing: null, usedBy: [], overlays: []
  }
  expect(await instance.createVolume('images', { name: 'golden.qcow2', capacity: 4 * MIB })).toEqual(golden)
  const linked = await instance.cloneVolume('images', { source: 'golden.qcow2', name: 'thin.qcow2', linked: true })
  expect(linked.backing).toBe(golden.path)
  expect(await instance.cloneVolume('images', { source: 'golden.qcow2', name: 'copy.raw' })).toMatchObject({ format: 'raw', capacity: 4 * MIB })
  expect(await instance.resizeVolume('images', 'copy.raw', { capacity: 8 * MIB })).toMatchObject({ capacity: 8 * MIB })
  for (const [call, Class, code] of [
    [() => instance.deleteVolume('images', 'golden.qcow2'), StorageError, 'IMAGE_IN_USE'],
    [() => instance.deleteVolume('images', '../golden.qcow2'), LifecycleError, 'INVALID_CONFIG'],
    [() => instance.deleteVolume('images', 7), LifecycleError, 'INVALID_CONFIG'],
    [() => instance.createVolume('images', { name: 'golden.qcow2', capacity: 512 }), StorageError, 'IMAGE_ALREADY_EXISTS'],
    [() => instance.createVolume('images', { name: 'a.qcow2', capacity: NaN }), LifecycleError, 'INVALID_CONFIG'],
    [() => instance.createVolume('images', { name: 'a.qcow2', capacity: 512, size: 1 }), LifecycleError, 'INVALID_CONFIG'],
    [() => instance.createVolume('images', { name: 'a.raw', capacity: 512, signal: AbortSignal.abort() }), StorageError, 'ABORTED'],
    [() => instance.resizeVolume('images', 'copy.raw', { capacity: 512 }), StorageError, 'DATA_LOSS_REFUSED'],
    [() => instance.definePool('images', { path: directory }), StorageError, 'POOL_ALREADY_EXISTS'],
    [() => instance.definePool('other', { path: directory }), StorageError, 'POOL_ALREADY_EXISTS'],
    [() => instance.listVolumes('none'), StorageError, 'POOL_NOT_FOUND']
  ]) {
    const error = await rejection(call())
    expect([String(call), error.code]).toEqual([String(call), code])
    expect(error).toBeInstanceOf(Class)
  }
  expect((await instance.listVolumes('images')).map(({ name, overlays }) => [name, overlays])).toEqual([
    ['copy.raw', []], ['golden.qcow2', [linked.path]], ['thin.qcow2', []]
  ])
  for (const name of ['thin.qcow2', 'golden.qcow2', 'copy.raw']) expect(await instance.deleteVolume('images', name)).toBeNull()
  expect(await instance.undefinePool('images')).toBeNull()
  expect(await instance.listPools()).toEqual([])
})
