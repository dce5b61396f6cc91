'use strict'

const { cleanUp, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

const hint = { qemuPid: 1, tapDeviceName: 'vnet-of-another', qmpSocketPath: '/run/another.sock' }

test('retryCleanup leaves alone what runs, whatever the record says', async () => {
  const instance = await openInstance()
  const vm = await running(instance)
  const monitor = instance.getHealthMonitor()
  const retried = await monitor.retryCleanup(vm.vmId, { ...hint, qemuPid: vm.pid, tapDeviceName: vm.tapDevice })
  expect(retried).toEqual({
    vmId: vm.vmId, totalResources: 0, successfulCleanups: 0, failedCleanups: 0, resources: [], timestamp: expect.any(Date)
  })
  expect(await instance.getVMStatus(vm.vmId)).toMatchObject({ status: 'running', processAlive: true, qmpStatus: 'running' })
})

test('retryCleanup of a machine that nobody knows finds nothing; the record may be left out', async () => {
  const instance = await openInstance()
  const monitor = instance.getHealthMonitor()
  for (const record of [undefined, null, {}, hint]) {
    expect(await monitor.retryCleanup('no-such-vm', record)).toMatchObject({ vmId: 'no-such-vm', totalResources: 0 })
  }
})

test.each([[5], [''], ['../x'], ['vm-1', 'text'], ['vm-1', 7]])('retryCleanup(%j, %j) is INVALID_CONFIG', async (...args) => {
  const instance = await openInstance()
  const error = await rejection(instance.getHealthMonitor().retryCleanup(...args))
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG' })
})

test('after shutdown() retryCleanup rejects with CLOSED', async () => {
  const instance = await openInstance()
  const monitor = instance.getHealthMonitor()
  await instance.shutdown()
  expect(await rejection(monitor.retryCleanup('vm-1', {}))).toMatchObject({ name: 'LifecycleError', code: 'CLOSED' })
})
