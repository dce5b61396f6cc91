'use strict'

// The stable codes, as plain objects `{ NAME: 'NAME' }`: what the core's table has for a class, then
// names that exist for compatibility only. Those were always declared and are never thrown.

const native = require('../native.js')

const table = Array.from(native.errorTable())

function codesOf (className, ...compatible) {
  const own = table.filter((row) => row.class === className).map((row) => row.code)
  return Object.freeze(Object.fromEntries([...own, ...compatible].map((code) => [code, code])))
}

const LifecycleErrorCode = codesOf('LifecycleError', 'ALREADY_RUNNING', 'ALREADY_STOPPED')
const PrismaAdapterErrorCode = codesOf('PrismaAdapterError')
const StorageErrorCode = codesOf('StorageError')
const BackupErrorCode = codesOf('BackupError')
const NftablesErrorCode = codesOf('NftablesError', 'TABLE_EXISTS', 'CHAIN_EXISTS')
const NetworkErrorCode = codesOf('NetworkError')
const QMPErrorCode = codesOf('QMPError')
const ProcessErrorCode = codesOf('ProcessError')
const InfinizationErrorCode = codesOf('InfinizationError')

// A display that makes no sense is INVALID_CONFIG when a machine is created.
const DisplayErrorCode = codesOf(
  'DisplayError',
  'INVALID_PORT', 'INVALID_PASSWORD', 'INVALID_ADDRESS', 'INVALID_DISPLAY_NUMBER',
  'PASSWORD_TOO_LONG', 'PORT_OUT_OF_RANGE', 'CONFLICTING_OPTIONS', 'INVALID_COMPRESSION_MODE',
  'INVALID_STREAMING_MODE', 'INVALID_GL_CONFIG', 'RENDERNODE_NOT_FOUND'
)

// What a synchronisation of a status may fail with; it is never thrown.
const SyncErrorCode = codesOf('SyncError', 'QMP_UNAVAILABLE', 'DB_ERROR', 'VM_NOT_FOUND', 'INVALID_STATUS')

module.exports = {
  BackupErrorCode,
  DisplayErrorCode,
  InfinizationErrorCode,
  LifecycleErrorCode,
  NetworkErrorCode,
  NftablesErrorCode,
  PrismaAdapterErrorCode,
  ProcessErrorCode,
  QMPErrorCode,
  StorageErrorCode,
  SyncErrorCode
}
