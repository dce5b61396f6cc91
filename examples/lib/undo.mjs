// Undoes what was done, latest first, whether or not it went well.

export class Undo {
  #tasks = []

  /**
   * Remembers how to undo what has just been, or is about to be, done.
   * @param {string} title completes "could not …"
   * @param {() => Promise<unknown>} task
   * @returns {() => Promise<void>} undoes it now, so that `run` does not
   */
  push (title, task) {
    const entry = { title, task }
    this.#tasks.push(entry)
    return async () => {
      this.#tasks.splice(this.#tasks.indexOf(entry), 1)
      await task()
    }
  }

  /** Runs what is left, also when a task before failed. */
  async run (report) {
    for (const { title, task } of this.#tasks.splice(0).reverse()) {
      try {
        await task()
      } catch (error) {
        report(`could not ${title}: ${error.message}`)
      }
    }
  }
}
