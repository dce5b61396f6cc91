'use strict'

// The server goes and comes back while machines run. What happens on the host goes on, and the rows
// follow; what needs an answer is refused.

const { generateVMChainName } = require('../..')
const net = require('node:net')
const { performance } = require('node:perf_hooks')
const { cleanUp, finally_, host, machine, newBridge, newInstance, next, rejection, warning } = require('../kit')
const { clientVersions, connect, disconnect } = require('../kit/prisma')
const { application, created, defined, waysHere } = require('../kit/application')
const { Postgres } = require('../kit/postgres')

// How long the server is away while fifty operations are made: 60 by hand.
const OUTAGE_SECONDS = Number(process.env.INFINIZATION_OUTAGE_SECONDS ?? 3)

jest.setTimeout(90_000 + OUTAGE_SECONDS * 1000)

let server
beforeAll(async () => { server = await Postgres.start() })
// Tests begin with a server, and end with one.
beforeEach(() => { warning(/database|row|status|could not be/) })
afterEach(async () => {
  if (!server.isUp) await server.start()
  await cleanUp()
})
afterAll(() => server.remove())

const forced = { graceful: false, force: true }

const restored = (instance) => next(instance.getHealthMonitor(), 'database-restored')

// The codes of an error and of what caused it.
const codes = (error) => error ? [error.code, ...codes(error.cause)] : []

async function away ({ database }, how) {
  await database.close()
  await server.stop(how)
}

// Every status that a machine's row gets from now on.
async function history ({ database }) {
  await database.sql(`
    CREATE TABLE history (at SERIAL, id TEXT, status TEXT);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN INSERT INTO history (id, status) VALUES (NEW.id, NEW.status); RETURN NULL; END $$;
    CREATE TRIGGER note AFTER UPDATE OF status ON "Machine" FOR EACH ROW EXECUTE FUNCTION note()`)
  return async (id) => (await database.sql('SELECT status FROM history WHERE id = $1 ORDER BY at', [id])).map(({ status }) => status)
}

