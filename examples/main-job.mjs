// The main job, for real: one VM from its creation to its deletion, with proof that nothing is left.
//
// Run by `npm start`, which sets up and gives it a network of its own. It also works by itself, as
// root, on a host with QEMU and nftables: `node examples/main-job.mjs`. Ends with 0 only if every
// step held.

import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { BridgeManager, generateVMChainName, Infinization, NftablesService, SnapshotManager } from '../index.js'
import { ConsoleLog } from './lib/console-log.mjs'
import { httpGet, portState, typeOnConsole } from './lib/probe.mjs'
import { duration, Progress } from './lib/progress.mjs'
import { removeTable, tableExists } from './lib/table.mjs'
import { filesBelow, traces } from './lib/traces.mjs'
import { Undo } from './lib/undo.mjs'

const GUEST_DIR = process.env.INFINIZATION_GUEST_DIR ??
  join(dirname(fileURLToPath(import.meta.url)), '..', '.guest')

// The tiny guest takes 10.177.<last two bytes of its MAC>/16; the host sits on its bridge.
const HOST_ADDRESS = '10.177.200.1/16'

// Without KVM the guest runs emulated, on a machine that may be busy.
const BOOT_DEADLINE = 120_000
const ANSWER_DEADLINE = 10_000
// Long enough to tell a dropped packet from a slow guest.
const SILENCE = 3_000

const SNAPSHOT = 'after-first-boot'

const interruption = new AbortController()
const interrupted = interruption.signal
const job = new Progress(process.stdout, interrupted)
const undo = new Undo()

process.once('SIGINT', () => interruption.abort(new Error('interrupted')))
process.once('SIGTERM', () => interruption.abort(new Error('terminated')))

try {
  await mainJob()
  job.say(`\nDone: ${job.summary()}, nothing left behind.`)
} catch (error) {
  process.exitCode = interrupted.aborted ? 130 : 1
  job.say(`\nFailed: ${describe(error)}`)
} finally {
  await undo.run(text => {
    process.exitCode ||= 1
    job.say(text)
  })
}

async function mainJob () {
  assert.equal(process.getuid(), 0, 'TAPs, bridges and nftables need root')
  assert.ok(existsSync(join(GUEST_DIR, 'tiny.qcow2')), 'the guest image is missing: run `npm run setup`')
  const plan = await makePlan()
  const before = await traces(plan.names)
  const host = await prepareHost(plan)
  const vm = await createAndBoot(host, plan)
  await useNetwork(vm)
  await pauseAndStop(host, vm)
  await snapshot(vm)
  await crash(host, vm)
  await removeAll(host, vm)
  await job.step('Nothing is left on the host', () => compareTraces(before, vm.names))
}

async function makePlan () {
  const vmId = randomUUID()
  const suffix = randomBytes(3).toString('hex')
  const stateDir = await mkdtemp(join(tmpdir(), 'infz-'))
  undo.push('remove the state directory', () => rm(stateDir, { recursive: true }))
  const internalName = `main-job-${suffix}`
  const bridge = `infz-${suffix}`
  return { vmId, internalName, bridge, stateDir, names: [vmId, internalName, bridge, stateDir, generateVMChainName(vmId)] }
}

async function prepareHost ({ bridge, stateDir }) {
  const bridges = new BridgeManager()
  const removeTables = await tableExists() ? undefined : undo.push('remove the firewall\'s table', removeTable)
  const removeBridge = undo.push('remove the bridge', () => bridges.destroy(bridge))
  const bridgeConntrackMode = await job.step('Asks the kernel for bridge conntrack', conntrackMode)
  explainMode(bridgeConntrackMode)
  await job.step('Makes a bridge', async () => {
    await bridges.create(bridge)
    await bridges.assignIP(bridge, HOST_ADDRESS)
    return `${bridge}, ${HOST_ADDRESS}`
  })

  const infinization = new Infinization({ stateDir, bridgeConntrackMode })
  const shutdown = undo.push('shut the library down', () => infinization.shutdown())
  await job.step('Starts the library', () => infinization.initialize())
  return { infinization, removeBridge, removeTables, shutdown }
}

// Bridges need the module nf_conntrack_bridge for stateful rules. Mode `fail` refuses to go on
// without it; mode `degrade`, chosen knowingly, filters without state.
async function conntrackMode () {
  try {
    await new NftablesService({ bridgeConntrackMode: 'fail', enablePersistence: false }).initialize()
    return 'fail'
  } catch (error) {
    if (error.code !== 'CONNTRACK_UNAVAILABLE') throw error
    return 'degrade'
  }
}

function explainMode (mode) {
  job.say(mode === 'fail'
    ? '  The firewall is stateful: the kernel tracks connections on bridges.'
    : '  The firewall is stateless: this kernel has no nf_conntrack_bridge. Replies to accepted TCP still pass.')
}

