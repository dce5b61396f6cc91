'use strict'

// A process that only watches machines: its memory and its CPU time. Started by node.mjs, first with
// `make`, which makes them and leaves. CommonJS, as the bare Node it is compared with: Node's loader of ES modules
// takes some 5 MiB of its own.

const { figure } = require('./lib/figures.cjs')
const { Infinization } = require('../index.js')

const count = Number(process.env.WATCHED)
const seconds = Number(process.env.IDLE_SECONDS)
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))
const ids = Array.from({ length: count }, (_, number) => `watched-${number}`)
const settings = { stateDir: process.env.STATE_DIR, bridgeConntrackMode: 'degrade', accelerator: 'tcg' }

const infinization = new Infinization(settings)

async function make () {
  for (const vmId of ids) {
    await infinization.createVM({
      vmId, internalName: vmId, name: vmId, os: 'linux', cpuCores: 1, ramGB: 0.5, disks: [{ sizeGB: 1 }],
      bridge: 'nbr0', displayType: 'spice', displayPort: 5900
    })
  }
}

async function watch () {
  if (infinization.getActiveVMs().length !== count) throw new Error('not all were taken back')
  // Firmware needs a while until it halts, and the first look at all machines comes after 30 s.
  await wait(35_000)
  globalThis.gc()
  const before = process.cpuUsage()
  await wait(seconds * 1000)
  const { user, system } = process.cpuUsage(before)
  figure(`CPU while ${count} VMs idle`, (user + system) / 1e4 / seconds, '%', '≤ 0.1')
  figure(`RSS while ${count} VMs are watched`, process.memoryUsage.rss() / 2 ** 20, 'MiB', '≤ 54')
  for (const vmId of ids) await infinization.deleteVM(vmId, { deleteDisks: true })
}

async function main () {
  const began = performance.now()
  await infinization.initialize()
  const took = performance.now() - began
  if (process.argv[2] === 'make') {
    await make()
  } else {
    figure(`initialize() that takes ${count} running VMs back`, took, 'ms')
    await watch()
  }
  await infinization.shutdown()
}

main()
