'use strict'

const { spawn } = require('node:child_process')
const { EventEmitter, once } = require('node:events')
const { existsSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { EventHandler, HealthMonitor, KeyedMutex, TapDeviceManager } = require('../..')
const { cleanUp, finally_, host, newBridge, newDirectory, openInstance, rejection, running, runNode, unique, warning } = require('../kit')
const { newQemu } = require('../kit/qemu')
const { Rows } = require('../kit/memory-adapter')

afterEach(cleanUp)

// A monitor over rows and a directory of pidfiles; what it emits is kept in `told`.
function newMonitor (config = {}) {
  const [rows, pidfileDir] = [new Rows(), newDirectory()]
  const monitor = new HealthMonitor(rows, { pidfileDir, ...config })
  finally_(() => monitor.stop())
  const told = []
  for (const name of ['crash', 'orphan-detected', 'cleanup-alert', 'check-complete', 'reconcile-complete', 'error']) monitor.on(name, (data) => told.push([name, data]))
  const pidfile = (name, content) => {
    const file = path.join(pidfileDir, `${name}.pid`)
    writeFileSync(file, `${content}\n`)
    return file
  }
  return { monitor, rows, pidfile, told, pidfileDir }
}

// A QEMU with a pidfile in the monitor's directory.
async function withPidfile (monitor) {
  const qemu = await newQemu()
  return { ...qemu, file: monitor.pidfile(qemu.name, qemu.pid) }
}

// A process that is no QEMU, with the pid that a row still has.
function innocent () {
  const child = spawn('sleep', ['600'])
  finally_(async () => { child.kill('SIGKILL'); await once(child, 'exit') })
  return child.pid
}

test('F1: a crash: row, clean-up, callback, event', async () => {
  const onCrashDetected = jest.fn(async () => { throw new Error('callback') })
  const told = warning(/onCrashDetected failed: Error: callback/)
  const it = newMonitor({ onCrashDetected })
  expect(it.monitor).toBeInstanceOf(EventEmitter)
  const qemu = await withPidfile(it)
  it.rows.add('vm-alive', { pid: qemu.pid, internalName: qemu.name })
  const dead = await withPidfile(it)
  it.rows.add('vm-dead', { pid: dead.pid, internalName: dead.name, status: 'suspended', socket: dead.socket })
  it.rows.add('vm-new', { pid: null })
  expect(await it.monitor.checkAllVMs()).toMatchObject({ totalChecked: 3, alive: 3, crashed: 0, errors: 0, orphansDetected: 0 })
  dead.kill('SIGKILL')
  await dead.ended
  const crashed = once(it.monitor, 'crash')
  const summary = await it.monitor.checkAllVMs()
  expect(summary).toMatchObject({ totalChecked: 3, alive: 2, crashed: 1, errors: 0, timestamp: expect.any(Date) })
  expect(summary.results).toContainEqual({ vmId: 'vm-dead', pid: dead.pid, isAlive: false, status: 'suspended', timestamp: expect.any(Date) })
  const [crash] = await crashed
  expect(crash).toMatchObject({ vmId: 'vm-dead', pid: dead.pid, lastKnownStatus: 'suspended', detectedAt: expect.any(Date), cleanupPerformed: true })
  expect(crash.cleanupResult.resources.map(({ type, status }) => [type, status])).toEqual(
    ['FIREWALL_CHAIN', 'QMP_SOCKET', 'PIDFILE', 'DB_CONFIGURATION'].map((type) => [type, 'SUCCESS'])
  )
  expect(it.rows.get('vm-dead')).toMatchObject({ status: 'off', pid: null, socket: null })
  expect([existsSync(dead.socket), existsSync(dead.file), existsSync(qemu.file)]).toEqual([false, false, true])
  expect(onCrashDetected).toHaveBeenCalledWith('vm-dead')
  await told
})

test('a crashed machine\'s TAP is taken off its bridge and kept', async () => {
  const it = newMonitor()
  const [taps, bridge, vmId] = [new TapDeviceManager(), await newBridge(), unique('vm')]
  const tap = await taps.create(vmId)
  finally_(() => taps.destroy(tap))
  await taps.attachToBridge(tap, bridge)
  const onBridge = () => existsSync(`/sys/class/net/${tap}/master`)
  expect(onBridge()).toBe(true)
  it.rows.add(vmId, { pid: 2 ** 22 - 1, tap })
  expect(await it.monitor.checkAllVMs()).toMatchObject({ crashed: 1 })
  expect([onBridge(), host.links().includes(tap), it.rows.get(vmId).tap]).toEqual([false, true, tap])
})

test('F12: a pid that another process has is a crash, and that process lives', async () => {
  const it = newMonitor()
  const pid = innocent()
  it.rows.add('vm-1', { pid })
  expect(await it.monitor.checkAllVMs()).toMatchObject({ crashed: 1 })
  expect(it.rows.get('vm-1')).toMatchObject({ status: 'off', pid: null })
  expect(host.isAlive(pid)).toBe(true)
})

test('nothing is written over a claim, nor without clean-up touched', async () => {
  const it = newMonitor({ enableCleanup: false })
  const pid = innocent()
  it.rows.add('vm-1', { pid, status: 'running' }).add('vm-2', { pid, status: 'backing_up' }).add('vm-3', { pid, status: 'error' })
  const crashed = once(it.monitor, 'crash')
  expect(await it.monitor.checkAllVMs()).toMatchObject({ totalChecked: 1, crashed: 1 })
  expect((await crashed)[0]).not.toHaveProperty('cleanupResult')
  expect(it.rows.get('vm-1')).toMatchObject({ status: 'off', pid })
  expect([it.rows.get('vm-2').status, it.rows.get('vm-3').status]).toEqual(['backing_up', 'error'])
})

test('I33: a machine that an event handler takes for being installed is not looked at', async () => {
  const it = newMonitor()
  const [handler, vmId] = [new EventHandler(it.rows), unique('vm')]
  it.rows.add(vmId, { pid: 4194303, status: 'running' })
  handler.markInstallInProgress(vmId)
  expect(await it.monitor.checkAllVMs()).toMatchObject({ totalChecked: 0, crashed: 0 })
  expect(it.rows.get(vmId).status).toBe('running')
  handler.clearInstallInProgress(vmId)
  expect(await it.monitor.checkAllVMs()).toMatchObject({ totalChecked: 1, crashed: 1 })
  expect(it.rows.get(vmId).status).toBe('off')
})

test('a machine whose lock is taken is left to whoever has it', async () => {
  const vmLock = new KeyedMutex()
  const it = newMonitor({ vmLock })
  it.rows.add('vm-1', { pid: innocent() })
  await vmLock.runExclusive('vm-1', async () => {
    expect(await it.monitor.checkAllVMs()).toMatchObject({ alive: 1, crashed: 0 })
  })
  expect(await it.monitor.checkAllVMs()).toMatchObject({ crashed: 1 })
  expect(vmLock.activeKeyCount).toBeLessThan(2)
})

test('F32: a database that fails: nothing is touched', async () => {
  const it = newMonitor()
  const qemu = await withPidfile(it)
  it.rows.fail()
  expect(await rejection(it.monitor.checkAllVMs())).toMatchObject({ name: 'PrismaAdapterError', code: 'QUERY_FAILED' })
  expect(await it.monitor.checkOrphanProcesses()).toEqual([])
  expect(host.isAlive(qemu.pid)).toBe(true)
  const failed = once(it.monitor, 'error')
  await it.monitor.start()
  expect(await failed).toEqual([{ message: expect.stringContaining('on fire'), timestamp: expect.any(Date) }])
})

describe('pidfiles', () => {
  test('of nothing and of the dead are removed; of others are left', async () => {
    const it = newMonitor()
    const [garbage, dead, foreign] = [it.pidfile('vm-1', 'garbage'), it.pidfile('vm-2', 2 ** 22 - 1), it.pidfile('vm-3', innocent())]
    const summary = await it.monitor.checkAllVMs()
    expect(summary).toMatchObject({ orphansDetected: 0, orphansCleaned: 2 })
    expect([garbage, dead, foreign].map(existsSync)).toEqual([false, false, true])
  })

  test('a QEMU without a row is ended', async () => {
    const it = newMonitor()
    const qemu = await withPidfile(it)
    const [orphan] = await it.monitor.checkOrphanProcesses()
    expect(orphan).toEqual({
      vmId: qemu.name, pid: qemu.pid, dbStatus: null, pidfilePath: qemu.file, detectedAt: expect.any(Date), killed: true, cleanupPerformed: true
    })
    await qemu.ended
    expect(existsSync(qemu.file)).toBe(false)
  })

  test('one whose row says off is ended when it is seen again', async () => {
    const it = newMonitor()
    const qemu = await withPidfile(it)
    it.rows.add('vm-1', { internalName: qemu.name, status: 'off' })
    expect(await it.monitor.checkOrphanProcesses()).toMatchObject([{ vmId: 'vm-1', dbStatus: 'off', killed: false }])
    expect(await it.monitor.checkOrphanProcesses()).toMatchObject([{ vmId: 'vm-1', dbStatus: 'off', killed: true, cleanupPerformed: true, cleanupResult: { failedCleanups: 0 } }])
    await qemu.ended
  })

  test.each(['suspended', 'paused', 'error', 'backing_up', 'running'])('one whose row says %s is told, never ended', async (status) => {
    const it = newMonitor()
    const qemu = await withPidfile(it)
    it.rows.add('vm-1', { internalName: qemu.name, status })
    for (let scan = 0; scan < 3; scan++) expect(await it.monitor.checkOrphanProcesses()).toMatchObject([{ vmId: 'vm-1', dbStatus: status, killed: false }])
    expect(host.isAlive(qemu.pid)).toBe(true)
    expect(it.rows.get('vm-1').status).toBe(status)
  })

  test.each([['starting', null], ['rebuilding', null], ['running', 'own'], ['suspended', 'own'], ['error', 'own']])('one whose row says %s (pid: %s) is no orphan', async (status, pid) => {
    const it = newMonitor()
    const qemu = await withPidfile(it)
    it.rows.add('vm-1', { internalName: qemu.name, status, pid: pid && qemu.pid })
    expect(await it.monitor.checkOrphanProcesses()).toEqual([])
  })
})

test('reconciling', async () => {
  const it = newMonitor()
  const qemu = await withPidfile(it)
  it.rows.add('vm-live', { internalName: qemu.name, status: 'starting', pid: qemu.pid })
  it.rows.add('vm-gone', { status: 'starting', pid: 2 ** 22 - 1 }).add('vm-none', { status: 'powering_off_update' })
  it.rows.add('vm-rebuilt', { status: 'rebuilding' }).add('vm-other', { status: 'deleting' })
  const complete = once(it.monitor, 'reconcile-complete')
  const summary = await it.monitor.reconcileTransientStates()
  expect(summary).toMatchObject({ totalChecked: 4, promotedToRunning: ['vm-live'], resetToOff: ['vm-gone', 'vm-none'], resetToError: ['vm-rebuilt'], skipped: [] })
  expect(summary.results[0]).toEqual({ vmId: 'vm-live', previousStatus: 'starting', pid: qemu.pid, pidAlive: true, action: 'promoted_running' })
  expect(['vm-live', 'vm-gone', 'vm-none', 'vm-rebuilt', 'vm-other'].map((id) => it.rows.get(id).status)).toEqual(['running', 'off', 'off', 'error', 'deleting'])
  expect((await complete)[0]).toMatchObject({ promotedToRunning: ['vm-live'], timestamp: expect.any(Date) })
  expect(await it.monitor.reconcileTransientStates(['deleting'])).toMatchObject({ totalChecked: 1, resetToOff: ['vm-other'] })
})

test('reconciling: a QEMU whose pid was not recorded is found by its pidfile', async () => {
  const it = newMonitor()
  for (const [vmId, pid] of [['vm-1', null], ['vm-2', 2 ** 22 - 1]]) {
    const qemu = await withPidfile(it)
    it.rows.add(vmId, { internalName: qemu.name, status: 'starting', pid })
    expect(await it.monitor.reconcileTransientStates()).toMatchObject({ promotedToRunning: [vmId], results: [{ pid: qemu.pid, pidAlive: true }] })
    expect([it.rows.get(vmId).status, existsSync(qemu.file)]).toEqual(['running', true])
  }
})

test('what cannot be given back is told, and tried again when asked', async () => {
  const onCleanupAlert = jest.fn()
  const it = newMonitor({ onCleanupAlert })
  it.rows.add('vm-1', { pid: 2 ** 22 - 1, tap: 'vnet-gone', socket: '/proc/self/root' })
  it.rows.clearVolatileMachineConfiguration = async () => { throw new Error('not now') }
  const alerted = once(it.monitor, 'cleanup-alert')
  await it.monitor.checkAllVMs()
  const [alert] = await alerted
  expect(alert).toMatchObject({ vmId: 'vm-1', severity: 'warning', failedResources: [{ type: 'DB_CONFIGURATION', status: 'FAILED', attempts: 3, lastError: expect.stringContaining('not now') }] })
  expect(onCleanupAlert).toHaveBeenCalledWith(alert)
  expect(it.rows.get('vm-1')).toMatchObject({ status: 'off', pid: 2 ** 22 - 1 })
  it.rows.work()
  const configuration = { qemuPid: 2 ** 22 - 1, tapDeviceName: 'vnet-gone', qmpSocketPath: null, guestAgentSocketPath: null, infiniServiceSocketPath: null }
  expect(await it.monitor.retryCleanup('vm-1', configuration)).toMatchObject({ vmId: 'vm-1', totalResources: 4, failedCleanups: 0, timestamp: expect.any(Date) })
  expect(it.rows.get('vm-1').pid).toBe(null)
  const qemu = await newQemu()
  it.rows.set('vm-1', { internalName: qemu.name })
  expect(await rejection(it.monitor.retryCleanup('vm-1', { ...configuration, qemuPid: qemu.pid }))).toMatchObject({ code: 'INVALID_STATE', vmId: 'vm-1' })
})

test('start runs a cycle, then one per interval, and stop ends them', async () => {
  const it = newMonitor({ checkIntervalMs: 100 })
  expect(it.monitor.isMonitoring()).toBe(false)
  const first = once(it.monitor, 'check-complete')
  await it.monitor.start()
  await it.monitor.start()
  expect(it.monitor.isMonitoring()).toBe(true)
  await first
  await once(it.monitor, 'check-complete')
  await it.monitor.stop()
  expect(it.monitor.isMonitoring()).toBe(false)
})

test('F10: monitoring keeps no process alive', async () => {
  const { code, stdout } = await runNode(`
    const { HealthMonitor } = require('./index.js')
    const { Rows } = require('./__test__/kit/memory-adapter')
    new HealthMonitor(new Rows(), { pidfileDir: '/nonexistent' }).start().then(() => console.log('started'))
  `)
  expect([code, stdout.trim()]).toEqual([0, 'started'])
})

test('F13: whether a process is there', async () => {
  const { monitor } = newMonitor()
  const qemu = await newQemu()
  const other = innocent()
  expect([qemu.pid, other, 2 ** 22 - 1, 0, -1].map((pid) => monitor.isProcessAlive(pid))).toEqual([true, true, false, false, false])
  expect([qemu.pid, other, 2 ** 22 - 1].map((pid) => monitor.checkVM('vm-1', pid))).toEqual([true, false, false])
  expect(() => monitor.isProcessAlive('1')).toThrow(expect.objectContaining({ code: 'INVALID_CONFIG' }))
})

test.each([
  ['no database', undefined, {}], ['no lock', {}, { vmLock: 5 }], ['an interval of 0', {}, { checkIntervalMs: 0 }],
  ['a relative directory', {}, { pidfileDir: 'pids' }], ['a configuration that is none', {}, 'all']
])('B20: %s is told by start()', async (_, db, config) => {
  expect(await rejection(new HealthMonitor(db, config).start())).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG' })
})

test('that of an instance is the same class', async () => {
  const instance = await openInstance()
  const { vmId, pid } = await running(instance)
  const monitor = instance.getHealthMonitor()
  expect(monitor).toBeInstanceOf(HealthMonitor)
  expect([monitor.checkVM(vmId, pid), monitor.isProcessAlive(pid), monitor.checkVM(unique('vm'), process.pid)]).toEqual([true, true, false])
})
