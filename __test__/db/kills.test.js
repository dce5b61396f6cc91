'use strict'

// The Node.js process of an application is killed at moments spread over create, start and stop. The next one finds
// each machine done or undone, and can do with it what the first one was about to.

const { existsSync, readFileSync, rmSync, statSync } = require('node:fs')
const path = require('node:path')
const { setImmediate } = require('node:timers/promises')
const { generateVMChainName } = require('../..')
const { cleanUp, files, finally_, host, machine, newBridge, newDirectory, newInstance, openInstance, startNode } = require('../kit')
const { NODE, application, defined } = require('../kit/application')
const { Postgres } = require('../kit/postgres')

jest.setTimeout(180_000)
afterEach(cleanUp)

const forced = { graceful: false, force: true }
// Lines of the journal from one moment to the next: a step has two.
const STRIDE = 5
const MOST_MOMENTS = 40

const journalOf = ({ stateDir, vmId }) => path.join(stateDir, 'journals', `${vmId}.jsonl`)
const qemus = ({ vmId }) => host.processes(`guest=${vmId},`).map(({ pid }) => pid)

// What of an operation the journal has: its lines since `from`.
function told (scene, from) {
  const text = existsSync(journalOf(scene)) ? readFileSync(journalOf(scene), 'utf8').slice(from) : ''
  return text.split('\n').slice(0, -1).map((line) => JSON.parse(line))
}

const size = (file) => existsSync(file) ? statSync(file).size : 0

// A Node.js of its own does the verb, and is killed once the journal has so many lines of it. What it has of them
// then, and whether it was killed rather than done.
async function doAndKill (scene, [verb, ...args], lines) {
  const from = size(journalOf(scene))
  const { child, ended, said } = startNode(`
    const { Infinization } = require('.')
    const settings = ${JSON.stringify({ stateDir: scene.stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade' })}
    const instance = new Infinization({ ...settings, ...${scene.given ?? '{}'} })
    instance.initialize()
      .then(() => console.log('ready'))
      .then(() => instance.${verb}(...${JSON.stringify(args)}))
      .then(() => process.exit(0), (error) => { console.error(error); process.exit(1) })
  `)
  await said(/ready/)
  while (child.exitCode === null && told(scene, from).length < lines) await setImmediate()
  child.kill('SIGKILL')
  const { code, signal } = await ended
  if (signal === null) expect([verb, code]).toEqual([verb, 0])
  return { killed: signal === 'SIGKILL', entries: told(scene, from), left: qemus(scene) }
}

const isStep = (name, phase) => (entry) => entry.kind === 'step' && entry.step === name && entry.phase === phase

// The next process finds the machine as its QEMU is: alive if its guest may have run, else gone.
async function foundBy (instance, scene, { entries, left }, at) {
  const living = qemus(scene)
  expect([at, living.every((pid) => left.includes(pid))]).toEqual([at, true])
  const ran = entries.some(isStep('continue', 'done'))
  if (ran) expect([at, living]).toEqual([at, left])
  if (!entries.some(isStep('continue', 'begun'))) expect([at, living]).toEqual([at, []])
  return living.length === 1
}

async function isConsistent (instance, { vmId }, runs, at) {
  const { status, ...found } = await instance.getVMStatus(vmId)
  expect([at, found]).toEqual([at, expect.objectContaining({ processAlive: runs, consistent: true })])
  expect([at, runs ? ['running'] : ['off', 'error']]).toEqual([at, expect.arrayContaining([status])])
}

// Nothing of the machine is on the host, but for what belongs to all.
function isGone ({ vmId, stateDir }, at) {
  const chain = generateVMChainName(vmId).slice(3)
  const names = [vmId, chain, `vnet-${chain.slice(0, 10)}`, stateDir]
  const bears = (text) => names.some((name) => text.includes(name))
  const found = [...host.links(), ...host.chains(), ...host.dispatched(), ...host.cgroups()].filter(bears)
  expect([at, host.processes(vmId), host.sockets(stateDir), found]).toEqual([at, [], [], []])
  expect([at, files(stateDir).filter((file) => !/^(infinization\.db|lock|journals\/)/.test(file))]).toEqual([at, []])
}

// Kills ever later until the verb is done first; `then` sees to it that it can be done again. Answers the kills.
async function killEverLater (scene, call, open, then) {
  for (let moment = 0; moment < MOST_MOMENTS; moment++) {
    const at = `${call[0]} after ${1 + moment * STRIDE} lines`
    const round = await doAndKill(scene, call, 1 + moment * STRIDE)
    const instance = await open()
    await then(instance, round, at)
    await instance.shutdown()
    if (!round.killed) return moment
  }
  throw new Error(`${call[0]} never came to its end`)
}

async function scene () {
  const config = machine(await newBridge())
  const made = { stateDir: newDirectory(), vmId: config.vmId, config }
  const { stateDir, vmId } = made
  const last = newInstance({ stateDir })
  // A test that fails leaves no machine either.
  finally_(async () => {
    await last.initialize()
    await last.deleteVM(vmId, { deleteDisks: true }).catch((error) => expect(error.code).toBe('VM_NOT_FOUND'))
  })
  return { ...made, open: () => openInstance({ stateDir }) }
}

