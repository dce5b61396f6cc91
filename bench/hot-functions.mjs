// Which functions of an addon run in a process that takes machines back and watches them, as a linker
// script that lays them side by side. Run by scripts/hot-functions: `hot-functions.mjs ADDON OUTPUT`.
// How it is seen: hot-functions.c.

import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { BridgeManager, Infinization } from '../index.js'

const [addon, output] = process.argv.slice(2).map((path) => resolve(path))
// Enough of them to wait for each other.
const MACHINES = Array.from({ length: 100 }, (_, number) => `hot-${number}`)
const BRIDGE = 'nbr0'

const directory = mkdtempSync(join(tmpdir(), 'hot-'))
const settings = { stateDir: join(directory, 'state'), bridgeConntrackMode: 'degrade', accelerator: 'tcg' }

// Until after the second look at all machines, which comes after 30 s: the first is part of the start. When it has been
// told, nothing is left to do; a second later memory is given back.
const WATCHING = `
  const { once } = require('node:events')
  const { setTimeout: passed } = require('node:timers/promises')
  const { Infinization } = require(${JSON.stringify(resolve('index.js'))})
  const infinization = new Infinization(${JSON.stringify(settings)})
  const nextTime = () => process.kill(process.pid, 'SIGUSR2')
  async function main () {
    await infinization.initialize()
    await passed(25_000)
    // Waiting for an event of the library keeps no process alive.
    const alive = setInterval(() => {}, 1000)
    await once(infinization.getHealthMonitor(), 'check-complete')
    clearInterval(alive)
    await passed(500)
    nextTime()
    await passed(10_000)
    nextTime()
    await infinization.shutdown()
  }
  main()`
const AT_REST = 2

async function briefly (work) {
  const infinization = new Infinization(settings)
  await infinization.initialize()
  await Promise.all(MACHINES.map((vmId) => work(infinization, vmId)))
  await infinization.shutdown()
}

async function make (infinization, vmId) {
  await infinization.createVM({
    vmId, internalName: vmId, name: vmId, os: 'linux', cpuCores: 1, ramGB: 0.5, disks: [{ sizeGB: 1 }], bridge: BRIDGE,
    displayType: 'spice', displayPort: 5900
  })
  // Its firmware would only take time.
  await infinization.suspendVM(vmId)
}

// By where it begins: the names a function has.
function functionsOf (addon) {
  const table = execFileSync('nm', ['--defined-only', addon], { encoding: 'utf8', maxBuffer: 2 ** 28 })
  const found = new Map()
  for (const [, place, name] of table.matchAll(/^0*([0-9a-f]+) [tTwW] (\S+)$/gm)) {
    found.set(place, [...found.get(place) ?? [], name])
  }
  return found
}

// Where those begin that run while machines are taken back and watched: first those that run while nothing happens, so
// that these few share their pages with no others.
function thoseThatRun (places) {
  const [preloaded, begins, ran] = ['preloaded.so', 'begins', 'ran'].map((name) => join(directory, name))
  execFileSync('cc', ['-shared', '-fPIC', '-O1', '-o', preloaded, new URL('hot-functions.c', import.meta.url).pathname])
  writeFileSync(begins, places.sort((a, b) => parseInt(a, 16) - parseInt(b, 16)).join('\n'))
  execFileSync(process.execPath, ['-e', WATCHING], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: {
      ...process.env, LD_PRELOAD: preloaded, NAPI_RS_NATIVE_LIBRARY_PATH: addon, HOT_ADDON: addon, HOT_BEGINS: begins, HOT_RAN: ran
    }
  })
  const all = readFileSync(ran, 'utf8').trim().split('\n').map((line) => line.split(' '))
  const atRest = ([, times]) => (times & AT_REST) !== 0
  return [all.filter(atRest), all.filter((one) => !atRest(one))].map((some) => some.map(([place]) => place))
}

// Without the crates' hashes and the linker's numbers, which change with the compiler, the profile and every dependency.
const withoutHashes = (name) => name.replace(/Cs[0-9A-Za-z]+_/g, 'Cs*_').replace(/\.(llvm\.)?\d+$/, '*')

const script = (names) => `/* Written by scripts/hot-functions: do not edit. */
SECTIONS
{
  .text.hot_functions :
  {
${names.map((name) => `    *(.text.${name})\n`).join('')}  }
}
INSERT BEFORE .text;
`

const bridges = new BridgeManager()
await bridges.create(BRIDGE)
// SPICE resolves its address only on a host that has one beside loopback's.
await bridges.assignIP(BRIDGE, '10.77.0.1/24')
await briefly(make)
const functions = functionsOf(addon)
const groups = thoseThatRun([...functions.keys()])
for (const [n, least] of [50, 1000].entries()) {
  if (groups[n].length < least) throw new Error(`only ${groups[n].length} functions were seen`)
}
const names = groups.flatMap((places) => places.flatMap((place) => functions.get(place)).map(withoutHashes).sort())
writeFileSync(output, script([...new Set(names)]))
await briefly((infinization, vmId) => infinization.deleteVM(vmId, { deleteDisks: true }))
await bridges.destroy(BRIDGE)
rmSync(directory, { recursive: true })
