'use strict'

const { QMPClient, StateSync } = require('../..')
const { cleanUp, finally_, rejection } = require('../kit')
const { newQemu } = require('../kit/qemu')
const { Rows } = require('../kit/memory-adapter')

afterEach(cleanUp)

test('the mapping is pure: it does not touch the database', () => {
  const touched = new Proxy({}, { get () { throw new Error('touched') }, has () { throw new Error('touched') } })
  for (const state of [new StateSync({}), new StateSync(touched)]) {
    const table = {
      running: 'running', paused: 'suspended', shutdown: 'off', inmigrate: 'starting', postmigrate: 'suspended', prelaunch: 'starting',
      'finish-migrate': 'suspended', 'restore-vm': 'starting', suspended: 'suspended', watchdog: 'error', 'guest-panicked': 'error',
      'io-error': 'error', colo: 'running', debug: 'error', levitating: 'error'
    }
    expect(Object.fromEntries(Object.keys(table).map((word) => [word, state.mapQMPStatusToDBStatus(word)]))).toEqual(table)
    expect(() => state.mapQMPStatusToDBStatus(5)).toThrow(expect.objectContaining({ code: 'INVALID_CONFIG' }))
  }
})

test('a row is brought in step with QEMU, but not over a claim', async () => {
  const qemu = await newQemu()
  const client = new QMPClient(qemu.socket)
  finally_(() => client.disconnect())
  const rows = new Rows().add('vm-1', { status: 'running', pid: qemu.pid, tap: 'vnet-x' }).add('vm-2', { status: 'error' })
  const state = new StateSync(rows)
  const result = (success, previousStatus, newStatus, error) => ({
    success, vmId: 'vm-1', previousStatus, newStatus, timestamp: expect.any(Date), ...error && { error: expect.stringMatching(error) }
  })
  expect(await state.syncState('vm-1', client)).toEqual(result(false, 'unknown', 'unknown', /^QMP_UNAVAILABLE: .*not connected/))
  expect(await state.syncState('vm-1', {})).toEqual(result(false, 'unknown', 'unknown', /^QMP_UNAVAILABLE: client must be a QMPClient/))
  await client.connect()
  expect(await state.syncState('vm-1', client)).toEqual(result(true, 'running', 'starting'))
  await client.cont()
  expect(await state.syncState('vm-1', client)).toEqual(result(true, 'starting', 'running'))
  expect(await state.syncState('vm-2', client)).toMatchObject({ success: true, newStatus: 'error' })
  expect(await state.syncState('vm-3', client)).toMatchObject({ success: false, error: expect.stringMatching(/^VM_NOT_FOUND: VM vm-3 not found/) })
  expect([rows.get('vm-1').status, rows.get('vm-2').status]).toEqual(['running', 'error'])
  rows.fail()
  expect(await state.syncState('vm-1', client)).toEqual(result(false, 'unknown', 'unknown', /^DB_ERROR: .*on fire/))
})

test('one row, one question', async () => {
  const rows = new Rows().add('vm-1', { status: 'running', pid: 4711, tap: 'vnet-x', socket: '/run/x.sock' })
  const state = new StateSync(rows)
  expect(await state.getVMStatus('vm-1')).toBe('running')
  expect(await rejection(state.getVMStatus('vm-2'))).toMatchObject({ name: 'LifecycleError', code: 'VM_NOT_FOUND', message: expect.stringContaining('not found') })
  expect([await state.getVMPid('vm-1'), await state.getVMPid('vm-2')]).toEqual([4711, null])
  expect([await state.getVMInfo('vm-1'), await state.getVMInfo('vm-2')]).toEqual([{ tapDeviceName: 'vnet-x', hasCpuPinning: false }, null])
  await state.updateVMStatus('vm-1', 'suspended')
  expect(await state.updateStatusDirect('vm-1', 'suspended')).toMatchObject({ success: true, previousStatus: 'suspended', newStatus: 'suspended' })
  expect(await state.updateStatusDirect('vm-1', 'off')).toMatchObject({ success: true, previousStatus: 'suspended', newStatus: 'off' })
  expect(await state.updateStatusDirect('vm-1', 'happy')).toMatchObject({ success: false, error: expect.stringMatching(/^INVALID_STATUS/) })
  expect(rows.calls).toEqual([['vm-1', 'suspended'], ['vm-1', 'off']])
  await state.clearVolatileMachineConfiguration('vm-1')
  expect(rows.get('vm-1')).toMatchObject({ pid: null, socket: null, tap: 'vnet-x' })
})

test('B20: what is wrong with arguments is in the result', async () => {
  const state = new StateSync(new Rows().add('vm-1'))
  const refused = (vmId, error) => ({ success: false, vmId, previousStatus: 'unknown', newStatus: 'unknown', timestamp: expect.any(Date), error: expect.stringMatching(error) })
  for (const ask of [(...args) => state.syncState(...args), (...args) => state.updateStatusDirect(...args)]) {
    expect(await ask('../x', 'off')).toEqual(refused('../x', /^VM_NOT_FOUND: vmId/))
    expect(await ask(5, 'off')).toEqual(refused('', /^VM_NOT_FOUND: vmId/))
  }
  expect(await state.updateStatusDirect('vm-1', 5)).toEqual(refused('vm-1', /^INVALID_STATUS: status/))
  expect(await new StateSync().updateStatusDirect('vm-1', 'off')).toEqual(refused('vm-1', /^DB_ERROR: db/))
})

test('a claim that comes before the write is what the row says', async () => {
  const qemu = await newQemu()
  const client = new QMPClient(qemu.socket)
  finally_(() => client.disconnect())
  await client.connect()
  const rows = new Rows().add('vm-1', { status: 'running' })
  const write = rows.updateMachineStatus
  rows.updateMachineStatus = async (...args) => { rows.set('vm-1', { status: 'backing_up' }); await write.apply(rows, args) }
  expect(await new StateSync(rows).syncState('vm-1', client)).toMatchObject({ success: true, previousStatus: 'running', newStatus: 'backing_up' })
})

test('B20: no database, and one without the methods', async () => {
  expect(await rejection(new StateSync().getVMStatus('vm-1'))).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await rejection(new StateSync({}).getVMStatus('vm-1'))).toMatchObject({ name: 'PrismaAdapterError', message: expect.stringContaining('findMachine') })
})
