'use strict'

const { cleanUp, newInstance, rejection } = require('../kit')

afterEach(cleanUp)

// Arguments are read before anything else is looked at, so no instance here is initialized.
async function issuesOf (config) {
  const error = await rejection(newInstance().createVM(config))
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG' })
  return error.context.issues
}

const at = (path) => expect.arrayContaining([expect.objectContaining({ path })])

const deep = (levels) => levels === 0 ? {} : { a: deep(levels - 1) }
const cyclic = () => { const it = { a: [{}] }; it.a[0].b = it; return it }
const throwingProxy = (trap) => new Proxy({}, { [trap] () { throw new Error('trap') } })
const bottomless = () => new Proxy({}, {
  ownKeys: () => ['a'],
  getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true }),
  get: bottomless
})
const revoked = () => { const { proxy, revoke } = Proxy.revocable({}, {}); revoke(); return proxy }

describe('B18: hostile objects are refused with the path, and nothing crashes', () => {
  test.each([
    ['a throwing getter', { disks: [{ get sizeGB () { throw new Error('no') } }] }, 'disks[0].sizeGB'],
    ['a getter that throws undefined', { get name () { throw undefined } }, 'name'],
    ['a cycle', cyclic(), 'a[0].b'],
    ['65 levels', deep(64), 'a'.repeat(64).split('').join('.')],
    ['a Proxy without a bottom', { x: bottomless() }, `x${'.a'.repeat(63)}`],
    ['a Proxy whose ownKeys throws', { x: throwingProxy('ownKeys') }, 'x'],
    ['a Proxy whose getPrototypeOf throws', { x: throwingProxy('getPrototypeOf') }, 'x'],
    ['a revoked Proxy', { x: revoked() }, 'x'],
    ['__proto__ as a key', JSON.parse('{"disks":[{"__proto__":{"a":1}}]}'), 'disks[0].__proto__'],
    ['a lone surrogate', { name: 'x\ud800' }, 'name'],
    ['a Map', { x: new Map() }, 'x'],
    ['a class instance', { x: new (class Disk {})() }, 'x'],
    ['an Error', { x: new Error('no') }, 'x'],
    ['a Promise', { x: Promise.resolve() }, 'x'],
    ['a boxed string', { x: Object('text') }, 'x'],
    ['a huge array', { x: new Array(1e9) }, 'x'],
    ['an odd key', { 'a b': NaN }, '["a b"]']
  ])('%s', async (_, config, path) => {
    expect(await issuesOf(config)).toEqual(at(path))
  })

  test('a Proxy that behaves is taken as the object it shows', async () => {
    const error = await rejection(newInstance().createVM(new Proxy({ vmId: 'vm-1' }, {})))
    expect(error.code).toBe('INVALID_STATE')
  })

  test('references that multiply are bounded', async () => {
    let wide = {}
    for (let i = 0; i < 40; i++) wide = { a: wide, b: wide }
    const issues = await issuesOf(wide)
    expect(issues.at(-1).message).toBe('is too large')
  })

  test('nobody else sees a polluted prototype', async () => {
    await issuesOf(JSON.parse('{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}}}'))
    expect({}.polluted).toBeUndefined()
  })

  test('the addon works on after each of them', async () => {
    const instance = newInstance()
    for (const config of [{ x: throwingProxy('get') }, cyclic(), { get a () { throw new Error('no') } }]) {
      await rejection(instance.createVM(config))
      expect(instance.isInitialized()).toBe(false)
    }
  })

  test('at most 20 issues are listed, each once', async () => {
    const issues = await issuesOf({ disks: Array.from({ length: 100 }, () => NaN) })
    expect(issues).toHaveLength(20)
    expect(new Set(issues.map((issue) => issue.path)).size).toBe(20)
  })
})

