'use strict'

const { existsSync } = require('node:fs')
const path = require('node:path')
const { EventHandler, HealthMonitor, Infinization, LifecycleError, PrismaAdapter, QMPClient, VMLifecycle } = require('../..')
const { cleanUp, finally_, host, machine, newBridge, newDirectory, newInstance, next, rejection, runNode, unique, warning } = require('../kit')
const { Client } = require('../kit/client')

afterEach(cleanUp)

const options = (stateDir) => ({ stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade' })

// A machine with its row, and the verbs over the database that has it.
async function given ({ row = {}, config: more, handler: handlerConfig, stateDir = newDirectory() } = {}) {
  const client = new Client()
  const config = machine(await newBridge(), more)
  const { vmId } = config
  client.add({ id: vmId, internalName: config.internalName, ...row })
  const db = new PrismaAdapter(client)
  const handler = new EventHandler(db, handlerConfig)
  const crud = []
  const eventManager = { emitCRUD: (...args) => crud.push(args) }
  const lifecycle = new VMLifecycle(db, handler, eventManager, options(stateDir))
  finally_(async () => {
    await lifecycle.destroyResources(vmId).catch((error) => { if (error.code !== 'CLOSED') throw error })
    await lifecycle.shutdown()
  })
  return { client, config, crud, db, eventManager, handler, lifecycle, stateDir, vmId, row: () => client.row(vmId) }
}

// The engine after that, which ends the machine when the test ends.
function nextEngine ({ db, stateDir, vmId }) {
  const handler = new EventHandler(db)
  const lifecycle = new VMLifecycle(db, handler, undefined, options(stateDir))
  finally_(async () => {
    await lifecycle.destroyResources(vmId)
    await lifecycle.shutdown()
  })
  return { handler, lifecycle }
}

test('a machine is created, stopped, started, suspended, resumed, reset and destroyed', async () => {
  const { config, crud, handler, lifecycle, row, vmId } = await given()
  const told = []
  handler.on('vm:event', ({ event, newStatus }) => told.push([event, newStatus, row().status]))
  const created = await lifecycle.create(config)
  expect(created).toMatchObject({ success: true, vmId, tapDevice: expect.stringMatching(/^vnet-/), pid: expect.any(Number) })
  expect(host.isAlive(created.pid)).toBe(true)
  expect(row()).toMatchObject({ status: 'running' })
  expect(await lifecycle.stop(vmId, { graceful: false, force: true })).toMatchObject({ success: true, vmId, forced: true })
  expect([row().status, host.isAlive(created.pid)]).toEqual(['off', false])
  expect(await lifecycle.start(vmId)).toMatchObject({ success: true })
  const suspended = next(handler, 'vm:suspended')
  expect(await lifecycle.suspend(vmId)).toMatchObject({ success: true, timestamp: expect.any(Date) })
  expect(await suspended).toMatchObject({ vmId, newStatus: 'suspended', timestamp: expect.any(Date) })
  expect(await lifecycle.getStatus(vmId)).toMatchObject({ vmId, status: 'suspended', qmpStatus: 'paused', processAlive: true, consistent: true })
  expect(await lifecycle.resume(vmId)).toMatchObject({ success: true })
  const reset = next(handler, 'vm:reset')
  expect(await lifecycle.reset(vmId)).toMatchObject({ success: true })
  await reset
  for (const [event, newStatus, stored] of told) expect([event, stored]).toEqual([event, newStatus])
  expect(await lifecycle.destroyResources(vmId)).toMatchObject({ success: true })
  expect(row().status).toBe('off')
  expect(crud.map(([resource, action, id]) => [resource, action, id])).toEqual(
    ['create', 'power_off', 'power_on', 'suspend', 'resume', 'update', 'power_off'].map((action) => ['machines', action, vmId])
  )
})

test('its event handler knows the machines as attached, and has their monitors', async () => {
  const { config, db, handler, lifecycle, stateDir, vmId } = await given()
  expect([handler.getAttachedVMs(), handler.isAttached(vmId), handler.getQMPClient(vmId)]).toEqual([[], false, undefined])
  await lifecycle.create(config)
  expect([handler.getAttachedVMs(), handler.isAttached(vmId)]).toEqual([[vmId], true])
  const client = handler.getQMPClient(vmId)
  expect(client).toBeInstanceOf(QMPClient)
  expect((await client.queryStatus()).running).toBe(true)
  await handler.detachFromVM(vmId)
  expect([handler.getAttachedVMs(), handler.isAttached(vmId)]).toEqual([[], false])
  await handler.attachToVM(vmId, client)
  expect(handler.isAttached(vmId)).toBe(true)
  handler.markInstallInProgress(vmId)
  expect(handler.isInstallInProgress(vmId)).toBe(true)
  // Told where the engine is shut down meanwhile.
  warning(/^not settled after its installation/)
  handler.clearInstallInProgress(vmId)
  await lifecycle.shutdown()
  expect([handler.getAttachedVMs(), handler.getQMPClient(vmId)]).toEqual([[], undefined])
  nextEngine({ db, stateDir, vmId })
})

test('emitCustomEvents of the handler counts', async () => {
  const { config, handler, lifecycle, vmId } = await given({ handler: { emitCustomEvents: false } })
  const told = []
  for (const name of ['vm:event', 'vm:stop', 'vm:suspended']) handler.on(name, () => told.push(name))
  await lifecycle.create(config)
  await lifecycle.suspend(vmId)
  await lifecycle.resume(vmId)
  expect(told).toEqual([])
})

test('a crash shows in the row, the handler and the event manager, and a restart comes after it', async () => {
  const { config, crud, handler, lifecycle, row, vmId } = await given()
  const { pid } = await lifecycle.create(config)
  process.kill(pid, 'SIGKILL')
  while (!crud.some(([, action]) => action === 'crash')) await new Promise((resolve) => setImmediate(resolve))
  expect([row().status, handler.isAttached(vmId)]).toEqual(['off', false])
  expect(await lifecycle.restart(vmId)).toMatchObject({ success: true, vmId })
  expect([row().status, handler.isAttached(vmId)]).toEqual(['running', true])
})

test('the next engine over the same directory takes the machine back', async () => {
  const { config, db, lifecycle, row, stateDir, vmId } = await given()
  const { pid } = await lifecycle.create(config)
  await lifecycle.shutdown()
  expect(await rejection(lifecycle.getStatus(vmId))).toMatchObject({ name: 'LifecycleError', code: 'CLOSED' })
  expect(host.isAlive(pid)).toBe(true)
  const { handler, lifecycle: later } = nextEngine({ db, stateDir, vmId })
  expect(await later.getStatus(vmId)).toMatchObject({ status: 'running', processAlive: true, pid })
  expect(handler.isAttached(vmId)).toBe(true)
  expect(await later.stop(vmId, { graceful: false })).toMatchObject({ success: true })
  expect(row().status).toBe('off')
})

test('rows between two states that are another engine\'s are left alone, and its own are settled', async () => {
  const { client, config, db, lifecycle, stateDir, vmId, row } = await given()
  const others = ['starting', 'powering_off_update', 'rebuilding'].map((status) => {
    const id = unique('other')
    client.add({ id, internalName: id, status })
    return { id, status }
  })
  await lifecycle.create(config)
  await lifecycle.stop(vmId, { graceful: false })
  await lifecycle.shutdown()
  row().status = 'starting'
  const { lifecycle: later } = nextEngine({ db, stateDir, vmId })
  expect(await later.getStatus(vmId)).toMatchObject({ status: 'off', processAlive: false })
  for (const { id, status } of others) expect(client.row(id).status).toBe(status)
})

test('a shutdown while the first verb opens the engine leaves nothing of it with the handler', async () => {
  const { handler, lifecycle, vmId } = await given()
  const { initialize, shutdown } = Infinization.prototype
  let closing
  jest.spyOn(Infinization.prototype, 'initialize').mockImplementationOnce(async function () {
    await Reflect.apply(initialize, this, [])
    closing = lifecycle.shutdown()
  })
  // The verb would come first in the engine.
  let answered
  const refused = new Promise((resolve) => { answered = resolve })
  jest.spyOn(Infinization.prototype, 'shutdown').mockImplementationOnce(async function () {
    await refused
    return Reflect.apply(shutdown, this, [])
  })
  const error = await rejection(lifecycle.getStatus(vmId)).finally(answered)
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'CLOSED' })
  await closing
  handler.markInstallInProgress(vmId)
  handler.clearInstallInProgress(vmId)
  expect(handler.isInstallInProgress(vmId)).toBe(false)
})

