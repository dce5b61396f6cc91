'use strict'

// One guest from its creation to its deletion: each test goes on where the one before it ended.

const { once } = require('node:events')
const { existsSync } = require('node:fs')
const { SnapshotManager } = require('../..')
const { cleanUp, files, host, openInstance, rejection } = require('../kit')
const { booted, guest, page, portState } = require('../kit/guest')

jest.setTimeout(120_000)

let instance, vm, address
const crud = []

beforeAll(async () => {
  instance = await openInstance({ eventManager: { emitCRUD: (...args) => crud.push(args) } })
  vm = await guest(instance, {
    firewallRules: [
      { id: 'web', name: 'web', action: 'ACCEPT', direction: 'IN', priority: 100, protocol: 'tcp', dstPortStart: 80 }
    ]
  })
  address = await booted(vm)
})

afterAll(cleanUp)

const status = () => instance.getVMStatus(vm.vmId)

test('it runs, and everything agrees on that', async () => {
  expect(vm).toMatchObject({
    success: true, accelerator: 'tcg', warnings: [], displayPort: expect.any(Number), tapDevice: expect.stringMatching(/^vnet-[0-9a-f]{10}$/)
  })
  expect(await status()).toEqual({
    vmId: vm.vmId, status: 'running', qmpStatus: 'running', pid: vm.pid, uptime: expect.any(Number), processAlive: true, unresponsive: false,
    consistent: true, condition: null, missedEvents: 0, tapDevice: vm.tapDevice, qmpSocketPath: vm.qmpSocketPath
  })
  expect(instance.getActiveVMs()).toEqual([vm.vmId])
  expect(host.isAlive(vm.pid)).toBe(true)
  expect(vm.diskPaths.concat(vm.pidFilePath, vm.qmpSocketPath).filter((file) => !existsSync(file))).toEqual([])
})

test('the allowed port answers, every other is silent', async () => {
  expect(await page(address)).toBe('tiny-guest-ok')
  expect(await portState(address, 22)).toBe('silent')
  expect(await portState(address, 3389)).toBe('silent')
})

test('rules are changed while it runs', async () => {
  const ssh = { id: 'ssh', name: 'ssh', action: 'ACCEPT', direction: 'IN', priority: 1, protocol: 'tcp', dstPortStart: 22 }
  expect(await instance.setFirewallRules(vm.vmId, [ssh])).toMatchObject({ success: true })
  expect(await portState(address, 22)).toBe('open')
  expect(await portState(address, 80)).toBe('silent')
  const error = await rejection(instance.setFirewallRules(vm.vmId, [ssh, { ...ssh, id: 'typo', name: 'typo', action: 'allow' }]))
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', message: expect.stringContaining('typo'), context: { issues: [{ path: 'rules[1].action' }] } })
  expect(await portState(address, 22)).toBe('open')
  await instance.setFirewallRules(vm.vmId, [{ ...ssh, name: 'web', dstPortStart: 80 }])
  expect((await instance.getVM(vm.vmId)).firewallRules).toMatchObject([{ name: 'web', dstPortStart: 80 }])
})

describe('guestExec', () => {
  test('runs a program and tells how it ended', async () => {
    const result = await instance.guestExec(vm.vmId, vm.agent, 'sh', ['-c', 'echo "€ out"; echo err >&2; exit 3'])
    expect(result).toEqual({ stdout: '€ out\n', stderr: 'err\n', exitCode: 3 })
  })

  test('arguments are no shell text', async () => {
    const { stdout } = await instance.guestExec(vm.vmId, vm.agent, 'echo', ['a b', '$(reboot)', ';'])
    expect(stdout).toBe('a b $(reboot) ;\n')
  })

  test('one that runs too long ends the wait', async () => {
    const error = await rejection(instance.guestExec(vm.vmId, vm.agent, 'sleep', ['60'], { timeout: 300 }))
    expect(error).toMatchObject({ name: 'QMPError', code: 'AGENT_TIMEOUT', vmId: vm.vmId })
  })

  test('F39: no such program, and no agent at all', async () => {
    expect(await rejection(instance.guestExec(vm.vmId, vm.agent, '/no/such/program'))).toMatchObject({ code: 'AGENT_COMMAND_FAILED' })
    expect(await rejection(instance.guestExec(vm.vmId, `${vm.agent}.none`, 'ls'))).toMatchObject({ code: 'AGENT_CONNECT_FAILED' })
  })
})

test('suspended it is silent, resumed it answers', async () => {
  expect(await instance.suspendVM(vm.vmId)).toMatchObject({ success: true, vmId: vm.vmId, timestamp: expect.any(Date) })
  expect(await status()).toMatchObject({ status: 'suspended', qmpStatus: 'paused', consistent: true })
  expect(await portState(address, 80)).toBe('silent')
  expect(await rejection(instance.suspendVM(vm.vmId))).toMatchObject({
    code: 'INVALID_STATE', vmId: vm.vmId, context: { currentStatus: 'suspended', allowedStatuses: ['running'] }
  })
  await instance.resumeVM(vm.vmId)
  expect(await status()).toMatchObject({ status: 'running', qmpStatus: 'running' })
  expect(await page(address)).toBe('tiny-guest-ok')
})

