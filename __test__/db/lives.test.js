'use strict'

// Whole lives of machines whose rows are in PostgreSQL, by every way an application can give them.

const { once } = require('node:events')
const { generateVMChainName } = require('../..')
const { cleanUp, guestDisk, host, next } = require('../kit')
const { NODE, application, created, waysHere } = require('../kit/application')
const { booted } = require('../kit/guest')
const { Postgres } = require('../kit/postgres')

jest.setTimeout(120_000)

let server
beforeAll(async () => { server = await Postgres.start() })
afterEach(cleanUp)
afterAll(() => server.remove())

const forced = { graceful: false, force: true }

// Results cross HTTP: but for the time, which becomes text there, they are plain data.
function expectPlain ({ timestamp, ...result }) {
  expect(JSON.parse(JSON.stringify(result))).toEqual(result)
}

// Listeners that read the row at once, as the application's do: [newStatus, the row's status].
function readers ({ instance, database }) {
  const reads = []
  instance.getEventHandler().on('vm:event', ({ vmId, newStatus }) => {
    reads.push(database.row(vmId).then((row) => [newStatus, row.status]))
  })
  return async () => Promise.all(reads.splice(0))
}

describe.each(waysHere())('%s', (way) => {
  test('create, suspend, resume, stop, start, crash, destroy: the row says the same as the host', async () => {
    const app = await application(server, way)
    const { instance, database } = app
    const told = (status) => next(instance.getEventHandler(), 'vm:event', ({ newStatus }) => newStatus === status)
    const read = readers(app)

    const vm = await created(app, { displayPassword: 's3cret' })
    const { vmId } = vm
    expectPlain({ ...vm, config: undefined })
    expect(await database.row(vmId)).toMatchObject({ status: 'running', ramGB: 1, nodeId: NODE })
    expect(await database.configuration(vmId)).toMatchObject({
      qemuPid: vm.pid, tapDeviceName: vm.tapDevice, qmpSocketPath: vm.qmpSocketPath, graphicProtocol: 'vnc', graphicPort: vm.displayPort,
      graphicPassword: 's3cret', bridge: vm.config.bridge, diskPaths: vm.diskPaths
    })
    expectPlain(await instance.getVMStatus(vmId))

    for (const [call, status] of [
      [() => instance.suspendVM(vmId), 'suspended'], [() => instance.resumeVM(vmId), 'running'], [() => instance.stopVM(vmId, forced), 'off']
    ]) {
      const event = told(status)
      expectPlain(await call())
      await event
      expect((await read()).at(-1)).toEqual([status, status])
      expect(await database.row(vmId)).toMatchObject({ status })
    }
    expect(host.isAlive(vm.pid)).toBe(false)
    expect(await database.configuration(vmId)).toMatchObject({ qemuPid: null, qmpSocketPath: null })

    const { version } = await database.row(vmId)
    expectPlain(await instance.startVM(vmId))
    expect(await database.row(vmId)).toMatchObject({ status: 'running' })
    const { qemuPid } = await database.configuration(vmId)
    expect((await instance.getVMStatus(vmId)).pid).toBe(qemuPid)

    const crash = once(instance.getHealthMonitor(), 'crash')
    process.kill(qemuPid, 'SIGKILL')
    await crash
    expect(await database.row(vmId)).toMatchObject({ status: 'off' })
    expect(await database.configuration(vmId)).toMatchObject({ qemuPid: null, qmpSocketPath: null })

    expectPlain(await instance.destroyVM(vmId))
    expect(await database.row(vmId)).toMatchObject({ status: 'off' })
    expect(await database.configuration(vmId)).toMatchObject({ qemuPid: null, tapDeviceName: null, qmpSocketPath: null })
    expect(host.links()).not.toContain(vm.tapDevice)
    expect(host.chains()).not.toContain(generateVMChainName(vmId))
  })

  test('F34: 50 starts of one machine make one QEMU', async () => {
    const app = await application(server, way)
    const { vmId } = await created(app)
    await app.instance.stopVM(vmId, forced)
    const results = await Promise.all(Array.from({ length: 50 }, () => app.instance.startVM(vmId)))
    expect(results.every(({ success }) => success)).toBe(true)
    expect(host.processes(`guest=${vmId},`)).toHaveLength(1)
    expect(await app.database.row(vmId)).toMatchObject({ status: 'running' })
  })

  test('the rules of its rows, its department\'s too, are in the kernel', async () => {
    const app = await application(server, way)
    const rule = (id, priority, more) => ({ id, name: id, action: 'ACCEPT', direction: 'IN', priority, protocol: 'tcp', ...more })
    await app.database.department({
      id: 'dept', firewallPolicy: 'ALLOW_ALL', rules: [rule('dept-ssh', 100, { action: 'DROP', dstPortStart: 4022 }), rule('dept-web', 200, { dstPortStart: 4080 })]
    })
    const { vmId } = await created(app, {
      row: { departmentId: 'dept', rules: [rule('own-dns', 150, { protocol: 'udp', dstPortStart: 4053, connectionState: { states: ['NEW', 'ESTABLISHED'] } })] }
    })
    const rules = host.rulesOf(generateVMChainName(vmId).slice(3))
    const comments = rules.map(({ comment }) => comment)
    expect(comments).toEqual(expect.arrayContaining(['dept-ssh', 'dept-web', 'own-dns']))
    const text = JSON.stringify(rules)
    expect([4022, 4080, 4053].filter((port) => !text.includes(`${port}`))).toEqual([])
    // The department's policy is the last word.
    const last = rules.filter(({ chain }) => chain === generateVMChainName(vmId)).at(-1)
    expect(last.expr.at(-1)).toHaveProperty('accept')
  })
})

test.each(waysHere().filter((way) => !way.includes(',')))('%s: a guest that shuts itself down', async (way) => {
  const app = await application(server, way)
  const { instance, database } = app
  const read = readers(app)
  const agent = `${instance.stateDir}/agent.sock`
  const vm = await created(app, { disks: [guestDisk()], serialConsole: true, guestAgentSocketPath: agent })
  await booted({ log: `${instance.stateDir}/vms/${vm.vmId}/serial.log` })
  expectPlain(await instance.guestExec(vm.vmId, agent, 'true'))
  expect(await database.configuration(vm.vmId)).toMatchObject({ guestAgentSocketPath: agent })
  const off = next(instance.getEventHandler(), 'vm:event', ({ newStatus }) => newStatus === 'off')
  expectPlain(await instance.stopVM(vm.vmId, { graceful: true, timeout: 60_000 }))
  expect(await off).toMatchObject({ qmpData: { guest: true, reason: 'guest-shutdown' } })
  expect((await read()).at(-1)).toEqual(['off', 'off'])
  expect(await database.row(vm.vmId)).toMatchObject({ status: 'off' })
  expect(await database.configuration(vm.vmId)).toMatchObject({ qemuPid: null, qmpSocketPath: null })
})
