'use strict'

const { LifecycleError, PrismaAdapter, PrismaAdapterError, generateVMChainName } = require('../..')
const { cleanUp, deleteAtEnd, finally_, host, machine, newBridge, newInstance, next, openInstance, rejection, warning } = require('../kit')
const { Client, conflict, extended } = require('../kit/client')

afterEach(cleanUp)

// An adapter as a compute node has it: its methods use `this`, and all that crosses is JSON.
class Remote {
  constructor (client, nodeId) {
    this.master = new PrismaAdapter(client, nodeId)
  }

  async carry (method, args) {
    try {
      const answer = await this.master[method](...JSON.parse(JSON.stringify(args)))
      return answer === undefined ? undefined : JSON.parse(JSON.stringify(answer))
    } catch ({ code, message, vmId }) {
      throw new PrismaAdapterError(message, code, vmId)
    }
  }
}

const METHODS = [
  'findMachine', 'findMachineByInternalName', 'findMachineWithConfig', 'findRunningVMs', 'findMachinesByStatuses', 'updateMachineStatus',
  'updateMachineConfiguration', 'transitionVMStatus', 'clearMachineConfiguration', 'clearVolatileMachineConfiguration',
  'getMachineInternalName', 'getMachineDiskPath', 'getFirewallRules', 'getFirewallRulesSplit', 'getDepartmentFirewallPolicy',
  'getFirewallRuleSetId'
]
for (const method of METHODS) Remote.prototype[method] = async function (...args) { return this.carry(method, args) }

const ways = [
  ['prismaClient', (client) => ({ prismaClient: extended(client), nodeId: 'node-a' })],
  ['databaseAdapter', (client) => ({ databaseAdapter: new Remote(client, 'node-a') })]
]

// A machine with its row, and an instance that works with the client.
async function given (way, row = {}) {
  const client = new Client()
  const config = machine(await newBridge())
  client.add({ id: config.vmId, internalName: config.internalName, nodeId: 'node-a', ...row })
  const instance = await openInstance(way(client))
  finally_(() => instance.destroyVM(config.vmId).catch((error) => { if (error.code !== 'CLOSED') throw error }))
  return { client, config, instance, vmId: config.vmId, row: () => client.row(config.vmId) }
}

// The expressions of the user's rules and what follows them, in order.
const rulesOf = (vmId) => host.rulesOf(generateVMChainName(vmId)).map(({ expr }) => expr)
const portOf = (expressions) => expressions.find(({ match }) => match?.left.payload?.field === 'dport').match.right

