'use strict'

const { NftablesError, NftablesService, generateVMChainName } = require('../..')
const { cleanUp, expectGone, finally_, host, newBridge, openInstance, rejection, running, unique, warning } = require('../kit')

afterEach(cleanUp)

const nftables = new NftablesService({ bridgeConntrackMode: 'degrade' })

// A machine's id with the names that are cut from it; its chains go when the test ends.
function newMachine () {
  const vmId = unique('vm')
  const chain = generateVMChainName(vmId)
  expectGone(vmId)
  finally_(() => nftables.removeVMChain(vmId))
  return { vmId, chain, tap: `vnet-${chain.slice(3, 13)}`, from: chain.replace('vm', 'from'), to: chain.replace('vm', 'to') }
}

const rule = (more) => ({
  id: '1', name: 'web', action: 'ACCEPT', direction: 'IN', priority: 100, protocol: 'tcp', dstPortStart: 80, ...more
})

// The comments of a chain's rules, in order.
const comments = (chain) => host.ruleset().flatMap(({ rule }) => rule?.chain === chain ? [rule.comment] : [])
// The rules of each chain it jumps to.
const departmentsOf = (chain) => host.ruleset()
  .flatMap(({ rule }) => rule?.chain === chain ? rule.expr.flatMap(({ jump }) => jump ? [jump.target] : []) : [])
  .map(comments)
const ports = (tap) => host.dispatched().filter((element) => element.startsWith(tap))

test('initialize() is idempotent, and with it the two hooks', async () => {
  await nftables.initialize()
  await nftables.initialize()
  expect(comments('prerouting')).toEqual(['infinization-dispatch', 'infinization-closed'])
  expect(comments('postrouting')).toEqual(['infinization-dispatch', 'infinization-closed'])
})

test('F30: mode fail refuses a kernel without bridge conntrack, and says how to go on', async () => {
  const error = await rejection(new NftablesService({ bridgeConntrackMode: 'fail' }).initialize())
  expect(error).toBeInstanceOf(NftablesError)
  expect(error).toMatchObject({ name: 'NftablesError', code: 'CONNTRACK_UNAVAILABLE' })
  expect(error.message).toMatch(/nf_conntrack_bridge.*bridgeConntrackMode/)
})

test('a configuration that makes no sense is told by every method', async () => {
  const broken = new NftablesService({ bridgeConntrackMode: 'maybe' })
  for (const method of ['initialize', 'listChains', 'initialize']) {
    expect(await rejection(broken[method]())).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'bridgeConntrackMode' }] } })
  }
})

test('a chain is made closed, attached, detached and removed', async () => {
  const { vmId, chain, tap, from, to } = newMachine()
  expect(await nftables.createVMChain(vmId, tap)).toBe(chain)
  expect(await nftables.createVMChain(vmId, tap)).toBe(chain)
  expect(await nftables.chainExists(chain)).toBe(true)
  expect(comments(chain)).toEqual(['infinization-default-drop'])
  expect(ports(tap)).toEqual([`${tap} → ${from}`, `${tap} → ${to}`])
  await nftables.detachJumpRules(vmId)
  await nftables.detachJumpRules(vmId)
  expect(ports(tap)).toEqual([])
  await nftables.attachJumpRules(vmId, tap)
  expect(ports(tap)).toHaveLength(2)
  expect(await nftables.listChains()).toEqual(expect.arrayContaining([chain, from, to]))
  await nftables.removeVMChain(vmId)
  expect(await nftables.chainExists(chain)).toBe(false)
  expect(ports(tap)).toEqual([])
  await nftables.removeVMChain(vmId)
})

test('a chain without a port: ensureVMChain', async () => {
  const { vmId, chain, tap } = newMachine()
  expect(await nftables.ensureVMChain(vmId)).toBe(chain)
  expect(comments(chain)).toEqual(['infinization-default-drop'])
  expect(ports(tap)).toEqual([])
})

