// Shows named steps as they run: on a terminal a live line with the seconds, elsewhere one plain
// line per finished step.

const FRAMES = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏']
const TITLE_WIDTH = 46

export class Progress {
  #out
  #interrupted
  #started = performance.now()
  #finished = 0

  /**
   * @param {NodeJS.WriteStream} out where to write
   * @param {AbortSignal} interrupted ends the running step and refuses further ones
   */
  constructor (out, interrupted) {
    this.#out = out
    this.#interrupted = interrupted
  }

  /**
   * Runs one step. What it returns, if a string, is shown beside its time; it is handed on as well.
   * @template T
   * @param {string} title
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  async step (title, work) {
    this.#interrupted.throwIfAborted()
    const line = new LiveLine(this.#out, title)
    try {
      const result = await unlessAborted(work(), this.#interrupted)
      line.end('✓', typeof result === 'string' ? result : '')
      this.#finished += 1
      return result
    } catch (error) {
      line.end('✗', error.code ?? '')
      throw error
    }
  }

  /** A line that is no step. */
  say (text) {
    this.#out.write(`${text}\n`)
  }

  summary () {
    const seconds = (performance.now() - this.#started) / 1000
    return `${this.#finished} steps in ${seconds.toFixed(1)} s`
  }
}

class LiveLine {
  #out
  #title
  #started = performance.now()
  #timer
  #frame = 0

  constructor (out, title) {
    this.#out = out
    this.#title = title
    if (!out.isTTY) return
    this.#draw()
    this.#timer = setInterval(() => this.#draw(), 100)
  }

  #draw () {
    const frame = FRAMES[this.#frame++ % FRAMES.length]
    this.#out.write(`\r\x1b[2K\x1b[36m${frame}\x1b[0m ${this.#text()}`)
  }

  #text () {
    return `${this.#title.padEnd(TITLE_WIDTH)} ${duration(performance.now() - this.#started).padStart(8)}`
  }

  end (mark, detail) {
    clearInterval(this.#timer)
    const colour = mark === '✓' ? 32 : 31
    const [start, shown] = this.#out.isTTY ? ['\r\x1b[2K', `\x1b[${colour}m${mark}\x1b[0m`] : ['', mark]
    this.#out.write(`${start}${shown} ${this.#text()}${detail && `  ${detail}`}\n`)
  }
}

/** Milliseconds as people read them. */
export function duration (milliseconds) {
  return milliseconds < 1000 ? `${milliseconds.toFixed(0)} ms` : `${(milliseconds / 1000).toFixed(2)} s`
}

function unlessAborted (work, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason)
    // Waiting for an event of the library keeps no process alive; a timer does.
    const alive = setInterval(() => {}, 2 ** 30)
    signal.addEventListener('abort', abort, { once: true })
    work.then(resolve, reject).finally(() => {
      clearInterval(alive)
      signal.removeEventListener('abort', abort)
    })
  })
}
