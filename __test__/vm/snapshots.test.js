'use strict'

// Snapshots of machines; what they do to disks and memory is tested in the core.

const { LifecycleError, StorageError } = require('../..')
const { cleanUp, openInstance, rejection, running } = require('../kit')

jest.setTimeout(120_000)

afterEach(cleanUp)

test('taken, listed, reverted and deleted, while the machine runs and while it is off', async () => {
  const crud = []
  const instance = await openInstance({ eventManager: { emitCRUD: (...args) => crud.push(args) } })
  const { vmId, diskPaths } = await running(instance)
  const done = { success: true, vmId, timestamp: expect.any(Date) }
  expect(await instance.createSnapshot(vmId, { name: 'disks', description: 'for a test' })).toMatchObject(done)
  expect(await instance.createSnapshot(vmId, { name: 'all', memory: true })).toMatchObject(done)
  const listed = await instance.listSnapshots(vmId)
  const one = { date: expect.any(String), vmClock: expect.any(String), complete: true, disks: diskPaths }
  expect(listed).toEqual([
    { ...one, name: 'disks', description: 'for a test', memory: false, vmSize: 0 },
    { ...one, name: 'all', memory: true, vmSize: expect.any(Number) }
  ])
  expect(await instance.revertSnapshot(vmId, 'all')).toMatchObject(done)
  expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'running', consistent: true })
  const refusal = await rejection(instance.revertSnapshot(vmId, 'disks'))
  expect(refusal).toBeInstanceOf(LifecycleError)
  expect(refusal).toMatchObject({ code: 'INVALID_STATE', vmId })

  await instance.stopVM(vmId, { graceful: false })
  expect(await instance.listSnapshots(vmId)).toEqual(listed)
  expect(await instance.revertSnapshot(vmId, 'all')).toMatchObject({ ...done, warnings: [expect.stringMatching(/only its disks/)] })
  await instance.deleteSnapshot(vmId, 'all')
  await instance.deleteSnapshot(vmId, 'disks')
  expect(await instance.listSnapshots(vmId)).toEqual([])
  const told = crud.filter(([, , , data]) => data?.type === 'snapshot').map(([, , , { action, name }]) => `${action} ${name}`)
  expect(told).toEqual(['create disks', 'create all', 'revert all', 'revert all', 'delete all', 'delete disks'])
})

