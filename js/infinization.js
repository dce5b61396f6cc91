'use strict'

// The public class over the native one. What is here must be JavaScript: the EventEmitter faces,
// AbortSignals, and the user's own objects (event manager, database).

const { abortable } = require('./abort')
const { chooseDatabase, requireEmbedded } = require('./database')
const { LifecycleError } = require('./errors')
const { EventStream, route } = require('./events')
const native = require('./native')
const { QMPClient } = require('./qmp-client')
const { NftablesService } = require('./services')
const { traced } = require('./traced')

const HealthMonitor = traced(class HealthMonitor extends native.HealthMonitor {})
const EmbeddedDatabase = traced(class EmbeddedDatabase extends native.EmbeddedDatabase {})

const EventHandler = traced(class EventHandler extends native.EventHandler {
  #monitorOf

  constructor (owner, monitorOf) {
    super(owner)
    this.#monitorOf = monitorOf
  }

  getQMPClient (vmId) {
    return this.#monitorOf(vmId)
  }
})

const Manager = traced(class extends native.Infinization {})

class Infinization extends Manager {
  #eventManager
  #database
  #healthMonitor
  #eventHandler
  #embeddedDatabase
  #nftablesService
  #monitors = new Map()
  #streams = new Set()
  #closed = false

  constructor (config = {}) {
    const { settings, eventManager, database } = split(config)
    let self
    super(settings, (batch) => self.deref()?.#deliver(batch))
    // Weak: the callback is the addon's for as long as it lives, the instance is not.
    self = new WeakRef(this)
    this.#eventManager = eventManager
    this.#database = database
    this.#healthMonitor = new HealthMonitor(this)
    this.#eventHandler = new EventHandler(this, (vmId) => this.getQMPClient(vmId))
  }

  async initialize () {
    requireEmbedded(this.#database)
    return super.initialize()
  }

  async shutdown () {
    try {
      return await super.shutdown()
    } finally {
      this.#closed = true
      for (const stream of this.#streams) stream.end()
    }
  }

  async createVM (config, options) {
    return abortable(options, (rest, cancellation) => super.createVM(config, rest, cancellation))
  }

  async startVM (vmId, config) {
    return abortable(config, (rest, cancellation) => super.startVM(vmId, rest, cancellation))
  }

  async stopVM (vmId, config) {
    return abortable(config, (rest, cancellation) => super.stopVM(vmId, rest, cancellation))
  }

  async createSnapshot (vmId, options) {
    return abortable(options, (rest, cancellation) => super.createSnapshot(vmId, rest, cancellation))
  }

  getHealthMonitor () {
    native.requireOpen(this)
    return this.#healthMonitor
  }

  getEventHandler () {
    native.requireOpen(this)
    return this.#eventHandler
  }

  getPrismaAdapter () {
    native.requireOpen(this)
    this.#embeddedDatabase ??= new EmbeddedDatabase(this)
    return this.#embeddedDatabase
  }

  getNftablesService () {
    native.requireOpen(this)
    this.#nftablesService ??= new NftablesService({}, this)
    return this.#nftablesService
  }

  // One object per run of QEMU: listeners stay through a reconnect, and end with the run.
  getQMPClient (vmId) {
    let monitor = this.#monitors.get(vmId)
    if (!monitor?.isConnected() && !monitor?.isReconnecting()) {
      this.#monitors.delete(vmId)
      if (typeof vmId !== 'string' || !this.#eventHandler.isAttached(vmId)) return undefined
      monitor = new QMPClient(this, vmId)
      this.#monitors.set(vmId, monitor)
    }
    return monitor.isConnected() ? monitor : undefined
  }

  events (options = {}) {
    const vmId = options?.vmId
    if (vmId !== undefined && typeof vmId !== 'string') {
      const issues = [{ path: 'vmId', message: 'must be a string' }]
      throw new LifecycleError('INVALID_CONFIG', 'vmId must be a string', undefined, { issues })
    }
    const stream = new EventStream(vmId, () => this.#streams.delete(stream))
    this.#streams.add(stream)
    if (this.#closed) stream.end()
    return stream
  }

  #deliver (batch) {
    route({
      emitter: this,
      healthMonitor: this.#healthMonitor,
      eventHandler: this.#eventHandler,
      eventManager: this.#eventManager,
      streams: this.#streams
    }, batch)
  }
}

// Absent from Node's older lines and from jest's sandbox.
if (Symbol.asyncDispose) {
  Object.defineProperty(Infinization.prototype, Symbol.asyncDispose, {
    value () { return this.shutdown() }, writable: true, configurable: true
  })
}

// The configuration as plain data, without what only JavaScript can use. One that cannot even be
// read goes to native code as it is, which tells why at `initialize()`.
function split (config) {
  try {
    const { prismaClient, databaseAdapter, eventManager, ...settings } = config
    return { settings, eventManager, database: chooseDatabase(config) }
  } catch {
    return { settings: config, database: { kind: 'embedded' } }
  }
}

module.exports = { Infinization }