// The database has just come back: a write that was on its way fails once more, and reads with it.
async function answered (ask) {
  for (;;) {
    try {
      return await ask()
    } catch (error) {
      if (error.code !== 'DATABASE_ERROR') throw error
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}

const stopped = { graceful: false, force: true }
const rule = (more) => ({
  id: more.name, description: null, action: 'ACCEPT', direction: 'IN', priority: 100, protocol: 'tcp', srcPortStart: null, srcPortEnd: null,
  dstPortStart: 22, dstPortEnd: null, srcIpAddr: null, srcIpMask: null, dstIpAddr: null, dstIpMask: null, connectionState: null,
  overridesDept: false, ...more
})
const ruleSet = (id, ...rules) => ({ id, name: id, internalName: id, priority: 500, isActive: true, rules })

describe.each(ways)('with a %s', (_, way) => {
  test('a machine is created, stopped, started, suspended, resumed and destroyed', async () => {
    const { client, config, instance, vmId, row } = await given(way)
    const created = await instance.createVM({ ...config, displayPassword: 'hunter2', cpuCores: 2 })
    expect(row()).toMatchObject({ status: 'running', version: 2 })
    expect(client.configuration(vmId)).toMatchObject({
      qemuPid: created.pid, tapDeviceName: created.tapDevice, qmpSocketPath: created.qmpSocketPath, graphicPort: created.displayPort,
      graphicPassword: 'hunter2', diskPaths: created.diskPaths, bridge: config.bridge
    })
    expect(await instance.stopVM(vmId, stopped)).toMatchObject({ success: true })
    expect(row()).toMatchObject({ status: 'off', version: 2 })
    expect(client.configuration(vmId)).toMatchObject({ qemuPid: null, qmpSocketPath: null, tapDeviceName: created.tapDevice })
    // The consumer's hardware change: the row decides what is started.
    row().cpuCores = 1
    expect(await instance.startVM(vmId)).toMatchObject({ success: true })
    expect(row()).toMatchObject({ status: 'running', version: 3 })
    await instance.suspendVM(vmId)
    expect(row().status).toBe('suspended')
    await instance.resumeVM(vmId)
    expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'running', processAlive: true, consistent: true })
    expect(await instance.destroyVM(vmId)).toMatchObject({ success: true })
    expect(row()).toMatchObject({ status: 'off', version: 3 })
    expect(client.configuration(vmId)).toMatchObject({ qemuPid: null, qmpSocketPath: null, tapDeviceName: null })
    expect(client.tables.machine).toHaveLength(1)
  })

  test('a crash shows in the row before it is told', async () => {
    const { config, instance, row } = await given(way)
    const { pid } = await instance.createVM(config)
    const crashed = next(instance.getHealthMonitor(), 'crash')
    process.kill(pid, 'SIGKILL')
    await crashed
    expect(row().status).toBe('off')
  })

  test('rules and the policy come from the rows; what makes no sense is left out and told', async () => {
    const { client, config, instance, vmId } = await given(way, { firewallRuleSetId: 'own', departmentId: 'dept' })
    client.tables.firewallRuleSet.push(
      ruleSet('own', rule({ name: 'web', connectionState: { states: ['NEW'] } }), rule({ name: 'no sense', protocol: 'gre' })),
      ruleSet('of-dept', rule({ name: 'ssh', dstPortStart: 2222 }))
    )
    client.tables.department.push({ id: 'dept', name: 'Dept', firewallRuleSetId: 'of-dept', firewallPolicy: 'ALLOW_ALL' })
    const leftOut = warning(/no sense/)
    const { stages, warnings } = await instance.planVM(config)
    expect(warnings).toEqual(expect.arrayContaining([expect.stringContaining('"no sense" was left out')]))
    expect(stages).not.toHaveLength(0)
    await instance.createVM(config)
    await leftOut
    const loaded = rulesOf(vmId)
    expect(loaded.slice(0, 2).map(portOf)).toEqual([2222, 22])
    expect(loaded.at(-1)).toEqual([{ accept: null }])
  })

  test('a machine without a row is not made', async () => {
    const { config, instance } = await given(way)
    const error = await rejection(instance.createVM({ ...config, vmId: `${config.vmId}-other` }))
    expect(error).toBeInstanceOf(LifecycleError)
    expect(error).toMatchObject({ code: 'VM_NOT_FOUND', vmId: `${config.vmId}-other` })
    expect(error.message).toMatch(/not found/)
  })

  test.each(['running', 'starting', 'moving', 'archived', 'suspended'])('a row that is %s is not created over, nor started', async (status) => {
    const { config, instance, vmId, row } = await given(way)
    row().status = status
    expect(await rejection(instance.createVM(config))).toMatchObject({ code: 'INVALID_STATE', context: { currentStatus: status } })
    expect(row().status).toBe(status)
    if (['running', 'starting'].includes(status)) return
    expect(await rejection(instance.startVM(vmId))).toMatchObject({ code: 'INVALID_STATE', context: { currentStatus: status } })
    expect(row().status).toBe(status)
  })

  test('what only the embedded store has is refused, and why', async () => {
    const { config, instance, vmId, row } = await given(way)
    for (const call of [
      () => instance.listVMs(), () => instance.getVM(vmId), () => instance.deleteVM(vmId), () => instance.setFirewallRules(vmId, []),
      () => instance.createVM({ ...config, firewallRules: [rule({ name: 'web' })] }),
      () => instance.planVM({ ...config, firewallRules: [rule({ name: 'web' })] })
    ]) {
      expect(await rejection(call())).toMatchObject({ code: 'INVALID_STATE', message: expect.stringContaining('your own database') })
    }
    expect(row().status).toBe('off')
  })

  test.each([
    ['a marker', { status: 'moving' }, 'INVALID_STATE'],
    ['another process that creates it', { status: 'starting', version: 2 }, 'CONCURRENT_MODIFICATION']
  ])('a claim that comes between the look and the launch is kept: %s', async (_, claim, code) => {
    const { client, config, instance, vmId, row } = await given(way)
    const { $transaction } = client
    client.$transaction = function (run) {
      Object.assign(row(), claim)
      return $transaction.call(this, run)
    }
    expect(await rejection(instance.createVM(config))).toMatchObject({ code, vmId })
    expect(row()).toMatchObject(claim)
    expect(await instance.getVMStatus(vmId)).toMatchObject({ processAlive: false })
  })

  test('a row that is deleted between the look and the launch', async () => {
    const { client, config, instance, vmId } = await given(way)
    client.tables.before = (name, operation, { data }) => {
      if (operation === 'updateMany' && data?.status === 'starting') client.tables.machine.length = 0
    }
    expect(await rejection(instance.createVM(config))).toMatchObject({ code: 'VM_NOT_FOUND', vmId })
    expect(instance.getActiveVMs()).toEqual([])
  })

  describe('F33, I40: a start that is not alone', () => {
    test.each([
      ['another version', (row) => { row.version++ }, 'CONCURRENT_MODIFICATION'],
      ['another status', (row) => { row.status = 'moving' }, 'INVALID_STATE'],
      ['transactions that give way', () => { throw conflict('P2034', 'Write conflict.') }, 'CONCURRENT_MODIFICATION'],
      ['a row that goes', (row, client) => { client.tables.machine.length = 0 }, 'VM_NOT_FOUND'],
      ['a database that goes', () => { throw conflict('P1017', 'Server has closed the connection.') }, 'START_FAILED']
    ])('%s', async (_, meddle, code) => {
      const { client, config, instance, vmId, row } = await given(way)
      await instance.createVM(config)
      await instance.stopVM(vmId, stopped)
      client.tables.before = (name, operation, { data }) => {
        if (operation === 'updateMany' && data?.status === 'starting') meddle(row(), client)
      }
      const error = await rejection(instance.startVM(vmId))
      client.tables.before = undefined
      expect(error).toMatchObject({ name: 'LifecycleError', code, vmId, cause: expect.any(Error) })
      expect(instance.getActiveVMs()).toEqual([])
    })
  })

  test('rules that cannot be read end a launch; a row that is gone has none', async () => {
    const { client, config, instance, vmId, row } = await given(way)
    const failing = (thrown) => {
      client.tables.before = (name, operation, { select }) => { if (select?.firewallRuleSet && !select.version) throw thrown }
    }
    failing(new Error('boom'))
    expect(await rejection(instance.createVM(config))).toMatchObject({ code: 'CREATE_FAILED', cause: { code: 'QUERY_FAILED' } })
    expect(row().status).toBe('off')
    failing(conflict('P2025', 'Gone.'))
    expect(await instance.createVM(config)).toMatchObject({ success: true })
    await instance.stopVM(vmId, stopped)
    failing(new Error('boom'))
    expect(await rejection(instance.startVM(vmId))).toMatchObject({ code: 'START_FAILED', cause: { code: 'QUERY_FAILED' } })
    expect(row().status).toBe('off')
  })

  test('I41: disks that make no sense are not started with', async () => {
    const { client, config, instance, vmId, row } = await given(way)
    await instance.createVM(config)
    await instance.stopVM(vmId, stopped)
    client.configuration(vmId).diskPaths = '/a'
    expect(await rejection(instance.startVM(vmId))).toMatchObject({ code: 'START_FAILED', cause: { code: 'QUERY_FAILED', vmId: undefined } })
    expect(row()).toMatchObject({ status: 'off', version: 2 })
  })

  test('a VM that runs is stopped while the database is away', async () => {
    const { client, config, instance, vmId } = await given(way)
    const { pid } = await instance.createVM(config)
    client.tables.before = () => { throw conflict('P1001', 'Cannot reach the database.') }
    instance.getEventHandler().on('error', () => {})
    warning(/could not be (written|cleared)/)
    expect(await instance.stopVM(vmId, stopped)).toMatchObject({ success: true })
    expect(() => process.kill(pid, 0)).toThrow('ESRCH')
    expect(await rejection(instance.getVMStatus(vmId))).toMatchObject({ code: 'DATABASE_ERROR', cause: { code: 'DB_CONNECTION_ERROR' } })
    client.tables.before = undefined
  })

  test('the next instance takes a running machine back, also while the database is away', async () => {
    const { client, config, instance, vmId, row } = await given(way)
    await instance.createVM(config)
    await instance.shutdown()
    client.tables.before = () => { throw conflict('P1001', 'Cannot reach the database.') }
    warning(/cannot be reached|not reconciled|could not be|nobody listens/)
    const second = newInstance({ ...way(client), stateDir: instance.stateDir })
    await second.initialize()
    expect(second.getActiveVMs()).toEqual([vmId])
    client.tables.before = undefined
    expect(await answered(() => second.getVMStatus(vmId))).toMatchObject({ status: 'running', processAlive: true })
    await second.destroyVM(vmId)
    expect(row().status).toBe('off')
  })

  test('a machine that has moved to another node while nobody watched keeps its row', async () => {
    const { client, config, instance, vmId, row } = await given(way)
    const { pid } = await instance.createVM(config)
    await instance.shutdown()
    process.kill(pid, 'SIGKILL')
    Object.assign(row(), { nodeId: 'node-b', status: 'running' })
    Object.assign(client.configuration(vmId), { qemuPid: 4711, qmpSocketPath: '/run/there.sock' })
    warning(/another node/)
    const told = []
    const eventManager = { emitCRUD: (_, action) => told.push(action) }
    const second = newInstance({ ...way(client), stateDir: instance.stateDir, eventManager })
    await second.initialize()
    for (const refused of [() => second.startVM(vmId), () => second.stopVM(vmId, stopped)]) {
      expect((await rejection(refused())).message).toMatch(/another node/)
    }
    expect(row().status).toBe('running')
    expect(client.configuration(vmId)).toMatchObject({ qemuPid: 4711, qmpSocketPath: '/run/there.sock' })
    expect([told, second.getActiveVMs()]).toEqual([[], []])
    // It comes back, and there is no QEMU.
    row().nodeId = 'node-a'
    expect(await second.stopVM(vmId, stopped)).toMatchObject({ success: true })
    expect(row().status).toBe('off')
    await second.destroyVM(vmId)
  })

  test('reconcileStartupState() looks at this node\'s machines', async () => {
    const { client, instance, vmId, row } = await given(way)
    client.add({ id: 'vm-elsewhere', internalName: 'vm-elsewhere', nodeId: 'node-b', status: 'starting' })
    row().status = 'starting'
    expect(await instance.reconcileStartupState()).toMatchObject({ totalChecked: 1, resetToOff: [vmId] })
    expect(client.row('vm-elsewhere').status).toBe('starting')
  })
})

