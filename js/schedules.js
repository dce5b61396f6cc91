'use strict'

// Schedules that outlive their process, and what was missed while there was none.

const { EventEmitter } = require('node:events')
const { join } = require('node:path')
const { DEFAULT_BACKUP_COMPRESSION, DEFAULT_BACKUP_DIR, DEFAULT_RETENTION_COUNT } = require('./constants')
const { BackupError } = require('./errors')
const { emitGuarded } = require('./events')
const { copy, plain } = require('./schedule')
const { ScheduleFile } = require('./schedule-file')
const { BackupScheduler } = require('./scheduler')
const { messageOf, warn } = require('./warn')

// Schedules that are kept in `<root>/schedules.json`.
class BackupScheduleService extends EventEmitter {
  #root
  #file
  #scheduler
  #known
  #started

  constructor (backupService, adapter, options = {}) {
    super()
    this.#root = String(options?.backupRootDir ?? DEFAULT_BACKUP_DIR)
    this.#file = new ScheduleFile(join(this.#root, 'schedules.json'))
    this.#scheduler = new BackupScheduler(backupService, adapter, options ?? {})
    this.#scheduler.stopAll()
    for (const name of ['schedule:started', 'schedule:completed', 'schedule:failed']) {
      this.#scheduler.on(name, (...args) => {
        emitGuarded(this, name, ...args)
        this.#keep()
      })
    }
  }

  get scheduleCount () {
    return this.#scheduler.getAllSchedules().length
  }

  get activeJobCount () {
    return this.#scheduler.activeJobCount
  }

  // Loads what is kept and begins. A run that was missed meanwhile, or cut short, is made up once, however many
  // there were.
  start () {
    if (this.#started !== undefined) return this.#started
    const started = this.#loaded().then(() => { if (this.#started === started) this.#begin() })
    this.#started = started
    started.catch(() => { if (this.#started === started) this.#started = undefined })
    return started
  }

  async stop () {
    const started = this.#started
    this.#started = undefined
    this.#scheduler.stopAll()
    await started?.catch(() => {})
    await this.#file.settled()
  }

  #begin () {
    const isMissed = ({ enabled, nextRunAt }) => enabled && Date.parse(nextRunAt) < Date.now()
    const missed = this.#scheduler.getAllSchedules().filter(isMissed)
    // Before what they say of their next runs is anew: that they are due is kept until these have ended.
    for (const { id } of missed) this.#scheduler.runNow(id)
    this.#scheduler.startAll()
    emitGuarded(this, 'loaded', this.scheduleCount)
    // When they are due: also where nothing runs before this process ends, what is missed is known.
    if (this.scheduleCount > 0) this.#keep()
  }

  // What is kept is known before it is changed, also where nobody called start(). It is read once: what was read
  // beside a change would bring back what that has deleted.
  #loaded () {
    this.#known ??= this.#load().catch((error) => {
      this.#known = undefined
      throw error
    })
    return this.#known
  }

  async #load () {
    for (const schedule of await this.#file.read()) {
      if (this.#scheduler.getSchedule(schedule.id) === undefined) this.#scheduler.addSchedule(schedule)
    }
  }

  async createSchedule (input) {
    await this.#loaded()
    const given = plain(input)
    const schedule = {
      retentionCount: DEFAULT_RETENTION_COUNT,
      compression: DEFAULT_BACKUP_COMPRESSION,
      enabled: true,
      destinationDir: join(this.#root, String(given.vmId)),
      ...given,
      id: crypto.randomUUID()
    }
    return this.#change('schedule:created', schedule.id, () => this.#scheduler.addSchedule(schedule))
  }

  async updateSchedule (id, input) {
    await this.#loaded()
    const { vmId, diskPaths, ...changes } = plain(input)
    return this.#update('schedule:updated', id, changes)
  }

  async enableSchedule (id) {
    await this.#loaded()
    return this.#update('schedule:enabled', id, { enabled: true })
  }

  async disableSchedule (id) {
    await this.#loaded()
    return this.#update('schedule:disabled', id, { enabled: false })
  }

  async deleteSchedule (id) {
    await this.#loaded()
    await this.#change('schedule:deleted', id, () => {
      this.#require(id)
      this.#scheduler.removeSchedule(id)
    })
  }

  async listSchedules (vmId) {
    await this.#loaded()
    return this.#scheduler.getAllSchedules().filter((schedule) => vmId === undefined || schedule.vmId === vmId)
  }

  async getSchedule (id) {
    await this.#loaded()
    return this.#scheduler.getSchedule(id)
  }

  #require (id) {
    const schedule = this.#scheduler.getSchedule(id)
    if (schedule === undefined) throw new BackupError('BACKUP_NOT_FOUND', `there is no schedule ${id}`)
    return schedule
  }

  #update (event, id, changes) {
    return this.#change(event, id, () => this.#scheduler.updateSchedule({ ...this.#require(id), ...changes, id }))
  }

  // A change that cannot be kept has not happened. So it is made when all before it are kept.
  async #change (event, id, change) {
    const schedule = await this.#file.inTurn(async () => {
      const before = this.#scheduler.getSchedule(id)
      change()
      try {
        await this.#persist()
      } catch (error) {
        this.#putBack(id, before)
        throw error
      }
      return this.#scheduler.getSchedule(id)
    })
    emitGuarded(this, event, copy(schedule) ?? id)
    return schedule
  }

  #putBack (id, before) {
    try {
      this.#scheduler.removeSchedule(id)
      if (before !== undefined) this.#scheduler.addSchedule(before)
    } catch (error) {
      warn(`schedule ${id} could not be put back: ${messageOf(error)}`)
    }
  }

  // Of what is no change of the caller's a failure is a warning.
  #keep () {
    this.#file.inTurn(() => this.#persist()).catch((error) => warn(`schedules were not kept: ${messageOf(error)}`))
  }

  async #persist () {
    const schedules = this.#scheduler.getAllSchedules()
    await this.#file.write(schedules)
    emitGuarded(this, 'persisted', schedules.length)
  }
}

module.exports = { BackupScheduleService }