test('attaching to chains that do not exist rejects', async () => {
  const { vmId, tap } = newMachine()
  expect(await rejection(nftables.attachJumpRules(vmId, tap))).toMatchObject({ name: 'NftablesError', code: 'COMMAND_FAILED', context: { command: 'nft' } })
})

test('rules are merged, applied and reported', async () => {
  const { vmId, chain, tap } = newMachine()
  const department = [rule({ id: 'd1', name: 'ssh', dstPortStart: 22, priority: 50 }), rule({ id: 'd2', name: 'web of the department' })]
  const own = [rule({ id: 'v1', overridesDept: true }), rule({ id: 'v2', name: 'typo', action: 'allow' })]
  const result = await nftables.applyRules(vmId, tap, department, own)
  expect(result).toEqual({
    totalRules: 3,
    appliedRules: 2,
    failedRules: 1,
    chainName: chain,
    failures: [{ ruleName: 'typo', error: expect.stringContaining('allow') }],
    degraded: []
  })
  // Without connection tracking each has a second one, for its replies. The department's stand apart.
  const loaded = new Set(comments(chain).filter((comment) => !/^infinization-default/.test(comment)))
  expect([...loaded]).toEqual(['infinization-department', 'web'])
  expect(departmentsOf(chain)).toEqual([['ssh'], ['ssh']])
  expect(comments(chain).at(-1)).toBe('infinization-default-drop')
  expect(ports(tap)).toHaveLength(2)
})

test('changes of one machine take effect in the order of the calls, on whichever instance', async () => {
  const { vmId, chain, tap } = newMachine()
  const other = new NftablesService({ bridgeConntrackMode: 'degrade' })
  const names = Array.from({ length: 30 }, (_, n) => `rule ${n}`)
  await Promise.all(names.map((name, n) => (n % 2 ? nftables : other).applyRules(vmId, tap, [], [rule({ name })])))
  expect(comments(chain)).toContain('rule 29')
  const applied = nftables.applyRules(vmId, tap, [], [rule()])
  const removed = other.removeVMChain(vmId)
  await Promise.all([applied, removed])
  expect(await nftables.chainExists(chain)).toBe(false)
})

test('a department changes at once, and each machine is told of', async () => {
  const machines = [newMachine(), newMachine(), newMachine()]
  const members = machines.map(({ vmId, tap: tapName }, n) => ({ vmId, tapName, vmRules: n ? [rule({ name: `own ${n}` })] : undefined }))
  for (const port of [22, 23]) {
    const results = await nftables.applyDepartmentRules([rule({ name: `department ${port}`, dstPortStart: port, priority: 1 })], members)
    expect(results.map(({ vmId, result }) => [vmId, result.appliedRules])).toEqual([[members[0].vmId, 1], [members[1].vmId, 2], [members[2].vmId, 2]])
    for (const { chain } of machines) expect(departmentsOf(chain)).toContainEqual([`department ${port}`])
  }
  expect(await rejection(nftables.applyDepartmentRules([], [{ vmId: 'vm-1' }]))).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'machines' }] } })
  await Promise.all(machines.map(({ vmId }) => nftables.removeVMChain(vmId)))
  expect(host.chains().filter((name) => name.startsWith('dept_'))).toEqual([])
})

test('what is detached and attached again has its rules', async () => {
  const { vmId, chain, tap } = newMachine()
  await nftables.applyRules(vmId, tap, [], [rule()])
  const before = comments(chain)
  await nftables.detachJumpRules(vmId)
  host.run('nft', 'flush', 'chain', 'bridge', 'infinization', chain)
  await nftables.attachJumpRules(vmId, tap)
  expect(comments(chain)).toEqual(before)
  expect(ports(tap)).toHaveLength(2)
})

