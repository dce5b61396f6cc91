'use strict'

const { PrismaAdapterError } = require('../..')
const { cleanUp, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

const METHODS = [
  'findMachine', 'findMachineByInternalName', 'findMachineWithConfig', 'findRunningVMs', 'findMachinesByStatuses', 'updateMachineStatus',
  'updateMachineConfiguration', 'transitionVMStatus', 'clearMachineConfiguration', 'clearVolatileMachineConfiguration',
  'getMachineInternalName', 'getMachineDiskPath', 'getFirewallRules', 'getFirewallRulesSplit', 'getDepartmentFirewallPolicy',
  'getFirewallRuleSetId'
]

const rule = { id: 'r1', name: 'web', action: 'ACCEPT', direction: 'IN', priority: 100, protocol: 'tcp', dstPortStart: 80 }

let instance, store, vm
beforeEach(async () => {
  instance = await openInstance()
  store = instance.getPrismaAdapter()
  vm = await running(instance, { displayPassword: 's3cret', firewallRules: [rule] })
})

test('it has the 16 methods, called by name as a remote executor does', async () => {
  expect(METHODS.filter((method) => typeof store[method] !== 'function')).toEqual([])
  expect(instance.getPrismaAdapter()).toBe(store)
  expect(await store.findMachine.apply(store, [vm.vmId])).toEqual({ id: vm.vmId, status: 'running' })
})

test('records have the contract\'s names', async () => {
  const scanned = {
    id: vm.vmId,
    status: 'running',
    internalName: vm.vmId,
    MachineConfiguration: {
      qemuPid: vm.pid, tapDeviceName: vm.tapDevice, qmpSocketPath: vm.qmpSocketPath, guestAgentSocketPath: null, infiniServiceSocketPath: null
    }
  }
  expect(await store.findMachineByInternalName(vm.vmId)).toEqual(scanned)
  expect(await store.findRunningVMs()).toEqual([scanned])
  expect(await store.findMachinesByStatuses(['running', 'off'])).toEqual([scanned])
  expect(await store.findMachinesByStatuses([])).toEqual([])
  const record = await store.findMachineWithConfig(vm.vmId)
  expect(record).toMatchObject({
    id: vm.vmId, status: 'running', name: 'A test machine', internalName: vm.vmId, os: 'linux', cpuCores: 1, ramGB: 0.5, diskSizeGB: 1,
    gpuPciAddress: null, department: null, version: expect.any(Number)
  })
  expect(Object.keys(record.configuration)).toHaveLength(28)
  expect(record.configuration).toMatchObject({
    qemuPid: vm.pid, graphicProtocol: 'vnc', graphicPort: vm.displayPort, graphicPassword: 's3cret', diskPaths: vm.diskPaths, memoryBalloon: false
  })
  const stored = {
    ...rule, description: null, srcPortStart: null, srcPortEnd: null, dstPortEnd: null, srcIpAddr: null, srcIpMask: null, dstIpAddr: null,
    dstIpMask: null, connectionState: null, overridesDept: false
  }
  expect(record.firewallRuleSet).toMatchObject({ id: expect.any(String), isActive: true, rules: [stored] })
  expect(await store.getFirewallRules(vm.vmId)).toEqual([stored])
  expect(await store.getFirewallRulesSplit(vm.vmId)).toEqual({ departmentRules: [], vmRules: [stored] })
  expect(await store.getFirewallRuleSetId(vm.vmId)).toBe(record.firewallRuleSet.id)
  expect(await store.getDepartmentFirewallPolicy(vm.vmId)).toBeNull()
  expect(await store.getMachineInternalName(vm.vmId)).toBe(vm.vmId)
  expect(await store.getMachineDiskPath(vm.vmId)).toBe(`/var/lib/infinization/disks/${vm.vmId}.qcow2`)
})

test('what does not exist is null, or MACHINE_NOT_FOUND where the contract has that', async () => {
  for (const method of ['findMachine', 'findMachineByInternalName', 'findMachineWithConfig', 'getMachineInternalName', 'getMachineDiskPath']) {
    expect([method, await store[method]('no-such-vm')]).toEqual([method, null])
  }
  for (const method of ['getFirewallRules', 'getFirewallRulesSplit']) {
    const error = await rejection(store[method]('no-such-vm'))
    expect(error).toBeInstanceOf(PrismaAdapterError)
    expect(error).toMatchObject({ name: 'PrismaAdapterError', code: 'MACHINE_NOT_FOUND' })
  }
})

test('writes: a status unless it is one of those, a part of the configuration, a transition', async () => {
  const { vmId } = vm
  expect(await store.updateMachineStatus(vmId, 'backing_up')).toBeUndefined()
  await store.updateMachineStatus(vmId, 'off', { onlyIfNotIn: ['backing_up', 'error'] })
  expect(await store.findMachine(vmId)).toEqual({ id: vmId, status: 'backing_up' })
  await store.updateMachineStatus('no-such-vm', 'off')
  await store.updateMachineConfiguration(vmId, { bridge: 'br9', networkQueues: 2, cpuPinning: { cores: [0] }, graphicHost: null, isNotGiven: undefined })
  const { configuration, version } = await store.findMachineWithConfig(vmId)
  expect(configuration).toMatchObject({ bridge: 'br9', networkQueues: 2, cpuPinning: { cores: [0] }, graphicHost: null, graphicProtocol: 'vnc' })
  expect(await store.transitionVMStatus(vmId, 'backing_up', 'running', version)).toMatchObject({
    success: true, newVersion: version + 1, vmConfig: { id: vmId, status: 'running', version: version + 1 }
  })
  expect(await rejection(store.transitionVMStatus(vmId, 'running', 'off', version))).toMatchObject({ name: 'PrismaAdapterError', code: 'VERSION_CONFLICT' })
  expect(await rejection(store.transitionVMStatus(vmId, 'off', 'starting', version + 1))).toMatchObject({ code: 'UPDATE_FAILED' })
  await store.clearVolatileMachineConfiguration(vmId)
  expect((await store.findRunningVMs())[0].MachineConfiguration).toMatchObject({ qemuPid: null, qmpSocketPath: null, tapDeviceName: vm.tapDevice })
  await store.clearMachineConfiguration(vmId)
  expect((await store.findRunningVMs())[0].MachineConfiguration.tapDeviceName).toBeNull()
})

test.each([
  ['updateMachineConfiguration', ['', {}]], ['updateMachineConfiguration', ['vm-1', { qemuPid: 'x' }]], ['updateMachineConfiguration', ['vm-1', { xml: 'x' }]],
  ['updateMachineConfiguration', ['vm-1']], ['updateMachineStatus', ['vm-1', 5]], ['findMachine', [undefined]], ['findMachinesByStatuses', ['running']],
  ['transitionVMStatus', ['vm-1', 'off', 'running', '1']]
])('%s(%j) is INVALID_INPUT', async (method, args) => {
  expect(await rejection(store[method](...args))).toMatchObject({ name: 'PrismaAdapterError', code: 'INVALID_INPUT' })
})

test('after shutdown() it cannot be reached', async () => {
  await instance.deleteVM(vm.vmId, { deleteDisks: true })
  await instance.shutdown()
  expect(await rejection(store.findMachine(vm.vmId))).toMatchObject({ name: 'PrismaAdapterError', code: 'DB_CONNECTION_ERROR' })
})
