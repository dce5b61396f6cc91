'use strict'

// An application whose machines are rows in PostgreSQL, and the ways in which it can give them to the
// library.

const { expectGone, finally_, machine, newBridge, openInstance } = require('.')
const { clientVersions, connect, disconnect } = require('./prisma')
const { RemoteAdapter } = require('./remote')

const NODE = 'node-a'

// As applications extend their clients: with a word of their own, and a hand on every query.
const extended = (client) => client.$extends({
  model: { machine: { async isKnown (id) { return await client.machine.findUnique({ where: { id } }) !== null } } },
  query: { $allModels: { $allOperations: ({ args, query }) => query(args) } }
})

// What Infinization is given, by the way.
const ways = {
  prisma6: (client) => ({ prismaClient: client, nodeId: NODE }),
  prisma7: (client) => ({ prismaClient: client }),
  'prisma6, extended': (client) => ({ prismaClient: extended(client) }),
  'prisma7, extended': (client) => ({ prismaClient: extended(client), nodeId: NODE }),
  databaseAdapter: (client) => ({ databaseAdapter: new RemoteAdapter(client, NODE) })
}

const versionOf = (way) => way.startsWith('prisma7') ? 'prisma7' : 'prisma6'
const waysHere = () => Object.keys(ways).filter((way) => clientVersions().includes(versionOf(way)))

// A database of its own on the server, a client on it and an instance over that; gone when the test ends.
async function application (server, way, config) {
  const database = await server.newDatabase()
  finally_(() => database.drop())
  const client = connect(versionOf(way), database)
  finally_(() => disconnect(client))
  const given = ways[way](client)
  const open = (more) => openInstance({ ...given, ...config, ...more })
  return { database, client, given, open, instance: await open() }
}

// Adds the row of a small machine; the configuration to create it with.
async function defined ({ database, instance }, { row, ...more } = {}) {
  const config = machine(more.bridge ?? await newBridge(), { ramGB: 1, ...more })
  const { vmId, internalName, name, os, cpuCores, ramGB } = config
  await database.machine({ id: vmId, internalName, name, os, cpuCores, ramGB, diskSizeGB: 1, nodeId: NODE, ...row })
  expectGone(vmId)
  finally_(() => instance.destroyVM(vmId).catch((error) => {
    if (error.code !== 'CLOSED') throw error
  }))
  return config
}

// A running machine, by its row.
async function created (app, more) {
  const config = await defined(app, more)
  return { config, ...await app.instance.createVM(config) }
}

module.exports = { NODE, application, created, defined, waysHere }
