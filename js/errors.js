'use strict'

// The public error classes, and the factory that makes them out of the core's failures. They live
// in JavaScript so that they belong to the caller's realm and pass `instanceof`.

class LifecycleError extends Error {
  constructor (code, message, vmId, context) {
    super(message)
    this.name = 'LifecycleError'
    this.code = code
    this.vmId = vmId
    this.context = context
  }
}

// The order of the arguments is this class' own: message first.
class PrismaAdapterError extends Error {
  constructor (message, code, vmId, details) {
    super(message)
    this.name = 'PrismaAdapterError'
    this.code = code
    this.vmId = vmId
    this.details = details
  }
}

class StorageError extends Error {
  constructor (code, message, path, command) {
    super(message)
    this.name = 'StorageError'
    this.code = code
    this.path = path
    this.command = command
  }

  toInfo () {
    const { code, message, path, command } = this
    return { code, message, path, command }
  }
}

class BackupError extends Error {
  constructor (code, message, { backupId, vmId, diskPath, command } = {}) {
    super(message)
    this.name = 'BackupError'
    this.code = code
    this.backupId = backupId
    this.vmId = vmId
    this.diskPath = diskPath
    this.command = command
  }

  toInfo () {
    const { code, message, backupId, vmId, diskPath, command } = this
    return { code, message, backupId, vmId, diskPath, command }
  }
}

class FirewallTranslationError extends Error {
  constructor (code, message, ruleId) {
    super(ruleId === undefined ? message : `[Rule ${ruleId}] ${message}`)
    this.name = 'FirewallTranslationError'
    this.code = code
    this.ruleId = ruleId
  }
}

// The classes without a history of their own share one shape.
class CodedError extends Error {
  constructor (code, message, context, vmId) {
    super(message)
    this.name = this.constructor.errorName
    this.code = code
    this.context = context
    this.vmId = vmId
  }
}

class DisplayError extends CodedError { static errorName = 'DisplayError' }
class NftablesError extends CodedError { static errorName = 'NftablesError' }
class NetworkError extends CodedError { static errorName = 'NetworkError' }
class QMPError extends CodedError { static errorName = 'QMPError' }
class ProcessError extends CodedError { static errorName = 'ProcessError' }
class InfinizationError extends CodedError { static errorName = 'InfinizationError' }

const makers = {
  LifecycleError: (it) => new LifecycleError(it.code, it.message, it.vmId, it.context),
  PrismaAdapterError: (it) => new PrismaAdapterError(it.message, it.code, it.vmId, it.context),
  StorageError: (it) => withContext(
    new StorageError(it.code, it.message, it.context?.path, it.context?.command), it.context
  ),
  BackupError: (it) => withContext(
    new BackupError(it.code, it.message, { vmId: it.vmId, ...it.context }), it.context
  )
}

for (const Class of [NftablesError, NetworkError, QMPError, ProcessError, InfinizationError]) {
  makers[Class.errorName] = (it) => new Class(it.code, it.message, it.context, it.vmId)
}

function withContext (error, context) {
  if (context) error.context = context
  return error
}

// The registered factory: the chain arrives outermost first, and becomes `error.cause` links.
function fail (json) {
  return JSON.parse(json).reduceRight((cause, facts) => {
    const error = makers[facts.class](facts)
    if (cause) Object.defineProperty(error, 'cause', { value: cause, writable: true, configurable: true })
    return error
  }, undefined)
}

const isLifecycleError = (error) => error instanceof LifecycleError
const isBackupError = (error) => error instanceof BackupError
const isPrismaAdapterError = (error) => error instanceof PrismaAdapterError

function createLifecycleError (code, message, vmId, context) {
  return new LifecycleError(code, message, vmId, context)
}

module.exports = {
  BackupError,
  DisplayError,
  FirewallTranslationError,
  InfinizationError,
  LifecycleError,
  NetworkError,
  NftablesError,
  PrismaAdapterError,
  ProcessError,
  QMPError,
  StorageError,
  createLifecycleError,
  fail,
  isBackupError,
  isLifecycleError,
  isPrismaAdapterError
}
