'use strict'

// A Prisma client over rows in memory: the calls of the contract, with Prisma's answers, and nothing
// else. Its methods use `this`, as those of an extended client do.

const { randomUUID } = require('node:crypto')

const conflict = (code, message) => Object.assign(new Error(`\nInvalid invocation:\n\n${message}`), {
  name: 'PrismaClientKnownRequestError', code, meta: { modelName: 'Machine' }
})

class Delegate {
  constructor (tables, name) {
    this.tables = tables
    this.name = name
    this.calls = []
  }

  get rows () {
    return this.tables[this.name]
  }

  async findUnique (args) {
    return this.#called('findUnique', args, () => this.#selected(args)[0] ?? null)
  }

  async findFirst (args) {
    return this.#called('findFirst', args, () => this.#selected(args)[0] ?? null)
  }

  async findMany (args) {
    return this.#called('findMany', args, () => this.#selected(args))
  }

  async updateMany (args) {
    return this.#called('updateMany', args, () => {
      const found = this.#found(args.where)
      for (const row of found) Object.assign(row, args.data)
      return { count: found.length }
    })
  }

  async upsert (args) {
    return this.#called('upsert', args, () => {
      for (const name of ['diskPaths', 'cpuPinning']) {
        if (args.create[name] === null || args.update[name] === null) throw new TypeError(`${name} must not be null`)
      }
      const [row] = this.#found(args.where)
      if (row) return Object.assign(row, args.update)
      const made = { id: randomUUID(), ...this.tables.defaults?.[this.name], ...args.create }
      this.rows.push(made)
      return made
    })
  }

  #called (operation, args, answer) {
    this.calls.push([operation, args])
    return this.tables.before?.(this.name, operation, args) ?? answer()
  }

  #found (where) {
    return this.rows.filter((row) => Object.entries(where).every(([name, wanted]) => matches(row[name], wanted)))
  }

  #selected ({ where, select }) {
    return this.#found(where).map((row) => this.#shown(row, select))
  }

  #shown (row, select) {
    return Object.fromEntries(Object.entries(select).map(([name, wanted]) => {
      if (wanted === true) return [name, row[name] ?? null]
      return [name, this.#related(row, name, wanted.select)]
    }))
  }

  #related (row, relation, select) {
    const { machineConfiguration, department, firewallRuleSet } = this.tables
    const found = {
      configuration: () => machineConfiguration.find((it) => it.machineId === row.id),
      department: () => department.find((it) => it.id === row.departmentId),
      firewallRuleSet: () => firewallRuleSet.find((it) => it.id === row.firewallRuleSetId)
    }[relation]
    if (found) return found() ? this.#shown(found(), select) : null
    return (row[relation] ?? []).map((it) => this.#shown(it, select))
  }
}

function matches (value, wanted) {
  if (wanted?.in) return wanted.in.includes(value)
  if (wanted?.notIn) return !wanted.notIn.includes(value)
  return (value ?? null) === wanted
}

class Client {
  constructor (tables = {}) {
    this.tables = { machine: [], machineConfiguration: [], department: [], firewallRuleSet: [], ...tables }
    this.machine = new Delegate(this.tables, 'machine')
    this.machineConfiguration = new Delegate(this.tables, 'machineConfiguration')
    this.transactions = 0
  }

  // One at a time, and all or nothing.
  async $transaction (run) {
    this.transactions++
    const before = structuredClone(this.tables.machine)
    try {
      return await run({ machine: this.machine, machineConfiguration: this.machineConfiguration })
    } catch (error) {
      this.tables.machine.splice(0, Infinity, ...before)
      throw error
    }
  }

  // A row as a consumer makes it before he asks for the machine.
  add (row) {
    this.tables.machine.push({
      name: 'A test machine', os: 'linux', status: 'off', cpuCores: 1, ramGB: 1, diskSizeGB: 1,
      gpuPciAddress: null, version: 1, nodeId: null, departmentId: null, firewallRuleSetId: null, ...row
    })
    return this
  }

  row (id) {
    return this.tables.machine.find((row) => row.id === id)
  }

  configuration (id) {
    return this.tables.machineConfiguration.find((row) => row.machineId === id)
  }
}

// What `$extends` makes: a stand-in that passes calls on to the client it extends, and whose properties
// cannot be listed.
function extended (client) {
  const delegates = new Map()
  const passOn = (owner) => new Proxy(Object.create(null), {
    get: (_, name) => typeof owner[name] === 'function' ? (...args) => owner[name](...args) : undefined,
    ownKeys () { throw new Error('looked into') },
    has () { throw new Error('looked into') }
  })
  return new Proxy(Object.create(null), {
    get (_, name) {
      if (name === '$transaction') return (...args) => client.$transaction(...args)
      if (!['machine', 'machineConfiguration'].includes(name)) return undefined
      if (!delegates.has(name)) delegates.set(name, passOn(client[name]))
      return delegates.get(name)
    },
    ownKeys () { throw new Error('looked into') },
    has () { throw new Error('looked into') }
  })
}

module.exports = { Client, conflict, extended }