test('200 statuses are asked for at once: nobody waits for another\'s row', async () => {
  const client = new Client()
  const ids = Array.from({ length: 200 }, (_, number) => `many-${number}`)
  for (const id of ids) client.add({ id, internalName: id })
  const adapter = new Remote(client)
  const instance = await openInstance({ databaseAdapter: adapter, autoStartHealthMonitor: false })
  // The first answer comes when the last has asked.
  let [calls, allHaveAsked] = [0]
  const asked = new Promise((resolve) => { allHaveAsked = resolve })
  adapter.carry = async function (...call) {
    if (++calls === ids.length) allHaveAsked()
    await asked
    return Remote.prototype.carry.apply(this, call)
  }
  const all = await Promise.all(ids.map((vmId) => instance.getVMStatus(vmId)))
  expect(all.map(({ vmId, status }) => [vmId, status])).toEqual(ids.map((vmId) => [vmId, 'off']))
  expect(calls).toBeLessThanOrEqual(2 * ids.length)
})

test('a row whose pinning is taken away', async () => {
  const { client, config, instance, vmId } = await given(ways[0][1])
  client.tables.machineConfiguration.push({ machineId: vmId, cpuPinning: { cores: [0] }, diskPaths: null })
  await instance.createVM(config)
  expect(client.configuration(vmId).cpuPinning).toEqual({ cores: [] })
})

