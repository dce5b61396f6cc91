// Follows the log of a guest's serial console by file events.

import { watch } from 'node:fs'
import { open, stat } from 'node:fs/promises'
import { basename, dirname } from 'node:path'

export class ConsoleLog {
  #path
  #interrupted
  #from = 0

  /**
   * @param {string} path the log; need not exist yet, its folder must
   * @param {AbortSignal} interrupted ends every wait
   */
  constructor (path, interrupted) {
    this.#path = path
    this.#interrupted = interrupted
  }

  /** Forgets what was printed so far: the next wait looks only at what comes from now on. */
  async skipToEnd () {
    this.#from = await size(this.#path)
  }

  /**
   * The first line, of those not skipped, that `pattern` matches.
   * @param {RegExp} pattern
   * @param {number} deadline in milliseconds
   * @returns {Promise<RegExpMatchArray>}
   */
  line (pattern, deadline) {
    return new Promise((resolve, reject) => {
      const watcher = watch(dirname(this.#path), (_, name) => { if (name === basename(this.#path)) look() })
      const timer = setTimeout(() => end(reject, new Error(`no ${pattern} on the console in ${deadline} ms`)), deadline)
      const abort = () => end(reject, this.#interrupted.reason)
      this.#interrupted.addEventListener('abort', abort, { once: true })
      const end = (settle, value) => {
        clearTimeout(timer)
        watcher.close()
        this.#interrupted.removeEventListener('abort', abort)
        settle(value)
      }
      const look = () => this.#read().then(text => {
        // Only whole lines: the rest of the last one is still to come.
        const match = text.slice(0, text.lastIndexOf('\n') + 1).match(pattern)
        if (match) end(resolve, match)
      }, error => end(reject, error))
      watcher.on('error', error => end(reject, error))
      look()
    })
  }

  async #read () {
    const length = await size(this.#path)
    // A new start of the machine may have begun the log anew.
    if (length < this.#from) this.#from = 0
    if (length === this.#from) return ''
    const file = await open(this.#path)
    try {
      const { buffer } = await file.read(Buffer.alloc(length - this.#from), 0, length - this.#from, this.#from)
      return buffer.toString()
    } finally {
      await file.close()
    }
  }
}

async function size (path) {
  try {
    return (await stat(path)).size
  } catch (error) {
    if (error.code === 'ENOENT') return 0
    throw error
  }
}