test.each(['detachJumpRules', 'flushVMRules', 'removeVMChain', 'removeVMChainByName'])('%s never rejects', async (method) => {
  const broken = new NftablesService({ bridgeConntrackMode: 'maybe' })
  for (const name of ['', 'a/b', 'x'.repeat(300), 5, null, undefined, {}, 'vm_nothing']) {
    expect(await nftables[method](name)).toBeUndefined()
    expect(await broken[method](name)).toBeUndefined()
  }
})

test('the default action is the last word', async () => {
  const { vmId, chain, tap } = newMachine()
  await nftables.applyRules(vmId, tap, [], [], 'accept')
  expect(comments(chain).at(-1)).toBe('infinization-default-accept')
  expect(await rejection(nftables.applyRules(vmId, tap, [], [], 'allow'))).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'defaultAction' }] } })
})

test('F30: what a stateless kernel forces on a rule is told', async () => {
  const { vmId, tap } = newMachine()
  const result = await nftables.applyRules(vmId, tap, [], [
    rule({ name: 'new web', connectionState: { new: true } }),
    rule({ name: 'refused', action: 'REJECT', dstPortStart: 23 }),
    rule({ name: 'invalid', action: 'DROP', connectionState: { invalid: true } })
  ])
  expect(result.degraded.map(({ ruleName }) => ruleName)).toEqual(['new web', 'refused'])
  for (const { reason } of result.degraded) expect(reason).toMatch(/kernel/)
  expect(result.failures).toEqual([{ ruleName: 'invalid', error: expect.stringContaining('nf_conntrack_bridge') }])
})

test('unchanged rules are not loaded again, and what somebody took away is', async () => {
  const { vmId, chain, tap } = newMachine()
  const apply = (rules) => nftables.applyRulesIfChanged(vmId, tap, [], rules)
  expect(await apply([rule()])).toEqual({ changed: true, result: expect.objectContaining({ appliedRules: 1 }) })
  expect(await apply([rule()])).toEqual({ changed: false })
  expect((await apply([rule({ dstPortStart: 81 })])).changed).toBe(true)
  host.run('nft', 'flush', 'chain', 'bridge', 'infinization', chain)
  expect((await apply([rule({ dstPortStart: 81 })])).changed).toBe(true)
  await nftables.flushVMRules(vmId)
  expect(comments(chain)).toEqual(['infinization-default-drop'])
  expect((await apply([rule({ dstPortStart: 81 })])).changed).toBe(true)
})

test('F27: rules that cannot be loaded leave the old ones in force', async () => {
  const { vmId, chain, tap } = newMachine()
  await nftables.applyRules(vmId, tap, [], [rule()])
  const before = comments(chain)
  const tooMany = Array.from({ length: 20_001 }, (_, index) => rule({ id: `${index}`, dstPortStart: 1 + index }))
  expect(await rejection(nftables.applyRules(vmId, tap, [], tooMany))).toMatchObject({ name: 'NftablesError', code: 'RULE_INVALID' })
  expect(comments(chain)).toEqual(before)
})

test.each([
  ['B26: quotes and a semicolon', { name: 'a"; flush ruleset; "' }],
  ['B26: a newline', { name: 'a\nadd table ip x' }],
  ['B26: 300 characters', { name: 'x'.repeat(300) }],
  ['B26: an emoji', { name: '🔥 wall' }]
])('%s in a name is data', async (_, more) => {
  const { vmId, chain, tap } = newMachine()
  expect(await nftables.applyRules(vmId, tap, [], [rule(more)])).toMatchObject({ appliedRules: 1, failedRules: 0 })
  expect(comments(chain).at(-1)).toBe('infinization-default-drop')
  expect(host.ruleset().some(({ table }) => table?.name === 'x')).toBe(false)
})