test.each([
  ['one node\'s rows are seen', 'node-a', false], ['every row is seen', undefined, true]
])('a QEMU without a row, where %s', async (_, nodeId, ended) => {
  const other = await openInstance()
  const config = machine(await newBridge())
  deleteAtEnd(other, config)
  const { pid } = await other.createVM(config)
  const instance = await openInstance({
    prismaClient: new Client(), nodeId, pidfileDir: `${other.stateDir}/pids`, healthMonitorInterval: 500
  })
  const judged = next(instance.getHealthMonitor(), 'orphan-detected', ({ killed }) => killed === ended)
  expect(await judged).toMatchObject({ pid, killed: ended })
  if (!ended) expect(await next(instance.getHealthMonitor(), 'orphan-detected')).toMatchObject({ pid, killed: false })
  expect(host.isAlive(pid)).toBe(!ended)
})

describe('getPrismaAdapter()', () => {
  test('is a PrismaAdapter of the instance\'s node', async () => {
    const { client, instance, vmId } = await given(ways[0][1])
    client.add({ id: 'vm-elsewhere', internalName: 'vm-elsewhere', nodeId: 'node-b' })
    const adapter = instance.getPrismaAdapter()
    expect(adapter).toBeInstanceOf(PrismaAdapter)
    expect(instance.getPrismaAdapter()).toBe(adapter)
    expect((await adapter.findMachinesByStatuses(['off'])).map((row) => row.id)).toEqual([vmId])
  })

  test('is never older than what the library has still to write', async () => {
    const { client, config, instance, vmId } = await given(ways[0][1])
    const { pid } = await instance.createVM(config)
    warning(/database|row|status|could not be/)
    client.tables.before = (_, operation) => {
      if (/^up/.test(operation)) throw conflict('P1001', 'Cannot reach the database.')
    }
    const crash = next(instance.getHealthMonitor(), 'crash')
    process.kill(pid, 'SIGKILL')
    await crash
    expect(await new PrismaAdapter(client).findMachine(vmId)).toMatchObject({ status: 'running' })
    expect(await rejection(instance.getPrismaAdapter().findMachine(vmId))).toMatchObject({ code: 'DB_CONNECTION_ERROR' })
    client.tables.before = undefined
    await next(instance.getHealthMonitor(), 'database-restored')
    expect(await instance.getPrismaAdapter().findMachine(vmId)).toMatchObject({ status: 'off' })
  })

  test('is the object that was given', async () => {
    const databaseAdapter = new Remote(new Client(), 'node-a')
    const instance = await openInstance({ databaseAdapter })
    expect(instance.getPrismaAdapter()).toBe(databaseAdapter)
  })
})