test('a tree of overlays: taken, branched, committed and deleted', async () => {
  const crud = []
  const instance = await openInstance({ eventManager: { emitCRUD: (...args) => crud.push(args) } })
  const { vmId, diskPaths } = await running(instance)
  const done = { success: true, vmId, timestamp: expect.any(Date) }
  expect(await instance.snapshotTree(vmId)).toMatchObject({ current: null, snapshots: [], active: diskPaths.map((path) => ({ path })) })
  expect(await instance.createSnapshot(vmId, { name: 'a', kind: 'external', description: 'first' })).toMatchObject(done)
  expect(await instance.createSnapshot(vmId, { name: 'b', kind: 'external' })).toMatchObject(done)
  const layer = { path: expect.any(String), allocation: expect.any(Number) }
  const tree = await instance.snapshotTree(vmId)
  const node = { date: expect.any(String), complete: true, layers: [layer] }
  expect(tree).toEqual({
    current: 'b',
    active: [layer],
    snapshots: [
      { ...node, name: 'a', description: 'first', parent: null, children: ['b'], current: false },
      { ...node, name: 'b', parent: 'a', children: [], current: true }
    ]
  })
  expect(tree.snapshots[0].layers[0].path).toBe(diskPaths[0])
  for (const [call, code, context] of [
    [() => instance.revertSnapshot(vmId, 'a'), 'DATA_LOSS_REFUSED', {}],
    [() => instance.revertSnapshot(vmId, 'a', { keep: '7', restart: true }), 'INVALID_SNAPSHOT_NAME', {}],
    [() => instance.deleteSnapshot(vmId, 'a'), 'SNAPSHOT_HAS_CHILDREN', { children: ['b'] }],
    [() => instance.deleteSnapshot(vmId, 'b'), 'SNAPSHOT_HAS_CHILDREN', { children: ['(active)'] }],
    [() => instance.commitSnapshot(vmId, 'none'), 'SNAPSHOT_NOT_FOUND', {}]
  ]) {
    const error = await rejection(call())
    expect(error).toBeInstanceOf(StorageError)
    expect([String(call), error.code]).toEqual([String(call), code])
    expect(error.context ?? {}).toMatchObject(context)
  }
  for (const [call, code] of [
    [() => instance.createSnapshot(vmId, { name: 'c', kind: 'external', memory: true }), 'INVALID_CONFIG'],
    [() => instance.createSnapshot(vmId, { name: 'c', kind: 'outer' }), 'INVALID_CONFIG'],
    [() => instance.deleteSnapshot(vmId, 'a', { children: 'both' }), 'INVALID_CONFIG'],
    [() => instance.commitSnapshot(vmId, 'a'), 'INVALID_STATE'],
    [() => instance.commitSnapshot(vmId, 'b', { signal: AbortSignal.abort() }), 'ABORTED']
  ]) {
    const error = await rejection(call())
    expect(error).toBeInstanceOf(LifecycleError)
    expect([String(call), error.code]).toEqual([String(call), code])
  }
  expect(await instance.commitSnapshot(vmId, 'b')).toMatchObject(done)
  await instance.stopVM(vmId, { graceful: false })
  expect(await instance.revertSnapshot(vmId, 'a', { keep: 'tip' })).toMatchObject(done)
  expect((await instance.getVM(vmId)).diskPaths).toEqual((await instance.snapshotTree(vmId)).active.map(({ path }) => path))
  await instance.deleteSnapshot(vmId, 'tip')
  await instance.deleteSnapshot(vmId, 'a', { children: 'rebase' })
  expect((await instance.snapshotTree(vmId)).snapshots).toEqual([])
  const told = crud.filter(([, , , data]) => data?.type === 'snapshot').map(([, , , { action, name }]) => `${action} ${name}`)
  expect(told).toEqual(['create a', 'create b', 'commit b', 'revert a', 'delete tip', 'delete a'])
})

test('B16, B17, B20, F52: what cannot be is refused by class and code', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  await instance.createSnapshot(vmId, { name: 'taken' })
  for (const [call, Class, code] of [
    [() => instance.createSnapshot(vmId, { name: 'taken' }), StorageError, 'SNAPSHOT_ALREADY_EXISTS'],
    [() => instance.createSnapshot(vmId, { name: '7' }), StorageError, 'INVALID_SNAPSHOT_NAME'],
    [() => instance.createSnapshot(vmId), LifecycleError, 'INVALID_CONFIG'],
    [() => instance.createSnapshot(vmId, { name: 'a', memory: 1 }), LifecycleError, 'INVALID_CONFIG'],
    [() => instance.createSnapshot(vmId, { name: 'a', signal: AbortSignal.abort() }), LifecycleError, 'ABORTED'],
    [() => instance.createSnapshot('nobody', { name: 'a' }), LifecycleError, 'VM_NOT_FOUND'],
    [() => instance.listSnapshots('nobody'), LifecycleError, 'VM_NOT_FOUND'],
    [() => instance.revertSnapshot(vmId, 'unknown'), StorageError, 'SNAPSHOT_NOT_FOUND'],
    [() => instance.revertSnapshot(vmId, 7), LifecycleError, 'INVALID_CONFIG'],
    [() => instance.deleteSnapshot(vmId, 'a/b'), StorageError, 'INVALID_SNAPSHOT_NAME']
  ]) {
    const error = await rejection(call())
    expect(error).toBeInstanceOf(Class)
    expect([String(call), error.code]).toEqual([String(call), code])
  }
  expect(await instance.listSnapshots(vmId)).toHaveLength(1)
})
