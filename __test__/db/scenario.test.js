'use strict'

// One scenario, the same transcript on every database.

const { PrismaAdapter } = require('../..')
const { EmbeddedDatabase: Asked } = require('../../js/database')
const { cleanUp, finally_, openInstance, warning } = require('../kit')
const { Postgres } = require('../kit/postgres')
const { clientVersions, connect, disconnect } = require('../kit/prisma')
const { RemoteAdapter } = require('../kit/remote')
const { NODE, configuration, play, steps } = require('./scenario')
const { postgresWorld, sqliteWorld } = require('./worlds')

jest.setTimeout(60_000)

let server
beforeAll(async () => { server = await Postgres.start() })
afterEach(cleanUp)
afterAll(() => server.remove())

async function newDatabase (version) {
  const database = await server.newDatabase()
  finally_(() => database.drop())
  const client = connect(version, database)
  finally_(() => disconnect(client))
  return { database, client }
}

async function prismaWorld (version) {
  const { database, client } = await newDatabase(version)
  return postgresWorld(database, new PrismaAdapter(client, NODE))
}

// What the library itself hears from an injected adapter.
async function adapterTranscript () {
  const { database, client } = await newDatabase('prisma6')
  const instance = await openInstance({ databaseAdapter: new RemoteAdapter(client, NODE) })
  return play(postgresWorld(database, new Asked(instance)))
}

test('the embedded store, Prisma 6, Prisma 7 and an injected adapter tell the same', async () => {
  warning(/^the column cpuPinning is malformed/)
  const prisma6 = await play(await prismaWorld('prisma6'))
  expect(prisma6.length).toBe(steps.length)
  expect(await adapterTranscript()).toEqual(prisma6)
  if (clientVersions().includes('prisma7')) expect(await play(await prismaWorld('prisma7'))).toEqual(prisma6)
  const embedded = await play(await sqliteWorld())
  expect(embedded.length).toBe(steps.filter(({ shared }) => !shared).length)
  expect(embedded).toEqual(prisma6.slice(0, embedded.length))
})

// All that differs, of the operations that all of them have.
describe('between the embedded store and Prisma\'s clients', () => {
  test.each([
    // A client may not be asked for its `DbNull`, so what is JSON is emptied.
    ['diskPaths made null', { ...configuration, diskPaths: null }, { diskPaths: [] }, { diskPaths: null }],
    // A row that is made by a write has the schema's defaults, and the embedded store's has none.
    ['what was never written', {}, { networkModel: 'virtio-net-pci', enableUsbTablet: true }, { networkModel: null, enableUsbTablet: null }]
  ])('%s', async (_, update, inPostgres, embedded) => {
    const worlds = [[await sqliteWorld(), embedded]]
    for (const version of clientVersions()) worlds.push([await prismaWorld(version), inPostgres])
    for (const [{ add, store }, differing] of worlds) {
      await add({ id: 'vm', nodeId: NODE })
      if (update.bridge) await store.updateMachineConfiguration('vm', configuration)
      await store.updateMachineConfiguration('vm', update)
      expect((await store.findMachineWithConfig('vm')).configuration).toMatchObject(differing)
    }
  })
})

test.each(clientVersions())('%s: every column is where the schema has it, and what is not the library\'s stays', async (version) => {
  const { database, client } = await newDatabase(version)
  const adapter = new PrismaAdapter(client, NODE)
  const theirs = { setupComplete: true, lastError: 'theirs', numaConfig: { nodes: 2 } }
  await database.machine({ id: 'vm', nodeId: NODE, userId: 'user', localIP: '10.0.0.9', configuration: theirs })
  await adapter.updateMachineConfiguration('vm', configuration)
  expect(await database.configuration('vm')).toMatchObject({ ...configuration, ...theirs })
  await adapter.clearMachineConfiguration('vm')
  expect(await database.configuration('vm')).toMatchObject({
    ...configuration, ...theirs, qemuPid: null, tapDeviceName: null, qmpSocketPath: null
  })
  await adapter.transitionVMStatus('vm', 'off', 'starting', 1)
  expect(await database.row('vm')).toMatchObject({ status: 'starting', version: 2, userId: 'user', localIP: '10.0.0.9', nodeId: NODE })
})
