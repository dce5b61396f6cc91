'use strict'

const { PrismaAdapter, PrismaAdapterError, isPrismaAdapterError } = require('../..')
const { rejection, runNode } = require('../kit')
const { Client, conflict, extended } = require('../kit/client')

// The calls of the contract and no others, as a consumer's tests mock them.
function mocked (answers = {}) {
  const mock = (name) => jest.fn(async () => answers[name])
  const client = {
    machine: { findUnique: mock('findUnique'), findFirst: mock('findFirst'), findMany: mock('findMany'), updateMany: mock('updateMany') },
    machineConfiguration: { upsert: mock('upsert'), updateMany: mock('updateManyConfigurations') }
  }
  client.$transaction = jest.fn(async (run) => run(client))
  return client
}

const CALLS = [
  ['findMachine', ['vm-1']], ['findMachineByInternalName', ['one']], ['findMachineWithConfig', ['vm-1']], ['findRunningVMs', []],
  ['findMachinesByStatuses', [['off']]], ['updateMachineStatus', ['vm-1', 'off', { onlyIfNotIn: ['error'] }]],
  ['updateMachineConfiguration', ['vm-1', { qemuPid: 7 }]], ['transitionVMStatus', ['vm-1', 'off', 'starting', 1]],
  ['clearMachineConfiguration', ['vm-1']], ['clearVolatileMachineConfiguration', ['vm-1']], ['getMachineInternalName', ['vm-1']],
  ['getMachineDiskPath', ['vm-1']], ['getFirewallRules', ['vm-1']], ['getFirewallRulesSplit', ['vm-1']],
  ['getDepartmentFirewallPolicy', ['vm-1']], ['getFirewallRuleSetId', ['vm-1']]
]

const row = {
  id: 'vm-1', status: 'off', name: 'One', internalName: 'one', os: 'linux', cpuCores: 2, ramGB: 4, diskSizeGB: 20, gpuPciAddress: null,
  version: 1, configuration: null, firewallRuleSet: null, department: null, firewallRuleSetId: null
}

test('it is made at once, makes no call, and has its methods by name', async () => {
  const client = mocked({ findUnique: { id: 'vm-1', status: 'off' } })
  const adapter = new PrismaAdapter(client, undefined)
  expect(CALLS.map(([method]) => typeof adapter[method])).toEqual(CALLS.map(() => 'function'))
  expect(client.machine.findUnique).not.toHaveBeenCalled()
  expect(await adapter.findMachine.apply(adapter, ['vm-1'])).toEqual({ id: 'vm-1', status: 'off' })
})

test.each(CALLS)('%s calls the mock, and an answer of undefined crashes nothing', async (method, args) => {
  const client = mocked()
  await new PrismaAdapter(client)[method](...args).catch((error) => expect(isPrismaAdapterError(error)).toBe(true))
  const mocks = [...Object.values(client.machine), ...Object.values(client.machineConfiguration)]
  expect(mocks.some((mock) => mock.mock.calls.length > 0)).toBe(true)
})

test('what is asked has no undefined members', async () => {
  const client = mocked({ findMany: [] })
  await new PrismaAdapter(client, 'node-a').findRunningVMs()
  expect(client.machine.findMany).toHaveBeenCalledWith(expect.objectContaining({ where: { status: 'running', nodeId: 'node-a' } }))
  await new PrismaAdapter(client).updateMachineStatus('vm-1', 'off', { onlyIfNotIn: undefined })
  expect(client.machine.updateMany).toHaveBeenCalledWith({ where: { id: 'vm-1' }, data: { status: 'off' } })
})

test('a transition writes inside $transaction, on what it hands over', async () => {
  const client = mocked()
  const within = mocked({ updateMany: { count: 1 }, findUnique: row })
  client.$transaction = jest.fn(async (run) => run(within))
  const moved = await new PrismaAdapter(client).transitionVMStatus('vm-1', 'off', 'starting', 1)
  expect(moved).toMatchObject({ success: true, newVersion: 2, vmConfig: { id: 'vm-1', status: 'starting', version: 2 } })
  expect(client.machine.updateMany).not.toHaveBeenCalled()
  expect(client.machine.findUnique).not.toHaveBeenCalled()
  expect(within.machine.findUnique).toHaveBeenCalledTimes(1)
})

