'use strict'

// The native module, ready: it makes its values and errors here, and the classes that emit events are
// EventEmitters. N-API has no other way to extend one than by the prototype.

const { EventEmitter } = require('node:events')
const native = require('../native.js')
const { fail } = require('./errors')
const { revive } = require('./revive')
const { warn } = require('./warn')

native.register(revive, fail, warn)

for (const Class of [native.Infinization, native.EventHandler, native.HealthMonitor, native.QMPClient, native.BackupService]) {
  Object.setPrototypeOf(Class.prototype, EventEmitter.prototype)
}

module.exports = native
