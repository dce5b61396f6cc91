'use strict'

const { EventEmitter, once } = require('node:events')
const net = require('node:net')
const path = require('node:path')
const { EventHandler, KeyedMutex, QMPClient } = require('../..')
const { cleanUp, finally_, newDirectory, next, openInstance, rejection, runNode, running, unique, warning } = require('../kit')
const { newQemu } = require('../kit/qemu')
const { Rows } = require('../kit/memory-adapter')

afterEach(cleanUp)

// A QEMU with a row, attached to a handler; what it emits is kept in `told`.
async function attached ({ config, clientOptions, row = {}, args, relay = {} } = {}) {
  const qemu = await newQemu(args ?? ['-S'])
  relay.to = qemu.socket
  const vmId = unique('vm')
  const rows = new Rows().add(vmId, { internalName: qemu.name, status: 'starting', pid: qemu.pid, socket: qemu.socket, ...row })
  const client = new QMPClient(relay.socket ?? qemu.socket, clientOptions)
  await client.connect()
  finally_(() => client.disconnect())
  const handler = new EventHandler(rows, config)
  const told = []
  const names = ['shutdown', 'powerdown', 'reset', 'stop', 'resume', 'off', 'suspended', 'running', 'event', 'disconnect', 'reconnect', 'stale']
  for (const name of names) handler.on(`vm:${name}`, (data) => told.push([`vm:${name}`, data, rows.get(vmId)?.status]))
  await handler.attachToVM(vmId, client)
  return { qemu, vmId, rows, client, handler, told, names: () => told.map(([name]) => name) }
}

const event = (vmId, name, previousStatus, newStatus) => ({
  vmId, event: name, previousStatus, newStatus, timestamp: expect.any(Date), qmpData: expect.anything()
})

test('what QEMU does is written, then told: specific, status, vm:event', async () => {
  const { vmId, client, handler, told } = await attached()
  expect(handler).toBeInstanceOf(EventEmitter)
  expect([handler.getAttachedVMs(), handler.isAttached(vmId), handler.getQMPClient(vmId)]).toEqual([[vmId], true, client])
  expect(told).toEqual([])
  let over = next(handler, 'vm:event')
  await client.cont()
  await over
  over = next(handler, 'vm:event')
  await client.stop()
  await over
  expect(told).toEqual([
    ['vm:resume', event(vmId, 'RESUME', 'starting', 'running'), 'running'], ['vm:running', expect.anything(), 'running'], ['vm:event', expect.anything(), 'running'],
    ['vm:stop', event(vmId, 'STOP', 'running', 'suspended'), 'suspended'], ['vm:suspended', expect.anything(), 'suspended'], ['vm:event', expect.anything(), 'suspended']
  ])
})

test('the button and a reset change nothing', async () => {
  const { vmId, client, handler, told, rows } = await attached({ args: [], row: { status: 'running' } })
  let over = next(handler, 'vm:event')
  await client.powerdown()
  expect(await over).toEqual(event(vmId, 'POWERDOWN', 'running', 'running'))
  over = next(handler, 'vm:event')
  await client.reset()
  expect(await over).toMatchObject({ event: 'RESET', newStatus: 'running', qmpData: { guest: false, reason: 'host-qmp-system-reset' } })
  expect(told.map(([name]) => name)).toEqual(['vm:powerdown', 'vm:event', 'vm:reset', 'vm:event'])
  expect(rows.calls).toEqual([])
})

test.each(['error', 'backing_up', 'archived'])('nothing is written over %s', async (status) => {
  const { vmId, client, handler, rows } = await attached({ row: { status } })
  const over = next(handler, 'vm:event')
  await client.cont()
  expect(await over).toMatchObject({ event: 'RESUME', previousStatus: status, newStatus: status })
  const off = next(handler, 'vm:event', ({ event }) => event === 'SHUTDOWN')
  await client.quit()
  expect(await off).toMatchObject({ previousStatus: status, newStatus: status })
  expect(rows.get(vmId).status).toBe(status)
  expect(rows.calls).toEqual([])
})

test('a shutdown: off once, QEMU gone, row cleared, detached', async () => {
  const { qemu, vmId, handler, rows, names } = await attached({ args: [], row: { status: 'running' } })
  const off = next(handler, 'vm:off')
  qemu.kill('SIGTERM')
  expect(await off).toMatchObject({ event: 'SHUTDOWN', previousStatus: 'running', newStatus: 'off', qmpData: { guest: false, reason: 'host-signal' } })
  expect([handler.isAttached(vmId), handler.getAttachedVMs(), handler.getQMPClient(vmId)]).toEqual([false, [], undefined])
  await qemu.ended
  await cleared(rows, vmId)
  expect(rows.get(vmId).status).toBe('off')
  expect(names().filter((name) => ['vm:shutdown', 'vm:off'].includes(name))).toEqual(['vm:shutdown', 'vm:off'])
})

