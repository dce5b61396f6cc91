'use strict'

// What becomes of machines when the Node.js process that made them ends.

const { once } = require('node:events')
const { setTimeout } = require('node:timers/promises')
const { generateVMChainName } = require('../..')
const { cleanUp, deleteAtEnd, finally_, host, machine, newBridge, newDirectory, openInstance, rejection, running, runNode, startNode } = require('../kit')

jest.setTimeout(60_000)
afterEach(cleanUp)

const settings = (stateDir) => JSON.stringify({ stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade' })

// A script that makes a machine, says its pid, and goes on as told.
const create = (stateDir, config, then = '') => `
  const { Infinization } = require('.')
  const instance = new Infinization(${settings(stateDir)})
  instance.initialize()
    .then(() => instance.createVM(${JSON.stringify(config)}))
    .then(async (vm) => { console.log('pid ' + vm.pid); ${then} })
    .catch((error) => { console.error(error); process.exitCode = 1 })
`

async function scene () {
  const stateDir = newDirectory()
  const config = machine(await newBridge())
  finally_(() => { for (const { pid } of host.processes(`guest=${config.vmId},`)) process.kill(pid, 'SIGKILL') })
  return { stateDir, config }
}

async function takeBack (stateDir, config) {
  const instance = await openInstance({ stateDir })
  deleteAtEnd(instance, config)
  return instance
}

test('F9, F29: killed, its machine runs on, and the next process owns it again', async () => {
  const { stateDir, config } = await scene()
  const { child, ended, said } = startNode(create(stateDir, config, 'setInterval(() => {}, 1000)'))
  const pid = Number((await said(/pid (\d+)/))[1])
  child.kill('SIGKILL')
  expect(await ended).toMatchObject({ signal: 'SIGKILL' })
  expect(host.isAlive(pid)).toBe(true)
  const chain = generateVMChainName(config.vmId)
  const ours = (name) => name.includes(chain.slice(3))
  expect(host.chains().filter(ours).sort()).toEqual([chain.replace('vm_', 'from_'), chain.replace('vm_', 'to_'), chain])
  expect(host.dispatched().filter(ours)).toHaveLength(2)

  const instance = await takeBack(stateDir, config)
  expect(await instance.getVMStatus(config.vmId)).toMatchObject({ status: 'running', pid, processAlive: true, consistent: true, qmpStatus: 'running' })
  expect(instance.getActiveVMs()).toEqual([config.vmId])
  const suspended = once(instance.getEventHandler(), 'vm:suspended')
  await instance.suspendVM(config.vmId)
  await suspended
  await instance.attachToRunningVM(config.vmId, (await instance.getVMStatus(config.vmId)).qmpSocketPath)
  expect(await instance.stopVM(config.vmId, { graceful: false })).toMatchObject({ success: true })
  expect(host.isAlive(pid)).toBe(false)
  expect(await rejection(instance.attachToRunningVM(config.vmId, '/run/none.sock'))).toMatchObject({ code: 'QMP_ERROR' })
})

test('F10: a process with a running machine ends by itself', async () => {
  const { stateDir, config } = await scene()
  const { code, stdout, stderr } = await runNode(create(stateDir, config, 'instance.getEventHandler().on("vm:event", () => {})'))
  expect([code, stderr]).toEqual([0, ''])
  const pid = Number(stdout.match(/pid (\d+)/)[1])
  expect(host.isAlive(pid)).toBe(true)
  const instance = await takeBack(stateDir, config)
  expect(await instance.getVMStatus(config.vmId)).toMatchObject({ status: 'running', pid })
})

test('a machine that died while nobody watched is told as a crash, once', async () => {
  const { stateDir, config } = await scene()
  const { stdout } = await runNode(create(stateDir, config))
  const pid = Number(stdout.match(/pid (\d+)/)[1])
  process.kill(pid, 'SIGKILL')
  while (host.isAlive(pid)) await setTimeout(10)
  const crud = []
  const instance = await openInstance({ stateDir, eventManager: { emitCRUD: (...args) => crud.push(args) } })
  deleteAtEnd(instance, config)
  expect(await instance.getVMStatus(config.vmId)).toMatchObject({ status: 'off', processAlive: false })
  await instance.getHealthMonitor().checkAllVMs()
  expect(await instance.startVM(config.vmId)).toMatchObject({ success: true })
  expect(crud.map(([, action]) => action).filter((action) => action === 'crash')).toHaveLength(1)
})

test('F36: a second process on the same state directory is refused, and the first goes on', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const script = `
    const { Infinization } = require('.')
    new Infinization(${settings(instance.stateDir)}).initialize().catch((error) => console.log(error.name, error.code))
  `
  expect((await runNode(script)).stdout.trim()).toBe('InfinizationError STATE_DIR_LOCKED')
  expect((await instance.getVMStatus(vmId)).status).toBe('running')
})

test('shutdown() leaves machines running; the same process takes them back', async () => {
  const first = await openInstance()
  const { vmId, pid } = await running(first)
  await first.shutdown()
  expect(host.isAlive(pid)).toBe(true)
  const second = await openInstance({ stateDir: first.stateDir })
  deleteAtEnd(second, { vmId })
  expect(await second.getVMStatus(vmId)).toMatchObject({ status: 'running', pid })
})

test('await using closes the instance', async () => {
  const { stateDir, config } = await scene()
  const script = `
    const { Infinization } = require('.')
    async function main () {
      const stack = new AsyncDisposableStack()
      const instance = stack.use(new Infinization(${settings(stateDir)}))
      await instance.initialize()
      await instance.createVM(${JSON.stringify(config)})
      await stack.disposeAsync()
      console.log(instance.isInitialized(), await instance.listVMs().catch((error) => error.code))
    }
    globalThis.AsyncDisposableStack ??= class { use (it) { this.it = it; return it } disposeAsync () { return this.it[Symbol.asyncDispose]() } }
    main()
  `
  expect((await runNode(script)).stdout.trim()).toBe('false CLOSED')
  await takeBack(stateDir, config)
})

test('F50: a worker that is terminated with calls in flight takes nothing with it', async () => {
  const { stateDir, config } = await scene()
  const script = `
    const { Worker, isMainThread } = require('node:worker_threads')
    const worker = new Worker(${JSON.stringify(create(stateDir, config, 'for (;;) await instance.getVMStatus(vm.vmId)'))}, { eval: true, stdout: true })
    worker.stdout.on('data', () => worker.terminate().then(() => console.log('ended', process.exitCode ?? 0)))
  `
  expect(await runNode(script)).toMatchObject({ code: 0, signal: null, stdout: 'ended 0\n' })
  const instance = await takeBack(stateDir, config)
  expect((await instance.getVMStatus(config.vmId)).processAlive).toBe(true)
})
