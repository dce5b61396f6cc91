'use strict'

const { existsSync } = require('node:fs')
const { cleanUp, deleteAtEnd, files, host, machine, newBridge, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

// What a machine that was never made has left: nothing but the store itself.
async function expectNothing (instance, config) {
  expect(await rejection(instance.getVMStatus(config.vmId))).toMatchObject({ code: 'VM_NOT_FOUND' })
  expect(await instance.listVMs()).toEqual([])
  expect(instance.getActiveVMs()).toEqual([])
  expect(host.processes(config.vmId)).toEqual([])
  expect(files(instance.stateDir).filter((file) => !/^(infinization\.db|lock|journals\/)/.test(file))).toEqual([])
}

// How long one create takes here, so that the moments are spread over it.
async function durationOfCreate (instance, bridge) {
  const started = performance.now()
  const { vmId } = await running(instance, { bridge })
  const duration = performance.now() - started
  await instance.deleteVM(vmId, { deleteDisks: true })
  return duration
}

test('F52: a signal that fires anywhere in a create leaves nothing, and the create can be repeated', async () => {
  const instance = await openInstance()
  const bridge = await newBridge()
  const duration = await durationOfCreate(instance, bridge)
  const config = machine(bridge)
  deleteAtEnd(instance, config)
  let aborted = 0
  for (let moment = 0; moment < 12; moment++) {
    const controller = new AbortController()
    const creating = instance.createVM(config, { signal: controller.signal })
    setTimeout(() => controller.abort(), duration * moment / 12)
    const outcome = await creating.catch((error) => error)
    if (outcome.success) {
      await instance.deleteVM(config.vmId, { deleteDisks: true })
    } else {
      aborted++
      expect(outcome).toMatchObject({ name: 'LifecycleError', code: 'ABORTED', vmId: config.vmId })
    }
    await expectNothing(instance, config)
  }
  expect(aborted).toBeGreaterThan(3)
  expect(await instance.createVM(config)).toMatchObject({ success: true })
})

test('F52: an aborted start leaves the machine as it was', async () => {
  const instance = await openInstance()
  const { vmId, diskPaths } = await running(instance)
  await instance.stopVM(vmId, { graceful: false })
  for (const delay of [0, 5, 20, 40]) {
    const outcome = await instance.startVM(vmId, { signal: AbortSignal.timeout(delay) }).catch((error) => error)
    if (outcome.success) await instance.stopVM(vmId, { graceful: false })
    else expect(outcome).toMatchObject({ name: 'LifecycleError', code: 'ABORTED', vmId })
    expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'off', processAlive: false, consistent: true })
    expect(existsSync(diskPaths[0])).toBe(true)
  }
  expect(await instance.startVM(vmId)).toMatchObject({ success: true })
})

test('F52: an aborted stop ends the wait, and the machine goes on', async () => {
  const instance = await openInstance()
  const { vmId, pid } = await running(instance)
  const error = await rejection(instance.stopVM(vmId, { graceful: true, timeout: 20_000, signal: AbortSignal.timeout(200) }))
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'ABORTED', vmId })
  expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'running', pid, consistent: true })
  expect(await instance.stopVM(vmId, { graceful: false })).toMatchObject({ success: true })
})

test('F52: a signal that fires when all is done does nothing', async () => {
  const instance = await openInstance()
  const controller = new AbortController()
  const config = machine(await newBridge())
  deleteAtEnd(instance, config)
  await instance.createVM(config, { signal: controller.signal })
  controller.abort()
  expect(await instance.getVMStatus(config.vmId)).toMatchObject({ status: 'running', processAlive: true })
})

test('what a failed create made is gone, and the failure says why', async () => {
  const instance = await openInstance()
  const config = machine('no-such-bridge')
  const error = await rejection(instance.createVM(config))
  expect(error).toMatchObject({ name: 'LifecycleError', vmId: config.vmId })
  expect([error.code, error.cause?.code, error.cause?.cause?.code]).toContain('BRIDGE_NOT_FOUND')
  await expectNothing(instance, config)
  expect(await instance.destroyVM(config.vmId)).toMatchObject({ success: true })
})
