'use strict'

// The verbs on machines without the façade around them: the same engine, opened by the first verb, for a
// database and an event handler of the caller's own.

const { LifecycleError } = require('./errors')
const { EventHandler, serve, serveNoMore } = require('./event-handler')
const { Infinization } = require('./infinization')
const { warn } = require('./warn')

class VMLifecycle {
  #engine
  #eventHandler
  #closed = false

  constructor (db, eventHandler, eventManager, options) {
    this.#eventHandler = eventHandler
    this.#engine = new Infinization(settings(options, eventManager), { db, eventHandler: handlerOr(eventHandler) })
    this.#engine.on('lost', ({ count }) => warn(`${count} events were lost: their reader was too slow`))
  }

  async create (config, options) {
    return this.#ask('CREATE_FAILED', () => config?.vmId, (engine) => engine.createVM(config, options))
  }

  async start (vmId, config) {
    return this.#ask('START_FAILED', () => vmId, (engine) => engine.startVM(vmId, config))
  }

  async stop (vmId, config) {
    return this.#ask('STOP_FAILED', () => vmId, (engine) => engine.stopVM(vmId, config))
  }

  async destroyResources (vmId) {
    return this.#ask('STOP_FAILED', () => vmId, (engine) => engine.destroyVM(vmId))
  }

  async restart (vmId) {
    return this.#ask('STOP_FAILED', () => vmId, (engine) => engine.restartVM(vmId))
  }

  async suspend (vmId) {
    return this.#ask('QMP_ERROR', () => vmId, (engine) => engine.suspendVM(vmId))
  }

  async resume (vmId) {
    return this.#ask('QMP_ERROR', () => vmId, (engine) => engine.resumeVM(vmId))
  }

  async reset (vmId) {
    return this.#ask('QMP_ERROR', () => vmId, (engine) => engine.resetVM(vmId))
  }

  async getStatus (vmId) {
    return this.#ask('DATABASE_ERROR', () => vmId, (engine) => engine.getVMStatus(vmId))
  }

  async shutdown () {
    this.#closed = true
    const engine = this.#engine
    if (engine.isInitialized()) serveNoMore(this.#eventHandler, engine.getEventHandler())
    return engine.shutdown()
  }

  // What fails otherwise than by a LifecycleError becomes one of the verb's code.
  async #ask (code, vmId, verb) {
    try {
      return await verb(await this.#open())
    } catch (error) {
      if (error instanceof LifecycleError) throw error
      throw Object.assign(new LifecycleError(code, error.message, textOf(vmId), error.context), { cause: error })
    }
  }

  async #open () {
    requireHandler(this.#eventHandler)
    const engine = this.#engine
    // Of one that is open it would withhold the events for nothing.
    if (!engine.isInitialized()) await engine.initialize()
    // A shutdown that came meanwhile has looked for the engine already, and may still be on its way into it.
    if (this.#closed) throw new LifecycleError('CLOSED', 'shutdown() was called')
    serve(this.#eventHandler, engine.getEventHandler())
    return engine
  }
}

// What is none, or cannot even be read, is refused elsewhere.
function textOf (read) {
  try {
    const value = read()
    return typeof value === 'string' ? value : undefined
  } catch {
    return undefined
  }
}

const handlerOr = (given) => given instanceof EventHandler ? given : undefined

function requireHandler (given) {
  if (handlerOr(given)) return
  const issues = [{ path: 'eventHandler', message: 'must be an EventHandler' }]
  throw new LifecycleError('INVALID_CONFIG', 'eventHandler must be an EventHandler', undefined, { issues })
}

// The caller checks the machines now and then, if anybody does. Options that are none are refused by the first verb.
function settings (options = {}, eventManager) {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) return null
  try {
    return { ...options, eventManager, autoStartHealthMonitor: false }
  } catch {
    return options
  }
}

module.exports = { VMLifecycle }
