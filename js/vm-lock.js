'use strict'

// A lock per VM as the native side asks it: it takes a turn, which has a number, and gives it back.

const { KeyedMutex } = require('./keyed-mutex')
const { adapterPort } = require('./port')

class Turns {
  #lock
  #open = new Map()
  #last = 0

  constructor (lock) {
    this.#lock = lock
  }

  acquire (vmId) {
    return new Promise((resolve, reject) => {
      this.#lock.runExclusive(vmId, () => this.#hold(resolve)).catch(reject)
    })
  }

  // Null when somebody has the VM's turn.
  tryAcquire (vmId) {
    return new Promise((resolve, reject) => {
      const held = this.#lock.tryRunExclusive(vmId, () => this.#hold(resolve))
      held.then(({ ran }) => { if (!ran) resolve(null) }).catch(reject)
    })
  }

  release (turn) {
    this.#open.get(turn)?.()
    this.#open.delete(turn)
  }

  #hold (given) {
    const turn = ++this.#last
    return new Promise((end) => {
      this.#open.set(turn, end)
      given(turn)
    })
  }
}

// The function by which the native side asks `lock`; none when it is no lock.
function lockPort (lock = new KeyedMutex()) {
  const isLock = ['runExclusive', 'tryRunExclusive'].every((name) => typeof lock?.[name] === 'function')
  return isLock ? adapterPort(new Turns(lock)) : undefined
}

// The function by which the native side asks `db`, which is not touched before; none when it is no object.
function databasePort (db) {
  const isObject = (typeof db === 'object' && db !== null) || typeof db === 'function'
  return isObject ? adapterPort(db) : undefined
}

// The plain part of a configuration, and what only JavaScript can use. One that cannot be read goes to
// native code as it is, which tells why.
function splitConfig (config) {
  if (typeof config !== 'object') return { settings: config }
  try {
    const { vmLock, onCrashDetected, onCleanupAlert, ...settings } = config
    return { settings, vmLock }
  } catch {
    return { settings: config }
  }
}

module.exports = { databasePort, lockPort, splitConfig }
