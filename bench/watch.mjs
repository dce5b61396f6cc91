// A process that only watches machines: its memory and its CPU time. Started by node.mjs.

import { figure } from './lib/figures.mjs'
import { Infinization } from '../index.js'

const count = Number(process.env.WATCHED)
const seconds = Number(process.env.IDLE_SECONDS)
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))
const ids = Array.from({ length: count }, (_, number) => `watched-${number}`)
const settings = { stateDir: process.env.STATE_DIR, bridgeConntrackMode: 'degrade', accelerator: 'tcg' }

// One instance makes the machines and leaves; another takes them over, as after a restart.
const maker = new Infinization(settings)
await maker.initialize()
for (const vmId of ids) {
  await maker.createVM({
    vmId, internalName: vmId, name: vmId, os: 'linux', cpuCores: 1, ramGB: 0.5, disks: [{ sizeGB: 1 }],
    bridge: 'nbr0', displayType: 'spice', displayPort: 5900
  })
}
await maker.shutdown()

const infinization = new Infinization(settings)
const began = performance.now()
await infinization.initialize()
figure(`initialize() that takes ${count} running VMs back`, performance.now() - began, 'ms')
if (infinization.getActiveVMs().length !== count) throw new Error('not all were taken back')
// Firmware needs a while until it halts.
await wait(20_000)
globalThis.gc()
const before = process.cpuUsage()
await wait(seconds * 1000)
const { user, system } = process.cpuUsage(before)
figure(`CPU while ${count} VMs idle`, (user + system) / 1e4 / seconds, '%', '≤ 0.1')
figure(`RSS while ${count} VMs are watched`, process.memoryUsage.rss() / 2 ** 20, 'MiB', '≤ 54')
for (const vmId of ids) await infinization.deleteVM(vmId, { deleteDisks: true })
await infinization.shutdown()