describe('B19: undefined is absent, null is a value', () => {
  test('an undefined member is dropped', async () => {
    const error = await rejection(newInstance().createVM({ vmId: 'vm-1', isoPath: undefined }))
    expect(error.code).toBe('INVALID_STATE')
  })

  test('undefined in an array is refused, for its place cannot be dropped', async () => {
    expect(await issuesOf({ disks: [undefined] })).toEqual(at('disks[0]'))
  })

  test.each([['null', null], ['text', 'x'], ['a number', 5], ['an array', []]])('%s is no configuration', async (_, config) => {
    expect(await issuesOf(config)).toEqual([{ path: 'config', message: 'must be an object' }])
  })

  test('options may be undefined but not null', async () => {
    const instance = newInstance()
    expect((await rejection(instance.stopVM('vm-1', undefined))).code).toBe('INVALID_STATE')
    expect(await rejection(instance.stopVM('vm-1', null))).toMatchObject({ code: 'INVALID_CONFIG' })
  })
})

describe('B20: values that JSON cannot say are refused', () => {
  test.each([
    ['NaN', NaN], ['Infinity', Infinity], ['BigInt', 4n], ['Date', new Date()], ['Buffer', Buffer.from('x')],
    ['Uint8Array', new Uint8Array(1)], ['ArrayBuffer', new ArrayBuffer(1)], ['DataView', new DataView(new ArrayBuffer(1))],
    ['function', () => 1], ['class', class {}], ['symbol', Symbol('x')]
  ])('%s', async (_, value) => {
    expect(await issuesOf({ cpuCores: value, disks: [{ sizeGB: value }] })).toEqual([
      { path: 'cpuCores', message: expect.any(String) },
      { path: 'disks[0].sizeGB', message: expect.any(String) }
    ])
  })

  test.each([
    ['getVMStatus', [5], 'vmId'], ['startVM', [undefined], 'vmId'], ['stopVM', [{}], 'vmId'],
    ['suspendVM', [null], 'vmId'], ['attachToRunningVM', ['vm-1', Buffer.from('/run/x')], 'qmpSocketPath'],
    ['guestExec', ['vm-1', '/run/x', 'ls', 'not an array'], 'args'], ['guestExec', ['vm-1', '/run/x', 'ls', [1]], 'args'],
    ['ejectCdrom', ['vm-1', 'ide0', 'yes'], 'force'], ['reconcileStartupState', ['off'], 'statuses'],
    ['setFirewallRules', ['vm-1', {}], 'rules'], ['setAddresses', ['vm-1', '10.0.0.5'], 'addresses'],
    ['setAddresses', ['vm-1', ['10.0.0.300']], 'addresses'], ['deleteVM', ['vm-1', true], 'options'],
    ['planVM', [undefined, 1], undefined]
  ])('%s(%j) names the argument', async (method, args, path) => {
    const error = await rejection(newInstance()[method](...args))
    if (path === undefined) return expect(error.code).toBe('INVALID_STATE')
    expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: at(path) } })
  })
})

describe('the configuration of the instance', () => {
  test.each([
    ['B18: a throwing getter', { get stateDir () { throw new Error('no') } }, 'stateDir'],
    ['B20: a Date', { stateDir: new Date() }, 'stateDir'],
    ['null', null, 'config'], ['text', 'x', 'config']
  ])('%s is told by initialize(), not by the constructor', async (_, config, path) => {
    const { Infinization } = require('../..')
    const instance = new Infinization(config)
    const error = await rejection(instance.initialize())
    expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: at(path) } })
    expect(await rejection(instance.initialize())).toMatchObject({ code: 'INVALID_CONFIG' })
    expect(instance.isInitialized()).toBe(false)
  })

  const value = {}
  test.each([
    ['both', { prismaClient: value, databaseAdapter: value }, /not both/],
    ['text for a client', { prismaClient: 'postgres://localhost' }, /must be an object/],
    ['a number for an adapter beside an undefined client', { prismaClient: undefined, databaseAdapter: 5 }, /must be an object/],
    ['an undefined client', { prismaClient: undefined }, /has no value/],
    ['a null adapter', { databaseAdapter: null }, /has no value/],
    ['two keys without value', { prismaClient: undefined, databaseAdapter: null }, /has no value/]
  ])('a database given as %s is refused', async (_, config, message) => {
    const error = await rejection(newInstance(config).initialize())
    expect(error).toMatchObject({ code: 'INVALID_CONFIG', message: expect.stringMatching(message) })
  })
})
