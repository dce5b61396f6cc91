'use strict'

const { LifecycleError } = require('./errors')
const native = require('./native')
const { traced } = require('./traced')

const Process = traced(class extends native.QemuProcess {})

// A QEMU with a command line of one's own. What it is known by is told native code with each call.
class QemuProcess extends Process {
  #builder
  #knownBy = {}
  #pinning = { applied: false, cores: [], nodes: [] }

  constructor (vmId, builder) {
    super(vmId)
    this.#builder = builder
  }

  setQmpSocketPath (path) { this.#knownBy.qmpSocketPath = path }

  setPidFilePath (path) { this.#knownBy.pidFilePath = path }

  setIdentityToken (token) { this.#knownBy.identityToken = token }

  async start () {
    const { pinningApplied, pinnedCores, numaNodes, ...launch } = await this.#command()
    await super.start(launch, this.#traits())
    this.#pinning = { applied: pinningApplied, cores: pinnedCores, nodes: numaNodes }
  }

  async stop (timeoutMs = 30000) {
    return super.stop(this.#traits(), { timeoutMs })
  }

  async forceKill () {
    return super.forceKill(this.#traits())
  }

  isCpuPinningApplied () { return this.#pinning.applied }

  getPinnedCores () { return [...this.#pinning.cores] }

  getNumaNodes () { return [...this.#pinning.nodes] }

  #traits () {
    const pidFilePath = this.#builder?.getPidfilePath?.() ?? undefined
    return { ...(pidFilePath && { pidFilePath }), ...this.#knownBy }
  }

  async #command () {
    if (typeof this.#builder?.buildCommandWithPinning === 'function') return this.#builder.buildCommandWithPinning()
    const issues = [{ path: 'builder', message: 'must be a QemuCommandBuilder' }]
    throw new LifecycleError('INVALID_CONFIG', 'builder must be a QemuCommandBuilder', undefined, { issues })
  }
}

module.exports = { QemuProcess }
