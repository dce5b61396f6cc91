// What the addon costs the Node process it lives in: time on its thread, memory, CPU. Prints figures
// as JSON lines. Run as root inside scripts/private.

import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay, performance } from 'node:perf_hooks'
import { figure, median } from './lib/figures.cjs'
import { slowDatabase } from './lib/slow-database.mjs'
import { BridgeManager, Infinization } from '../index.js'

const WATCHED = Number(process.env.INFINIZATION_BENCH_VMS ?? 100)
const IDLE_SECONDS = 30
const CALLS = 200
const TURNS = 10
// Whoever names certificates of his own has every Node read them.
const { NODE_EXTRA_CA_CERTS: _certificates, ...environment } = process.env

const stateDir = mkdtempSync(join(tmpdir(), 'node-'))
const bridges = new BridgeManager()
// Events alone do not keep a process alive; a benchmark must wait for some.
const alive = setInterval(() => {}, 60_000)

const machine = (vmId) => ({
  vmId, internalName: vmId, name: vmId, os: 'linux', cpuCores: 1, ramGB: 0.5, disks: [{ sizeGB: 1 }],
  bridge: 'nbr0', displayType: 'spice', displayPort: 5900, accelerator: 'tcg'
})
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

function bareNode () {
  const script = 'setTimeout(() => { console.log(process.memoryUsage.rss() / 2 ** 20) }, 500)'
  return Number(execFileSync(process.execPath, ['--expose-gc', '-e', script], { encoding: 'utf8', env: environment }))
}

async function createsAndDeletes (infinization, rounds) {
  const times = []
  for (let round = 0; round < rounds; round++) {
    const began = performance.now()
    await infinization.createVM(machine('size-1'))
    times.push(performance.now() - began)
    await infinization.deleteVM('size-1', { deleteDisks: true })
  }
  return median(times)
}

// A large heap must not make a spawn slower: nothing forks this process.
async function heapSize (infinization) {
  figure('createVM from Node', await createsAndDeletes(infinization, 15), 'ms')
  const blocks = Array.from({ length: 32 }, () => Buffer.alloc(64 * 2 ** 20, 1))
  figure('createVM from Node with 2 GiB more in memory', await createsAndDeletes(infinization, 15), 'ms', 'the same')
  blocks.length = 0
}

// The delay of this thread's timers while many operations run, against an idle twin.
async function eventLoop (infinization) {
  const idle = await delays(() => wait(3000))
  const busy = await delays(async () => {
    for (let round = 0; round < 5; round++) {
      const ids = Array.from({ length: 10 }, (_, number) => `loop-${number}`)
      await Promise.all(ids.map((vmId) => infinization.createVM(machine(vmId))))
      await Promise.all(ids.map((vmId) => infinization.deleteVM(vmId, { deleteDisks: true })))
    }
  })
  figure('event loop delay p99, idle', idle, 'ms')
  figure('event loop delay p99, 50 creates and deletes, 10 at once', busy, 'ms')
  figure('event loop delay p99, difference', busy - idle, 'ms', '≤ 20')
}

async function delays (work) {
  const histogram = monitorEventLoopDelay({ resolution: 5 })
  histogram.enable()
  await work()
  histogram.disable()
  return histogram.percentile(99) / 1e6
}

// A QMP client as one writes it in an hour: one line out, one line in.
class PlainClient {
  #answers = []
  #rest = ''

  static async open (path) {
    const client = new PlainClient()
    client.socket = connect(path)
    client.socket.setEncoding('utf8').on('data', (text) => client.#take(text))
    await client.#next()
    await client.execute('qmp_capabilities')
    return client
  }

  execute (command) {
    this.socket.write(JSON.stringify({ execute: command }) + '\n')
    return this.#next()
  }

  #next () {
    return new Promise((resolve) => this.#answers.push(resolve))
  }

  #take (text) {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()
    for (const line of lines) {
      const message = JSON.parse(line)
      if (!message.event) this.#answers.shift()?.(message)
    }
  }
}

// What the JavaScript thread has run so far, in milliseconds; waiting for a CPU is not in it.
const threadTime = () => Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ')[0]) / 1e6