// The row is cleared when all that QEMU held was given back.
async function cleared (rows, vmId) {
  while (rows.get(vmId).pid !== null) await new Promise((resolve) => setImmediate(resolve))
}

test('quit: whoever asked for it cleans up', async () => {
  const { qemu, vmId, client, handler, rows } = await attached({ args: [] })
  const off = next(handler, 'vm:event', ({ event }) => event === 'SHUTDOWN')
  await client.quit()
  expect(await off).toMatchObject({ newStatus: 'off', qmpData: { reason: 'host-qmp-quit' } })
  expect(rows.get(vmId)).toMatchObject({ status: 'off', pid: qemu.pid })
})

test('I33: an installation\'s shutdown neither flips nor reaps', async () => {
  const { qemu, vmId, handler, rows } = await attached({ args: [] })
  handler.markInstallInProgress(vmId)
  expect(handler.isInstallInProgress(vmId)).toBe(true)
  const told = next(handler, 'vm:event', ({ event }) => event === 'SHUTDOWN')
  const lost = next(handler, 'vm:disconnect')
  qemu.kill('SIGTERM')
  expect(await told).toMatchObject({ previousStatus: 'running', newStatus: 'running' })
  expect(await lost).toEqual({ vmId, timestamp: expect.any(Date), transient: false })
  expect(rows.get(vmId)).toMatchObject({ status: 'running', pid: qemu.pid })
  handler.clearInstallInProgress(vmId)
  expect(handler.isInstallInProgress(vmId)).toBe(false)
})

test('a killed QEMU is a lost monitor, and no more; with reconnects it is given up as stale', async () => {
  const once_ = await attached({ args: [] })
  let lost = next(once_.handler, 'vm:disconnect')
  once_.qemu.kill('SIGKILL')
  expect(await lost).toMatchObject({ transient: false })
  expect(once_.handler.isAttached(once_.vmId)).toBe(false)
  expect(once_.rows.get(once_.vmId).status).toBe('running')

  const again = await attached({ args: [], clientOptions: { reconnect: true, reconnectDelay: 20, maxReconnectAttempts: 2 } })
  lost = next(again.handler, 'vm:disconnect')
  const stale = next(again.handler, 'vm:stale')
  again.qemu.kill('SIGKILL')
  expect(await lost).toMatchObject({ transient: true })
  expect(await stale).toEqual({ vmId: again.vmId, reason: 'qmp_reconnect_failed' })
  expect(again.handler.getAttachedVMs()).toEqual([])
})

test('a monitor that comes back is asked what happened meanwhile', async () => {
  const relay = await newRelay()
  const { vmId, handler, rows, told } = await attached({ args: [], relay, row: { status: 'running' }, clientOptions: { reconnect: true, reconnectDelay: 20, maxReconnectAttempts: 100 } })
  rows.set(vmId, { status: 'suspended' })
  const resynchronised = next(handler, 'vm:event')
  relay.hangUp()
  expect(await resynchronised).toMatchObject({ event: 'RESUME', previousStatus: 'suspended', newStatus: 'running' })
  expect(told.map(([name, { transient }]) => [name, transient])).toEqual([
    ['vm:disconnect', true], ['vm:reconnect', undefined], ['vm:resume', undefined], ['vm:running', undefined], ['vm:event', undefined]
  ])
  expect(handler.isAttached(vmId)).toBe(true)
})

test('a monitor that comes back to another QEMU hears that one\'s end', async () => {
  const relay = await newRelay()
  const { vmId, handler, rows } = await attached({ args: [], relay, row: { status: 'running' }, clientOptions: { reconnect: true, reconnectDelay: 20, maxReconnectAttempts: 100 } })
  const second = await newQemu([])
  rows.set(vmId, { pid: second.pid, socket: second.socket, internalName: second.name })
  const back = next(handler, 'vm:reconnect')
  relay.to = second.socket
  relay.hangUp()
  await back
  const off = next(handler, 'vm:off')
  second.kill('SIGTERM')
  expect(await off).toMatchObject({ event: 'SHUTDOWN', previousStatus: 'running', newStatus: 'off' })
  await second.ended
  await cleared(rows, vmId)
})

// A socket in front of a monitor's, whose connections the test can break.
async function newRelay () {
  const relay = { socket: path.join(newDirectory(), 'relay.sock'), hangUp: () => {} }
  const server = net.createServer((connection) => {
    const monitor = net.connect(relay.to)
    relay.hangUp = () => { connection.destroy(); monitor.destroy() }
    for (const end of [connection, monitor]) end.on('error', relay.hangUp)
    connection.pipe(monitor).pipe(connection)
  })
  await new Promise((resolve) => server.listen(relay.socket, resolve))
  finally_(() => { relay.hangUp(); server.close() })
  return relay
}

