'use strict'

// Services by name, as generators of firewall rules. The ports and the rules are the core's.

const native = require('./native')
const { tracedFunction } = require('./traced')

const rulesOf = tracedFunction(native, 'firewallPreset')

const preset = (service) => (options = {}) => rulesOf(service, options)

const firewallPresets = Object.freeze({
  ssh: preset('ssh'),
  http: preset('http'),
  https: preset('https'),
  rdp: preset('rdp'),
  vnc: preset('vnc')
})

// A service of one's own: what makes no sense is refused here, and what was given is kept.
function defineFirewallPreset (service) {
  rulesOf(service, {})
  return preset(structuredClone(service))
}

module.exports = { defineFirewallPreset, firewallPresets }
