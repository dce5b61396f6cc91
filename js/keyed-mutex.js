'use strict'

const SKIPPED = Symbol('KeyedMutex.SKIPPED')

// One queue per key: first come, first served, keys independent, a failure poisons nothing, and a
// key that nobody waits for is forgotten.
class KeyedMutex {
  #tails = new Map()

  get activeKeyCount () {
    return this.#tails.size
  }

  async runExclusive (key, fn) {
    const before = this.#tails.get(key)
    let release
    const turn = new Promise((resolve) => { release = resolve })
    this.#tails.set(key, turn)
    await before
    try {
      return await fn()
    } finally {
      if (this.#tails.get(key) === turn) this.#tails.delete(key)
      release()
    }
  }

  async tryRunExclusive (key, fn) {
    if (this.#tails.has(key)) return { ran: false, result: SKIPPED }
    return { ran: true, result: await this.runExclusive(key, fn) }
  }
}

module.exports = { KeyedMutex }
