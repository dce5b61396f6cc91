'use strict'

// As it is now: a test's fake timers would keep what is withheld for ever.
const { setImmediate } = require('node:timers')
const { revive } = require('./revive')
const { stackOf, warn } = require('./warn')

// How many events wait for a slow `for await`, or for `initialize()`, before the oldest are dropped.
const STREAM_CAPACITY = 4096

// Tells a failing callback of the user's apart from a failure of ours: a warning, never a crash.
function warnOf (what, error) {
  warn(`${what} failed: ${stackOf(error)}`)
}

// Runs a callback of the user's. Neither a throw nor a rejection leaves here.
function guarded (what, callback) {
  try {
    const result = callback()
    if (typeof result?.then === 'function') result.then(undefined, (error) => warnOf(what, error))
  } catch (error) {
    warnOf(what, error)
  }
}

// Emits so that every listener is called even when one before it throws, and so that an 'error' that
// nobody listens for is a warning: it neither throws nor passes unnoticed.
function emitGuarded (emitter, name, ...args) {
  const listeners = emitter.rawListeners(name)
  if (name === 'error' && listeners.length === 0) warn(`an 'error' that nobody listens for: ${JSON.stringify(args[0])}`)
  for (const listener of listeners) {
    guarded(`listener for '${String(name)}'`, () => Reflect.apply(listener, emitter, args))
  }
}

// Gives each event of a batch to whom it is for. `owner` is what `js/infinization.js` shows of an
// instance: { emitter, eventHandler, isTold, healthMonitor, eventManager, streams, withheld }.
function route (owner, batch) {
  for (const event of revive(batch, true)) {
    const { source, kind, vmId, data } = event
    for (const stream of owner.streams) stream.push(event)
    if (source === 'manager') emitGuarded(owner.emitter, kind, data)
    if (source === 'healthMonitor') owner.withheld.emit(owner.healthMonitor, kind, data)
    if (source === 'eventHandler' && owner.isTold(kind)) owner.withheld.emit(owner.eventHandler, kind, data)
    if (source === 'crud') emitCRUD(owner.eventManager, kind, vmId, data)
  }
}

// Gives the events of a batch to one emitter of the user's own. `callbacks` are called before the events
// of their names: { name: [what it is called, callback] }. What `isHeard` says no to is left out.
function deliver (emitter, batch, callbacks = {}, isHeard = () => true) {
  for (const event of revive(batch, true)) {
    const { kind, data } = event
    if (!isHeard(event)) continue
    if (kind === 'lost') {
      warn(`${data.count} events were lost: their reader was too slow`)
      continue
    }
    const [what, callback] = callbacks[kind] ?? []
    if (callback) guarded(what, () => callback(data))
    emitGuarded(emitter, kind, data)
  }
}

// What is emitted while `initialize()` is under way: only when it has resolved can anybody have the emitters.
class Withheld {
  #calls = 0
  #waiting = []
  #lost = 0

  // Does the work. Whoever listens as soon as its promise has resolved hears what was emitted meanwhile.
  async during (work) {
    this.#calls++
    try {
      return await work()
    } finally {
      setImmediate(() => this.#release())
    }
  }

  emit (emitter, kind, data) {
    if (this.#calls === 0) return emitGuarded(emitter, kind, data)
    if (this.#waiting.length === STREAM_CAPACITY) {
      this.#waiting.shift()
      this.#lost++
    }
    this.#waiting.push([emitter, kind, data])
  }

  #release () {
    this.#calls--
    if (this.#calls > 0) return
    if (this.#lost > 0) warn(`${this.#lost} events of initialize() were lost: there were too many`)
    this.#lost = 0
    for (const told of this.#waiting.splice(0)) emitGuarded(...told)
  }
}

// The consumer's event manager is called as a method (it uses `this`), and never awaited.
function emitCRUD (eventManager, action, vmId, data) {
  if (typeof eventManager?.emitCRUD !== 'function') return
  const details = data === null ? [] : [data]
  guarded('eventManager.emitCRUD', () => eventManager.emitCRUD('machines', action, vmId, ...details))
}

// The public form of an event, as `events()` yields it.
const shown = ({ seq, vmId, kind, timestamp, data }) => ({
  seq, vmId, type: kind, timestamp: timestamp ?? new Date(), data
})

// An async iterator over events. A reader that is too slow is told how many it missed, by an event
// of type 'lost'. A pending `next()` does not keep the process alive.
class EventStream {
  #vmId
  #waiting = []
  #lost = 0
  #lostInAll = 0
  #readers = []
  #ended = false
  #onEnd

  constructor (vmId, onEnd) {
    this.#vmId = vmId
    this.#onEnd = onEnd
  }

  push (event) {
    const forAll = event.kind === 'lost'
    if (this.#ended || event.source === 'crud') return
    if (forAll) this.#lostInAll += event.data.count
    if (this.#vmId !== undefined && event.vmId !== this.#vmId && !forAll) return
    const reader = this.#readers.shift()
    if (reader) return reader({ value: shown(event), done: false })
    if (this.#waiting.length === STREAM_CAPACITY) {
      this.#waiting.shift()
      this.#lost++
      this.#lostInAll++
    }
    this.#waiting.push(event)
  }

  // How many events this reader has missed in all.
  get lost () {
    return this.#lostInAll
  }

  // What waits is still read; then the iteration ends.
  end () {
    this.#ended = true
    for (const reader of this.#readers.splice(0)) reader({ value: undefined, done: true })
    this.#onEnd(this)
  }

  async next () {
    if (this.#lost > 0) {
      const data = { count: this.#lost }
      this.#lost = 0
      return { value: shown({ seq: null, vmId: null, kind: 'lost', data }), done: false }
    }
    if (this.#waiting.length > 0) return { value: shown(this.#waiting.shift()), done: false }
    if (this.#ended) return { value: undefined, done: true }
    return new Promise((resolve) => this.#readers.push(resolve))
  }

  async return (value) {
    this.#waiting = []
    this.#lost = 0
    this.end()
    return { value, done: true }
  }

  [Symbol.asyncIterator] () {
    return this
  }
}

module.exports = { EventStream, Withheld, deliver, emitGuarded, route }
