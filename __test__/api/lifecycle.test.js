'use strict'

const { cleanUp, newInstance, openInstance, rejection } = require('../kit')

afterEach(cleanUp)

const spec = {
  deptId: 'd', bridgeName: 'infinibr-1', vni: 4096, mtu: 1370, isGatewayOwner: false, peers: []
}

// Every asynchronous method with arguments that are fine.
const calls = [
  ['planVM', { vmId: 'vm-1' }], ['createVM', { vmId: 'vm-1' }], ['startVM', 'vm-1'], ['stopVM', 'vm-1'],
  ['restartVM', 'vm-1'], ['suspendVM', 'vm-1'], ['resumeVM', 'vm-1'], ['resetVM', 'vm-1'], ['destroyVM', 'vm-1'],
  ['getVMStatus', 'vm-1'], ['listVMs'], ['getVM', 'vm-1'], ['deleteVM', 'vm-1'], ['setFirewallRules', 'vm-1', []],
  ['setAddresses', 'vm-1', []],
  ['reconcileStartupState'], ['attachToRunningVM', 'vm-1', '/run/vm.sock'], ['guestExec', 'vm-1', '/run/ga.sock', 'ls'],
  ['ejectCdrom', 'vm-1', 'ide0'], ['queryBlockDevices', 'vm-1'], ['ensureSegment', spec],
  ['setPeers', 'd', 'infinibr-1', []], ['destroySegment', 'd', 'infinibr-1']
]
const getters = ['getEventHandler', 'getHealthMonitor', 'getNftablesService', 'getPrismaAdapter']

describe('B22: before initialize()', () => {
  test.each(calls)('%s rejects with INVALID_STATE', async (method, ...args) => {
    const error = await rejection(newInstance()[method](...args))
    expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_STATE' })
  })

  test.each(getters)('%s throws INVALID_STATE', (method) => {
    expect(() => newInstance()[method]()).toThrow(expect.objectContaining({ code: 'INVALID_STATE' }))
  })

  test('what needs no initialize() works', async () => {
    const instance = newInstance()
    expect(instance.isInitialized()).toBe(false)
    expect(instance.getActiveVMs()).toEqual([])
    expect(instance.getQMPClient('vm-1')).toBeUndefined()
    await instance.shutdown()
  })
})

describe('B22: after shutdown()', () => {
  test.each(calls)('%s rejects with CLOSED', async (method, ...args) => {
    const instance = await openInstance()
    await instance.shutdown()
    expect(await rejection(instance[method](...args))).toMatchObject({ name: 'LifecycleError', code: 'CLOSED' })
  })

  test.each(getters)('%s throws CLOSED', async (method) => {
    const instance = await openInstance()
    await instance.shutdown()
    expect(() => instance[method]()).toThrow(expect.objectContaining({ code: 'CLOSED' }))
  })

  test('initialize() rejects: make a new instance', async () => {
    const instance = await openInstance()
    await instance.shutdown()
    expect(await rejection(instance.initialize())).toMatchObject({ code: 'CLOSED' })
  })

  test('shutdown() can be called again', async () => {
    const instance = await openInstance()
    await Promise.all([instance.shutdown(), instance.shutdown()])
    await instance.shutdown()
    expect(instance.isInitialized()).toBe(false)
  })
})

test('initialize() is idempotent', async () => {
  const instance = await openInstance()
  await instance.initialize()
  expect(instance.isInitialized()).toBe(true)
})

test('department overlays are not part of this version', async () => {
  const overlay = { vtepIp: '10.0.0.1', wgPrivateKeyPath: '/etc/wg.key', wgListenPort: 51820 }
  const error = await rejection(newInstance({ overlay }).initialize())
  expect(error).toMatchObject({
    name: 'LifecycleError', code: 'INVALID_CONFIG', message: expect.stringContaining('not part of this version'), context: { issues: [{ path: 'overlay' }] }
  })
  const instance = await openInstance({ overlay: undefined })
  for (const [verb, ...args] of [['ensureSegment', spec], ['setPeers', 'd', 'b', []], ['destroySegment', 'd', 'b']]) {
    expect(await rejection(instance[verb](...args))).toMatchObject({ code: 'INVALID_STATE', message: expect.stringMatching(/overlay.*not part of this version/) })
  }
})

test('methods are found by name and called with apply, as a remote executor does', async () => {
  const instance = await openInstance()
  const error = await rejection(instance.getVMStatus.apply(instance, ['no-such-vm']))
  expect(error.code).toBe('VM_NOT_FOUND')
})

test('the emitters stay the same objects', async () => {
  const instance = await openInstance()
  expect(instance.getEventHandler()).toBe(instance.getEventHandler())
  expect(instance.getHealthMonitor()).toBe(instance.getHealthMonitor())
  expect(instance.getHealthMonitor().isMonitoring()).toBe(true)
  await instance.getHealthMonitor().stop()
  expect(instance.getHealthMonitor().isMonitoring()).toBe(false)
})

test('the event handler knows no machine yet', async () => {
  const handler = (await openInstance()).getEventHandler()
  expect(handler.getAttachedVMs()).toEqual([])
  expect(handler.isAttached('vm-1')).toBe(false)
  expect(handler.getQMPClient('vm-1')).toBeUndefined()
  expect(() => handler.isAttached(5)).toThrow(expect.objectContaining({ code: 'INVALID_CONFIG' }))
})

test('Symbol.asyncDispose closes the instance', async () => {
  const { runNode } = require('../kit')
  const { stdout } = await runNode(`
    const { Infinization } = require('.')
    const it = new Infinization()
    Symbol.asyncDispose
      ? it[Symbol.asyncDispose]().then(() => it.initialize()).catch((error) => console.log(error.code))
      : console.log('CLOSED')
  `)
  expect(stdout.trim()).toBe('CLOSED')
})
