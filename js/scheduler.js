'use strict'

// When schedules run: the user's adapter and its jobs, and what is told of a run.

const { EventEmitter } = require('node:events')
const { TimerAdapter } = require('./cron')
const { BackupError } = require('./errors')
const { emitGuarded } = require('./events')
const { checked, copy } = require('./schedule')
const { run } = require('./schedule-run')
const { messageOf, warn } = require('./warn')

class BackupScheduler extends EventEmitter {
  #service
  #adapter
  #diskPathResolver
  #schedules = new Map()
  #jobs = new Map()
  // Of the schedules whose runs are under way: when the next is due. They themselves say when this one was until
  // it has ended, so that one that is cut short is seen to be due still.
  #inFlight = new Map()
  #stopped = false

  constructor (backupService, adapter, options = {}) {
    super()
    this.#service = backupService
    this.#adapter = adapter ?? new TimerAdapter()
    this.#diskPathResolver = typeof options === 'string' ? undefined : options?.diskPathResolver
  }

  get activeJobCount () {
    return this.#jobs.size
  }

  addSchedule (given) {
    const schedule = checked(given)
    if (this.#schedules.has(schedule.id)) {
      throw new BackupError('BACKUP_EXISTS', `there is a schedule ${schedule.id} already`, { vmId: schedule.vmId })
    }
    this.#put(schedule, this.#job(schedule))
  }

  // An unknown id is no error: it is removed.
  removeSchedule (id) {
    this.#stop(id)
    this.#schedules.delete(id)
  }

  updateSchedule (given) {
    const schedule = checked(given)
    if (!this.#schedules.has(schedule.id)) throw new BackupError('BACKUP_NOT_FOUND', `there is no schedule ${schedule.id}`)
    this.#put(schedule, this.#job(schedule))
  }

  getAllSchedules () {
    return [...this.#schedules.values()].map(copy)
  }

  getSchedule (id) {
    return copy(this.#schedules.get(id))
  }

  startAll () {
    this.#stopped = false
    for (const schedule of this.#schedules.values()) {
      if (!this.#jobs.has(schedule.id)) this.#start(schedule)
    }
  }

  // Runs that have begun go on to their end.
  stopAll () {
    this.#stopped = true
    for (const id of [...this.#jobs.keys()]) this.#stop(id)
  }

  // One that cannot be started fails, and keeps no other from it.
  #start (schedule) {
    try {
      this.#put(schedule, this.#job(schedule))
    } catch (error) {
      this.#noteNext(schedule)
      emitGuarded(this, 'schedule:failed', copy(schedule), error)
    }
  }

  // What ticks for a schedule, if anything is to. The adapter is who knows what a cron expression is.
  #job ({ id, vmId, cronExpression, enabled }) {
    if (!enabled || this.#stopped) return undefined
    try {
      // A job that could not be stopped is not heard.
      return this.#adapter.schedule(cronExpression, () => { if (this.#jobs.has(id)) this.runNow(id) }) ?? null
    } catch (error) {
      const refused = new BackupError('INVALID_CONFIG', `cronExpression is refused: ${messageOf(error)}`, { vmId })
      refused.cause = error
      throw refused
    }
  }

  // Of one that waits for startAll() it stays known when it was due.
  #put (schedule, job) {
    this.#stop(schedule.id)
    this.#schedules.set(schedule.id, schedule)
    if (job !== undefined) this.#jobs.set(schedule.id, job)
    if (!this.#stopped || !schedule.enabled) this.#noteNext(schedule)
  }

  // The user's adapter may throw whatever is asked of it.
  #stop (id) {
    const job = this.#jobs.get(id)
    this.#jobs.delete(id)
    try {
      job?.stop()
    } catch (error) {
      warn(`schedule ${id} could not be stopped: ${messageOf(error)}`)
    }
  }

  #noteNext (schedule) {
    const next = this.#nextRun(schedule.id)
    if (this.#inFlight.has(schedule.id)) this.#inFlight.set(schedule.id, next)
    else schedule.nextRunAt = next
  }

  #nextRun (id) {
    try {
      const next = this.#jobs.get(id)?.getNextRunDate() ?? undefined
      return next === undefined ? undefined : String(next)
    } catch (error) {
      warn(`nobody can say when schedule ${id} is due: ${messageOf(error)}`)
      return undefined
    }
  }

  // Makes a schedule's backup at once, unless one of its runs is under way. Never rejects: how it went
  // is told by `schedule:completed` or `schedule:failed`.
  async runNow (id) {
    const schedule = this.#schedules.get(id)
    if (schedule === undefined || this.#inFlight.has(id)) return
    this.#inFlight.set(id, undefined)
    schedule.lastRunAt = new Date().toISOString()
    this.#noteNext(schedule)
    emitGuarded(this, 'schedule:started', copy(schedule))
    const [event, outcome] = await this.#run(schedule)
    emitGuarded(this, event, this.#ended(schedule), outcome)
  }

  // The schedule as it is by now, if it is still there.
  #ended (schedule) {
    const now = this.#schedules.get(schedule.id) ?? schedule
    const noted = this.#inFlight.get(schedule.id)
    this.#inFlight.delete(schedule.id)
    now.nextRunAt = this.#nextRun(schedule.id) ?? noted
    return copy(now)
  }

  async #run (schedule) {
    try {
      return ['schedule:completed', await run(schedule, this.#service, this.#diskPathResolver)]
    } catch (error) {
      return ['schedule:failed', error]
    }
  }
}

module.exports = { BackupScheduler }
