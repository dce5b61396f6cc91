'use strict'

const { NftablesService, defineFirewallPreset, firewallPresets } = require('../..')

const thrown = (work) => { try { work() } catch (error) { return error } }

test('presets are rules, ready to use', () => {
  expect(firewallPresets.ssh({ from: '10.0.0.0/8' })).toEqual([{
    id: 'ACCEPT IN tcp/22 SSH from 10.0.0.0/8',
    name: 'SSH from 10.0.0.0/8',
    action: 'ACCEPT',
    direction: 'IN',
    priority: 500,
    protocol: 'tcp',
    dstPortStart: 22,
    srcIpAddr: '10.0.0.0',
    srcIpMask: '8',
    overridesDept: false
  }])
  const ports = (rules) => rules.map((rule) => `${rule.protocol} ${rule.dstPortStart}-${rule.dstPortEnd ?? rule.dstPortStart}`)
  expect(Object.keys(firewallPresets).map((key) => [key, ports(firewallPresets[key]())])).toEqual([
    ['ssh', ['tcp 22-22']],
    ['http', ['tcp 80-80']],
    ['https', ['tcp 443-443']],
    ['rdp', ['tcp 3389-3389', 'udp 3389-3389']],
    ['vnc', ['tcp 5900-5903']]
  ])
})

test('options say who, where and what', () => {
  const rules = firewallPresets.https({ from: ['10.0.0.1', 'fd00::/8'], direction: 'OUT', action: 'DROP', priority: 7, overridesDept: true })
  expect(rules).toHaveLength(2)
  expect(rules[1]).toMatchObject({ direction: 'OUT', action: 'DROP', priority: 7, srcIpAddr: 'fd00::', srcIpMask: '8', overridesDept: true })
  expect(firewallPresets.https({ from: [] })).toEqual([])
})

test('a preset of one\'s own', () => {
  const service = { name: 'PostgreSQL', ports: [{ protocol: 'tcp', port: 5432, lastPort: 5433 }] }
  const postgres = defineFirewallPreset(service)
  service.ports[0].port = 1
  expect(postgres({ to: '10.0.0.7' })).toMatchObject([{ dstPortStart: 5432, dstPortEnd: 5433, dstIpAddr: '10.0.0.7' }])
})

test('what makes no sense is refused', () => {
  for (const [options, name, code] of [
    [{ from: '10.0.0' }, 'NftablesError', 'INVALID_IP_ADDRESS'],
    [{ from: '10.0.0.0/33' }, 'NftablesError', 'INVALID_SUBNET_MASK'],
    [{ form: '10.0.0.1' }, 'LifecycleError', 'INVALID_CONFIG'],
    [{ from: 5 }, 'LifecycleError', 'INVALID_CONFIG'],
    [5, 'LifecycleError', 'INVALID_CONFIG']
  ]) {
    expect(thrown(() => firewallPresets.ssh(options))).toMatchObject({ name, code })
  }
  for (const [service, code] of [
    [{ name: 'x', ports: [] }, 'INVALID_PORT_RANGE'],
    [{ name: 'x', ports: [{ protocol: 'tcp', port: 70000 }] }, 'INVALID_PORT_RANGE'],
    [{ name: 'x', ports: [{ protocol: 'icmp', port: 1 }] }, 'RULE_INVALID'],
    [{ name: 'x' }, 'INVALID_CONFIG'],
    [undefined, 'INVALID_CONFIG'],
    ['gopher', 'INVALID_CONFIG']
  ]) {
    expect(thrown(() => defineFirewallPreset(service))).toMatchObject({ code })
  }
})

test('a plan is what would be loaded, and loads nothing', async () => {
  const nftables = new NftablesService({ bridgeConntrackMode: 'degrade' })
  const before = await nftables.listChains()
  const rules = firewallPresets.rdp({ from: '10.0.0.0/8' })
  const plan = await nftables.planRules('vm-1', 'vnet-plan', [], [...rules, { ...rules[0], id: 'typo', name: 'typo', action: 'allow' }], 'accept')
  expect(plan).toMatchObject({
    vmId: 'vm-1',
    tapName: 'vnet-plan',
    chainName: 'vm_2d62b0035f348790d3b99c33',
    defaultAction: 'accept',
    totalRules: 3,
    appliedRules: 2,
    failedRules: 1,
    failures: [{ ruleName: 'typo' }]
  })
  expect(plan.chains.map((chain) => chain.name)).toEqual(['prerouting', 'postrouting', 'output', expect.stringMatching(/^from_/), expect.stringMatching(/^to_/), plan.chainName])
  expect(plan.text).toContain('ip saddr 10.0.0.0/8 tcp dport 3389 accept comment "RDP from 10.0.0.0/8"')
  expect(plan.json.nftables[0]).toEqual({ add: { table: { family: 'bridge', name: 'infinization' } } })
  expect(await nftables.listChains()).toEqual(before)
})
