'use strict'

// Backups. What is here must be JavaScript: the EventEmitter, AbortSignals, and the user's callbacks,
// which the core asks when their answers count.

const { abortable } = require('./abort')
const { DEFAULT_BACKUP_DIR } = require('./constants')
const { BackupError } = require('./errors')
const { emitGuarded } = require('./events')
const { Guests } = require('./guests')
const { openInstances } = require('./instances')
const native = require('./native')
const { telling } = require('./progress')
const { withStartKeys } = require('./secrets')
const { traced } = require('./traced')

// What cannot even be read as arguments is refused by whoever reads arguments.
function asBackupError (error) {
  if (error instanceof BackupError || error?.code !== 'INVALID_CONFIG') return error
  return Object.assign(new BackupError('INVALID_CONFIG', error.message), { context: error.context })
}

const Service = traced(class extends native.BackupService {}, asBackupError)

class BackupService extends Service {
  #owner
  #active = 0

  constructor (options = {}) {
    const { backupRootDir, isVmRunning, guestAgentFactory, infinization } = options ?? {}
    const guests = new Guests(isVmRunning, guestAgentFactory)
    let self
    super(
      String(backupRootDir ?? DEFAULT_BACKUP_DIR),
      (request) => guests.answer(request),
      (told) => self.deref()?.#deliver(JSON.parse(told))
    )
    // Weak: the callback is the addon's for as long as it lives, the instance is not.
    self = new WeakRef(this)
    this.#owner = infinization
  }

  get activeBackupCount () {
    return this.#active
  }

  async createBackup (config) {
    this.#active++
    try {
      return await cancellable(config, (rest, cancellation) => super.createBackup(withStartKeys(rest), this.#owners(), cancellation))
    } finally {
      this.#active--
    }
  }

  async restoreBackup (options) {
    return cancellable(options, (rest, cancellation) => super.restoreBackup(withStartKeys(rest), this.#owners(), cancellation))
  }

  async deleteBackup (backupId, vmId) {
    return super.deleteBackup(backupId, vmId, this.#owners())
  }

  async verifyBackup (backupId, vmId, options) {
    return asking(() => telling(options, native.CheckProgress, (progress) => progress,
      (_rest, cancellation, progress) => super.verifyBackup(backupId, vmId, cancellation, progress)))
  }

  // Whoever may have the monitor of the machine.
  #owners () {
    const owners = new native.MachineOwners()
    for (const instance of this.#owner ? [this.#owner] : openInstances()) owners.add(instance)
    return owners
  }

  #deliver ({ name, data }) {
    emitGuarded(this, name, data)
  }
}

const cancellable = (options, call) => asking(() => abortable(options, call))

async function asking (call) {
  try {
    return await call()
  } catch (error) {
    throw asBackupError(error)
  }
}

module.exports = { BackupService }
