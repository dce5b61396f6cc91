'use strict'

// A command line that numactl keeps on some CPUs of the host, and its memory beside them, for a QEMU of one's own. The
// engine needs none: it pins each virtual CPU by itself (`enableNumaCtlPinning`). What the host is, is asked once.

const fs = require('node:fs')
const path = require('node:path')
const native = require('./native')
const { tracedFunction } = require('./traced')
const { warn } = require('./warn')

const hostNodes = tracedFunction(native, 'hostNodes')
const spreadCpus = tracedFunction(native, 'spreadCpus')

const found = { topology: undefined, numactl: undefined }

class CpuPinningAdapter {
  async generatePinningCommand (vcpus, strategy, command, args, { seed } = {}) {
    const original = { originalCommand: command, originalArgs: [...args] }
    const without = { wrapperCommand: null, wrapperArgs: [], ...original, pinningApplied: false, pinnedCores: [], numaNodes: [] }
    if (strategy === 'none') return without
    try {
      if (!await this.isNumactlAvailable()) throw new Error('there is no numactl')
      const { cores, nodes, ...seeded } = await this.#choose(vcpus, strategy, seed)
      const wrapperArgs = this.generateNumactlArgs(cores, nodes)
      return { wrapperCommand: 'numactl', wrapperArgs, ...original, pinningApplied: true, pinnedCores: cores, numaNodes: nodes, ...seeded }
    } catch (error) {
      warn(`${command} is not pinned: ${error.message}`)
      return without
    }
  }

  async #choose (vcpus, strategy, given) {
    const { nodes } = await this.getNumaTopology()
    const seed = strategy === 'hybrid' ? given ?? Math.floor(Math.random() * 2 ** 32) : 0
    const chosen = spreadCpus({ nodes: [...nodes.values()], vcpus, strategy, seed })
    if (chosen.length === 0) throw new Error('the host has no CPUs for it')
    const cores = [...new Set(chosen)].sort((one, other) => one - other)
    const beside = [...nodes].filter(([, cpus]) => cpus.some((cpu) => cores.includes(cpu)))
    return { cores, nodes: beside.map(([id]) => id), ...(strategy === 'hybrid' && { hybridSeed: seed }) }
  }

  generateNumactlArgs (cores, nodes) {
    return [`--physcpubind=${cores.join()}`, `--membind=${nodes.join()}`]
  }

  async getNumaTopology () {
    found.topology ??= await readTopology()
    const { nodes, ...rest } = found.topology
    return { nodes: new Map([...nodes].map(([id, cpus]) => [id, [...cpus]])), ...rest }
  }

  async isNumactlAvailable () {
    found.numactl ??= await isProgram('numactl')
    return found.numactl
  }

  async validateCores (cores) {
    const { nodes } = await this.getNumaTopology()
    const usable = new Set([...nodes.values()].flat())
    const wrong = cores.filter((core) => !usable.has(core))
    if (wrong.length > 0) throw new Error(`these CPUs are not online, or not for this process: ${wrong.join(', ')}`)
  }

  clearCache () {
    found.topology = found.numactl = undefined
  }
}

// Nodes without CPUs have nothing to choose.
async function readTopology () {
  const nodes = new Map((await hostNodes()).filter(({ cpus }) => cpus.length > 0).map(({ id, cpus }) => [id, cpus]))
  return { nodes, totalCpus: [...nodes.values()].flat().length, isNumaSystem: nodes.size > 1 }
}

async function isProgram (name) {
  const directories = (process.env.PATH ?? '').split(path.delimiter).filter(path.isAbsolute)
  const tried = directories.map((directory) => fs.promises.access(path.join(directory, name), fs.constants.X_OK))
  return Promise.any(tried).then(() => true, () => false)
}

module.exports = { CpuPinningAdapter }