test('B18: objects of the caller that cannot be read are told as what the verb could not do', async () => {
  const { db, lifecycle } = await given()
  const config = { get vmId () { throw new TypeError('no') } }
  expect(await rejection(lifecycle.create(config))).toMatchObject({ name: 'LifecycleError' })
  const unread = new EventHandler(db, { get emitCustomEvents () { throw new TypeError('no') } })
  const later = new VMLifecycle(db, unread, undefined, options(newDirectory()))
  finally_(() => later.shutdown())
  expect(await rejection(later.getStatus('no-such-vm'))).toMatchObject({ name: 'LifecycleError', code: 'VM_NOT_FOUND' })
})

test('a state directory has one engine', async () => {
  const { db, handler, lifecycle, stateDir, vmId } = await given()
  await lifecycle.getStatus(vmId)
  const other = new VMLifecycle(db, handler, undefined, options(stateDir))
  const error = await rejection(other.start(vmId))
  expect(error).toBeInstanceOf(LifecycleError)
  expect(error).toMatchObject({ code: 'START_FAILED', vmId, cause: { code: 'STATE_DIR_LOCKED' } })
  expect(error.stack).toMatch(/vm-lifecycle/)
  const infinization = newInstance({ stateDir })
  expect(await rejection(infinization.initialize())).toMatchObject({ code: 'STATE_DIR_LOCKED' })
  await lifecycle.shutdown()
  expect(await other.getStatus(vmId)).toMatchObject({ status: 'off' })
  await other.shutdown()
  await other.shutdown()
})

