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
const { warn } = require('./warn')

// An INCREMENTAL schedule makes every seventh backup a FULL one: a chain is read as a whole and kept as a
// whole.
const LONGEST_CHAIN = 7

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
    return refuse(`a schedule must be plain data: ${error.message}`)
  }
}

const copy = (schedule) => schedule === undefined ? undefined : structuredCloneOf(schedule)

class BackupScheduler extends EventEmitter {
  #service
  #adapter
  #diskPathResolver
  #schedules = new Map()
  #jobs = new Map()
  #inFlight = new Set()
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
    this.#put(schedule)
  }

  // An unknown id is no error: it is removed.
  removeSchedule (id) {
    this.#stop(id)
    this.#schedules.delete(id)
  }

  updateSchedule (given) {
    const schedule = checked(given)
    const before = this.#schedules.get(schedule.id)
    if (before === undefined) throw new BackupError('BACKUP_NOT_FOUND', `there is no schedule ${schedule.id}`)
    this.#stop(schedule.id)
    try {
      this.#put(schedule)
    } catch (error) {
      this.#put(before)
      throw error
    }
  }

  getAllSchedules () {
    return [...this.#schedules.values()].map(copy)
  }

  getSchedule (id) {
    return copy(this.#schedules.get(id))
  }

  startAll () {
    this.#stopped = false
    for (const schedule of this.#schedules.values()) this.#start(schedule)
  }

  // Runs that have begun go on to their end.
  stopAll () {
    this.#stopped = true
    for (const id of [...this.#jobs.keys()]) this.#stop(id)
  }

  #put (schedule) {
    this.#start(schedule)
    this.#schedules.set(schedule.id, schedule)
  }

  // The adapter is who knows what a cron expression is.
  #start (schedule) {
    if (!schedule.enabled || this.#stopped || this.#jobs.has(schedule.id)) return
    try {
      this.#jobs.set(schedule.id, this.#adapter.schedule(schedule.cronExpression, () => { this.runNow(schedule.id) }))
    } catch (error) {
      const refused = new BackupError('INVALID_CONFIG', `cronExpression is refused: ${error.message}`, { vmId: schedule.vmId })
      refused.cause = error
      throw refused
    }
    this.#noteNext(schedule)
  }

  #stop (id) {
    this.#jobs.get(id)?.stop()
    this.#jobs.delete(id)
  }

  #noteNext (schedule) {
    const next = this.#jobs.get(schedule.id)?.getNextRunDate()
    if (next === undefined || next === null) delete schedule.nextRunAt
    else schedule.nextRunAt = String(next)
  }

  // Makes a schedule's backup at once, unless one of its runs is under way. Never rejects: how it went
  // is told by `schedule:completed` or `schedule:failed`.
  async runNow (id) {
    const schedule = this.#schedules.get(id)
    if (schedule === undefined || this.#inFlight.has(id)) return
    this.#inFlight.add(id)
    schedule.lastRunAt = new Date().toISOString()
    this.#noteNext(schedule)
    emitGuarded(this, 'schedule:started', copy(schedule))
    const outcome = await this.#run(schedule)
    this.#inFlight.delete(id)
    emitGuarded(this, ...outcome)
  }

  async #run (schedule) {
    try {
      const metadata = await this.#back(schedule)
      await this.#retain(schedule)
      return ['schedule:completed', copy(schedule), metadata]
    } catch (error) {
      return ['schedule:failed', copy(schedule), error]
    }
  }

  async #back (schedule) {
    const { id, vmId, destinationDir, compression } = schedule
    const diskPaths = schedule.diskPaths ?? await this.#diskPathResolver?.(vmId)
    if (!Array.isArray(diskPaths) || diskPaths.length === 0) {
      refuse(`nobody says which disks ${vmId} has: give the schedule diskPaths, or the scheduler a diskPathResolver`, { vmId })
    }
    const parentBackupId = schedule.type === 'INCREMENTAL' ? await this.#parent(schedule, diskPaths.length) : undefined
    const type = schedule.type === 'INCREMENTAL' && parentBackupId === undefined ? 'FULL' : schedule.type
    const backup = { vmId, diskPaths, destinationDir, compression, description: schedule.label, tags: ['scheduled', id] }
    const { backupId } = await this.#make({ ...backup, type, parentBackupId })
    return this.#service.getBackupMetadata(backupId, vmId)
  }

  // On a backup that has another key than the disk has now, nothing can be built.
  async #make (backup) {
    try {
      return await this.#service.createBackup(backup)
    } catch (error) {
      if (backup.type !== 'INCREMENTAL' || error?.context?.needsFull !== true) throw error
      return this.#service.createBackup({ ...backup, type: 'FULL', parentBackupId: undefined })
    }
  }

  async #parent ({ id, vmId }, disks) {
    const backups = await this.#service.listBackups(vmId)
    return native.nextParent(backups, id, disks, LONGEST_CHAIN) ?? undefined
  }

  // A backup was made, whether or not older ones could be deleted.
  async #retain ({ id, vmId, retentionCount }) {
    try {
      const backups = await this.#service.listBackups(vmId)
      for (const backupId of native.expiredBackups(backups, id, retentionCount)) {
        await this.#service.deleteBackup(backupId, vmId)
      }
    } catch (error) {
      warn(`the retention of schedule ${id} failed: ${error.message}`)
    }
  }
}

