'use strict'

// What a compute node injects: an object with the 16 operations, each of which crosses to the owner of
// the database and back as JSON. A failure arrives as an error that is built on this side.

const { PrismaAdapter, PrismaAdapterError } = require('../..')

const METHODS = [
  'findMachine', 'findMachineByInternalName', 'findMachineWithConfig', 'findRunningVMs', 'findMachinesByStatuses', 'updateMachineStatus',
  'updateMachineConfiguration', 'transitionVMStatus', 'clearMachineConfiguration', 'clearVolatileMachineConfiguration',
  'getMachineInternalName', 'getMachineDiskPath', 'getFirewallRules', 'getFirewallRulesSplit', 'getDepartmentFirewallPolicy',
  'getFirewallRuleSetId'
]

class RemoteAdapter {
  constructor (client, nodeId) {
    this.owner = { client, nodeId }
  }

  async call (method, args) {
    const answer = JSON.parse(await serve(this.owner, JSON.stringify({ method, args })))
    if (!answer.error) return answer.result
    const { name, message, code, vmId } = answer.error
    throw name === 'PrismaAdapterError' ? new PrismaAdapterError(message, code, vmId) : new Error(message)
  }
}

for (const method of METHODS) {
  RemoteAdapter.prototype[method] = function (...args) { return this.call(method, args) }
}

// The owner's side of one request.
async function serve ({ client, nodeId }, request) {
  const { method, args } = JSON.parse(request)
  try {
    return JSON.stringify({ result: await new PrismaAdapter(client, nodeId)[method](...args) })
  } catch ({ name, message, code, vmId }) {
    return JSON.stringify({ error: { name, message, code, vmId } })
  }
}

module.exports = { METHODS, RemoteAdapter }