test('the guest shuts down by the power button', async () => {
  expect(await instance.stopVM(vm.vmId, { graceful: true, timeout: 60_000, force: false })).toMatchObject({ success: true, forced: false })
  expect(await status()).toMatchObject({
    status: 'off', qmpStatus: null, pid: null, processAlive: false, consistent: true, lastExit: { reason: 'guest-shutdown' }
  })
  expect(host.isAlive(vm.pid)).toBe(false)
  expect(existsSync(vm.qmpSocketPath) || existsSync(vm.pidFilePath)).toBe(false)
  expect(await instance.stopVM(vm.vmId)).toMatchObject({ success: true })
})

test('a snapshot is taken while it is off', async () => {
  const snapshots = new SnapshotManager()
  await snapshots.createSnapshot({ imagePath: vm.diskPaths[0], name: 'after-first-boot' })
  expect(await snapshots.snapshotExists(vm.diskPaths[0], 'after-first-boot')).toBe(true)
})

test('it starts again until its guest is up, and twice is once', async () => {
  expect(await instance.startVM(vm.vmId, { waitForBoot: true, bootTimeout: 90_000 })).toMatchObject({ success: true, vmId: vm.vmId })
  expect(await instance.guestExec(vm.vmId, vm.agent, 'true')).toMatchObject({ exitCode: 0 })
  const { pid } = await status()
  expect(await instance.startVM(vm.vmId)).toMatchObject({ success: true })
  expect((await status()).pid).toBe(pid)
  expect(pid).not.toBe(vm.pid)
})

test('F1: killed, it is noticed and cleaned up after', async () => {
  const { pid } = await status()
  const crashed = once(instance.getHealthMonitor(), 'crash')
  process.kill(pid, 'SIGKILL')
  const [event] = await crashed
  expect(event).toEqual({
    vmId: vm.vmId, pid, lastKnownStatus: 'running', detectedAt: expect.any(Date), cleanupPerformed: true,
    cause: { reason: 'signal', signal: 9, endedAt: expect.any(Date) }, cleanupResult: expect.objectContaining({ vmId: vm.vmId, failedCleanups: 0 })
  })
  expect(await status()).toMatchObject({ status: 'off', processAlive: false, lastExit: { reason: 'signal', signal: 9 } })
  expect(existsSync(vm.qmpSocketPath) || existsSync(vm.pidFilePath)).toBe(false)
  expect(host.links()).toContain(vm.tapDevice)
  expect(host.dispatched().filter((element) => element.startsWith(vm.tapDevice))).toEqual([])
  expect(existsSync(vm.diskPaths[0])).toBe(true)
})

test('restarted from off it runs', async () => {
  expect(await instance.restartVM(vm.vmId)).toMatchObject({ success: true })
  expect((await status()).status).toBe('running')
})

test('reset, it stays one process', async () => {
  const { pid } = await status()
  expect(await instance.resetVM(vm.vmId)).toMatchObject({ success: true })
  expect((await status()).pid).toBe(pid)
})

test('destroyed, its disk and its row stay; deleted, nothing does', async () => {
  expect(await instance.destroyVM(vm.vmId)).toMatchObject({ success: true })
  expect(await instance.destroyVM(vm.vmId)).toMatchObject({ success: true })
  expect(await status()).toMatchObject({ status: 'off', processAlive: false })
  expect(host.links()).not.toContain(vm.tapDevice)
  expect(existsSync(vm.diskPaths[0])).toBe(true)
  expect(await instance.listVMs()).toMatchObject([{ vmId: vm.vmId, status: 'off', processAlive: false, createdAt: expect.any(Date) }])
  expect(await instance.deleteVM(vm.vmId, { deleteDisks: true })).toMatchObject({ success: true })
  expect(await rejection(status())).toMatchObject({ code: 'VM_NOT_FOUND' })
  expect(await instance.getVM(vm.vmId)).toBeNull()
  // Its journal outlives it.
  expect(files(instance.stateDir).filter((file) => file.includes(vm.vmId))).toEqual([`journals/${vm.vmId}.jsonl`])
})

test('all of it was told to the event manager', () => {
  const told = crud.map(([resource, action, id, ...data]) => {
    expect([resource, id]).toEqual(['machines', vm.vmId])
    return [action, ...data]
  })
  const started = { pid: expect.any(Number), tapDevice: vm.tapDevice }
  expect(told).toEqual([
    ['create', { pid: vm.pid, tapDevice: vm.tapDevice }], ['suspend'], ['resume'], ['power_off', { forced: false }],
    ['power_on', started], ['crash'], ['power_on', started], ['update', { type: 'hardware' }],
    ['power_off', { forced: true }]
  ])
})
