'use strict'

// `schedules.json`: replaced as a whole, and on disk when a write is done. Its owner writes it in turn.

const fs = require('node:fs')
const { dirname } = require('node:path')
const { BackupError } = require('./errors')
const { KeyedMutex } = require('./keyed-mutex')

const VERSION = 1

class ScheduleFile {
  #path
  #turns = new KeyedMutex()

  constructor (path) {
    this.#path = path
  }

  // The schedules, none if there is no file. One that makes no sense is put aside and told.
  async read () {
    let text
    try {
      text = await fs.promises.readFile(this.#path, 'utf8')
    } catch (error) {
      if (error.code === 'ENOENT') return []
      throw failed(`${this.#path} could not be read: ${error.message}`, error)
    }
    try {
      const { version, schedules } = JSON.parse(text)
      if (version !== VERSION || !Array.isArray(schedules)) throw new Error(`its version is ${version}, not ${VERSION}`)
      return schedules
    } catch (error) {
      await fs.promises.rename(this.#path, `${this.#path}.corrupt`)
      throw failed(`${this.#path} made no sense and was put aside as .corrupt: ${error.message}`, error)
    }
  }

  // Runs what changes and writes, in the order of the calls.
  inTurn (work) {
    return this.#turns.runExclusive(this.#path, work)
  }

  // Resolves when what was to be written is.
  settled () {
    return this.inTurn(() => {})
  }

  async write (schedules) {
    const text = JSON.stringify({ version: VERSION, updatedAt: new Date().toISOString(), schedules }, null, 2)
    const temporary = `${this.#path}.${process.pid}.tmp`
    try {
      await fs.promises.mkdir(dirname(this.#path), { recursive: true, mode: 0o711 })
      await synced(temporary, 'w', (file) => file.writeFile(`${text}\n`))
      await fs.promises.rename(temporary, this.#path)
      await synced(dirname(this.#path), 'r', () => {})
    } catch (error) {
      await fs.promises.rm(temporary, { force: true }).catch(() => {})
      throw failed(`${this.#path} could not be written: ${error.message}`, error)
    }
  }
}

async function synced (path, flags, work) {
  const file = await fs.promises.open(path, flags, 0o600)
  try {
    await work(file)
    await file.sync()
  } finally {
    await file.close()
  }
}

function failed (message, cause) {
  return Object.assign(new BackupError('OPERATION_FAILED', message), { cause })
}

module.exports = { ScheduleFile }
