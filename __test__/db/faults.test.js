'use strict'

// What goes wrong between a database and those who write to it at once, on the server itself.

const { existsSync, mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { Infinization, PrismaAdapter, PrismaAdapterError } = require('../..')
const { cleanUp, finally_, host, newInstance, rejection } = require('../kit')
const { application, created } = require('../kit/application')
const { Postgres } = require('../kit/postgres')
const { clientVersions, connect, disconnect, generateClient, models } = require('../kit/prisma')

jest.setTimeout(60_000)

let server
beforeAll(async () => { server = await Postgres.start() })
afterEach(cleanUp)
afterAll(() => server.remove())

describe.each(clientVersions())('%s', (version) => {
  let database, client, adapter
  beforeEach(async () => {
    database = await server.newDatabase()
    finally_(() => database.drop())
    client = connect(version, database)
    finally_(() => disconnect(client))
    adapter = new PrismaAdapter(client)
    await database.machine({ id: 'vm', configuration: { qemuPid: 1 } })
  })

  // A transaction of somebody else, which holds what it has touched until `commit()`.
  async function another (...statements) {
    const session = await database.newSession()
    finally_(() => session.end())
    await session.query('BEGIN')
    for (const statement of statements) await session.query(statement)
    return { query: (statement) => session.query(statement), commit: () => session.query('COMMIT') }
  }

  // Whoever changes a machine runs these statements with it.
  const withEveryChange = (statements) => database.sql(`
    CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ${statements} RETURN NEW; END $$;
    CREATE TRIGGER meddle BEFORE UPDATE ON "Machine" FOR EACH ROW EXECUTE FUNCTION meddle()`)

  const begin = (...args) => adapter.transitionVMStatus('vm', 'off', 'starting', 1, ...args)

  describe('F33: writers at once', () => {
    test('of twenty who begin the same step, one succeeds', async () => {
      const outcomes = await Promise.allSettled(Array.from({ length: 20 }, () => begin()))
      expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
      for (const { reason } of outcomes.filter(({ status }) => status === 'rejected')) {
        expect(reason).toBeInstanceOf(PrismaAdapterError)
        expect(reason).toMatchObject({ code: 'VERSION_CONFLICT', vmId: 'vm' })
      }
      expect(await database.row('vm')).toMatchObject({ status: 'starting', version: 2 })
    })

    test('one who waits for another sees what that one wrote', async () => {
      const other = await another('UPDATE "Machine" SET status = \'moving\' WHERE id = \'vm\'')
      const [begun, guarded] = [rejection(begin()), adapter.updateMachineStatus('vm', 'off', { onlyIfNotIn: ['moving'] })]
      await database.someoneWaits()
      await other.commit()
      await guarded
      // Its version is as it was; whether the status was read before or after is the same to the caller.
      expect((await begun).code).toMatch(/^(UPDATE_FAILED|VERSION_CONFLICT)$/)
      expect(await database.row('vm')).toMatchObject({ status: 'moving', version: 1 })
    })

    test('what another changed between the read and the write is in the answer', async () => {
      const other = await another('UPDATE "Machine" SET name = \'renamed\' WHERE id = \'vm\'')
      const begun = begin()
      await database.someoneWaits()
      await other.commit()
      expect(await begun).toMatchObject({ success: true, newVersion: 2, vmConfig: { name: 'renamed', status: 'starting' } })
    })

    test('a transaction that cannot be put in order is tried again', async () => {
      await database.sql(`ALTER DATABASE ${database.name} SET default_transaction_isolation = 'repeatable read'`)
      const other = await another('UPDATE "Machine" SET name = \'renamed\' WHERE id = \'vm\'')
      const begun = begin()
      await database.someoneWaits()
      await other.commit()
      expect(await begun).toMatchObject({ success: true, newVersion: 2, vmConfig: { name: 'renamed', status: 'starting' } })
    })

    test('three times, and then it is told', async () => {
      await database.sql('CREATE SEQUENCE attempts')
      await withEveryChange("PERFORM nextval('attempts'); RAISE 'not today' USING ERRCODE = 'serialization_failure';")
      expect(await rejection(begin())).toMatchObject({ code: 'UPDATE_FAILED', vmId: 'vm', details: { prismaCode: 'P2034' } })
      // A sequence takes no part in transactions.
      expect(await database.sql('SELECT last_value::int FROM attempts')).toEqual([{ last_value: 3 }])
      expect(await database.row('vm')).toMatchObject({ status: 'off', version: 1 })
    })

    test('a deadlock is the other\'s or is tried again', async () => {
      await withEveryChange('PERFORM pg_advisory_xact_lock(1);')
      // The other is patient, so that the server gives up ours.
      const other = await another("SET LOCAL deadlock_timeout = '30s'", 'SELECT pg_advisory_xact_lock(1)')
      const begun = begin()
      await database.someoneWaits()
      await other.query('UPDATE "Machine" SET name = \'renamed\' WHERE id = \'vm\'')
      await other.commit()
      expect(await begun).toMatchObject({ success: true, newVersion: 2, vmConfig: { id: 'vm' } })
      expect(await database.row('vm')).toMatchObject({ name: 'renamed', status: 'starting', version: 2 })
    })

    test('a row that is deleted while it is written', async () => {
      const other = await another('DELETE FROM "Machine" WHERE id = \'vm\'')
      const writes = [
        adapter.updateMachineStatus('vm', 'running'), adapter.clearMachineConfiguration('vm'),
        rejection(begin()), rejection(adapter.updateMachineConfiguration('vm', { qemuPid: 2 }))
      ]
      await database.someoneWaits()
      await other.commit()
      const [status, cleared, begun, configured] = await Promise.all(writes)
      expect([status, cleared]).toEqual([undefined, undefined])
      expect(begun).toMatchObject({ code: 'MACHINE_NOT_FOUND', vmId: 'vm' })
      // The configuration's row was there when the write began, and its machine is not now.
      expect(configured.code).toMatch(/^(MACHINE_NOT_FOUND|UPDATE_FAILED)$/)
      expect(await database.sql('SELECT id FROM "MachineConfiguration"')).toEqual([])
    })
  })

  describe('connections', () => {
    test('one that is cut in the middle of a write is told, and the next call goes on', async () => {
      const other = await another('SELECT FROM "Machine" FOR UPDATE')
      const begun = rejection(begin())
      await database.someoneWaits()
      await database.sql('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = \'Lock\' AND datname = current_database()')
      expect(await begun).toMatchObject({ name: 'PrismaAdapterError', code: 'DB_CONNECTION_ERROR', vmId: 'vm' })
      await other.commit()
      expect(await database.row('vm')).toMatchObject({ status: 'off', version: 1 })
      expect(await begin()).toMatchObject({ newVersion: 2 })
    })

    test('all that are idle', async () => {
      await Promise.all(Array.from({ length: 8 }, () => adapter.findMachine('vm')))
      expect(await database.terminateOthers()).toBeGreaterThan(0)
      // A pool may hold some that it does not know to be cut.
      for (;;) {
        const outcome = await begin().catch((error) => error)
        if (!(outcome instanceof Error)) break
        expect(outcome.code).toBe('DB_CONNECTION_ERROR')
      }
      expect(await database.row('vm')).toMatchObject({ status: 'starting', version: 2 })
    })

    test('a database that is gone', async () => {
      await database.close()
      await server.drop(database.name)
      for (const call of [() => adapter.findRunningVMs(), () => adapter.updateMachineStatus('vm', 'off')]) {
        expect(await rejection(call())).toMatchObject({ name: 'PrismaAdapterError', code: 'DB_CONNECTION_ERROR' })
      }
    })
  })

  describe('B23: what is missing is named', () => {
    const damage = {
      'a column': ['ALTER TABLE "MachineConfiguration" DROP COLUMN "cpuPinningStrategy"', /cpuPinningStrategy/],
      'the version': ['ALTER TABLE "Machine" DROP COLUMN "version"', /version/],
      'columns of several tables': [
        'ALTER TABLE "MachineConfiguration" DROP COLUMN "diskPaths", DROP COLUMN "cpuPinning"; ALTER TABLE "FirewallRuleSet" DROP COLUMN "isActive"',
        /MachineConfiguration\.diskPaths.*MachineConfiguration\.cpuPinning.*FirewallRuleSet\.isActive/
      ],
      'a table': ['DROP TABLE "FirewallRule"', /FirewallRule/],
      'a relation\'s column': ['ALTER TABLE "Department" DROP COLUMN "firewallPolicy"', /firewallPolicy/]
    }

    test.each(Object.entries(damage))('%s of the database', async (_, [statement, wanted]) => {
      await database.sql(statement)
      const instance = newInstance({ prismaClient: client })
      const error = await rejection(instance.initialize())
      expect(error).toMatchObject({ name: 'PrismaAdapterError', code: 'SCHEMA_MISMATCH', message: expect.stringMatching(wanted) })
      expect(error.details.missing.join()).toMatch(wanted)
      expect(instance.isInitialized()).toBe(false)
      expect(existsSync(path.join(instance.stateDir, 'infinization.db'))).toBe(false)
    })

    test('a column that goes while the library runs', async () => {
      await adapter.findMachineWithConfig('vm')
      await database.sql('ALTER TABLE "MachineConfiguration" DROP COLUMN "graphicPassword"')
      for (const call of [() => adapter.findMachineWithConfig('vm'), () => adapter.updateMachineConfiguration('vm', { graphicPassword: 'hunter2' })]) {
        const error = await rejection(call())
        expect(error).toMatchObject({ code: 'SCHEMA_MISMATCH', message: expect.stringContaining('graphicPassword') })
        expect(JSON.stringify([error.message, error.details])).not.toContain('hunter2')
      }
    })

    test('fields and models of the client, all of them', async () => {
      const fewer = models()
        .replace(/^  version .*\n/m, '').replace(/^  graphicPassword .*\n/m, '').replace(/^  firewallPolicy .*\n/m, '')
      const folder = mkdtempSync(path.join(tmpdir(), 'infz-client-'))
      finally_(() => rmSync(folder, { recursive: true }))
      generateClient(version, fewer, folder)
      const older = connect(version, database, folder)
      finally_(() => disconnect(older))
      const error = await rejection(newInstance({ prismaClient: older }).initialize())
      expect(error).toMatchObject({ name: 'PrismaAdapterError', code: 'SCHEMA_MISMATCH' })
      expect([...error.details.missing].sort()).toEqual(['Department.firewallPolicy', 'Machine.version', 'MachineConfiguration.graphicPassword'])
      // Prisma's own words have all the arguments in them.
      const refused = await rejection(new PrismaAdapter(older).updateMachineConfiguration('vm', { graphicPassword: 'hunter2', bridge: 'br0' }))
      expect(refused).toMatchObject({ code: 'SCHEMA_MISMATCH', message: expect.stringContaining('graphicPassword') })
      expect(JSON.stringify([refused.message, refused.details, refused.stack])).not.toContain('hunter2')
    })
  })

  test('F33: a machine whose row goes while it runs can still be ended', async () => {
    const app = await application(server, version)
    const { vmId, pid, tapDevice } = await created(app)
    await app.database.sql('DELETE FROM "Machine"')
    expect(await rejection(app.instance.startVM(vmId))).toMatchObject({ code: 'VM_NOT_FOUND' })
    expect(await app.instance.destroyVM(vmId)).toMatchObject({ success: true })
    expect([host.isAlive(pid), host.links().includes(tapDevice)]).toEqual([false, false])
    expect(await app.database.sql('SELECT id FROM "MachineConfiguration"')).toEqual([])
  })
})

test('F36: a second instance on the same host is refused by the state directory, not by the database', async () => {
  const app = await application(server, 'prisma6')
  const second = new Infinization({ ...app.given, stateDir: app.instance.stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade' })
  const error = await rejection(second.initialize())
  expect(error.code).toBe('STATE_DIR_LOCKED')
  await second.shutdown()
})
