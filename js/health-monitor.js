'use strict'

const { deliver } = require('./events')
const native = require('./native')
const { traced } = require('./traced')
const { databasePort, lockPort, splitConfig } = require('./vm-lock')

// Those that monitor: they are needed even when nobody refers to them.
const monitoring = new Set()

const Monitor = traced(class extends native.HealthMonitor {})

// With `owner`, which is `getHealthMonitor()`'s business, it is the face of that instance.
class HealthMonitor extends Monitor {
  #owner
  #config

  constructor (db, config = {}, owner = undefined) {
    let self
    const { settings, vmLock } = splitConfig(config)
    const ports = owner
      ? []
      : [databasePort(db), lockPort(vmLock), (batch) => self.deref()?.#deliver(batch)]
    super(owner, settings, ...ports)
    self = new WeakRef(this)
    this.#owner = owner
    this.#config = config
  }

  async start () {
    if (!this.#owner) monitoring.add(this)
    try {
      await super.start()
    } finally {
      if (!this.isMonitoring()) monitoring.delete(this)
    }
  }

  async stop () {
    await super.stop()
    monitoring.delete(this)
  }

  // The user's callbacks are called before the event of the same fact is emitted.
  #deliver (batch) {
    deliver(this, batch, {
      crash: ['onCrashDetected', ({ vmId }) => this.#config.onCrashDetected?.(vmId)],
      'cleanup-alert': ['onCleanupAlert', (alert) => this.#config.onCleanupAlert?.(alert)]
    })
  }
}

module.exports = { HealthMonitor }
