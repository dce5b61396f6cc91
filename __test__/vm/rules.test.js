'use strict'

// A machine's own rules: what is refused changes nothing, and the store and the kernel always agree.

const { cleanUp, deleteAtEnd, host, machine, newBridge, openInstance, rejection, running, runNode } = require('../kit')
const { firewallPresets, generateVMChainName } = require('../..')

afterEach(cleanUp)

const rule = (more) => ({ id: 'web', name: 'web', action: 'ACCEPT', direction: 'IN', priority: 100, protocol: 'tcp', dstPortStart: 80, ...more })

const refusals = [
  ['B21: a key that is no field', [rule({ dstPort: 22 })], ['[0].dstPort']],
  ['B20: wrong types', [rule({ dstPortStart: '80' }), rule({ id: 'b', srcIpAddr: 10 })], ['[0].dstPortStart', '[1].srcIpAddr']],
  ['B19: missing fields', [rule({ id: undefined, action: null })], ['[0].id', '[0].action']],
  ['B28: two rules of one id', [rule(), rule({ name: 'other' })], ['[1].id']],
  ['what is no rule', ['web'], ['[0]']]
]

// Rules that have the right shape and make no sense.
const senseless = [
  ['B29: an unknown action', [rule({ id: 'a' }), rule({ action: 'allow' })], ['[1].action']],
  ['B24: ports that end before they start', [rule({ dstPortEnd: 79 })], ['[0].dstPortEnd']],
  ['B24: ports of icmp', [rule({ protocol: 'icmp' })], ['[0].protocol']],
  ['B25: a mask of 33', [rule({ srcIpAddr: '10.0.0.0', srcIpMask: '33' })], ['[0].srcIpMask']],
  ['B30: no state', [rule({ connectionState: { new: false } })], ['[0].connectionState']]
]

const paths = (error) => error.context.issues.map(({ path }) => path)

// The rules of the machine's chains as the kernel has them.
const loaded = (vmId) => host.ruleset().filter((it) => it.rule?.chain.endsWith(generateVMChainName(vmId).slice(3)))

test('setFirewallRules refuses by path, and neither the kernel nor the store has changed', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance, { firewallRules: [rule()] })
  const before = [loaded(vmId), (await instance.getVM(vmId)).firewallRules]
  expect(before.map(({ length }) => length > 0)).toEqual([true, true])
  for (const [what, rules, wrong] of [...refusals, ...senseless]) {
    const error = await rejection(instance.setFirewallRules(vmId, rules))
    expect([what, error.code, paths(error)]).toEqual([what, 'INVALID_CONFIG', wrong.map((path) => `rules${path}`)])
    expect([loaded(vmId), (await instance.getVM(vmId)).firewallRules]).toEqual(before)
  }
})

test('it answers with an operation\'s result, and what it was given is in force and stored', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance, { firewallRules: [rule()] })
  const given = [rule({ id: 'ssh', name: 'ssh', dstPortStart: 22 }), rule({ id: 'dns', name: 'dns', protocol: 'udp', dstPortStart: 53 })]
  expect(await instance.setFirewallRules(vmId, given)).toEqual({
    success: true, message: expect.any(String), vmId, timestamp: expect.any(Date)
  })
  expect((await instance.getVM(vmId)).firewallRules).toMatchObject(given)
  const comments = loaded(vmId).map(({ rule }) => rule.comment)
  expect(comments).toEqual(expect.arrayContaining(['ssh', 'dns']))
  expect(comments).not.toContain('web')
  await instance.setFirewallRules(vmId, [])
  expect((await instance.getVM(vmId)).firewallRules).toEqual([])
  expect(loaded(vmId).map(({ rule }) => rule.comment)).not.toContain('ssh')
})

test.each([...refusals, ...senseless])('createVM refuses %s', async (_, firewallRules, wrong) => {
  const instance = await openInstance()
  const config = machine(await newBridge(), { firewallRules })
  const error = await rejection(instance.createVM(config))
  expect([error.code, paths(error)]).toEqual(['INVALID_CONFIG', wrong.map((path) => `firewallRules${path}`)])
  expect(await instance.listVMs()).toEqual([])
})

test('F27: rules that cannot be loaded are not stored either', async () => {
  const bridge = await newBridge()
  const first = await openInstance()
  const config = machine(bridge, { firewallRules: [rule()] })
  await first.createVM(config)
  await first.shutdown()
  const before = loaded(config.vmId)
  // Only an administrator of the network may load rules.
  const script = `
    const { Infinization } = require('.')
    const instance = new Infinization(${JSON.stringify({ stateDir: first.stateDir, bridgeConntrackMode: 'degrade' })})
    instance.initialize().then(async () => {
      await instance.setFirewallRules('${config.vmId}', ${JSON.stringify([rule()])})
      process.seteuid(65534)
      await instance.setFirewallRules('${config.vmId}', ${JSON.stringify([rule({ id: 'ssh', name: 'ssh' })])})
        .catch((error) => console.log(error.code, error.vmId))
      process.seteuid(0)
    }).finally(() => instance.shutdown())
  `
  const { stdout, stderr } = await runNode(script)
  const second = await openInstance({ stateDir: first.stateDir })
  deleteAtEnd(second, config)
  expect([stdout, stderr]).toEqual([`FIREWALL_ERROR ${config.vmId}\n`, ''])
  expect((await second.getVM(config.vmId)).firewallRules).toMatchObject([rule()])
  expect(loaded(config.vmId).map(({ rule }) => rule.comment)).toEqual(before.map(({ rule }) => rule.comment))
})

test('explainFirewall shows what is in force, and for a machine that is off what will be', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance, { firewallRules: firewallPresets.ssh({ from: '10.0.0.0/8' }) })
  const explained = await instance.explainFirewall(vmId)
  expect(explained).toMatchObject({ vmId, chainName: generateVMChainName(vmId), defaultAction: 'drop', totalRules: 1, failures: [] })
  const shown = explained.chains.filter(({ hook }) => hook === undefined).flatMap(({ rules }) => rules.map((rule) => rule.match(/comment "(.*)"/)[1]))
  expect(shown.sort()).toEqual(loaded(vmId).map(({ rule }) => rule.comment).sort())
  await instance.stopVM(vmId, { graceful: false })
  expect(await instance.explainFirewall(vmId)).toEqual(explained)
  expect(await rejection(instance.explainFirewall('nobody'))).toMatchObject({ name: 'LifecycleError', code: 'VM_NOT_FOUND' })
})