test('beside it a HealthMonitor of one\'s own finds its machines alive', async () => {
  const { config, db, lifecycle, stateDir, vmId } = await given()
  await lifecycle.create(config)
  const monitor = new HealthMonitor(db, { pidfileDir: path.join(stateDir, 'pids') })
  const { results, orphansDetected } = await monitor.checkAllVMs()
  expect(results).toMatchObject([{ vmId, isAlive: true, status: 'running' }])
  expect(orphansDetected).toBe(0)
})

test('a signal ends a create, and nothing of it is left', async () => {
  const { config, lifecycle, row, stateDir, vmId } = await given()
  expect(await rejection(lifecycle.create(config, { signal: AbortSignal.abort() }))).toMatchObject({ code: 'ABORTED', vmId })
  expect([row().status, host.processes(vmId), existsSync(path.join(stateDir, 'vms', vmId))]).toEqual(['off', [], false])
})

test('a machine that has no row, and a database that fails', async () => {
  const { client, lifecycle, vmId } = await given()
  expect(await rejection(lifecycle.start('no-such-vm'))).toMatchObject({ code: 'VM_NOT_FOUND', vmId: 'no-such-vm' })
  expect(await lifecycle.destroyResources('no-such-vm')).toMatchObject({ success: true })
  expect(await rejection(lifecycle.suspend(vmId))).toMatchObject({ code: 'INVALID_STATE' })
  warning(/fire/)
  client.tables.before = () => { throw new Error('the database is on fire') }
  finally_(() => { delete client.tables.before })
  expect(await rejection(lifecycle.getStatus(vmId))).toMatchObject({ name: 'LifecycleError', code: 'DATABASE_ERROR' })
})

test('arguments that make no sense are told by the verbs', async () => {
  const db = new PrismaAdapter(new Client())
  const handler = new EventHandler(db)
  const refused = async (args, path) => {
    const error = await rejection(new VMLifecycle(...args).getStatus('vm'))
    expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG', context: { issues: [{ path }] } })
  }
  await refused([undefined, handler], 'db')
  await refused([5, handler], 'db')
  await refused([db], 'eventHandler')
  await refused([db, {}], 'eventHandler')
  await refused([db, handler, undefined, null], 'config')
  await refused([db, handler, undefined, { stateDir: 'relative' }], 'stateDir')
  await new VMLifecycle(db, handler).shutdown()
})

test('an engine that is not shut down keeps no process alive', async () => {
  const stateDir = newDirectory()
  const { code, stdout, stderr } = await runNode(`
    const { EventHandler, PrismaAdapter, VMLifecycle } = require('.')
    const { Client } = require('./__test__/kit/client')
    const client = new Client()
    client.add({ id: 'vm', internalName: 'vm' })
    const db = new PrismaAdapter(client)
    const lifecycle = new VMLifecycle(db, new EventHandler(db), undefined, ${JSON.stringify(options(stateDir))})
    lifecycle.getStatus('vm').then(({ status }) => console.log(status))
  `)
  expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: 'off\n', stderr: '' })
})