async function createAndBoot ({ infinization }, { vmId, internalName, bridge, stateDir, names }) {
  const deleteVM = undo.push('delete the machine', () => infinization.deleteVM(vmId, { deleteDisks: true }))
  const log = new ConsoleLog(join(stateDir, 'vms', vmId, 'serial.log'), interrupted)
  const created = await job.step('Creates the machine', () => infinization.createVM({
    vmId,
    internalName,
    name: 'Main job',
    os: 'Debian 12',
    cpuCores: 1,
    ramGB: 0.5,
    disks: [{ sizeGB: 1, format: 'qcow2', backingFile: join(GUEST_DIR, 'tiny.qcow2') }],
    bridge,
    displayType: 'vnc',
    displayPort: 5900,
    firewallDefaultAction: 'drop',
    firewallRules: [{
      id: 'web', name: 'web', action: 'ACCEPT', direction: 'IN', priority: 100, protocol: 'tcp', dstPortStart: 80
    }],
    serialConsole: true
  }, { signal: interrupted }))
  names.push(created.tapDevice)
  job.say(`  pid ${created.pid}, ${created.tapDevice} on ${bridge}, VNC on port ${created.displayPort}, ` +
    await accelerator(infinization, vmId))

  await job.step('Boots to userspace', async () => (await log.line(/INFZ-READY uptime=\S+ cpus=\d+/, BOOT_DEADLINE))[0])
  const [, , address] = await log.line(/INFZ-NET (\S+) \S+ (10\.177\.\S+)/, ANSWER_DEADLINE)
  const console = join(stateDir, 'run', `${internalName}-console.sock`)
  return { vmId, internalName, stateDir, names, log, address, console, disk: created.diskPaths[0], deleteVM }
}

async function accelerator (infinization, vmId) {
  const { enabled } = await infinization.getQMPClient(vmId).execute('query-kvm')
  return enabled ? 'accelerated by KVM' : 'emulated by TCG'
}

async function useNetwork ({ address, console }) {
  await job.step('Answers on the serial console', () =>
    typeOnConsole(console, 'echo sum-$((40+2))', /sum-42/, ANSWER_DEADLINE))
  await job.step('Answers on the allowed port', () => answersHttp(address))
  await job.step('Is silent on any other port', async () => {
    const inside = await typeOnConsole(console, 'nc 127.0.0.1 22', /SSH-2\.0-tiny/, ANSWER_DEADLINE)
    assert.equal(await portState(address, 22, SILENCE), 'silent')
    return `${address}:22, where ${inside} listens`
  })
}

async function answersHttp (address) {
  assert.equal(await httpGet(address, 80, ANSWER_DEADLINE), 'tiny-guest-ok')
  return `http://${address}/`
}

async function pauseAndStop ({ infinization }, { vmId, address }) {
  await job.step('Suspends', async () => {
    await infinization.suspendVM(vmId)
    return expectStatus(infinization, vmId, 'suspended')
  })
  await job.step('Resumes and answers again', async () => {
    await infinization.resumeVM(vmId)
    await expectStatus(infinization, vmId, 'running')
    return answersHttp(address)
  })
  await job.step('Stops by the power button', async () => {
    const { forced } = await infinization.stopVM(vmId, { graceful: true, timeout: 30_000, force: false })
    assert.ok(!forced, 'the guest was to end by itself')
    return expectStatus(infinization, vmId, 'off')
  })
}

async function expectStatus (infinization, vmId, expected) {
  const { status, consistent } = await infinization.getVMStatus(vmId)
  assert.equal(status, expected)
  assert.ok(consistent, `the store says ${status}, the process does not agree`)
  return status
}

async function snapshot ({ disk }) {
  const snapshots = new SnapshotManager()
  await job.step('Takes a snapshot of the disk', async () => {
    await snapshots.createSnapshot({ imagePath: disk, name: SNAPSHOT, description: 'taken by the example' })
    const names = (await snapshots.listSnapshots(disk)).map(({ name }) => name)
    assert.deepEqual(names, [SNAPSHOT])
    return SNAPSHOT
  })
}

async function crash ({ infinization }, { vmId, log, address }) {
  await job.step('Starts again', async () => {
    await log.skipToEnd()
    await infinization.startVM(vmId)
    await log.line(/INFZ-READY/, BOOT_DEADLINE)
    return answersHttp(address)
  })
  await job.step('Notices that QEMU was killed and cleans up', async () => {
    const { pid } = await infinization.getVMStatus(vmId)
    const crashed = once(infinization.getHealthMonitor(), 'crash', { signal: AbortSignal.timeout(ANSWER_DEADLINE) })
    const killed = performance.now()
    process.kill(pid, 'SIGKILL')
    const [event] = await crashed
    const latency = duration(performance.now() - killed)
    assert.equal(event.vmId, vmId)
    assert.ok(event.cleanupPerformed, 'the crash event comes after the clean-up')
    await expectStatus(infinization, vmId, 'off')
    return `cleaned up and \`crash\` event sent ${latency} after SIGKILL`
  })
}

async function removeAll ({ shutdown, removeBridge, removeTables, infinization }, { deleteVM, disk, stateDir, vmId }) {
  await job.step('Destroys the machine: its disk stays', async () => {
    await infinization.destroyVM(vmId)
    assert.ok(existsSync(disk), 'the user\'s data is not destroyVM\'s to remove')
    return disk
  })
  await job.step('Deletes it with its disk', deleteVM)
  await job.step('Shuts the library down', shutdown)
  await job.step('Removes the bridge', removeBridge)
  if (removeTables) await job.step('Removes the firewall\'s table', removeTables)
  await job.step('Of the machine only its journal is left', async () => {
    const own = [stateDir, join(stateDir, 'journals')]
    const left = (await filesBelow(stateDir)).filter(file => !own.includes(dirname(file)))
    assert.deepEqual(left, [], 'only the library\'s own store and its journals stay')
  })
}

async function compareTraces (before, names) {
  const known = new Set(before)
  const left = (await traces(names)).filter(trace => !known.has(trace))
  assert.deepEqual(left, [], 'traces of the machine')
  return 'no link, rule, process, socket or open file'
}

/** An error and its causes, each with its code. */
function describe (error) {
  const own = error.code ? `${error.message} [${error.code}]` : error.message
  return error.cause ? `${own}\n  because ${describe(error.cause)}` : own
}
