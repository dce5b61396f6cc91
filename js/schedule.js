'use strict'

// A schedule as data: what makes one, and copies that are nobody else's object.

const { isAbsolute } = require('node:path')
const { BackupCompression, DEFAULT_BACKUP_COMPRESSION, isValidBackupType } = require('./constants')
const { BackupError } = require('./errors')
const { messageOf } = require('./warn')

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

const copy = (schedule) => schedule === undefined ? undefined : structuredCloneOf(schedule)

// What is given of one: undefined is as if it were not there.
const plain = (input) => {
  if (typeof input !== 'object' || input === null) refuse('a schedule must be an object')
  return Object.fromEntries(Object.entries(input).filter(([, value]) => value !== undefined))
}

module.exports = { checked, copy, plain, refuse }
