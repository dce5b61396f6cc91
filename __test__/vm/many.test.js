'use strict'

const { generateVMChainName } = require('../..')
const { cleanUp, deleteAtEnd, files, host, machine, newBridge, openInstance, rejection, running } = require('../kit')

jest.setTimeout(60_000)
afterEach(cleanUp)

test('eight machines are created at once, each with its own of everything', async () => {
  const instance = await openInstance()
  const bridge = await newBridge()
  const configs = Array.from({ length: 8 }, () => machine(bridge))
  for (const config of configs) deleteAtEnd(instance, config)
  const created = await Promise.all(configs.map((config) => instance.createVM(config)))
  for (const key of ['pid', 'displayPort', 'tapDevice', 'qmpSocketPath']) {
    expect([key, new Set(created.map((vm) => vm[key])).size]).toEqual([key, 8])
  }
  expect((await instance.listVMs()).map(({ status, processAlive }) => [status, processAlive])).toEqual(Array(8).fill(['running', true]))
  expect(instance.getActiveVMs().sort()).toEqual(configs.map(({ vmId }) => vmId).sort())
  await Promise.all(configs.map(({ vmId }) => instance.stopVM(vmId, { graceful: false })))
  expect(created.filter(({ pid }) => host.isAlive(pid))).toEqual([])
})

test('F34: 50 starts of one machine make one QEMU', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  await instance.stopVM(vmId, { graceful: false })
  const results = await Promise.all(Array.from({ length: 50 }, () => instance.startVM(vmId)))
  expect(results.every(({ success }) => success)).toBe(true)
  expect(host.processes(`guest=${vmId},`)).toHaveLength(1)
})

test('F35: start, stop and delete at once end as some order of them would', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const outcomes = await Promise.allSettled([
    instance.stopVM(vmId, { graceful: false }), instance.startVM(vmId), instance.suspendVM(vmId), instance.resetVM(vmId),
    instance.deleteVM(vmId, { deleteDisks: true }), instance.startVM(vmId)
  ])
  for (const { reason } of outcomes.filter(({ status }) => status === 'rejected')) {
    // A verb that hangs is ended by a forced stop that waits behind it.
    expect(['INVALID_STATE', 'VM_NOT_FOUND', 'START_FAILED', 'ABORTED']).toContain(reason.code)
  }
  expect(host.processes(`guest=${vmId},`)).toEqual([])
  expect(await instance.listVMs()).toEqual([])
})

test('a forced stop interrupts a graceful one that the guest ignores', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const graceful = instance.stopVM(vmId, { graceful: true, timeout: 50_000, force: false })
  const forced = instance.stopVM(vmId, { graceful: false, force: true })
  expect(await forced).toMatchObject({ success: true })
  expect(await graceful).toMatchObject({ success: true })
  expect((await instance.getVMStatus(vmId)).status).toBe('off')
})

test('F38: a guest that ignores the button: TIMEOUT without force, and it is as it was; forced with', async () => {
  const instance = await openInstance()
  const { vmId, pid } = await running(instance)
  const error = await rejection(instance.stopVM(vmId, { graceful: true, timeout: 500, force: false }))
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'TIMEOUT', vmId })
  expect(await instance.getVMStatus(vmId)).toMatchObject({ status: 'running', pid, consistent: true })
  expect(await instance.stopVM(vmId, { graceful: true, timeout: 500 })).toMatchObject({ success: true, forced: true })
})

test('planVM tells everything and does nothing', async () => {
  const instance = await openInstance()
  const config = machine(await newBridge(), { displayPassword: 'hunter2' })
  const plan = await instance.planVM(config)
  expect(plan).toMatchObject({ operation: 'create', vmId: config.vmId, warnings: expect.any(Array) })
  const steps = plan.stages.flat()
  expect(steps.map(({ action }) => action)).toEqual(expect.arrayContaining(['createDisk', 'createTap', 'loadFirewall', 'spawnQemu', 'continue']))
  const { binary, args } = steps.find(({ action }) => action === 'spawnQemu')
  expect(binary).toBe('qemu-system-x86_64')
  expect(args).toEqual(expect.arrayContaining(['-sandbox', '-blockdev', '-S']))
  expect(JSON.stringify(plan)).not.toContain('hunter2')
  expect(JSON.parse(JSON.stringify(plan))).toEqual(plan)
  const { tap } = steps.find(({ action }) => action === 'createTap')
  expect(host.links()).not.toContain(tap)
  expect(host.chains()).not.toContain(generateVMChainName(config.vmId))
  expect(await instance.listVMs()).toEqual([])
  expect(files(instance.stateDir).filter((file) => !/^(infinization\.db|lock|journals\/)/.test(file))).toEqual([])
})

test('F2: a QEMU that ends while starting is told with its own words', async () => {
  const instance = await openInstance()
  const config = machine(await newBridge(), { machineType: 'q35', cpuModel: 'no-such-cpu' })
  const error = await rejection(instance.createVM(config))
  expect(error).toMatchObject({ name: 'LifecycleError', vmId: config.vmId })
  const chain = [error, error.cause, error.cause?.cause].filter(Boolean)
  expect(chain.map(({ code }) => code).join()).toMatch(/CREATE_FAILED.*QEMU_START_FAILED|INVALID_CONFIG/)
  expect(await instance.listVMs()).toEqual([])
})
