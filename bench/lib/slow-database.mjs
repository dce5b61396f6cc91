// A database of a user's own that takes its time: machines that are off, and every answer after a pause.

const METHODS = [
  'findMachineByInternalName', 'findRunningVMs', 'findMachinesByStatuses', 'updateMachineStatus', 'updateMachineConfiguration',
  'transitionVMStatus', 'clearMachineConfiguration', 'clearVolatileMachineConfiguration', 'getMachineInternalName',
  'getMachineDiskPath', 'getFirewallRules', 'getFirewallRulesSplit', 'getDepartmentFirewallPolicy', 'getFirewallRuleSetId'
]

const row = (id) => ({
  id, status: 'off', name: id, internalName: id, os: 'linux', cpuCores: 1, ramGB: 1, diskSizeGB: 1, gpuPciAddress: null,
  version: 1, configuration: null, firewallRuleSet: null, department: null
})

export function slowDatabase (milliseconds) {
  const after = (answer) => new Promise((resolve) => setTimeout(resolve, milliseconds, answer))
  const nothing = METHODS.map((name) => [name, () => after(/^find\w+s$/.test(name) ? [] : null)])
  return {
    ...Object.fromEntries(nothing),
    findMachine: (id) => after({ id, status: 'off' }),
    findMachineWithConfig: (id) => after(row(id))
  }
}
