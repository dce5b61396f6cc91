'use strict'

// The public class over the native one. What is here must be JavaScript: the EventEmitter faces,
// AbortSignals, and the user's own objects (event manager, database).

const { abortable } = require('./abort')
const { EmbeddedDatabase, PrismaAdapter, besideOthers, chooseDatabase, portsTo, requireDatabase } = require('./database')
const { LifecycleError } = require('./errors')
const { EventHandler, isTold } = require('./event-handler')
const { EventStream, Withheld, route } = require('./events')
const { HealthMonitor } = require('./health-monitor')
const { forget, remember } = require('./instances')
const { JournalChanges, JournalStream } = require('./journal')
const native = require('./native')
const { copying } = require('./progress')
const { QMPClient } = require('./qmp-client')
const { keyText, requireKey, withDiskKeys, withKeys, withStartKeys } = require('./secrets')
const { NftablesService } = require('./services')
const { traced } = require('./traced')
const { download, upload } = require('./volumes')

const Manager = traced(class extends native.Infinization {})

const VirtualNetworks = traced(class VirtualNetworks extends native.VirtualNetworks {})

class Infinization extends Manager {
  #eventManager
  #database
  #healthMonitor
  #eventHandler
  // Who is told of the machines: that, or the one of a `VMLifecycle`.
  #told
  #databaseObject
  #nftablesService
  #networks
  #monitors = new Map()
  #streams = new Set()
  #withheld = new Withheld()
  #journals = new Set()
  #journalChanges = new JournalChanges(this)
  #closed = false

  // `given`, { db, eventHandler }, is `VMLifecycle`'s business: whom it works for.
  constructor (config = {}, given = undefined) {
    const { settings, eventManager, ...chosen } = split(config)
    const database = given ? besideOthers(given.db) : chosen.database
    let self
    super(settings, (batch) => self.deref()?.#deliver(batch), ...portsTo(database))
    // Weak: the callback is the addon's for as long as it lives, the instance is not.
    self = new WeakRef(this)
    this.#eventManager = eventManager
    this.#database = database
    this.#healthMonitor = new HealthMonitor(undefined, {}, this)
    this.#eventHandler = new EventHandler(undefined, {}, this)
    this.#told = given?.eventHandler ?? this.#eventHandler
  }

  async initialize () {
    requireDatabase(this.#database)
    await this.#withheld.during(() => super.initialize())
    if (!this.#closed) remember(this)
  }

  async shutdown () {
    try {
      return await super.shutdown()
    } finally {
      this.#closed = true
      forget(this)
      for (const stream of [...this.#streams, ...this.#journals]) stream.end()
    }
  }

  async planVM (config) {
    return super.planVM(withDiskKeys(config))
  }

  async createVM (config, options) {
    return abortable(options, (rest, cancellation) => super.createVM(withDiskKeys(config), rest, cancellation))
  }

  async startVM (vmId, config) {
    return abortable(config, (rest, cancellation) => super.startVM(vmId, withStartKeys(rest), cancellation))
  }

  async stopVM (vmId, config) {
    return abortable(config, (rest, cancellation) => super.stopVM(vmId, rest, cancellation))
  }

  async createSnapshot (vmId, options) {
    return abortable(options, (rest, cancellation) => super.createSnapshot(vmId, rest, cancellation))
  }

  async deleteSnapshot (vmId, name, options) {
    return abortable(options, (rest, cancellation) => super.deleteSnapshot(vmId, name, rest, cancellation))
  }

  async commitSnapshot (vmId, name, options) {
    return abortable(options, (_rest, cancellation) => super.commitSnapshot(vmId, name, cancellation))
  }

  async changeDiskKey (vmId, path, options) {
    return super.changeDiskKey(vmId, path, withKeys(options, ['encryptionKey', 'newKey']))
  }

  async createVolume (pool, options) {
    return abortable(options, (rest, cancellation) => super.createVolume(pool, withKeys(rest, ['encryptionKey']), cancellation))
  }

  async cloneVolume (pool, options) {
    return copying(options, (rest, cancellation, progress) =>
      super.cloneVolume(pool, withKeys(rest, ['encryptionKey']), cancellation, progress))
  }

  async convertVolume (pool, options) {
    return copying(options, (rest, cancellation, progress) =>
      super.convertVolume(pool, withKeys(rest, ['encryptionKey']), cancellation, progress))
  }

  async uploadVolume (pool, name, source, options) {
    return upload(this, pool, name, source, options)
  }

  async downloadVolume (pool, name, options) {
    return download(this, pool, name, options)
  }

  async resizeVolume (pool, name, options) {
    return super.resizeVolume(pool, name, withKeys(options, ['encryptionKey']))
  }

  async rotateSecretsKey (newKey) {
    return super.rotateSecretsKey(requireKey(newKey, 'newKey'))
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
    this.#databaseObject ??= this.#openDatabase()
    return this.#databaseObject
  }

  getNftablesService () {
    native.requireOpen(this)
    this.#nftablesService ??= new NftablesService({}, this)
    return this.#nftablesService
  }

  get networks () {
    this.#networks ??= new VirtualNetworks(this)
    return this.#networks
  }

  // One object per run of QEMU: listeners stay through a reconnect, and end with the run.
  getQMPClient (vmId) {
    const before = this.#monitors.get(vmId)
    if (before?.isConnected()) return before
    if (before?.isReconnecting() || typeof vmId !== 'string') return undefined
    const monitor = new QMPClient(vmId, {}, this, (ended) => {
      if (this.#monitors.get(vmId) === ended) this.#monitors.delete(vmId)
    })
    if (!monitor.isConnected()) return undefined
    this.#monitors.set(vmId, monitor)
    return monitor
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

  #openDatabase () {
    const { kind, value } = this.#database
    if (kind === 'embedded') return new EmbeddedDatabase(this)
    if (kind === 'databaseAdapter') return value
    return new PrismaAdapter(value, undefined, {}, this)
  }

  journal (options) {
    const stream = new JournalStream(this, options, this.#journalChanges, () => this.#journals.delete(stream))
    this.#journals.add(stream)
    return stream
  }

  #deliver (batch) {
    route({
      emitter: this,
      healthMonitor: this.#healthMonitor,
      eventHandler: this.#told,
      isTold: (kind) => isTold(this.#told, kind),
      eventManager: this.#eventManager,
      streams: this.#streams,
      withheld: this.#withheld
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
    if ('secretsKey' in settings) settings.secretsKey = keyText(settings.secretsKey)
    return { settings, eventManager, database: chooseDatabase(config) }
  } catch {
    return { settings: config, database: { kind: 'embedded' } }
  }
}

module.exports = { Infinization }
