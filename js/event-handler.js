'use strict'

const { LifecycleError } = require('./errors')
const { deliver } = require('./events')
const native = require('./native')
const { QMPClient } = require('./qmp-client')
const { traced } = require('./traced')
const { databasePort, lockPort, splitConfig } = require('./vm-lock')

// Those that follow a machine: they are needed even when nobody refers to them.
const following = new Set()

let isTold, serve, serveNoMore

const Handler = traced(class extends native.EventHandler {})

// With `owner`, which is `getEventHandler()`'s business, it is the face of that instance.
class EventHandler extends Handler {
  #owner
  #isCustom
  #clients = new Map()
  // Those of engines that run machines for whoever listens here (`VMLifecycle`).
  #engines = new Set()
  // Those of which events may still be on their way.
  #detached = new Set()

  constructor (db, config = {}, owner = undefined) {
    let self
    const { settings, vmLock } = splitConfig(config)
    const ports = owner
      ? []
      : [databasePort(db), lockPort(vmLock), (batch) => self.deref()?.#deliver(batch)]
    super(owner, settings, ...ports)
    self = new WeakRef(this)
    this.#owner = owner
    this.#isCustom = wantsCustom(settings)
  }

  static {
    isTold = (handler, kind) => !kind.startsWith('vm:') || handler.#isCustom
    serve = (handler, engine) => handler.#engines.add(engine)
    serveNoMore = (handler, engine) => handler.#engines.delete(engine)
  }

  async attachToVM (vmId, client) {
    if (!(client instanceof QMPClient)) {
      const issues = [{ path: 'client', message: 'must be a QMPClient' }]
      throw new LifecycleError('INVALID_CONFIG', 'client must be a QMPClient', undefined, { issues })
    }
    const engine = this.#engineWith((engine) => engine.getQMPClient(vmId) === client)
    if (engine) return engine.attachToVM(vmId, client)
    await super.attachToVM(vmId, client)
    if (!this.#owner) this.#clients.set(vmId, client)
    this.#keep()
  }

  async detachFromVM (vmId, disconnectClient = false) {
    await this.#engineOf(vmId)?.detachFromVM(vmId)
    const client = this.#clients.get(vmId)
    if (!this.#owner && super.isAttached(vmId)) this.#detached.add(vmId)
    await super.detachFromVM(vmId)
    this.#clients.delete(vmId)
    this.#keep()
    if (disconnectClient) await client?.disconnect()
  }

  async detachAll () {
    await Promise.all(this.getAttachedVMs().map((vmId) => this.detachFromVM(vmId, true)))
  }

  getQMPClient (vmId) {
    if (this.#owner) return this.#owner.getQMPClient(vmId)
    if (super.isAttached(vmId)) return this.#clients.get(vmId)
    return this.#engineOf(vmId)?.getQMPClient(vmId)
  }

  getAttachedVMs () {
    const attached = [...this.#engines].flatMap((engine) => engine.getAttachedVMs())
    return [...new Set([...super.getAttachedVMs(), ...attached])].sort()
  }

  isAttached (vmId) {
    return super.isAttached(vmId) || this.#engineOf(vmId) !== undefined
  }

  markInstallInProgress (vmId) {
    super.markInstallInProgress(vmId)
    for (const engine of this.#engines) engine.markInstallInProgress(vmId)
  }

  clearInstallInProgress (vmId) {
    super.clearInstallInProgress(vmId)
    for (const engine of this.#engines) engine.clearInstallInProgress(vmId)
  }

  #engineOf (vmId) {
    return this.#engineWith((engine) => engine.isAttached(vmId))
  }

  #engineWith (wanted) {
    return [...this.#engines].find(wanted)
  }

  #deliver (batch) {
    deliver(this, batch, {}, (event) => this.#isHeard(event))
    this.#keep()
  }

  // 'detached' is told last of a VM, and not for listeners.
  #isHeard ({ kind, vmId }) {
    if (kind === 'detached') this.#detached.delete(vmId)
    if (kind === 'lost') this.#detached.clear()
    return kind !== 'detached' && !(kind.startsWith('vm:') && this.#detached.has(vmId))
  }

  #keep () {
    if (this.#owner) return
    const attached = new Set(super.getAttachedVMs())
    for (const vmId of this.#clients.keys()) {
      if (!attached.has(vmId)) this.#clients.delete(vmId)
    }
    if (attached.size > 0) following.add(this)
    else following.delete(this)
  }
}

// Settings that cannot be read are refused by native code.
function wantsCustom (settings) {
  try {
    return settings?.emitCustomEvents !== false
  } catch {
    return true
  }
}

module.exports = { EventHandler, isTold, serve, serveNoMore }