// Schedules that are kept in `<root>/schedules.json`.
class BackupScheduleService extends EventEmitter {
  #root
  #file
  #scheduler
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
        this.#persist().catch((error) => warn(`schedules were not kept: ${error.message}`))
      })
    }
  }

  get scheduleCount () {
    return this.#scheduler.getAllSchedules().length
  }

  get activeJobCount () {
    return this.#scheduler.activeJobCount
  }

  // Loads what is kept and begins. A run that was missed meanwhile is made up once, however many there were.
  start () {
    this.#started ??= this.#load().catch((error) => {
      this.#started = undefined
      throw error
    })
    return this.#started
  }

  async stop () {
    await this.#started?.catch(() => {})
    this.#scheduler.stopAll()
    this.#started = undefined
    await this.#file.settled()
  }

  async #load () {
    const kept = await this.#file.read()
    const known = new Set(this.#scheduler.getAllSchedules().map(({ id }) => id))
    const missed = []
    for (const schedule of kept) {
      if (!known.has(schedule.id)) this.#scheduler.addSchedule(schedule)
      if (schedule.enabled && Date.parse(schedule.nextRunAt) < Date.now()) missed.push(schedule.id)
    }
    this.#scheduler.startAll()
    emitGuarded(this, 'loaded', kept.length)
    for (const id of missed) this.#scheduler.runNow(id)
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
    this.#scheduler.addSchedule(schedule)
    return this.#changed('schedule:created', schedule.id)
  }

  async updateSchedule (id, input) {
    await this.#loaded()
    const { vmId, diskPaths, ...changes } = plain(input)
    this.#scheduler.updateSchedule({ ...this.#known(id), ...changes, id })
    return this.#changed('schedule:updated', id)
  }

  async enableSchedule (id) {
    await this.#loaded()
    this.#scheduler.updateSchedule({ ...this.#known(id), enabled: true })
    return this.#changed('schedule:enabled', id)
  }

  async disableSchedule (id) {
    await this.#loaded()
    this.#scheduler.updateSchedule({ ...this.#known(id), enabled: false })
    return this.#changed('schedule:disabled', id)
  }

  async deleteSchedule (id) {
    await this.#loaded()
    this.#known(id)
    this.#scheduler.removeSchedule(id)
    await this.#persist()
    emitGuarded(this, 'schedule:deleted', id)
  }

  async listSchedules (vmId) {
    await this.#loaded()
    return this.#scheduler.getAllSchedules().filter((schedule) => vmId === undefined || schedule.vmId === vmId)
  }

  async getSchedule (id) {
    await this.#loaded()
    return this.#scheduler.getSchedule(id)
  }

  // What is kept is known before it is changed, also where nobody called start().
  async #loaded () {
    if (this.#started) return this.#started
    for (const schedule of await this.#file.read()) {
      if (this.#scheduler.getSchedule(schedule.id) === undefined) this.#scheduler.addSchedule(schedule)
    }
  }

  #known (id) {
    const schedule = this.#scheduler.getSchedule(id)
    if (schedule === undefined) throw new BackupError('BACKUP_NOT_FOUND', `there is no schedule ${id}`)
    return schedule
  }

  async #changed (event, id) {
    await this.#persist()
    const schedule = this.#scheduler.getSchedule(id)
    emitGuarded(this, event, copy(schedule))
    return schedule
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