describe.each(waysHere().filter((way) => ['prisma7', 'databaseAdapter'].includes(way)))('%s', (way) => {
  test('F32: a crash while it is away: the host is cleaned up, and the row follows', async () => {
    const app = await application(server, way)
    const { vmId, pid, tapDevice } = await created(app)
    await away(app)
    const crash = next(app.instance.getHealthMonitor(), 'crash')
    process.kill(pid, 'SIGKILL')
    await crash
    // The TAP is the machine's for life; what led to it is gone.
    expect(host.dispatched().filter((element) => element.includes(tapDevice))).toEqual([])
    const back = restored(app.instance)
    await server.start()
    await back
    expect(await app.database.row(vmId)).toMatchObject({ status: 'off' })
    expect(await app.database.configuration(vmId)).toMatchObject({ qemuPid: null, qmpSocketPath: null })
  })

  test('F31: writes that were kept are made in the order of what happened', async () => {
    const app = await application(server, way)
    const statuses = await history(app)
    const { vmId, pid } = await created(app)
    const before = (await statuses(vmId)).length
    await away(app, 'immediate')
    const qmp = app.instance.getQMPClient(vmId)
    for (const [act, event] of [[() => qmp.stop(), 'vm:stop'], [() => qmp.cont(), 'vm:resume']]) {
      const told = next(app.instance.getEventHandler(), event)
      await act()
      await told
    }
    expect(await app.instance.stopVM(vmId, forced)).toMatchObject({ success: true })
    expect(host.isAlive(pid)).toBe(false)
    const back = restored(app.instance)
    await server.start()
    await back
    const followed = (await statuses(vmId)).slice(before)
    expect(followed.at(-1)).toBe('off')
    expect(['suspended', 'running', 'off'].join()).toContain(followed.join())
    expect(await app.database.configuration(vmId)).toMatchObject({ qemuPid: null })
    expect(await app.instance.startVM(vmId)).toMatchObject({ success: true })
    expect(await app.database.row(vmId)).toMatchObject({ status: 'running' })
  })

  test('F31: an outage during fifty operations loses nothing and keeps the order', async () => {
    const app = await application(server, way, { autoStartHealthMonitor: false })
    const statuses = await history(app)
    const bridge = await newBridge()
    const vms = await Promise.all([1, 2, 3, 4, 5].map(() => created(app, { bridge })))
    const before = new Map()
    for (const { vmId } of vms) before.set(vmId, (await statuses(vmId)).length)
    const each = (work) => Promise.all(vms.map(({ vmId }) => work(vmId)))
    const seen = (vmId, event) => next(app.instance.getEventHandler(), event, (told) => told.vmId === vmId)
    await each(async (vmId) => {
      for (const verb of ['suspendVM', 'resumeVM', 'suspendVM']) await app.instance[verb](vmId)
    })
    await away(app, 'immediate')
    const since = Date.now()
    // What the guest and its monitor do by themselves, and an end that asks for no row.
    await each(async (vmId) => {
      const qmp = app.instance.getQMPClient(vmId)
      for (const [act, event] of [['cont', 'vm:resume'], ['stop', 'vm:stop'], ['cont', 'vm:resume']]) {
        const told = seen(vmId, event)
        await qmp[act]()
        await told
      }
      expect(await app.instance.stopVM(vmId, forced)).toMatchObject({ success: true })
    })
    await new Promise((resolve) => setTimeout(resolve, OUTAGE_SECONDS * 1000 - (Date.now() - since)))
    const back = restored(app.instance)
    await server.start()
    expect(await back).toMatchObject({ lost: 0 })
    await each(async (vmId) => {
      await app.instance.startVM(vmId)
      await app.instance.suspendVM(vmId)
      await app.instance.stopVM(vmId, forced)
    })
    for (const { vmId } of vms) {
      expect((await statuses(vmId)).slice(before.get(vmId))).toEqual([
        'suspended', 'running', 'suspended', 'running', 'suspended', 'running', 'off', 'starting', 'running', 'suspended', 'off'
      ])
      expect(await app.database.configuration(vmId)).toMatchObject({ qemuPid: null })
    }
  })

  test('F31: what needs an answer is refused, and nothing has been touched', async () => {
    const app = await application(server, way)
    const { vmId } = await created(app)
    const other = await created(app)
    await app.instance.stopVM(vmId, forced)
    const unborn = await defined(app, { bridge: await newBridge() })
    await away(app)
    for (const call of [() => app.instance.startVM(vmId), () => app.instance.createVM(unborn), () => app.instance.suspendVM(other.vmId)]) {
      expect(codes(await rejection(call()))).toContain('DB_CONNECTION_ERROR')
    }
    for (const id of [vmId, unborn.vmId]) expect(host.processes(`guest=${id},`)).toEqual([])
    expect(host.links()).not.toContain(`vnet-${generateVMChainName(unborn.vmId).slice(3, 13)}`)
    expect(host.isAlive(other.pid)).toBe(true)
    await app.instance.getHealthMonitor().checkAllVMs().catch(() => undefined)
    expect(host.isAlive(other.pid)).toBe(true)
    const back = restored(app.instance)
    await server.start()
    await back
    expect(await app.instance.startVM(vmId)).toMatchObject({ success: true })
    expect(await app.instance.suspendVM(other.vmId)).toMatchObject({ success: true })
    expect(await app.database.row(unborn.vmId)).toMatchObject({ status: 'off' })
  })

  test('a claim that is made meanwhile survives what was kept', async () => {
    const app = await application(server, way)
    const { vmId, pid } = await created(app)
    const aside = await app.database.hide()
    const outage = next(app.instance.getHealthMonitor(), 'database-outage')
    const crash = next(app.instance.getHealthMonitor(), 'crash')
    process.kill(pid, 'SIGKILL')
    await Promise.all([outage, crash])
    await aside.sql('UPDATE "Machine" SET status = \'backing_up\'')
    const back = restored(app.instance)
    await aside.show()
    await back
    expect(await app.database.row(vmId)).toMatchObject({ status: 'backing_up' })
    expect(await app.database.configuration(vmId)).toMatchObject({ qemuPid: null })
  })

  test('a server that restarts while machines start and stop: in the end all rows are true', async () => {
    const app = await application(server, way)
    const bridge = await newBridge()
    const vms = await Promise.all([1, 2, 3, 4].map(() => created(app, { bridge })))
    await app.database.close()
    const verbs = vms.map(async ({ vmId }) => {
      const outcomes = []
      for (const verb of ['stopVM', 'startVM', 'stopVM', 'startVM']) {
        outcomes.push(await app.instance[verb](vmId, verb === 'stopVM' ? forced : undefined).catch((error) => error))
      }
      return outcomes
    })
    await server.stop('immediate')
    await server.start()
    for (const outcome of (await Promise.all(verbs)).flat()) {
      if (outcome instanceof Error) expect(codes(outcome).join()).toMatch(/DB_CONNECTION_ERROR|INVALID_STATE|CONCURRENT_MODIFICATION/)
    }
    // The next verb of each finds its row as it is, or settles it.
    for (const { vmId } of vms) {
      expect(await app.instance.startVM(vmId)).toMatchObject({ success: true })
      const { qemuPid } = await app.database.configuration(vmId)
      expect(await app.database.row(vmId)).toMatchObject({ status: 'running' })
      expect(host.processes(`guest=${vmId},`).map(({ pid }) => pid)).toEqual([qemuPid])
    }
  })

  test('F31: an instance that begins while it is away watches what runs', async () => {
    const app = await application(server, way)
    const { vmId, pid } = await created(app)
    await app.instance.shutdown()
    await away(app)
    const again = await app.open({ stateDir: app.instance.stateDir })
    expect(again.getActiveVMs()).toEqual([vmId])
    expect(host.isAlive(pid)).toBe(true)
    const crash = next(again.getHealthMonitor(), 'crash')
    process.kill(pid, 'SIGKILL')
    await crash
    const back = restored(again)
    await server.start()
    await back
    expect(await app.database.row(vmId)).toMatchObject({ status: 'off' })
    await again.destroyVM(vmId)
  })

  test('F31: nor does one need it that begins while the server takes connections and answers nobody', async () => {
    const app = await application(server, way)
    const [crashes, ends] = [await created(app), await created(app)]
    const rebuilt = await created(app)
    await app.instance.stopVM(rebuilt.vmId, forced)
    await app.instance.shutdown()
    await app.database.sql('UPDATE "Machine" SET status = \'rebuilding\' WHERE id = $1', [rebuilt.vmId])
    server.pause()
    finally_(() => server.resume())
    const again = await app.open({ stateDir: app.instance.stateDir, databaseTimeout: 1000 })
    const monitor = again.getHealthMonitor()
    expect(await next(monitor, 'database-outage')).toMatchObject({ error: { code: 'DB_CONNECTION_ERROR' } })
    expect(monitor.isMonitoring()).toBe(true)
    expect(again.getActiveVMs().sort()).toEqual([crashes.vmId, ends.vmId].sort())

    const crash = next(monitor, 'crash')
    process.kill(crashes.pid, 'SIGKILL')
    expect(await crash).toMatchObject({ vmId: crashes.vmId, pid: crashes.pid })
    expect(await again.stopVM(ends.vmId, forced)).toMatchObject({ success: true })
    for (const { pid, tapDevice } of [crashes, ends]) {
      expect(host.isAlive(pid)).toBe(false)
      expect(host.dispatched().filter((element) => element.includes(tapDevice))).toEqual([])
    }

    const [reconciled, back] = [next(monitor, 'reconcile-complete'), restored(again)]
    server.resume()
    // Only rows that say when they were changed are known to be nobody's.
    const dated = way === 'prisma7'
    expect(await reconciled).toMatchObject({ resetToError: dated ? [rebuilt.vmId] : [] })
    if (!dated) {
      expect(await app.database.row(rebuilt.vmId)).toMatchObject({ status: 'rebuilding' })
      expect(await again.reconcileStartupState()).toMatchObject({ resetToError: [rebuilt.vmId] })
    }
    await back
    for (const [{ vmId }, status] of [[crashes, 'off'], [ends, 'off'], [rebuilt, 'error']]) {
      expect(await app.database.row(vmId)).toMatchObject({ status })
      expect(await app.database.configuration(vmId)).toMatchObject({ qemuPid: null })
      await again.destroyVM(vmId)
    }
  })
})

