'use strict'

const { EventEmitter, once } = require('node:events')
const { NftablesService, generateVMChainName } = require('../..')
const { cleanUp, finally_, newInstance, next, openInstance, rejection, running, unique, warning } = require('../kit')

afterEach(cleanUp)

const forced = { graceful: false }

// What an emitter emits from now on, by name, in order.
function record (emitter, names) {
  const seen = []
  for (const name of names) emitter.on(name, (...payload) => seen.push([name, ...payload]))
  return seen
}

const kinds = ['vm:event', 'vm:stop', 'vm:resume', 'vm:reset', 'vm:shutdown', 'vm:off', 'vm:suspended', 'vm:running', 'vm:powerdown']

test('the emitters are real EventEmitters', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const emitters = [instance, instance.getEventHandler(), instance.getHealthMonitor(), instance.getQMPClient(vmId)]
  for (const emitter of emitters) {
    expect(emitter).toBeInstanceOf(EventEmitter)
    const listener = jest.fn()
    emitter.once('x', listener)
    expect(emitter.listenerCount('x')).toBe(1)
    emitter.emit('x', 1, 2)
    emitter.emit('x')
    expect(listener.mock.calls).toEqual([[1, 2]])
  }
})

test('one event of QEMU: its own name, the resulting status, vm:event; each with the same payload', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const seen = record(instance.getEventHandler(), kinds)
  const last = next(instance.getEventHandler(), 'vm:event', ({ newStatus }) => newStatus === 'off')
  await instance.suspendVM(vmId)
  await instance.resumeVM(vmId)
  await instance.stopVM(vmId, forced)
  await last
  expect(seen.map(([name, { event, previousStatus, newStatus }]) => [name, event, previousStatus, newStatus])).toEqual([
    ['vm:stop', 'STOP', 'running', 'suspended'], ['vm:suspended', 'STOP', 'running', 'suspended'], ['vm:event', 'STOP', 'running', 'suspended'],
    ['vm:resume', 'RESUME', 'suspended', 'running'], ['vm:running', 'RESUME', 'suspended', 'running'], ['vm:event', 'RESUME', 'suspended', 'running'],
    ['vm:shutdown', 'SHUTDOWN', 'running', 'off'], ['vm:off', 'SHUTDOWN', 'running', 'off'], ['vm:event', 'SHUTDOWN', 'running', 'off']
  ])
  for (const [, { cause, ...payload }] of seen) {
    expect(Object.keys(payload).sort()).toEqual(['event', 'newStatus', 'previousStatus', 'qmpData', 'timestamp', 'vmId'])
    expect(cause?.reason).toBe(payload.event === 'SHUTDOWN' ? 'host-signal' : undefined)
    expect(payload.vmId).toBe(vmId)
    expect(payload.timestamp).toBeInstanceOf(Date)
  }
})

test('the new status is stored before its event is emitted', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const seen = []
  const off = new Promise((resolve) => instance.getEventHandler().on('vm:event', async ({ newStatus }) => {
    const { status } = await instance.getVMStatus(vmId)
    seen.push([newStatus, status])
    if (newStatus === 'off') resolve()
  }))
  // Each is looked at before the next change.
  const shown = (status) => next(instance.getEventHandler(), 'vm:event', ({ newStatus }) => newStatus === status)
  for (const [call, status] of [[() => instance.suspendVM(vmId), 'suspended'], [() => instance.resumeVM(vmId), 'running'], [() => instance.stopVM(vmId, forced), 'off']]) {
    const told = shown(status)
    await call()
    await told
    await instance.getVMStatus(vmId)
  }
  await off
  expect(seen).toEqual([['suspended', 'suspended'], ['running', 'running'], ['off', 'off']])
})

test('what is done behind the verbs\' back is noticed', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const qmp = instance.getQMPClient(vmId)
  const suspended = next(instance.getEventHandler(), 'vm:suspended')
  await qmp.stop()
  expect(await suspended).toMatchObject({ vmId, event: 'STOP', newStatus: 'suspended' })
  expect((await instance.getVMStatus(vmId)).status).toBe('suspended')
  const resumed = next(instance.getEventHandler(), 'vm:running')
  await qmp.cont()
  await resumed
  const reset = next(instance.getEventHandler(), 'vm:reset')
  await instance.resetVM(vmId)
  expect(await reset).toMatchObject({ vmId, event: 'RESET', previousStatus: 'running', newStatus: 'running', qmpData: { guest: false } })
  const off = next(instance.getEventHandler(), 'vm:off')
  await rejection(qmp.quit().then(() => Promise.reject(new Error('it answered'))))
  expect(await off).toMatchObject({ qmpData: { guest: false, reason: 'host-qmp-quit' } })
  expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'off', lastExit: { reason: 'host-qmp-quit' } })
})

