'use strict'

const { FirewallRuleTranslator: Translator, FirewallTranslationError, MacAddressGenerator, generateVMChainName } = require('../..')

const rule = (more) => ({ id: 'r1', name: 'n', action: 'ACCEPT', direction: 'OUT', priority: 1, protocol: 'tcp', ...more })

function thrown (call) {
  try {
    call()
  } catch (error) {
    return error
  }
  throw new Error('it did not throw')
}

test.each([
  [
    rule({ srcPortStart: 1000, srcPortEnd: 2000, dstPortStart: 22 }),
    'iifname vnet-x ip protocol tcp tcp sport 1000-2000 tcp dport 22 accept comment "n"'
  ],
  [
    rule({ direction: 'IN', protocol: 'all', srcIpAddr: '10.0.0.5', srcIpMask: '255.255.255.0', dstIpAddr: '1.2.3.4' }),
    'oifname vnet-x ip saddr 10.0.0.5/24 ip daddr 1.2.3.4 accept comment "n"'
  ],
  [
    rule({ action: 'DROP', protocol: 'ICMP', connectionState: { invalid: true, new: true }, name: 'say "no"' }),
    'iifname vnet-x ip protocol icmp ct state { new, invalid } drop comment "say \'no\'"'
  ]
])('the golden tokens %#', (given, tokens) => {
  expect(Translator.translateToTokens(given, 'vnet-x').join(' ')).toBe(tokens)
})

test('the parts by themselves', () => {
  expect(Translator.translateDirectionToTokens('IN', 'vnet-x')).toEqual(['oifname', 'vnet-x'])
  expect(Translator.translateProtocolToTokens('all')).toEqual([])
  expect(Translator.translateProtocolToTokens(null)).toEqual([])
  expect(Translator.translatePortsToTokens('udp', null, undefined, 53, 53)).toEqual(['udp', 'dport', '53'])
  expect(Translator.translateIpAddressesToTokens('10.0.0.1', '8')).toEqual(['ip', 'saddr', '10.0.0.1/8'])
  expect(Translator.translateConnectionStateToTokens({ established: true })).toEqual(['ct', 'state', 'established'])
  expect(Translator.translateConnectionStateToTokens()).toEqual([])
  expect(Translator.translateAction('REJECT')).toBe('reject')
  expect(Translator.validateRule(rule({ direction: 'INOUT' }))).toBeUndefined()
})

test.each([
  ['B24: ports with icmp', { protocol: 'icmp', dstPortStart: 1 }, 'RULE_INVALID'],
  ['B24: start after end', { dstPortStart: 9, dstPortEnd: 1 }, 'INVALID_PORT_RANGE'],
  ['B24: port 65536', { dstPortStart: 65536 }, 'INVALID_PORT_RANGE'],
  ['B24: port 1.5', { dstPortStart: 1.5 }, 'INVALID_PORT_RANGE'],
  ['B25: mask 33', { srcIpAddr: '10.0.0.0', srcIpMask: '33' }, 'INVALID_SUBNET_MASK'],
  ['B25: leading zeros', { srcIpAddr: '010.0.0.1' }, 'INVALID_IP_ADDRESS'],
  ['B29: an unknown action', { action: 'allow' }, 'RULE_INVALID'],
  ['B29: an unknown direction', { direction: 'in' }, 'RULE_INVALID'],
  ['B30: no state set', { connectionState: { new: false } }, 'RULE_INVALID'],
  ['an unknown protocol', { protocol: 'gre' }, 'UNSUPPORTED_PROTOCOL'],
  ['B26: no name', { name: '' }, 'RULE_INVALID']
])('%s', (_, more, code) => {
  const error = thrown(() => Translator.validateRule(rule(more)))
  expect(error).toBeInstanceOf(FirewallTranslationError)
  expect(error).toBeInstanceOf(Error)
  expect(error).toMatchObject({ name: 'FirewallTranslationError', code, ruleId: 'r1' })
  expect(error.message).toMatch(/^\[Rule r1\] /)
  expect(error.stack).toContain(__filename)
})

test('B26: a TAP name is never spliced', () => {
  expect(thrown(() => Translator.translateToTokens(rule(), 'vnet-x; flush ruleset')).code).toBe('RULE_INVALID')
})

test.each([[undefined], [null], ['rule'], [5n], [{ id: 7 }]])('%p is no rule', (given) => {
  expect(thrown(() => Translator.validateRule(given))).toMatchObject({ name: 'FirewallTranslationError', code: 'RULE_INVALID' })
})

test('addresses, CIDRs and masks', () => {
  expect(['10.0.0.1', '010.0.0.1', '::1'].map((text) => Translator.isValidIpAddress(text))).toEqual([true, false, false])
  expect(['10.0.0.0/24', '10.0.0.0/33'].map((text) => Translator.isValidCidr(text))).toEqual([true, false])
  expect(['255.255.0.0', '24', '255.0.255.0'].map((text) => Translator.isValidSubnetMask(text))).toEqual([true, true, false])
})

test('the names that are cut from an id', () => {
  expect(generateVMChainName('vm-1')).toBe('vm_2d62b0035f348790d3b99c33')
  expect(MacAddressGenerator.generateFromVmId('vm-1')).toBe('52:54:2d:62:b0:03')
  expect(thrown(() => generateVMChainName('../x'))).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG' })
})

test('MAC addresses', () => {
  const mac = MacAddressGenerator.generate()
  expect(mac).toMatch(/^52:54(:[0-9a-f]{2}){4}$/)
  expect(mac).not.toBe(MacAddressGenerator.generate())
  expect([mac, 'AA:bb:CC:00:11:22', 'aa-bb', ''].map((text) => MacAddressGenerator.validate(text))).toEqual([true, true, false, false])
  expect([mac, 'aa:bb:cc:00:11:22'].map((text) => MacAddressGenerator.isQemuMac(text))).toEqual([true, false])
})