test.each([
  ['B24: ports with icmp', { protocol: 'icmp' }], ['B24: port -1', { dstPortStart: -1 }], ['B25: 10.0.0.0/33', { srcIpAddr: '10.0.0.0', srcIpMask: '33' }],
  ['B25: a v4 mask on v6', { srcIpAddr: 'fd00::1', srcIpMask: '255.255.0.0' }], ['B29: a direction', { direction: 'BOTH' }],
  ['B30: states all false', { connectionState: { new: false, established: false } }]
])('%s: the rule fails by name, the others hold', async (_, more) => {
  const { vmId, tap } = newMachine()
  const result = await nftables.applyRules(vmId, tap, [], [rule({ name: 'broken', ...more }), rule({ dstPortStart: 443 })])
  expect(result).toMatchObject({ appliedRules: 1, failedRules: 1, failures: [{ ruleName: 'broken' }] })
})

test('B27: 10,000 rules are applied', async () => {
  const { vmId, tap } = newMachine()
  const rules = Array.from({ length: 10_000 }, (_, index) => rule({ id: `${index}`, name: `r${index}`, dstPortStart: 1 + index }))
  expect(await nftables.applyRules(vmId, tap, rules, [])).toMatchObject({ totalRules: 10_000, appliedRules: 10_000 })
}, 60_000)

test.each([['vmRules', [[], 'x']], ['departmentRules', [{}, []]], ['vmRules', [[], [{ name: 5 }]]]])('rules that are none: %s', async (path, rules) => {
  expect(await rejection(nftables.applyRules('vm-1', 'vnet-x', ...rules))).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path }] } })
})

test('removal by name takes only what is a machine\'s, and never rejects', async () => {
  const { vmId, chain, tap } = newMachine()
  await nftables.applyRules(vmId, tap, [], [rule()])
  const told = warning(/could not remove/)
  await nftables.removeVMChainByName('prerouting')
  expect(await told).toContain('prerouting')
  await nftables.removeVMChainByName('vm_2d62b0035f348790d3b99c33')
  expect(comments('prerouting')).toHaveLength(2)
  await nftables.removeVMChainByName(chain)
  expect(host.chains().filter((name) => name.endsWith(chain.slice(3)))).toEqual([])
})

describe('of an instance', () => {
  test('it is the same object, knows the machine and works while the instance is open', async () => {
    const instance = await openInstance()
    const service = instance.getNftablesService()
    expect(service).toBeInstanceOf(NftablesService)
    expect(instance.getNftablesService()).toBe(service)
    const bridge = await newBridge('10.66.0.1/24')
    const { vmId, tapDevice } = await running(instance, { bridge, macAddress: '52:54:00:12:34:56', firewallRules: [rule()] })
    const { chain, from } = { chain: generateVMChainName(vmId), from: generateVMChainName(vmId).replace('vm', 'from') }
    expect(await service.applyRulesIfChanged(vmId, tapDevice, [], [rule()])).toEqual({ changed: false })
    const text = JSON.stringify(host.ruleset().filter(({ rule }) => rule?.chain === from))
    expect(text).toContain('52:54:00:12:34:56')
    expect(text).toContain('10.66.0.1')
    expect(await service.applyRules(vmId, tapDevice, [], [])).toMatchObject({ totalRules: 0, chainName: chain })
    const its = () => JSON.stringify(host.ruleset().filter(({ rule }) => rule?.chain === from))
    expect(await instance.setAddresses(vmId, ['10.66.0.7', 'fd00::7'])).toMatchObject({ success: true })
    expect(its()).toMatch(/10\.66\.0\.7.*fd00::7/)
    await service.applyRules(vmId, tapDevice, [], [], 'drop', ['10.66.0.9'])
    expect(its()).toContain('10.66.0.9')
    expect(its()).not.toContain('10.66.0.7')
    expect(await rejection(service.planRules(vmId, tapDevice, [], [], 'drop', ['10.66.0.300']))).toMatchObject({ code: 'INVALID_CONFIG' })
    await instance.deleteVM(vmId, { deleteDisks: true })
    expect(await service.chainExists(chain)).toBe(false)
    await instance.shutdown()
    expect(await rejection(service.listChains())).toMatchObject({ code: 'CLOSED' })
  })
})