describe('events()', () => {
  test('yields what the emitters emit, numbered, of one machine, until the instance is shut down', async () => {
    const instance = await openInstance()
    const { vmId } = await running(instance)
    const other = await running(instance)
    const seen = []
    const reading = (async () => { for await (const event of instance.events({ vmId })) seen.push(event) })()
    const crashed = once(instance.getHealthMonitor(), 'crash')
    await instance.suspendVM(other.vmId)
    await instance.suspendVM(vmId)
    process.kill((await instance.getVMStatus(vmId)).pid, 'SIGKILL')
    await crashed
    await instance.deleteVM(vmId, { deleteDisks: true })
    await instance.deleteVM(other.vmId, { deleteDisks: true })
    await instance.shutdown()
    await reading
    // That the monitor's connection ended may be seen before the end of the process.
    const expected = seen.map(({ type }) => type).filter((type) => type !== 'vm:disconnect')
    expect(expected).toEqual(['vm:stop', 'vm:suspended', 'vm:event', 'crash'])
    for (const event of seen) {
      expect(event).toEqual({ seq: expect.any(Number), vmId, type: expect.any(String), timestamp: expect.any(Date), data: expect.any(Object) })
    }
    const numbers = seen.map(({ seq }) => seq)
    expect(numbers).toEqual([...numbers].sort((a, b) => a - b))
    expect(seen.at(-1).data).toMatchObject({ vmId, lastKnownStatus: 'suspended', cause: { signal: 9 } })
  })

  test('leaving the loop ends it', async () => {
    const instance = await openInstance()
    const { vmId } = await running(instance)
    const events = instance.events()
    const first = events.next()
    await instance.suspendVM(vmId)
    expect((await first).value).toMatchObject({ vmId, type: 'vm:stop' })
    for await (const { type } of events) {
      expect(type).toBe('vm:suspended')
      break
    }
    expect(await events.next()).toEqual({ value: undefined, done: true })
  })

  test('what it is asked for must make sense', async () => {
    const instance = await openInstance()
    expect(() => instance.events({ vmId: 5 })).toThrow(expect.objectContaining({ code: 'INVALID_CONFIG' }))
  })
})

describe('F49: listeners', () => {
  let warnings
  beforeAll(() => { warnings = jest.spyOn(process, 'emitWarning').mockImplementation(() => {}) })
  beforeEach(() => warnings.mockClear())
  // Deleting the machine at a test's end is heard by its listeners, too.
  afterAll(() => warnings.mockRestore())

  test('one that throws is warned about; the others, and what follows, go on', async () => {
    const instance = await openInstance()
    const { vmId } = await running(instance)
    instance.getEventHandler().on('vm:event', () => { throw new Error('sync listener') })
    instance.getEventHandler().on('vm:event', async () => { throw new Error('async listener') })
    const after = next(instance.getEventHandler(), 'vm:event')
    await instance.suspendVM(vmId)
    await after
    await instance.resumeVM(vmId)
    expect((await instance.getVMStatus(vmId)).status).toBe('running')
    expect(warnings.mock.calls.slice(0, 2)).toEqual(['sync', 'async'].map((kind) => [
      expect.stringContaining(`listener for 'vm:event' failed: Error: ${kind} listener`), 'InfinizationWarning'
    ]))
  })

  test('an event manager that throws stops nothing', async () => {
    const instance = await openInstance({ eventManager: { emitCRUD () { throw new Error('no event manager today') } } })
    const { vmId } = await running(instance)
    const told = next(instance.getEventHandler(), 'vm:event')
    await instance.suspendVM(vmId)
    await told
    expect(warnings.mock.calls[0][0]).toContain('no event manager today')
  })
})

describe('the event manager', () => {
  test('is called as a method, with exactly the contract\'s arguments', async () => {
    class Manager {
      calls = []
      emitCRUD (...args) { this.calls.push(args) }
    }
    const eventManager = new Manager()
    const instance = await openInstance({ eventManager })
    const { vmId, pid, tapDevice } = await running(instance)
    const crashed = once(instance.getHealthMonitor(), 'crash')
    await instance.suspendVM(vmId)
    await instance.resumeVM(vmId)
    await instance.resetVM(vmId)
    await instance.stopVM(vmId, forced)
    await instance.startVM(vmId)
    process.kill((await instance.getVMStatus(vmId)).pid, 'SIGKILL')
    await crashed
    expect(eventManager.calls).toEqual([
      ['machines', 'create', vmId, { pid, tapDevice }], ['machines', 'suspend', vmId], ['machines', 'resume', vmId],
      ['machines', 'update', vmId, { type: 'hardware' }], ['machines', 'power_off', vmId, { forced: true }],
      ['machines', 'power_on', vmId, { pid: expect.any(Number), tapDevice }], ['machines', 'crash', vmId]
    ])
  })

  test.each([['none', undefined], ['null', null], ['one without the method', {}], ['a string', 'x']])('%s is fine', async (_, eventManager) => {
    const instance = await openInstance(eventManager === undefined ? {} : { eventManager })
    await running(instance)
  })
})

