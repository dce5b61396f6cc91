'use strict'

// Backups on a schedule. What one keeps and what the next builds on is decided in the core; here are the
// user's adapter and callbacks, and the order of a run.

const { EventEmitter } = require('node:events')
const { isAbsolute, join } = require('node:path')
const {
  BackupCompression, DEFAULT_BACKUP_COMPRESSION, DEFAULT_BACKUP_DIR, DEFAULT_RETENTION_COUNT, isValidBackupType
} = require('./constants')
const { TimerAdapter } = require('./cron')
const { BackupError } = require('./errors')
const { emitGuarded } = require('./events')
const native = require('./native')
const { ScheduleFile } = require('./schedule-file')
const { messageOf, warn } = require('./warn')

// An INCREMENTAL schedule makes every seventh backup a FULL one: a chain is read as a whole and kept as a
// whole.
const LONGEST_CHAIN = 7

// How long the user may take to say which disks a machine has. A run that waits for it keeps the next from beginning.
const RESOLVER_DEADLINE = 60_000

// What the core can count to.
const MOST_KEPT = 2 ** 32 - 1

// What `createBackup` says when a parent is not what it was.
const BROKEN_CHAIN = ['CORRUPT_BACKUP', 'PARENT_NOT_FOUND']

const refuse = (message, details) => { throw new BackupError('INVALID_CONFIG', message, details) }

// A schedule as it is kept: checked, complete, and nobody else's object.
function checked (given) {
  if (typeof given !== 'object' || given === null) refuse('a schedule must be an object')
  const schedule = structuredCloneOf(given)
  for (const key of ['id', 'vmId', 'cronExpression', 'destinationDir']) {
    if (typeof schedule[key] !== 'string' || schedule[key] === '') refuse(`${key} must be a string that is not empty`)
  }
  if (!isAbsolute(schedule.destinationDir)) refuse('destinationDir must be absolute')
  if (!isValidBackupType(schedule.type)) refuse('type must be FULL, INCREMENTAL or SNAPSHOT')
  if (!Object.hasOwn(BackupCompression, schedule.compression ?? DEFAULT_BACKUP_COMPRESSION)) refuse('compression is not one')
  if (schedule.type === 'INCREMENTAL' && schedule.compression === 'GZIP') refuse('compression must not be GZIP for INCREMENTAL backups')
  if (!Number.isInteger(schedule.retentionCount) || schedule.retentionCount < 0) refuse('retentionCount must be a whole number, 0 or more')
  if (typeof schedule.enabled !== 'boolean') refuse('enabled must be a boolean')
  const paths = schedule.diskPaths
  const strings = Array.isArray(paths) && paths.every((path) => typeof path === 'string')
  if (paths !== undefined && !strings) refuse('diskPaths must be an array of strings')
  return schedule
}

function structuredCloneOf (given) {
  try {
    return JSON.parse(JSON.stringify(given))
  } catch (error) {
    return refuse(`a schedule must be plain data: ${messageOf(error)}`)
  }
}

async function inTime (answer, who) {
  let timer
  const late = new Promise((resolve, reject) => {
    const error = new BackupError('OPERATION_FAILED', `${who} did not answer in ${RESOLVER_DEADLINE / 1000} s`)
    timer = setTimeout(reject, RESOLVER_DEADLINE, error).unref()
  })
  try {
    return await Promise.race([answer, late])
  } finally {
    clearTimeout(timer)
  }
}

const copy = (schedule) => schedule === undefined ? undefined : structuredCloneOf(schedule)

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
      return this.#adapter.schedule(cronExpression, () => { if (this.#jobs.has(id)) this.runNow(id) })
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
      const metadata = await this.#back(schedule)
      await this.#retain(schedule)
      return ['schedule:completed', metadata]
    } catch (error) {
      return ['schedule:failed', error]
    }
  }

  async #back (schedule) {
    const { id, vmId, type, destinationDir, compression } = schedule
    const diskPaths = schedule.diskPaths ?? await inTime(this.#diskPathResolver?.(vmId), 'diskPathResolver')
    if (!Array.isArray(diskPaths) || diskPaths.length === 0) {
      refuse(`nobody says which disks ${vmId} has: give the schedule diskPaths, or the scheduler a diskPathResolver`, { vmId })
    }
    const config = { vmId, diskPaths, destinationDir, type, compression, description: schedule.label, tags: ['scheduled', id] }
    const { backupId } = type === 'INCREMENTAL' ? await this.#increment(id, config) : await this.#service.createBackup(config)
    return this.#service.getBackupMetadata(backupId, vmId)
  }

  // A FULL one where there is no chain, where it is long enough, and where it is damaged: to that nothing can
  // be added.
  async #increment (id, config) {
    const full = { ...config, type: 'FULL' }
    const parentBackupId = await this.#parent(id, config)
    if (parentBackupId === null) return this.#service.createBackup(full)
    try {
      return await this.#service.createBackup({ ...config, parentBackupId })
    } catch (error) {
      if (!BROKEN_CHAIN.includes(error?.code)) throw error
      warn(`schedule ${id} begins a new chain: ${messageOf(error)}`)
      return this.#service.createBackup(full)
    }
  }

  async #parent (id, { vmId, diskPaths }) {
    return native.nextParent(await this.#service.listBackups(vmId), id, diskPaths.length, LONGEST_CHAIN)
  }

  // A backup was made, whether or not older ones could be deleted; and one that cannot keeps no other.
  async #retain ({ id, vmId, retentionCount }) {
    try {
      const backups = await this.#service.listBackups(vmId)
      const keep = Math.min(retentionCount, MOST_KEPT)
      for (const backupId of native.expiredBackups(backups, id, keep)) await this.#expire(id, backupId, vmId)
    } catch (error) {
      warn(`the retention of schedule ${id} failed: ${messageOf(error)}`)
    }
  }

  async #expire (id, backupId, vmId) {
    try {
      await this.#service.deleteBackup(backupId, vmId)
    } catch (error) {
      warn(`the retention of schedule ${id} could not delete ${backupId}: ${messageOf(error)}`)
    }
  }
}

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

const plain = (input) => {
  if (typeof input !== 'object' || input === null) refuse('a schedule must be an object')
  return Object.fromEntries(Object.entries(input).filter(([, value]) => value !== undefined))
}

module.exports = { BackupScheduleService, BackupScheduler }
