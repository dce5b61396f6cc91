'use strict'

const native = require('./native')

// Whether something was written since: what a reader that follows waits for. The addon calls back
// without keeping the process alive.
class JournalChanges {
  #owner
  #version = -1
  // What wakes each stream that waits.
  #waiting = new Map()
  #begun = false

  constructor (owner) {
    this.#owner = owner
  }

  // Resolves when there may be more than `stream` saw at `version`, or when it is woken.
  async beyond (version, stream) {
    this.#begin()
    if (this.#version > version) return
    await new Promise((resolve) => this.#waiting.set(stream, resolve))
  }

  wake (stream) {
    const resolve = this.#waiting.get(stream)
    this.#waiting.delete(stream)
    resolve?.()
  }

  #begin () {
    if (this.#begun) return
    this.#begun = true
    const self = new WeakRef(this)
    native.followJournal(this.#owner, (version) => self.deref()?.#came(Number(version)))
  }

  #came (version) {
    this.#version = version
    for (const stream of [...this.#waiting.keys()]) this.wake(stream)
  }
}

// An async iterator over journal entries. It asks for a page when the last one is used up, so a slow
// reader makes nothing grow.
class JournalStream {
  #reader
  #follow
  #changes
  #onEnd
  #entries = []
  #begun = false
  #over = false
  #ended = false
  #turn = Promise.resolve()

  constructor (owner, options, changes, onEnd) {
    this.#reader = new native.JournalReader(owner, crossing(options))
    this.#follow = options?.follow === true
    this.#changes = changes
    this.#onEnd = onEnd
  }

  next () {
    const entry = this.#turn.then(() => this.#next())
    this.#turn = entry.catch(() => {})
    return entry
  }

  async #next () {
    while (this.#entries.length === 0 && !this.#over && !this.#ended) await this.#turnPage()
    if (this.#entries.length > 0 && !this.#ended) return { value: this.#entries.shift(), done: false }
    this.end()
    return { value: undefined, done: true }
  }

  async #turnPage () {
    try {
      const { entries, over, version } = await this.#reader.next()
      this.#begun = true
      this.#entries = entries
      this.#over = over || (entries.length === 0 && !this.#follow)
      if (entries.length === 0 && !this.#over && !this.#ended) await this.#changes.beyond(version, this)
    } catch (error) {
      const begun = this.#begun
      this.end()
      // The instance was shut down under it: that is an end, not a failure.
      if (!begun || error.code !== 'CLOSED') throw error
    }
  }

  end () {
    this.#ended = true
    this.#changes.wake(this)
    this.#onEnd(this)
  }

  async return (value) {
    this.end()
    return { value, done: true }
  }

  [Symbol.asyncIterator] () {
    return this
  }
}

// JSON has no dates: moments have keys of their own.
function crossing (options) {
  if (typeof options !== 'object' || options === null) return options
  const { since, until, ...rest } = options
  return { ...rest, ...bound('since', since), ...bound('until', until) }
}

function bound (key, value) {
  if (value === undefined) return {}
  const isDate = Object.prototype.toString.call(value) === '[object Date]'
  return isDate ? { [`${key}Time`]: value.getTime() } : { [key]: value }
}

module.exports = { JournalChanges, JournalStream }