describe('the health monitor', () => {
  test('start, one cycle, stop', async () => {
    const instance = await openInstance({ autoStartHealthMonitor: false })
    const monitor = instance.getHealthMonitor()
    expect(monitor.isMonitoring()).toBe(false)
    const { vmId, pid } = await running(instance)
    const complete = once(monitor, 'check-complete')
    await monitor.start()
    expect(monitor.isMonitoring()).toBe(true)
    const [summary] = await complete
    expect(summary).toEqual({
      totalChecked: 1, alive: 1, crashed: 0, errors: 0, orphansDetected: 0, orphansCleaned: 0, timestamp: expect.any(Date),
      results: [{ vmId, pid, isAlive: true, status: 'running', timestamp: expect.any(Date) }]
    })
    expect(await monitor.checkAllVMs()).toMatchObject({ totalChecked: 1, alive: 1 })
    expect(await monitor.checkOrphanProcesses()).toEqual([])
    await monitor.stop()
    expect(monitor.isMonitoring()).toBe(false)
  })

  test('a crash is noticed even when nothing monitors', async () => {
    const instance = await openInstance({ autoStartHealthMonitor: false })
    const { vmId, pid } = await running(instance)
    const crashed = once(instance.getHealthMonitor(), 'crash')
    process.kill(pid, 'SIGSEGV')
    expect((await crashed)[0]).toMatchObject({ vmId, pid, cause: { reason: 'signal', signal: 11 } })
  })

  test('reconcile: nothing is in between', async () => {
    const instance = await openInstance()
    await running(instance)
    const nothing = { totalChecked: 0, promotedToRunning: [], resetToOff: [], resetToError: [], skipped: [], results: [], timestamp: expect.any(Date) }
    const { totalChecked, results, ...told } = nothing
    const complete = once(instance.getHealthMonitor(), 'reconcile-complete')
    expect(await instance.reconcileStartupState()).toEqual(nothing)
    expect(await complete).toEqual([told])
    expect(await instance.getHealthMonitor().reconcileTransientStates(['starting'])).toEqual(nothing)
  })
})

describe('what initialize() finds', () => {
  test('is heard by who listens as soon as it has resolved, in order, and once', async () => {
    const vmId = unique('nobody')
    const firewall = new NftablesService({ bridgeConntrackMode: 'degrade' })
    finally_(() => firewall.removeVMChain(vmId))
    await firewall.applyRules(vmId, 'vnet-nobody', [], [], 'drop')
    const instance = newInstance()
    const stream = instance.events()
    await instance.initialize()
    const monitor = instance.getHealthMonitor()
    const told = record(monitor, ['firewall-orphans', 'reconcile-complete', 'check-complete'])
    let checks = 0
    const third = next(monitor, 'check-complete', () => ++checks === 3)
    expect((await stream.next()).value).toMatchObject({ type: 'reconcile-complete' })
    await monitor.checkAllVMs()
    await monitor.checkAllVMs()
    await third
    expect(told.map(([name]) => name)).toEqual(['reconcile-complete', 'firewall-orphans', ...Array(3).fill('check-complete')])
    expect(told[1][1].chains).toContain(generateVMChainName(vmId))
  })

  test('a listener of a machine whose QEMU ended meanwhile hears of the crash', async () => {
    const before = await openInstance()
    const { vmId, pid } = await running(before)
    await before.shutdown()
    process.kill(pid, 'SIGKILL')
    const instance = newInstance({ stateDir: before.stateDir })
    await instance.initialize()
    expect(await next(instance.getHealthMonitor(), 'crash')).toMatchObject({ vmId, pid })
    await instance.deleteVM(vmId, { deleteDisks: true })
  })

  test('there is a bound to it, and what is lost is warned of', async () => {
    const { Withheld } = require('../../js/events')
    const [withheld, emitter] = [new Withheld(), new EventEmitter()]
    const lost = warning(/^904 events of initialize\(\) were lost/)
    await withheld.during(async () => {
      for (let at = 0; at < 5000; at++) withheld.emit(emitter, 'x', at)
    })
    const seen = record(emitter, ['x'])
    await lost
    await new Promise((resolve) => setImmediate(resolve))
    expect(seen).toHaveLength(4096)
    expect(seen[0]).toEqual(['x', 904])
  })
})

test('F8: a reader that is too slow is told how many events it missed, and can ask', async () => {
  const { EventStream } = require('../../js/events')
  const stream = new EventStream(undefined, () => {})
  expect(stream.lost).toBe(0)
  for (let seq = 0; seq < 5000; seq++) stream.push({ seq, source: 'eventHandler', kind: 'x', data: null })
  expect(stream.lost).toBe(904)
  expect((await stream.next()).value).toMatchObject({ type: 'lost', data: { count: 904 } })
  expect((await stream.next()).value.seq).toBe(904)
  stream.push({ seq: null, source: 'manager', kind: 'lost', data: { count: 7 } })
  expect(stream.lost).toBe(911)
})