test('a transition answers the row as it is after it, where the client can be asked again', async () => {
  const after = { ...row, status: 'starting', version: 2, cpuCores: 7 }
  const again = mocked({ updateMany: { count: 1 }, findUnique: row, findFirst: after })
  expect(await new PrismaAdapter(again).transitionVMStatus('vm-1', 'off', 'starting', 1)).toMatchObject({ vmConfig: { cpuCores: 7 } })
  const { findUnique, updateMany } = again.machine
  const once = { machine: { findUnique, updateMany }, $transaction: async (run) => run(once) }
  expect(await new PrismaAdapter(once).transitionVMStatus('vm-1', 'off', 'starting', 1)).toMatchObject({
    newVersion: 2, vmConfig: { status: 'starting', version: 2, cpuCores: 2 }
  })
})

test.each([
  ['cannot be read', { configuration: { diskPaths: 'corrupt' } }, 'QUERY_FAILED'],
  ['is of another version', { version: 2 }, 'VERSION_CONFLICT'],
  ['has another status', { status: 'moving' }, 'UPDATE_FAILED']
])('a row that %s is not written', async (_, differing, code) => {
  const client = mocked()
  const within = mocked({ updateMany: { count: 1 }, findUnique: { ...row, ...differing } })
  client.$transaction = jest.fn(async (run) => run(within))
  expect(await rejection(new PrismaAdapter(client).transitionVMStatus('vm-1', 'off', 'starting', 1))).toMatchObject({ code })
  expect(within.machine.updateMany).not.toHaveBeenCalled()
})

test('F33: P2034 is tried three times in all', async () => {
  const client = mocked()
  client.$transaction = jest.fn(async () => { throw conflict('P2034', 'Write conflict.') })
  expect(await rejection(new PrismaAdapter(client).transitionVMStatus('vm-1', 'off', 'starting', 1))).toMatchObject({
    code: 'UPDATE_FAILED', vmId: 'vm-1', details: { prismaCode: 'P2034' }
  })
  expect(client.$transaction).toHaveBeenCalledTimes(3)
})