// It takes every connection, and says nothing on any.
async function silentServer () {
  const connections = new Set()
  const silent = net.createServer((connection) => connections.add(connection.on('error', () => {})))
  await new Promise((resolve) => silent.listen(0, '127.0.0.1', resolve))
  finally_(async () => {
    for (const connection of connections) connection.destroy()
    await new Promise((resolve) => silent.close(resolve))
  })
  return { address: { host: '127.0.0.1', port: silent.address().port, user: 'nobody', database: 'none' } }
}

test.each(clientVersions())('F31: %s, a server that accepts and never answers: everything ends, and nothing is left', async (version) => {
  const client = connect(version, await silentServer())
  finally_(() => disconnect(client))
  const databaseTimeout = 1000
  const instance = newInstance({ prismaClient: client, databaseTimeout })
  const lasts = async (call) => {
    const began = performance.now()
    const outcome = await call().catch((error) => error)
    return [outcome, performance.now() - began]
  }
  // It is told and no failure: the machines of this host are watched all the same.
  const told = instance.events()
  const [initialized, atFirst] = await lasts(() => instance.initialize())
  expect(initialized).toBeUndefined()
  expect((await told.next()).value).toMatchObject({ type: 'database-outage', data: { error: { code: 'DB_CONNECTION_ERROR' } } })
  expect(atFirst).toBeLessThan(databaseTimeout + 10_000)
  const config = machine(await newBridge())
  for (const call of [() => instance.startVM(config.vmId), () => instance.createVM(config), () => instance.getVMStatus(config.vmId)]) {
    const [error, time] = await lasts(call)
    expect(codes(error)).toContain('DB_CONNECTION_ERROR')
    expect(time).toBeLessThan(databaseTimeout + 5_000)
  }
  const [closed, atLast] = await lasts(() => instance.shutdown())
  expect(closed).toBeUndefined()
  expect(atLast).toBeLessThan(databaseTimeout + 10_000)
  expect(host.processes(`guest=${config.vmId},`)).toEqual([])
  expect(host.links()).not.toContain(`vnet-${generateVMChainName(config.vmId).slice(3, 13)}`)
})
