'use strict'

const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { Infinization, NetworkError } = require('../..')
const { cleanUp, finally_, host, rejection } = require('../kit')

afterEach(cleanUp)

async function manager () {
  const stateDir = mkdtempSync(path.join(tmpdir(), 'net-'))
  finally_(() => rmSync(stateDir, { recursive: true }))
  const infinization = new Infinization({ stateDir, bridgeConntrackMode: 'degrade', autoStartHealthMonitor: false })
  finally_(() => infinization.shutdown())
  await infinization.initialize()
  return infinization
}

test('a network is made, listed, stopped, started and removed', async () => {
  const infinization = await manager()
  const { networks } = infinization
  expect(infinization.networks).toBe(networks)
  finally_(() => infinization.isInitialized() && networks.remove('lab'))
  const made = await networks.create({
    name: 'lab',
    subnet: '10.20.0.0/24',
    bridge: 'br-jest-lab',
    dhcp: { start: '10.20.0.10', leaseTime: 600, hosts: [{ mac: '52:54:00:00:00:05', ip: '10.20.0.5', name: 'web' }] },
    dns: { domain: 'vms.example' }
  })
  expect(made).toEqual({
    name: 'lab',
    state: 'active',
    bridge: 'br-jest-lab',
    subnet: '10.20.0.0/24',
    gateway: '10.20.0.1',
    mode: 'nat',
    dhcp: {
      start: '10.20.0.10',
      end: '10.20.0.254',
      leaseTime: 600,
      hosts: [{ mac: '52:54:00:00:00:05', ip: '10.20.0.5', name: 'web' }]
    },
    dns: { enabled: true, servers: [], domain: 'vms.example' },
    autostart: true,
    pinAddresses: false,
    pid: expect.any(Number),
    restarts: 0
  })
  expect(await networks.list()).toEqual([made])
  expect(await networks.get('lab')).toEqual(made)
  expect(await networks.leases('lab')).toEqual([])
  expect(host.run('ip', '-br', 'addr', 'show', 'br-jest-lab')).toContain('10.20.0.1/24')
  const changed = await networks.update('lab', { dhcp: { leaseTime: 900, start: undefined }, dns: { domain: null } })
  expect(changed).toEqual({
    ...made, pid: expect.any(Number), dhcp: { ...made.dhcp, leaseTime: 900 }, dns: { enabled: true, servers: [] }
  })
  expect(await networks.stop('lab')).toMatchObject({ state: 'inactive' })
  expect(await networks.start('lab')).toMatchObject({ state: 'active' })
  expect(await networks.remove('lab')).toBeUndefined()
  expect(await networks.list()).toEqual([])
})

test('refusals are errors of their class, and name the field', async () => {
  const infinization = await manager()
  const { networks } = infinization
  const malformed = await rejection(networks.create({ name: 'lab', subnet: '10.20.0.1/24', dhcp: { hosts: [{ mac: 'x', ip: '10.20.0.5' }] } }))
  expect(malformed).toMatchObject({
    name: 'LifecycleError', code: 'INVALID_CONFIG', context: { issues: [{ path: 'subnet' }, { path: 'dhcp.hosts[0].mac' }] }
  })
  expect(await rejection(networks.get('none'))).toBeInstanceOf(NetworkError)
  expect(await rejection(networks.leases('none'))).toMatchObject({ code: 'NETWORK_NOT_FOUND', context: { network: 'none' } })
  expect(await rejection(networks.remove('../x'))).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'name' }] } })
  expect(await rejection(networks.create())).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await rejection(networks.update('none', {}))).toMatchObject({ name: 'NetworkError', code: 'NETWORK_NOT_FOUND' })
  expect(await rejection(networks.update('lab', 5))).toMatchObject({ code: 'INVALID_CONFIG' })
  await infinization.shutdown()
  expect(await rejection(networks.list())).toMatchObject({ code: 'CLOSED' })
  expect(await rejection(new Infinization().networks.list())).toMatchObject({ code: 'INVALID_STATE' })
})
