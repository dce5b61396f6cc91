'use strict'

const { LifecycleError } = require('./errors')

const KEYS = ['prismaClient', 'databaseAdapter']

// Which database an instance uses, decided from the keys that are there:
//   two values            refused
//   one value             that one, whatever the other key holds
//   keys without a value  refused: a misconfigured program must not start on an empty store
//   neither key           the embedded store
function chooseDatabase (config) {
  const present = KEYS.filter((key) => key in config)
  const given = present.filter((key) => config[key] !== undefined && config[key] !== null)
  if (given.length === 2) return { refused: 'give prismaClient or databaseAdapter, not both' }
  if (given.length === 1) return { kind: given[0], value: config[given[0]] }
  if (present.length > 0) {
    return { refused: `${present.join(' and ')} is given but has no value; leave the key out to use the embedded store` }
  }
  return { kind: 'embedded' }
}

// This version keeps its machines in the embedded store only.
function requireEmbedded ({ refused, kind }) {
  if (kind === 'embedded') return
  const message = refused ?? `${kind} is given, and this version works with the embedded store only`
  const issues = [{ path: kind ?? KEYS[0], message }]
  throw new LifecycleError('INVALID_CONFIG', message, undefined, { issues })
}

module.exports = { chooseDatabase, requireEmbedded }
