'use strict'

const { once } = require('node:events')
const { QMPError } = require('../..')
const { cleanUp, guestDir, host, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

let instance
beforeEach(async () => { instance = await openInstance() })

test('any command, and its answer as QEMU has it', async () => {
  const { vmId } = await running(instance)
  const qmp = instance.getQMPClient(vmId)
  expect(qmp.isConnected()).toBe(true)
  expect(qmp.isReconnecting()).toBe(false)
  expect(qmp.getGreeting().QMP.version.qemu).toEqual({ major: expect.any(Number), minor: expect.any(Number), micro: expect.any(Number) })
  expect(await qmp.execute('query-name')).toMatchObject({ name: vmId })
  expect(await qmp.execute('human-monitor-command', { 'command-line': 'info status' })).toContain('running')
  expect(await qmp.queryStatus()).toMatchObject({ running: true, status: 'running' })
  expect(await qmp.queryCpus()).toMatchObject([{ 'cpu-index': 0, 'thread-id': expect.any(Number) }])
  expect(await qmp.queryBlock()).toMatchObject([{ inserted: { drv: 'qcow2' } }])
  expect(Object.getPrototypeOf(await qmp.queryStatus())).toBe(Object.prototype)
})

test('QEMU\'s refusals, and commands that are none', async () => {
  const { vmId } = await running(instance)
  const qmp = instance.getQMPClient(vmId)
  const error = await rejection(qmp.execute('no-such-command'))
  expect(error).toBeInstanceOf(QMPError)
  expect(error).toMatchObject({ code: 'QMP_COMMAND_FAILED', context: { class: 'CommandNotFound' } })
  expect(error.message).toMatch(/^QMP error: .* \(CommandNotFound\)/)
  expect(await rejection(qmp.execute('a"b'))).toMatchObject({ code: 'QMP_ARGUMENTS' })
  expect(await rejection(qmp.execute('query-status', []))).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await rejection(qmp.execute('device_add', { driver: 5n }))).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'driver' }] } })
  expect(await rejection(qmp.queryBalloon())).toMatchObject({ code: 'QMP_COMMAND_FAILED' })
})

test('B43: text in an argument is text', async () => {
  const { vmId } = await running(instance)
  const given = '"}, "execute": "quit", "x": {"'
  const error = await rejection(instance.getQMPClient(vmId).execute('device_del', { id: given }))
  expect(error.message).toContain(given)
  expect((await instance.getVMStatus(vmId)).processAlive).toBe(true)
})

test('the balloon goes where it is told', async () => {
  const { vmId } = await running(instance, { memoryBalloon: true })
  const qmp = instance.getQMPClient(vmId)
  expect(await qmp.queryBalloon()).toEqual({ actual: 2 ** 29 })
  expect(await qmp.balloon(2 ** 28)).toBeUndefined()
  expect(await rejection(qmp.balloon('x'))).toMatchObject({ code: 'QMP_COMMAND_FAILED' })
})

test('every event of QEMU arrives, under its name and as "event"', async () => {
  const { vmId } = await running(instance, { memoryBalloon: true })
  const qmp = instance.getQMPClient(vmId)
  const whole = []
  qmp.on('event', (event) => whole.push(event))
  const stopped = once(qmp, 'STOP')
  await qmp.stop()
  const [data, timestamp] = await stopped
  expect(data).toEqual({})
  expect(timestamp).toEqual({ seconds: expect.any(Number), microseconds: expect.any(Number) })
  const closed = once(qmp, 'BLOCK_JOB_COMPLETED')
  await qmp.execute('block-commit', { 'job-id': 'j', device: 'disk0' }).catch(() => qmp.execute('block-stream', { 'job-id': 'j', device: 'disk0' }))
  expect((await closed)[0]).toMatchObject({ device: 'j' })
  expect(whole[0]).toEqual({ event: 'STOP', data: {}, timestamp })
  expect(whole.map(({ event }) => event)).toContain('JOB_STATUS_CHANGE')
})

test('it is one object per run of QEMU, and ends with it', async () => {
  const { vmId } = await running(instance)
  const qmp = instance.getQMPClient(vmId)
  expect(instance.getQMPClient(vmId)).toBe(qmp)
  expect(instance.getEventHandler().getQMPClient(vmId)).toBe(qmp)
  expect(instance.getEventHandler().getAttachedVMs()).toEqual([vmId])
  const ended = once(qmp, 'disconnect')
  await instance.stopVM(vmId, { graceful: false })
  await ended
  expect(qmp.isConnected()).toBe(false)
  expect(instance.getQMPClient(vmId)).toBeUndefined()
  expect(await rejection(qmp.queryStatus())).toMatchObject({ code: 'QMP_DISCONNECTED' })
  await instance.startVM(vmId)
  const second = instance.getQMPClient(vmId)
  expect(second).not.toBe(qmp)
  expect(await second.queryStatus()).toMatchObject({ running: true })
  expect(qmp.isConnected()).toBe(false)
})

test('B20: what is no id has no monitor', () => {
  for (const given of [undefined, null, 5, {}, '', 'no-such-vm', '../x']) expect(instance.getQMPClient(given)).toBeUndefined()
})

test('a medium is listed as the consumer reads it, and ejected by what was listed', async () => {
  const isoPath = `${guestDir}/tiny-install.iso`
  const { vmId, diskPaths } = await running(instance, { isoPath })
  const devices = await instance.queryBlockDevices(vmId)
  expect(devices.map(({ removable, device, inserted }) => [removable, device, inserted?.file]).sort()).toEqual([
    [false, 'disk0', diskPaths[0]], [true, expect.any(String), isoPath]
  ])
  const { device } = devices.find(({ removable }) => removable)
  expect(await instance.ejectCdrom(vmId, device)).toBeUndefined()
  expect((await instance.queryBlockDevices(vmId)).find((other) => other.device === device).inserted).toBeUndefined()
  await instance.ejectCdrom(vmId, device)
  await instance.getQMPClient(vmId).eject(device)
  expect(await rejection(instance.ejectCdrom(vmId, 'disk0'))).toMatchObject({ name: 'QMPError', code: 'QMP_COMMAND_FAILED' })
  expect(await rejection(instance.ejectCdrom(vmId, 'no-such-device'))).toMatchObject({ code: 'QMP_COMMAND_FAILED' })
  expect(await rejection(instance.ejectCdrom('no-such-vm', device))).toMatchObject({ code: 'VM_NOT_FOUND', message: expect.stringMatching(/not found/i) })
  expect(await rejection(instance.queryBlockDevices('no-such-vm'))).toMatchObject({ code: 'VM_NOT_FOUND' })
})

test('F3: a QEMU that hangs answers nobody, holds up no other, and is ended by force', async () => {
  const { vmId, pid } = await running(instance)
  const other = await running(instance)
  process.kill(pid, 'SIGSTOP')
  expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'running', qmpStatus: null, processAlive: true })
  expect(await instance.getVMStatus(other.vmId)).toMatchObject({ qmpStatus: 'running' })
  expect(await instance.stopVM(vmId, { graceful: false, force: true })).toMatchObject({ forced: true })
  expect(host.isAlive(pid)).toBe(false)
})