describe('every failure is a PrismaAdapterError of the caller\'s realm', () => {
  const thrown = {
    P2002: [conflict('P2002', 'Unique.'), 'CONSTRAINT_VIOLATION'],
    P2025: [conflict('P2025', 'Gone.'), 'MACHINE_NOT_FOUND'],
    'a client that cannot connect': [Object.assign(new Error('no'), { name: 'PrismaClientInitializationError', errorCode: 'P1001' }), 'DB_CONNECTION_ERROR'],
    'a driver that cannot connect': [Object.assign(new Error('no'), { name: 'DriverAdapterError', cause: { kind: 'DatabaseNotReachable' } }), 'DB_CONNECTION_ERROR'],
    'a refused connection': [new AggregateError([new Error('x')], '', { cause: Object.assign(new Error('y'), { code: 'ECONNREFUSED' }) }), 'DB_CONNECTION_ERROR'],
    'a plain error': [new Error('boom'), 'UPDATE_FAILED'],
    'B18: text': ['boom', 'UPDATE_FAILED'],
    'B18: undefined': [undefined, 'UPDATE_FAILED'],
    'B18: null': [null, 'UPDATE_FAILED'],
    'B18: a symbol': [Symbol('x'), 'UPDATE_FAILED'],
    'B18: throwing getters': [{ get code () { throw new Error('no') }, get message () { throw new Error('no') } }, 'UPDATE_FAILED'],
    'B18: a revoked Proxy': [(() => { const { proxy, revoke } = Proxy.revocable({}, {}); revoke(); return proxy })(), 'UPDATE_FAILED'],
    'B18: details that hold themselves': [(() => { const it = new Error('x'); it.details = { it }; return it })(), 'UPDATE_FAILED'],
    'B20: a BigInt': [5n, 'UPDATE_FAILED']
  }

  test.each(Object.entries(thrown))('%s', async (_, [error, code]) => {
    const client = mocked()
    client.machine.updateMany = jest.fn(() => { throw error })
    const told = await rejection(new PrismaAdapter(client).updateMachineStatus('vm-1', 'off'))
    expect(told).toBeInstanceOf(PrismaAdapterError)
    expect(told).toBeInstanceOf(Error)
    expect(told).toMatchObject({ name: 'PrismaAdapterError', code, vmId: 'vm-1', message: expect.stringMatching(/./) })
    expect(told.stack).toContain(__filename)
  })

  test('B14: a failed look-up by name is told, with no machine to name', async () => {
    const client = mocked()
    client.machine.findFirst = jest.fn(async () => { throw new Error('boom') })
    const told = await rejection(new PrismaAdapter(client).findMachineByInternalName('one'))
    expect(told).toMatchObject({ code: 'QUERY_FAILED', message: 'the database failed: boom' })
    expect(told.vmId).toBeUndefined()
  })

  test('arguments', async () => {
    const adapter = new PrismaAdapter(mocked())
    for (const [method, ...args] of [
      ['updateMachineConfiguration', '', {}], ['findMachine', undefined], ['findMachine', 5n], ['updateMachineStatus', 'vm-1', null],
      ['updateMachineConfiguration', 'vm-1', { xml: '<a/>' }], ['transitionVMStatus', 'vm-1', 'off', 'starting', 1.5]
    ]) {
      expect(await rejection(adapter[method](...args))).toMatchObject({ name: 'PrismaAdapterError', code: 'INVALID_INPUT' })
    }
    expect(() => new PrismaAdapter(mocked(), ' ')).toThrow(PrismaAdapterError)
    expect(() => new PrismaAdapter(mocked(), undefined, { timeout: 0 })).toThrow(PrismaAdapterError)
  })

  test('I43: no secret leaves with it', async () => {
    const client = mocked()
    client.machineConfiguration.upsert = jest.fn(async (args) => {
      throw Object.assign(new Error(`Invalid invocation:\n${JSON.stringify(args, null, 2)}\n\nArgument \`qemuPid\` is ${JSON.stringify(args)}.`), {
        name: 'PrismaClientValidationError', meta: { target: args }
      })
    })
    const told = await rejection(new PrismaAdapter(client).updateMachineConfiguration('vm-1', { graphicPassword: 'hunter2', qemuPid: 1 }))
    expect(JSON.stringify([told, told.message, told.stack, told.details])).not.toContain('hunter2')
    expect(told.code).toBe('UPDATE_FAILED')
  })
})

describe('B23: a client that lacks something', () => {
  test.each([
    ['no client', undefined, 'machine.findUnique'], ['an empty one', {}, 'machine.findUnique'],
    ['a model without the call', { machine: {} }, 'machine.findUnique']
  ])('%s', async (_, client, missing) => {
    expect(await rejection(new PrismaAdapter(client).findMachine('vm-1'))).toMatchObject({
      code: 'SCHEMA_MISMATCH', details: { missing: [missing] }, message: expect.stringContaining(missing)
    })
  })

  test('no $transaction', async () => {
    expect(await rejection(new PrismaAdapter({ ...mocked(), $transaction: undefined }).transitionVMStatus('vm-1', 'off', 'starting', 1)))
      .toMatchObject({ code: 'SCHEMA_MISMATCH', details: { missing: ['$transaction'] } })
  })
})

