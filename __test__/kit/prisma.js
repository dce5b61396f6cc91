'use strict'

// Prisma's clients, of the versions users have. They are generated from __test__/db, offline, when they
// are older than what they are made of.

const { execFileSync } = require('node:child_process')
const { existsSync, readFileSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { root } = require('./root')

const folder = path.join(root, '__test__/db')
const GENERATE_DEADLINE = 60_000
const DISCONNECT_DEADLINE = 2_000
const VERSIONS = ['prisma6', 'prisma7']

// Those that this Node.js can run.
function clientVersions () {
  const [major, minor] = process.versions.node.split('.').map(Number)
  return major === 20 && minor < 19 ? ['prisma6'] : VERSIONS
}

// Makes the clients whose packages are installed.
function generateClients () {
  for (const version of clientVersions()) {
    if (existsSync(path.join(folder, version, 'node_modules/prisma'))) generateClient(version, models())
  }
}

const models = () => readFileSync(path.join(folder, 'models.prisma'), 'utf8')

// Makes the version's client for these models, if `client` in the folder is not that already.
function generateClient (version, models, directory = path.join(folder, version)) {
  const packages = path.join(folder, version)
  const schema = readFileSync(path.join(packages, 'generator.prisma'), 'utf8') + models
  const wanted = schema + readFileSync(path.join(packages, 'package-lock.json'), 'utf8')
  const [client, file] = ['client', 'schema.prisma'].map((name) => path.join(directory, name))
  const madeOf = path.join(client, 'made-of')
  if (existsSync(madeOf) && readFileSync(madeOf, 'utf8') === wanted) return
  rmSync(client, { recursive: true, force: true })
  // It would install packages that it does not find beside the schema.
  if (directory !== packages) symlinkSync(path.join(packages, 'node_modules'), path.join(directory, 'node_modules'))
  writeFileSync(file, schema)
  try {
    execFileSync(process.execPath, [path.join(packages, 'node_modules/prisma/build/index.js'), 'generate', '--schema', file], {
      cwd: packages, stdio: ['ignore', 'pipe', 'pipe'], env: generating(), timeout: GENERATE_DEADLINE
    })
  } finally {
    rmSync(file)
  }
  writeFileSync(madeOf, wanted)
}

// Without asking anybody for engines, updates or hints.
const generating = () => ({
  ...process.env,
  PRISMA_SCHEMA_ENGINE_BINARY: path.join(folder, 'no-schema-engine'),
  CHECKPOINT_DISABLE: '1',
  PRISMA_HIDE_UPDATE_MESSAGE: '1'
})

// A client of the application's, connected to a database of kit/postgres. `disconnect` closes it.
function connect (version, database, directory = path.join(folder, version)) {
  const { PrismaPg } = require(path.join(folder, version))
  const { PrismaClient } = require(path.join(directory, 'client'))
  return new PrismaClient({ adapter: new PrismaPg({ ...database.address, max: 10 }) })
}

// Prisma never gives back a connection that was cut within a transaction, and waits for it here.
async function disconnect (client) {
  let timer
  const late = new Promise((resolve) => { timer = setTimeout(resolve, DISCONNECT_DEADLINE) })
  await Promise.race([client.$disconnect(), late])
  clearTimeout(timer)
}

module.exports = { clientVersions, connect, disconnect, generateClient, generateClients, models }