async function roundTrips (execute) {
  const times = []
  const before = threadTime()
  for (let call = 0; call < CALLS; call++) {
    const began = performance.now()
    await execute('query-status')
    times.push(performance.now() - began)
  }
  return { times, thread: (threadTime() - before) / CALLS }
}

// Both in turns, each with a machine of its own: a monitor serves one client at a time.
async function qmp (infinization) {
  await infinization.createVM(machine('qmp-1'))
  const ours = infinization.getQMPClient('qmp-1')
  const settings = { stateDir: join(stateDir, 'plain'), bridgeConntrackMode: 'degrade' }
  const { qmpSocketPath } = await briefly(settings, (other) => other.createVM(machine('qmp-2')))
  const plain = await PlainClient.open(qmpSocketPath)
  const [our, their] = [[], []]
  for (let turn = 0; turn <= TURNS; turn++) {
    their.push(await roundTrips((command) => plain.execute(command)))
    our.push(await roundTrips((command) => ours.execute(command)))
  }
  plain.socket.destroy()
  await infinization.deleteVM('qmp-1', { deleteDisks: true })
  await briefly(settings, (other) => other.deleteVM('qmp-2', { deleteDisks: true }))
  // The first turn had both compiled.
  const trip = (turns) => median(turns.slice(1).flatMap(({ times }) => times))
  const thread = (turns) => median(turns.slice(1).map((turn) => turn.thread)) * 1000
  figure('QMP round trip, plain Node client', trip(their), 'ms')
  figure('QMP round trip, getQMPClient().execute()', trip(our), 'ms')
  figure('QMP round trip, ratio', trip(our) / trip(their), '', '≤ 1.1')
  figure('CPU time of the JavaScript thread per call, plain Node client', thread(their), 'µs')
  figure('CPU time of the JavaScript thread per call, ours', thread(our), 'µs', 'less')
}

// An instance that leaves its machines running.
async function briefly (settings, work) {
  const infinization = new Infinization(settings)
  await infinization.initialize()
  try {
    return await work(infinization)
  } finally {
    await infinization.shutdown()
  }
}

// Nobody waits for another's row: all statuses together take about as long as one.
async function statuses () {
  const [machines, pause] = [200, 20]
  const databaseAdapter = slowDatabase(pause)
  const infinization = new Infinization({
    stateDir: join(stateDir, 'slow'), bridgeConntrackMode: 'degrade', databaseAdapter, autoStartHealthMonitor: false
  })
  await infinization.initialize()
  const ids = Array.from({ length: machines }, (_, number) => `slow-${number}`)
  const lasts = async (work) => {
    const began = performance.now()
    await work()
    return performance.now() - began
  }
  const one = await lasts(() => infinization.getVMStatus(ids[0]))
  const all = await lasts(() => Promise.all(ids.map((vmId) => infinization.getVMStatus(vmId))))
  await infinization.shutdown()
  figure(`one status, a database that takes ${pause} ms`, one, 'ms')
  figure(`${machines} statuses at once, a database that takes ${pause} ms`, all, 'ms', '≤ 250')
}

// Many machines that do nothing: their firmware has found no system and halts. One process makes
// them, another watches, as after a restart.
async function watching () {
  for (const what of ['make', 'watch']) {
    const child = spawn(process.execPath, ['--expose-gc', new URL('watch.cjs', import.meta.url).pathname, what],
      { stdio: ['ignore', 'inherit', 'inherit'], env: { ...environment, WATCHED, IDLE_SECONDS, STATE_DIR: join(stateDir, 'watch') } })
    const code = await new Promise((resolve) => child.on('exit', resolve))
    if (code !== 0) throw new Error(`watch.cjs ${what} failed`)
  }
}

async function main () {
  await bridges.create('nbr0')
  // SPICE resolves its address only on a host that has one beside loopback's.
  await bridges.assignIP('nbr0', '10.77.0.1/24')
  const settings = { stateDir: join(stateDir, 'main'), bridgeConntrackMode: 'degrade' }
  const infinization = new Infinization(settings)
  await infinization.initialize()
  await heapSize(infinization)
  await eventLoop(infinization)
  await qmp(infinization)
  await infinization.shutdown()
  await statuses()
  figure('RSS of a bare Node', bareNode(), 'MiB')
  await watching()
  await bridges.destroy('nbr0')
  rmSync(stateDir, { recursive: true })
  clearInterval(alive)
}

await main()
