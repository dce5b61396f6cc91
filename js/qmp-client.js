'use strict'

const { fail } = require('./errors')
const { emitGuarded } = require('./events')
const native = require('./native')
const { traced } = require('./traced')

// Keeps the process alive while a call is under way: the addon's callback does not.
const alive = setInterval(() => {}, 2 ** 30).unref()
let underWay = 0

const begun = () => { if (underWay++ === 0) alive.ref() }
const over = () => { if (--underWay === 0) alive.unref() }

// Those that are connected, or will be again: their listeners are heard even when nobody refers to them.
const connected = new Set()

const Client = traced(class extends native.QMPClient {})

// A monitor. With `owner`, which is `getQMPClient()`'s business, it is the one of its VM of that id,
// while one QEMU runs; `ended` is told when that is over.
class QMPClient extends Client {
  #calls
  #last = 0
  #lost = 0
  #ended

  constructor (socketPath, options = {}, owner = undefined, ended = () => {}) {
    let self
    const calls = new Map()
    super(socketPath, options, owner, (event) => self.deref()?.#deliver(JSON.parse(event)), (...answer) => settle(calls, ...answer))
    self = new WeakRef(this)
    this.#calls = calls
    this.#ended = ended
  }

  // How many events were dropped in all, because they came faster than they were taken.
  get lost () {
    return this.#lost
  }

  async connect () {
    await super.connect()
    this.#keep()
  }

  async disconnect () {
    try {
      await super.disconnect()
    } finally {
      this.#keep()
    }
  }

  async execute (command, args) {
    const answer = await new Promise((resolve) => {
      const call = this.#last = (this.#last + 1) >>> 0
      native.submitMonitorCall(this, call, command, args)
      this.#calls.set(call, resolve)
      begun()
    })
    if (answer.succeeded) return JSON.parse(answer.json)
    // Made here, its stack leads to the caller.
    throw fail(answer.json)
  }

  #deliver ({ link, lost, event, data, timestamp }) {
    if (lost) {
      this.#lost += lost
      return emitGuarded(this, 'lost', { count: lost })
    }
    if (link) {
      this.#keep()
      return emitGuarded(this, link)
    }
    emitGuarded(this, event, data, timestamp)
    emitGuarded(this, 'event', { event, data, timestamp })
  }

  #keep () {
    if (this.isConnected() || this.isReconnecting()) {
      connected.add(this)
    } else {
      connected.delete(this)
      this.#ended(this)
    }
  }
}

function settle (calls, call, succeeded, json) {
  const resolve = calls.get(call)
  calls.delete(call)
  over()
  resolve({ succeeded, json })
}

module.exports = { QMPClient }