test('the end of an earlier QEMU is nobody\'s: the VM\'s lock was taken, and a new one runs', async () => {
  const vmLock = new KeyedMutex()
  const { qemu, vmId, handler, rows, told, client } = await attached({ args: [], config: { vmLock } })
  let restarted
  const restart = vmLock.runExclusive(vmId, () => new Promise((resolve) => { restarted = resolve }))
  qemu.kill('SIGTERM')
  await once(client, 'disconnect')
  const second = await newQemu([])
  const secondClient = new QMPClient(second.socket)
  finally_(() => secondClient.disconnect())
  await secondClient.connect()
  rows.set(vmId, { pid: second.pid, socket: second.socket, internalName: second.name })
  await handler.attachToVM(vmId, secondClient)
  restarted()
  await restart
  // The late SHUTDOWN takes its turn now, before this one.
  await vmLock.runExclusive(vmId, async () => {})
  expect(rows.get(vmId)).toMatchObject({ status: 'running', pid: second.pid })
  expect(told.some(([name]) => name === 'vm:off')).toBe(false)
  expect(handler.getQMPClient(vmId)).toBe(secondClient)
})

test('nothing is given back of a VM that was started again without its lock', async () => {
  const vmLock = new KeyedMutex()
  const { qemu, vmId, handler, rows } = await attached({ args: [], config: { vmLock }, row: { status: 'running' } })
  const read = rows.findMachineWithConfig
  rows.findMachineWithConfig = async (id) => {
    if (rows.get(id).status === 'off') rows.set(id, { status: 'running', pid: 4194304 })
    return read.call(rows, id)
  }
  const off = next(handler, 'vm:off')
  qemu.kill('SIGTERM')
  await off
  await vmLock.runExclusive(vmId, async () => {})
  expect(rows.get(vmId)).toMatchObject({ status: 'running', pid: 4194304, socket: qemu.socket })
})

test('F50: a terminated worker leaves its monitor to others', async () => {
  const qemu = await newQemu([])
  const { code, stdout } = await runNode(`
    const { Worker } = require('node:worker_threads')
    const { QMPClient } = require('./index.js')
    const worker = new Worker(\`
      const { parentPort } = require('node:worker_threads')
      const { EventHandler, QMPClient } = require('./index.js')
      const { Rows } = require('./__test__/kit/memory-adapter')
      const client = new QMPClient('${qemu.socket}')
      const rows = new Rows().add('vm-1', { internalName: '${qemu.name}', pid: ${qemu.pid} })
      const handler = new EventHandler(rows)
      client.connect().then(() => handler.attachToVM('vm-1', client)).then(() => parentPort.postMessage('attached'))
    \`, { eval: true })
    worker.once('message', async () => {
      await worker.terminate()
      const client = new QMPClient('${qemu.socket}')
      await client.connect()
      console.log((await client.queryStatus()).status)
    })
  `)
  expect([code, stdout.trim()]).toEqual([0, 'running'])
})