describe('B20: answers in types that JSON has not', () => {
  const decimal = (text) => ({ toJSON: () => text, d: [1], s: 1 })
  test.each([
    ['BigInt', { cpuCores: 2n, version: 3n, ramGB: 4n }], ['Decimal', { cpuCores: decimal('2'), version: decimal('3'), ramGB: decimal('4') }],
    ['further columns', { cpuCores: 2, version: 3, ramGB: 4, createdAt: new Date(), nothing: undefined, self: () => 1 }]
  ])('%s', async (_, columns) => {
    const client = mocked({ findUnique: { ...row, ...columns } })
    expect(await new PrismaAdapter(client).findMachineWithConfig('vm-1')).toMatchObject({ cpuCores: 2, version: 3, ramGB: 4 })
  })

  test.each([
    ['B18: a cycle', () => { const it = { ...row }; it.self = it; return it }],
    ['B18: a throwing getter', () => ({ ...row, get name () { throw new Error('no') } })],
    ['B18: a throwing toJSON', () => ({ ...row, ramGB: { toJSON () { throw new Error('no') } } })],
    ['a lone surrogate', () => ({ ...row, name: '\ud800' })],
    ['a BigInt that is too large', () => ({ ...row, version: 2n ** 70n })]
  ])('%s is QUERY_FAILED', async (_, answer) => {
    const adapter = new PrismaAdapter(mocked({ findUnique: answer() }))
    expect(await rejection(adapter.findMachineWithConfig('vm-1'))).toMatchObject({ code: 'QUERY_FAILED' })
  })
})

test('an extended client is called, and never looked into', async () => {
  const client = new Client().add({ id: 'vm-1', internalName: 'one', nodeId: 'node-a' })
  const adapter = new PrismaAdapter(extended(client), 'node-a')
  for (const [method, args] of CALLS) await adapter[method](...args)
  expect(client.row('vm-1')).toMatchObject({ status: 'starting', version: 2 })
  expect(client.transactions).toBe(1)
  const called = [...client.machine.calls, ...client.machineConfiguration.calls].map(([operation]) => operation)
  expect(new Set(called)).toEqual(new Set(['findUnique', 'findFirst', 'findMany', 'updateMany', 'upsert']))
})

test('an answer that comes late is not looked at', async () => {
  let late
  const client = mocked()
  client.machine.findUnique = jest.fn(() => new Promise((resolve) => { late = resolve }))
  const adapter = new PrismaAdapter(client, undefined, { timeout: 50 })
  expect(await rejection(adapter.findMachine('vm-1'))).toMatchObject({ code: 'DB_CONNECTION_ERROR', vmId: 'vm-1' })
  late({ id: 'vm-1', status: 'off' })
  client.machine.findUnique = jest.fn(async () => ({ id: 'vm-1', status: 'error' }))
  expect(await adapter.findMachine('vm-1')).toEqual({ id: 'vm-1', status: 'error' })
})

test('an adapter that is dropped is collected, with its client', async () => {
  const { stdout, stderr } = await runNode(`
    require('node:v8').setFlagsFromString('--expose-gc')
    const gc = require('node:vm').runInNewContext('gc')
    const { PrismaAdapter } = require('./index.js')
    const collected = new Set()
    const registry = new FinalizationRegistry((what) => collected.add(what))
    async function use (what) {
      const client = { machine: { findUnique: async () => ({ id: 'vm-1', status: what }) } }
      const adapter = new PrismaAdapter(client)
      registry.register(client, what)
      await adapter.findMachine('vm-1')
    }
    async function main () {
      for (let i = 0; i < 50; i++) await use('client ' + i)
      for (let i = 0; i < 100 && collected.size < 49; i++) {
        gc()
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
      console.log(collected.size >= 49 ? 'collected' : 'only ' + collected.size)
    }
    main()
  `)
  expect([stdout.trim(), stderr]).toEqual(['collected', ''])
})

test('a call under way keeps the process alive, an adapter does not', async () => {
  const { stdout, code } = await runNode(`
    const { PrismaAdapter } = require('./index.js')
    const client = { machine: { findUnique: () => new Promise((resolve) => setTimeout(resolve, 100, { id: 'vm-1', status: 'off' })) } }
    new PrismaAdapter(client).findMachine('vm-1').then((row) => console.log(row.status))
  `)
  expect([stdout.trim(), code]).toEqual(['off', 0])
})
