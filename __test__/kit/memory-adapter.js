'use strict'

// A database of a test's own: the least that the classes that take one need.

class Rows {
  calls = []
  #rows = new Map()

  add (id, row = {}) {
    this.#rows.set(id, { id, internalName: id, status: 'running', pid: null, tap: null, socket: null, ...row })
    return this
  }

  set (id, change) {
    Object.assign(this.#rows.get(id), change)
  }

  get (id) {
    return this.#rows.get(id)
  }

  remove (id) {
    this.#rows.delete(id)
  }

  // From now on every call fails.
  fail (message = 'the database is on fire') {
    for (const name of METHODS) this[name] = async () => { throw new Error(message) }
  }

  work () {
    for (const name of METHODS) delete this[name]
  }

  async findMachine (id) {
    const row = this.#rows.get(id)
    return row ? { id, status: row.status } : null
  }

  async findMachineWithConfig (id) {
    const row = this.#rows.get(id)
    if (!row) return null
    const { internalName, status } = row
    return {
      id, status, name: id, internalName, os: 'linux', cpuCores: 1, ramGB: 1, diskSizeGB: 1, gpuPciAddress: null,
      configuration: configuration(row), firewallRuleSet: null, department: null, version: 1
    }
  }

  async findMachineByInternalName (name) {
    return [...this.#rows.values()].filter((row) => row.internalName === name).map(running)[0] ?? null
  }

  async findRunningVMs () {
    return this.findMachinesByStatuses(['running'])
  }

  async findMachinesByStatuses (statuses) {
    return [...this.#rows.values()].filter((row) => statuses.includes(row.status)).map(running)
  }

  async updateMachineStatus (id, status, { onlyIfNotIn = [] } = {}) {
    this.calls.push([id, status])
    const row = this.#rows.get(id)
    if (row && !onlyIfNotIn.includes(row.status)) row.status = status
  }

  async clearMachineConfiguration (id) {
    this.set(id, { pid: null, tap: null, socket: null })
  }

  async clearVolatileMachineConfiguration (id) {
    this.set(id, { pid: null, socket: null })
  }
}

const METHODS = Object.getOwnPropertyNames(Rows.prototype).filter((name) => /^(find|update|clear)/.test(name))

const configuration = ({ pid, tap, socket }) => ({
  qemuPid: pid, tapDeviceName: tap, qmpSocketPath: socket, guestAgentSocketPath: null, infiniServiceSocketPath: null
})

const running = (row) => ({
  id: row.id, status: row.status, internalName: row.internalName, MachineConfiguration: configuration(row)
})

module.exports = { Rows }