describe('B23: initialize() looks at what it was given', () => {
  test.each([
    ['a client without anything', { prismaClient: {} }, 'machine.findUnique'],
    ['an object without the methods', { databaseAdapter: { findMachine: async () => null } }, 'findRunningVMs']
  ])('%s', async (_, config, missing) => {
    const instance = newInstance(config)
    expect(await rejection(instance.initialize())).toMatchObject({
      name: 'PrismaAdapterError', code: 'SCHEMA_MISMATCH', details: { missing: expect.arrayContaining([missing]) }
    })
    expect(instance.isInitialized()).toBe(false)
  })

  test('columns that the client does not know', async () => {
    const client = new Client()
    const unknown = { version: 'Machine', enableAudio: 'MachineConfiguration' }
    client.tables.before = (name, operation, { select }) => {
      const text = JSON.stringify(select ?? {})
      for (const [field, model] of Object.entries(unknown)) {
        if (!text.includes(`"${field}"`)) continue
        const message = `Invalid\n\nUnknown field \`${field}\` for select statement on model \`${model}\`.`
        throw Object.assign(new Error(message), { name: 'PrismaClientValidationError' })
      }
    }
    const error = await rejection(newInstance({ prismaClient: extended(client) }).initialize())
    expect(error).toMatchObject({ code: 'SCHEMA_MISMATCH', details: { missing: ['Machine.version', 'MachineConfiguration.enableAudio'] } })
    expect(await rejection(new PrismaAdapter(client).findMachineWithConfig('vm-1'))).toMatchObject({
      code: 'SCHEMA_MISMATCH', details: { missing: ['Machine.version'] }
    })
  })

  test('a database that cannot be reached is warned of', async () => {
    const client = new Client()
    client.tables.before = () => { throw conflict('P1001', 'Cannot reach the database.') }
    const warned = warning(/the database cannot be reached now/)
    warning(/not reconciled|could not be|nobody listens/)
    const instance = await openInstance({ prismaClient: client })
    expect(await warned).toMatch(/P1001/)
    expect(instance.isInitialized()).toBe(true)
  })

  test.each([0, 99, '5', -1, 1e12])('databaseTimeout %p is refused', async (databaseTimeout) => {
    const error = await rejection(newInstance({ prismaClient: new Client(), databaseTimeout }).initialize())
    expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'databaseTimeout', message: expect.any(String) }] } })
  })

  test('an answer within databaseTimeout', async () => {
    const client = new Client()
    const instance = await openInstance({ prismaClient: client, databaseTimeout: 1000 })
    client.machine.findUnique = () => new Promise(() => {})
    const error = await rejection(instance.getVMStatus('vm-1'))
    expect(error).toMatchObject({ code: 'DATABASE_ERROR', cause: { code: 'DB_CONNECTION_ERROR', message: expect.stringContaining('1000 ms') } })
    expect(await rejection(instance.getPrismaAdapter().findMachine('vm-1'))).toMatchObject({ code: 'DB_CONNECTION_ERROR' })
  })
})
