'use strict'

const { once } = require('node:events')
const { readFileSync, statSync } = require('node:fs')
const path = require('node:path')
const { cleanUp, deleteAtEnd, files, host, machine, newBridge, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

const PASSWORD = 'k3yB0ard'

test.each(['vnc', 'spice'])('the display password of %s is nowhere but in the store', async (displayType) => {
  const told = []
  const instance = await openInstance({ eventManager: { emitCRUD: (...args) => told.push(args) } })
  const reading = (async () => { for await (const event of instance.events()) told.push(event) })()
  const { vmId, pid, ...created } = await running(instance, { bridge: await newBridge('10.67.0.1/24'), displayType, displayPassword: PASSWORD })
  told.push(created, await instance.getVM(vmId), await instance.listVMs(), await instance.getVMStatus(vmId))
  const qmp = instance.getQMPClient(vmId)
  qmp.on('event', (event) => told.push(event))
  expect(await qmp.execute(displayType === 'vnc' ? 'query-vnc' : 'query-spice')).toMatchObject({ enabled: true, auth: displayType })

  for (const file of ['cmdline', 'environ']) expect(host.read(`/proc/${pid}/${file}`)).not.toContain(PASSWORD)
  const crashed = once(instance.getHealthMonitor(), 'crash')
  process.kill(pid, 'SIGKILL')
  await crashed
  await instance.startVM(vmId)
  expect(host.read(`/proc/${(await instance.getVMStatus(vmId)).pid}/cmdline`)).not.toContain(PASSWORD)
  told.push(await rejection(instance.createVM({ ...created.config, displayPassword: PASSWORD })))

  const holders = files(instance.stateDir).filter((file) => readFileSync(path.join(instance.stateDir, file)).includes(PASSWORD))
  for (const file of holders) expect(file).toMatch(/^infinization\.db/)
  for (const file of files(instance.stateDir).filter((file) => file.startsWith('infinization.db'))) {
    expect([file, statSync(path.join(instance.stateDir, file)).mode & 0o777]).toEqual([file, 0o600])
  }
  const { configuration } = await instance.getPrismaAdapter().findMachineWithConfig(vmId)
  expect(configuration.graphicPassword).toBe(PASSWORD)
  await instance.deleteVM(vmId, { deleteDisks: true })
  await instance.shutdown()
  await reading
  delete created.config
  told.forEach((it) => { if (it.config) delete it.config })
  expect(textOf(told)).not.toContain(PASSWORD)
})

test('a refused password is not repeated', async () => {
  const instance = await openInstance()
  const bridge = await newBridge()
  for (const more of [{ displayPassword: `${PASSWORD}${PASSWORD}` }, { displayPassword: [PASSWORD] }, { displayPassword: PASSWORD, bridge: 'none' }]) {
    const error = await rejection(instance.createVM(machine(bridge, more)))
    expect(textOf([error])).not.toContain(PASSWORD)
  }
})

test('an off-host display without a password is refused', async () => {
  const instance = await openInstance()
  const error = await rejection(instance.createVM(machine(await newBridge(), { displayAddr: '0.0.0.0' })))
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'displayPassword' }] } })
})

test('a display with a password listens where nobody could without', async () => {
  const instance = await openInstance()
  const config = machine(await newBridge(), { displayAddr: '0.0.0.0', displayPassword: PASSWORD })
  deleteAtEnd(instance, config)
  const { displayPort } = await instance.createVM(config)
  expect(await instance.getVM(config.vmId)).toMatchObject({ displayAddr: '0.0.0.0', displayPort })
})

test('B33: a display address that is not on this host', async () => {
  const instance = await openInstance()
  const config = machine(await newBridge(), { displayAddr: '192.0.2.9' })
  const error = await rejection(instance.createVM(config))
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'displayPassword' }] } })
  expect(await instance.listVMs()).toEqual([])
  deleteAtEnd(instance, config)
  const { warnings, displayPort } = await instance.createVM({ ...config, displayPassword: PASSWORD })
  expect(warnings).toEqual([expect.stringMatching(/displayAddr 192\.0\.2\.9 is not on this host/)])
  expect(host.run('ss', '-Htln', `sport = :${displayPort}`)).toContain(`0.0.0.0:${displayPort}`)
})

test('B33: a display address that is a name of no host', async () => {
  const instance = await openInstance()
  const config = machine(await newBridge(), { displayAddr: 'desktops.invalid', displayPassword: PASSWORD })
  const error = await rejection(instance.createVM(config))
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'displayAddr' }] } })
  expect(await instance.listVMs()).toEqual([])
})

// Everything an object says, its errors' hidden parts too.
function textOf (things) {
  const seen = new Set()
  const text = []
  const walk = (it) => {
    if (typeof it === 'string') text.push(it)
    if (typeof it !== 'object' || it === null || seen.has(it)) return
    seen.add(it)
    for (const key of Reflect.ownKeys(it)) walk(it[key])
  }
  walk(things)
  return text.join('\n')
}
