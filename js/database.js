'use strict'

// Which database an instance uses, and the databases themselves as objects.

const { LifecycleError, PrismaAdapterError } = require('./errors')
const native = require('./native')
const { adapterPort, prismaPort } = require('./port')
const { traced } = require('./traced')

const KEYS = ['prismaClient', 'databaseAdapter']

// Decided from the keys that are there:
//   two values            refused
//   one value             that one, whatever the other key holds
//   keys without a value  refused: a misconfigured program must not start on an empty store
//   neither key           the embedded store
function chooseDatabase (config) {
  const present = KEYS.filter((key) => key in config)
  const given = present.filter((key) => config[key] !== undefined && config[key] !== null)
  if (given.length === 2) return { refused: 'give prismaClient or databaseAdapter, not both' }
  if (given.length === 1) return { kind: given[0], ...usable(given[0], config[given[0]]) }
  if (present.length > 0) {
    return { refused: `${present.join(' and ')} is given but has no value; leave the key out to use the embedded store` }
  }
  return { kind: 'embedded' }
}

function usable (kind, value) {
  const isObject = (typeof value === 'object' && value !== null) || typeof value === 'function'
  return isObject ? { value } : { refused: `${kind} must be an object` }
}

// The database of a `VMLifecycle`, whose rows other engines may settle as well.
const besideOthers = (db) => ({ kind: 'db', ...usable('db', db) })

// The functions by which the native side asks the database that was chosen.
function portsTo ({ refused, kind, value }) {
  if (refused) return []
  if (kind === 'prismaClient') return [prismaPort(value)]
  if (kind === 'databaseAdapter') return [undefined, adapterPort(value)]
  return kind === 'db' ? [undefined, undefined, adapterPort(value)] : []
}

function requireDatabase ({ refused, kind = KEYS[0] }) {
  if (refused === undefined) return
  const issues = [{ path: kind, message: refused }]
  throw new LifecycleError('INVALID_CONFIG', refused, undefined, { issues })
}

const Operations = traced(class extends native.InfinizationDatabase {})

// The embedded store of an instance.
class EmbeddedDatabase extends Operations {}

// With `owner`, which is `getPrismaAdapter()`'s business, it asks by way of that instance: what the
// library could not write yet of a machine goes before what is asked of it here.
class PrismaAdapter extends Operations {
  constructor (prisma, nodeId, options, owner = undefined) {
    super(...(owner ? [owner] : [undefined, prismaPort(prisma), scopeOf(nodeId), timeoutOf(options)]))
  }
}

function scopeOf (nodeId) {
  if (nodeId === undefined || nodeId === null) return undefined
  if (typeof nodeId === 'string' && nodeId.trim() !== '') return nodeId
  throw new PrismaAdapterError('nodeId must be a text that is not blank', 'INVALID_INPUT')
}

function timeoutOf (options) {
  const timeout = options?.timeout
  if (timeout === undefined || (Number.isFinite(timeout) && timeout > 0)) return timeout
  throw new PrismaAdapterError('timeout must be a positive number of milliseconds', 'INVALID_INPUT')
}

module.exports = { EmbeddedDatabase, PrismaAdapter, besideOthers, chooseDatabase, portsTo, requireDatabase }
