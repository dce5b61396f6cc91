'use strict'

// Statuses that are not the library's: a claim of the application's, and `error`. They are not written
// over, and what they stand for is neither started nor ended.

const { once } = require('node:events')
const { cleanUp, host, next, rejection } = require('../kit')
const { application, created, defined, waysHere } = require('../kit/application')
const { Postgres } = require('../kit/postgres')

jest.setTimeout(60_000)

let server
beforeAll(async () => { server = await Postgres.start() })
afterEach(cleanUp)
afterAll(() => server.remove())

const MARKERS = ['rebuilding', 'deleting', 'moving', 'backing_up', 'restoring', 'snapshotting', 'capturing', 'archived', 'delete_failed']
// Reconciling settles this one, by the contract.
const untouched = MARKERS.filter((marker) => marker !== 'rebuilding')

const claim = ({ database }, vmId, status) => database.sql('UPDATE "Machine" SET status = $2 WHERE id = $1', [vmId, status])
const statusOf = async ({ database }, vmId) => (await database.row(vmId)).status

// Two ways suffice: what is written is decided before the way.
describe.each(waysHere().filter((way) => ['prisma7', 'databaseAdapter'].includes(way)))('%s', (way) => {
  test('none is started, nor written over', async () => {
    const app = await application(server, way)
    const { vmId } = await created(app)
    await app.instance.stopVM(vmId, { graceful: false })
    const { version } = await app.database.row(vmId)
    for (const marker of MARKERS) {
      await claim(app, vmId, marker)
      const error = await rejection(app.instance.startVM(vmId))
      expect([marker, error.code, error.context?.currentStatus]).toEqual([marker, 'INVALID_STATE', marker])
      expect(await app.database.row(vmId)).toMatchObject({ status: marker, version })
    }
    expect(host.processes(`guest=${vmId},`)).toEqual([])
  })

  test.each(['backing_up', 'capturing', 'moving', 'error'])('%s: neither verbs, nor what QEMU tells, nor its end overwrite it', async (status) => {
    const app = await application(server, way)
    const { vmId, pid } = await created(app)
    const handler = app.instance.getEventHandler()
    await claim(app, vmId, status)
    // Behind the verbs' back, as a guest or an operator would.
    const qmp = app.instance.getQMPClient(vmId)
    for (const [act, event] of [[() => qmp.stop(), 'vm:stop'], [() => qmp.cont(), 'vm:resume']]) {
      const told = next(handler, event)
      await act()
      await told
      expect(await statusOf(app, vmId)).toBe(status)
    }
    for (const verb of ['suspendVM', 'resumeVM', 'resetVM']) await app.instance[verb](vmId).catch(() => undefined)
    await app.instance.getHealthMonitor().checkAllVMs()
    expect([await statusOf(app, vmId), host.isAlive(pid)]).toEqual([status, true])
    const crash = once(app.instance.getHealthMonitor(), 'crash')
    process.kill(pid, 'SIGKILL')
    await crash
    expect(await statusOf(app, vmId)).toBe(status)
    expect(await app.database.configuration(vmId)).toMatchObject({ qemuPid: null })
  })

  test('an instance that comes back leaves them, and their QEMUs, alone', async () => {
    const app = await application(server, way)
    const claimed = ['backing_up', 'capturing', 'error']
    const vms = []
    for (const status of claimed) vms.push({ status, ...await created(app) })
    for (const { vmId, status } of vms) await claim(app, vmId, status)
    const idle = []
    for (const marker of untouched) idle.push([(await defined(app, { row: { status: marker, configuration: { qemuPid: 1 } } })).vmId, marker])
    await app.instance.shutdown()

    const again = await app.open({ stateDir: app.instance.stateDir })
    await again.reconcileStartupState()
    const monitor = again.getHealthMonitor()
    for (let round = 0; round < 2; round++) {
      await monitor.checkAllVMs()
      await monitor.checkOrphanProcesses()
    }
    for (const { vmId, status, pid } of vms) expect([vmId, await statusOf(app, vmId), host.isAlive(pid)]).toEqual([vmId, status, true])
    for (const [vmId, marker] of idle) expect([vmId, await statusOf(app, vmId)]).toEqual([vmId, marker])
    for (const { vmId } of vms) await again.destroyVM(vmId)
    for (const { vmId, status, pid } of vms) expect([await statusOf(app, vmId), host.isAlive(pid)]).toEqual([status, false])
  })

  test('what is in between is settled by whether its QEMU lives', async () => {
    const app = await application(server, way)
    const { vmId } = await created(app)
    await claim(app, vmId, 'starting')
    const { vmId: dead } = await defined(app, { row: { status: 'starting', configuration: { qemuPid: 1 } } })
    const { vmId: other } = await defined(app, { row: { status: 'starting', nodeId: 'node-b' } })
    const summary = await app.instance.reconcileStartupState()
    expect(summary.promotedToRunning).toEqual([vmId])
    expect(summary.resetToOff).toContain(dead)
    expect([await statusOf(app, vmId), await statusOf(app, dead)]).toEqual(['running', 'off'])
    // An instance without a node looks after all of them.
    expect(await statusOf(app, other)).toBe(way === 'prisma7' ? 'off' : 'starting')
  })
})