test('F9: Node killed anywhere in a create: the machine runs, or nothing of it is left', async () => {
  const here = await scene()
  const kills = await killEverLater(here, ['createVM', here.config], here.open, async (instance, round, at) => {
    if (await foundBy(instance, here, round, at)) {
      await isConsistent(instance, here, true, at)
      await instance.deleteVM(here.vmId, { deleteDisks: true })
    } else {
      expect([at, await instance.listVMs()]).toEqual([at, []])
    }
    isGone(here, at)
  })
  expect(kills).toBeGreaterThan(4)
})

test('F9: Node killed anywhere in a start and in a stop: it can be stopped and started again', async () => {
  const here = await scene()
  const { vmId } = here
  const first = await here.open()
  await first.createVM(here.config)
  await first.stopVM(vmId, forced)
  await first.shutdown()
  const off = files(here.stateDir)
  const kills = await killEverLater(here, ['startVM', vmId], here.open, async (instance, round, at) => {
    const runs = await foundBy(instance, here, round, at)
    await isConsistent(instance, here, runs, at)
    if (!runs) expect([at, files(here.stateDir)]).toEqual([at, off])
    if (!runs) await instance.startVM(vmId)
    await instance.stopVM(vmId, forced)
  })
  expect(kills).toBeGreaterThan(3)

  const second = await here.open()
  await second.startVM(vmId)
  await second.shutdown()
  const stops = await killEverLater(here, ['stopVM', vmId, forced], here.open, async (instance, { killed, entries, left }, at) => {
    // Killed before it was to end, QEMU goes on.
    const runs = qemus(here).length === 1
    expect([at, qemus(here)]).toEqual([at, left])
    if (!killed || entries.some(({ kind }) => kind === 'release')) expect([at, runs]).toEqual([at, false])
    await isConsistent(instance, here, runs, at)
    if (!runs) expect([at, files(here.stateDir)]).toEqual([at, off])
    if (!runs) await instance.startVM(vmId)
  })
  expect(stops).toBeGreaterThan(1)
  const last = await here.open()
  await last.deleteVM(vmId, { deleteDisks: true })
  isGone(here, 'deleted')
})

test('F9: Node killed while a guest is asked to shut down: it runs on', async () => {
  const here = await scene()
  const first = await here.open()
  const { pid } = await first.createVM(here.config)
  await first.shutdown()
  const round = await doAndKill(here, ['stopVM', here.vmId, { graceful: true, timeout: 60_000 }], 1)
  expect(round).toMatchObject({ killed: true, left: [pid] })
  const instance = await here.open()
  expect(await instance.getVMStatus(here.vmId)).toMatchObject({ status: 'running', pid, consistent: true, qmpStatus: 'running' })
  await instance.deleteVM(here.vmId, { deleteDisks: true })
  isGone(here, 'deleted')
})

describe('machines that are rows of Prisma\'s', () => {
  let server
  beforeAll(async () => { server = await Postgres.start() })
  afterAll(() => server.remove())

  // The client's row is there before, and is off.
  async function rowOfPrisma () {
    const app = await application(server, 'prisma6')
    const config = await defined(app)
    const { stateDir } = app.instance
    await app.instance.shutdown()
    const address = JSON.stringify({ address: app.database.address })
    const given = `{ prismaClient: require('./__test__/kit/prisma').connect('prisma6', ${address}), nodeId: '${NODE}' }`
    finally_(() => { for (const pid of qemus(config)) process.kill(pid, 'SIGKILL') })
    return { ...app, config, vmId: config.vmId, stateDir, given, open: () => app.open({ stateDir }) }
  }

  test('F9: Node killed anywhere in a create over a row: the row is true, and the create can be repeated', async () => {
    const here = await rowOfPrisma()
    const { vmId, database } = here
    const kills = await killEverLater(here, ['createVM', here.config], here.open, async (instance, round, at) => {
      const runs = await foundBy(instance, here, round, at)
      await isConsistent(instance, here, runs, at)
      if (!runs) {
        isGone(here, at)
        const { qemuPid, qmpSocketPath } = await database.configuration(vmId) ?? { qemuPid: null, qmpSocketPath: null }
        expect([at, qemuPid, qmpSocketPath]).toEqual([at, null, null])
        expect([at, await instance.createVM(here.config)]).toEqual([at, expect.objectContaining({ success: true })])
      }
      expect([at, await database.row(vmId)]).toEqual([at, expect.objectContaining({ status: 'running' })])
      expect([at, await database.configuration(vmId)]).toEqual([at, expect.objectContaining({ qemuPid: qemus(here)[0] })])
      await instance.stopVM(vmId, forced)
      if (!round.killed) await instance.startVM(vmId)
      await instance.destroyVM(vmId)
      rmSync(path.join(here.stateDir, 'disks'), { recursive: true })
      isGone(here, at)
      // As the row was.
      await here.client.machine.update({ where: { id: vmId }, data: { status: 'off' } })
    })
    expect(kills).toBeGreaterThan(4)
  })
})
