'use strict'

const { DepartmentNatService } = require('../..')
const { cleanUp, finally_, host, rejection, unique } = require('../kit')

afterEach(cleanUp)

const nat = new DepartmentNatService()
const chain = () => host.run('nft', 'list', 'chain', 'ip', 'infinibay_nat', 'postrouting')

function newBridgeName () {
  const name = unique('nat')
  finally_(() => nat.removeMasquerade(name))
  return name
}

test('a department is masqueraded, once, until it is removed', async () => {
  const name = newBridgeName()
  await nat.initialize()
  await nat.initialize()
  expect(host.run('sysctl', '-n', 'net.ipv4.ip_forward').trim()).toBe('1')
  expect(await nat.hasMasquerade(name)).toBe(false)
  await nat.addMasquerade('10.44.0.0/24', name)
  await nat.addMasquerade('10.44.0.0/24', name)
  await new DepartmentNatService().addMasquerade('10.44.0.0/24', name)
  const rule = `ip saddr 10.44.0.0/24 oifname != "${name}" masquerade comment "dept-${name}"`
  expect(chain().split(rule)).toHaveLength(2)
  expect(await nat.hasMasquerade(name)).toBe(true)
  expect(await nat.hasMasquerade(name.slice(0, -1))).toBe(false)
  expect(await nat.listMasqueradeRules()).toContain(name)
  await nat.addMasquerade('10.45.0.1/16', name)
  expect(chain()).not.toContain('10.44.0.0')
  expect(chain()).toContain(`ip saddr 10.45.0.0/16 oifname != "${name}"`)
  await nat.removeMasquerade(name)
  await nat.removeMasquerade(name)
  expect(await nat.hasMasquerade(name)).toBe(false)
  expect(await nat.listMasqueradeRules()).not.toContain(name)
})

test.each(['10.0.0.0', '010.0.0.0/8', '10.0.0.0/33', '0.0.0.0/0', '10.0.0.0/8; flush ruleset', 'fd00::/64', ''])('%p is no subnet', async (subnet) => {
  const error = await rejection(nat.addMasquerade(subnet, 'br0'))
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG', context: { issues: [{ path: 'subnetCidr' }] } })
  expect(error.message).toContain(`Invalid IPv4 subnet for NAT: ${subnet}`)
})

test.each(['', 'sixteen-letters-', 'a b', 'br"', '../x'])('B32: %p is no name for a bridge', async (name) => {
  for (const call of [() => nat.addMasquerade('10.0.0.0/8', name), () => nat.removeMasquerade(name), () => nat.hasMasquerade(name)]) {
    const error = await rejection(call())
    expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG', context: { issues: [{ path: 'bridge' }] } })
    expect(error.message).toContain(`Invalid bridge name for NAT: ${name}`)
  }
})
