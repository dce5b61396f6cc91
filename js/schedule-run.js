'use strict'

// One run of a schedule: its backup, then its retention. What a schedule keeps and what its next backup builds
// on is decided in the core.

const { BackupError } = require('./errors')
const native = require('./native')
const { refuse } = require('./schedule')
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

// Makes the backup that is due, and deletes what need not stay; the new backup's metadata.
async function run (schedule, service, diskPathResolver) {
  const metadata = await backUp(schedule, service, diskPathResolver)
  await retain(schedule, service)
  return metadata
}

async function backUp (schedule, service, diskPathResolver) {
  const { id, vmId, type, destinationDir, compression } = schedule
  const diskPaths = schedule.diskPaths ?? await inTime(diskPathResolver?.(vmId), 'diskPathResolver')
  if (!Array.isArray(diskPaths) || diskPaths.length === 0) {
    refuse(`nobody says which disks ${vmId} has: give the schedule diskPaths, or the scheduler a diskPathResolver`, { vmId })
  }
  const config = { vmId, diskPaths, destinationDir, type, compression, description: schedule.label, tags: ['scheduled', id] }
  const { backupId } = type === 'INCREMENTAL' ? await increment(id, config, service) : await service.createBackup(config)
  return service.getBackupMetadata(backupId, vmId)
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

// A FULL one where there is no chain, where it is long enough, where it is damaged, and where its key is not the
// disk's any more: to that nothing can be added.
async function increment (id, config, service) {
  const full = { ...config, type: 'FULL' }
  const backups = await service.listBackups(config.vmId)
  const parentBackupId = native.nextParent(backups, id, config.diskPaths.length, LONGEST_CHAIN)
  if (parentBackupId === null) return service.createBackup(full)
  try {
    return await service.createBackup({ ...config, parentBackupId })
  } catch (error) {
    if (!BROKEN_CHAIN.includes(error?.code) && error?.context?.needsFull !== true) throw error
    warn(`schedule ${id} begins a new chain: ${messageOf(error)}`)
    return service.createBackup(full)
  }
}

// A backup was made, whether or not older ones could be deleted; and one that cannot keeps no other.
async function retain ({ id, vmId, retentionCount }, service) {
  try {
    const backups = await service.listBackups(vmId)
    const keep = Math.min(retentionCount, MOST_KEPT)
    for (const backupId of native.expiredBackups(backups, id, keep)) await expire(id, backupId, vmId, service)
  } catch (error) {
    warn(`the retention of schedule ${id} failed: ${messageOf(error)}`)
  }
}

async function expire (id, backupId, vmId, service) {
  try {
    await service.deleteBackup(backupId, vmId)
  } catch (error) {
    warn(`the retention of schedule ${id} could not delete ${backupId}: ${messageOf(error)}`)
  }
}

module.exports = { run }