test('a database that fails is an error event, and never thrown', async () => {
  const { vmId, client, handler, rows, told } = await attached()
  const unheard = warning(/an 'error' that nobody listens for/)
  const logged = warning(/an event could not be handled \(vm: \S+, event: STOP/)
  warning(/an event could not be handled \(vm: \S+, event: RESUME/)
  rows.fail()
  await client.cont()
  await unheard
  const heard = once(handler, 'error')
  await client.stop()
  await logged
  expect(await heard).toEqual([{ vmId, event: 'STOP', error: expect.stringContaining('the database is on fire') }])
  expect(told).toEqual([])
})

test('detaching', async () => {
  const { vmId, client, handler, told } = await attached()
  await handler.detachFromVM(vmId)
  expect([handler.getAttachedVMs(), client.isConnected()]).toEqual([[], true])
  await client.cont()
  const settled = next(handler, 'vm:event')
  await handler.attachToVM(vmId, client)
  await settled
  // What happened meanwhile was settled by the attach.
  expect(told.map(([name]) => name)).toEqual(['vm:resume', 'vm:running', 'vm:event'])
  await handler.detachAll()
  expect([handler.getAttachedVMs(), client.isConnected()]).toEqual([[], false])
  expect(await rejection(handler.attachToVM(vmId, client))).toMatchObject({ code: 'QMP_DISCONNECTED', vmId })
  await handler.detachFromVM('nobody', true)
})

test('a detach waits for the event under way; nothing is told of it', async () => {
  const { vmId, client, handler, rows, told } = await attached()
  let reached, goOn
  const writing = new Promise((resolve) => { reached = resolve })
  const gate = new Promise((resolve) => { goOn = resolve })
  const write = rows.updateMachineStatus
  rows.updateMachineStatus = async (...args) => {
    reached()
    await gate
    return write.apply(rows, args)
  }
  await client.cont()
  await writing
  const detached = handler.detachFromVM(vmId)
  goOn()
  await detached
  expect(rows.get(vmId).status).toBe('running')
  await handler.attachToVM(vmId, client)
  const over = next(handler, 'vm:event')
  await client.stop()
  await over
  expect(told.map(([name]) => name)).toEqual(['vm:stop', 'vm:suspended', 'vm:event'])
})

test('emitCustomEvents: false', async () => {
  const { vmId, client, told, rows } = await attached({ config: { emitCustomEvents: false } })
  await client.cont()
  while (rows.get(vmId).status !== 'running') await new Promise((resolve) => setImmediate(resolve))
  expect(told).toEqual([])
})

test.each([
  ['no client', {}, undefined, 'vm-1', {}], ['something like a client', {}, new EventEmitter(), 'vm-1', {}],
  ['no database', undefined, null, 'vm-1', {}], ['a vmId that is none', {}, null, '../x', {}],
  ['no lock', {}, null, 'vm-1', { vmLock: {} }], ['options that are none', {}, null, 'vm-1', 'loud'], ['a wrong option', {}, null, 'vm-1', { enableLogging: 1 }]
])('B20: %s', async (_, db, client, vmId, config) => {
  const handler = new EventHandler(db, config)
  const given = client === null ? new QMPClient('/run/none.sock') : client
  expect(await rejection(handler.attachToVM(vmId, given))).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG' })
  expect(handler.getAttachedVMs()).toEqual([])
})

describe('of an instance', () => {
  test('it is the same class; a detached VM goes unheard until it is attached again', async () => {
    const instance = await openInstance()
    const { vmId } = await running(instance)
    const handler = instance.getEventHandler()
    expect(handler).toBeInstanceOf(EventHandler)
    const client = instance.getQMPClient(vmId)
    const told = []
    handler.on('vm:event', ({ event }) => told.push(event))
    await handler.detachFromVM(vmId, true)
    // The monitor is the library's own, and goes on.
    expect([instance.getQMPClient(vmId), handler.getQMPClient(vmId)]).toEqual([client, client])
    expect([handler.isAttached(vmId), handler.getAttachedVMs(), client.isConnected()]).toEqual([false, [], true])
    await instance.suspendVM(vmId)
    await handler.attachToVM(vmId, client)
    expect(handler.getAttachedVMs()).toEqual([vmId])
    const heard = next(handler, 'vm:event')
    await instance.resumeVM(vmId)
    await heard
    expect(told).toEqual(['RESUME'])
    expect(await rejection(handler.attachToVM('another', client))).toMatchObject({ code: 'INVALID_STATE' })
    await handler.detachAll()
    expect(handler.getAttachedVMs()).toEqual([])
  })

  test('I33: an installation\'s shutdown leaves row and resources; its end settles them', async () => {
    const instance = await openInstance({ healthMonitorInterval: 100 })
    const { vmId, pid } = await running(instance)
    const handler = instance.getEventHandler()
    handler.markInstallInProgress(vmId)
    const told = next(handler, 'vm:event')
    process.kill(pid, 'SIGTERM')
    expect(await told).toMatchObject({ event: 'SHUTDOWN', previousStatus: 'running', newStatus: 'running', qmpData: { reason: 'host-signal' } })
    const crashes = []
    instance.getHealthMonitor().on('crash', (crash) => crashes.push(crash))
    expect(await instance.getHealthMonitor().checkAllVMs()).toMatchObject({ totalChecked: 0, crashed: 0 })
    expect((await instance.getVM(vmId)).status).toBe('running')
    const off = next(handler, 'vm:off')
    handler.clearInstallInProgress(vmId)
    expect(await off).toMatchObject({ event: 'SHUTDOWN', previousStatus: 'running', newStatus: 'off' })
    expect(handler.isInstallInProgress(vmId)).toBe(false)
    expect(crashes).toEqual([])

    handler.markInstallInProgress(vmId)
    const { pid: second } = (await instance.startVM(vmId), await instance.getVMStatus(vmId))
    const again = next(handler, 'vm:event', ({ event }) => event === 'SHUTDOWN')
    process.kill(second, 'SIGTERM')
    await again
    // The next boot of the installer.
    await instance.startVM(vmId)
    expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'running' })
    expect(handler.isInstallInProgress(vmId)).toBe(true)
  })
})
