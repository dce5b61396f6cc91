'use strict'

const { closeSync, openSync } = require('node:fs')
const { NetworkError, NftablesService, TapDeviceManager, generateVMChainName } = require('../..')
const { cleanUp, expectGone, finally_, host, newBridge, openInstance, rejection, running, unique, warning } = require('../kit')

afterEach(cleanUp)

const taps = new TapDeviceManager()
const ip = (...words) => host.run('ip', ...words)

// A machine's id whose TAP goes when the test ends.
function newMachine () {
  const vmId = unique('vm')
  const tap = `vnet-${generateVMChainName(vmId).slice(3, 13)}`
  expectGone(vmId)
  finally_(() => taps.destroy(tap))
  return { vmId, tap }
}

test('a TAP is made, configured, detached, attached and destroyed', async () => {
  const { vmId, tap } = newMachine()
  const bridge = await newBridge()
  expect(await taps.create(vmId)).toBe(tap)
  expect(await taps.exists(tap)).toBe(true)
  expect(await taps.getDeviceState(tap)).toMatch(new RegExp(`^\\d+: ${tap}: <BROADCAST,MULTICAST> mtu 1500 state DOWN$`))
  await taps.configure(tap, bridge)
  expect(ip('link', 'show', tap)).toContain(`master ${bridge}`)
  expect(await taps.getDeviceState(tap)).toMatch(new RegExp(`<NO-CARRIER,.*UP> .* master ${bridge} state DOWN$`))
  await taps.detachFromBridge(tap)
  expect(ip('link', 'show', tap)).not.toContain('master')
  expect(ip('link', 'show', tap)).not.toMatch(/<.*\bUP\b.*>/)
  await taps.attachToBridge(tap, bridge)
  expect(ip('link', 'show', tap)).toContain(`master ${bridge}`)
  await taps.bringDown(tap)
  await taps.destroy(tap)
  expect(await taps.exists(tap)).toBe(false)
  expect(host.links()).not.toContain(tap)
})

test('a leftover is replaced: what was done to it is gone', async () => {
  const { vmId, tap } = newMachine()
  await taps.create(vmId)
  ip('link', 'set', tap, 'mtu', '1400')
  expect(await taps.create(vmId)).toBe(tap)
  expect(await taps.getDeviceState(tap)).toContain('mtu 1500')
})

test('what does not exist is detached, taken down and destroyed already', async () => {
  await taps.destroy('vnet-none')
  await taps.detachFromBridge('vnet-none')
  const told = warning(/^not taken down/)
  await taps.bringDown('vnet-none')
  expect(await told).toContain('vnet-none')
  expect(await taps.exists('vnet-none')).toBe(false)
  expect(await taps.exists('no name at all')).toBe(false)
  expect(await taps.hasCarrier('vnet-none')).toBe(false)
  expect(await taps.isOrphaned('vnet-none')).toBe(false)
  expect(await taps.getDeviceState('vnet-none')).toBe('Error: there is no TAP vnet-none')
})

test('failures say what they were about', async () => {
  const { vmId, tap } = newMachine()
  await taps.create(vmId)
  const cases = [
    [() => taps.configure('vnet-none'), 'DEVICE_NOT_FOUND', 'Failed to configure TAP device vnet-none: '],
    [() => taps.attachToBridge(tap, 'no-such-bridge'), 'BRIDGE_NOT_FOUND', `Failed to attach TAP device ${tap} to no-such-bridge: `],
    [() => taps.destroy('lo'), 'DEVICE_NOT_FOUND', 'Failed to destroy TAP device lo: ']
  ]
  for (const [call, code, message] of cases) {
    const error = await rejection(call())
    expect(error).toBeInstanceOf(NetworkError)
    expect(error).toMatchObject({ code, message: expect.stringContaining(message) })
  }
  expect(host.links()).toContain('lo')
})

describe('orphans', () => {
  test('a TAP that nobody has open is one; it is young, so it stays', async () => {
    const { vmId, tap } = newMachine()
    await taps.create(vmId)
    expect(await taps.isOrphaned(tap)).toBe(true)
    expect(await taps.listAllTapDevices()).toContain(tap)
    expect((await taps.cleanupOrphanedTapDevices()).failed).toBe(0)
    expect(await taps.exists(tap)).toBe(true)
  })

  test('T3: its age is known to every process', async () => {
    const { vmId, tap } = newMachine()
    await taps.create(vmId)
    const made = /alias infinization, made at (\d+)/.exec(ip('link', 'show', tap))
    ip('link', 'set', tap, 'alias', `infinization, made at ${made[1] - 50}`)
    await taps.cleanupOrphanedTapDevices()
    expect(await taps.exists(tap)).toBe(true)
    ip('link', 'set', tap, 'alias', `infinization, made at ${made[1] - 61}`)
    await taps.cleanupOrphanedTapDevices()
    expect(await taps.exists(tap)).toBe(false)
  })

  test('one that another process left is deleted, unless its machine has a chain', async () => {
    const { vmId, tap } = newMachine()
    const nftables = new NftablesService({ bridgeConntrackMode: 'degrade' })
    finally_(() => nftables.removeVMChain(vmId))
    ip('tuntap', 'add', tap, 'mode', 'tap')
    await nftables.ensureVMChain(vmId)
    await taps.cleanupOrphanedTapDevices()
    expect(await taps.exists(tap)).toBe(true)
    await nftables.removeVMChain(vmId)
    expect(await taps.cleanupOrphanedTapDevices()).toMatchObject({ cleaned: expect.any(Number), failed: 0 })
    expect(await taps.exists(tap)).toBe(false)
  })

  test('T5: a running machine has its TAP open, so it is none and cannot be made anew', async () => {
    const instance = await openInstance()
    const { vmId, tapDevice } = await running(instance)
    expect(await taps.hasCarrier(tapDevice)).toBe(true)
    expect(await taps.isOrphaned(tapDevice)).toBe(false)
    expect(await taps.getDeviceState(tapDevice)).toMatch(/<.*,UP,LOWER_UP> .* state (UP|UNKNOWN)$/)
    const error = await rejection(taps.create(vmId))
    expect(error).toMatchObject({ code: 'DEVICE_ALREADY_EXISTS', vmId, message: expect.stringContaining(`Failed to create TAP device ${tapDevice}: `) })
    expect((await instance.getVMStatus(vmId)).processAlive).toBe(true)
    await instance.stopVM(vmId, { graceful: false })
    expect(await taps.isOrphaned(tapDevice)).toBe(true)
    await taps.cleanupOrphanedTapDevices()
    expect(await taps.exists(tapDevice)).toBe(true)
  })

  test('opening /dev/net/tun alone makes nothing', async () => {
    // The names that the kernel would choose: machines of other tests come and go meanwhile.
    const nameless = () => host.links().filter((name) => /^(tun|tap)\d/.test(name))
    const before = nameless()
    closeSync(openSync('/dev/net/tun', 'r+'))
    expect(nameless()).toEqual(before)
  })
})
