'use strict'

// What the library logs: warnings reach the process by themselves, the rest is asked for by DEBUG.

const { EventEmitter } = require('node:events')
const { mkdirSync } = require('node:fs')
const path = require('node:path')
const { cleanUp, deleteAtEnd, machine, newBridge, newDirectory, openInstance, runNode, warning } = require('../kit')
const { Withheld, route } = require('../../js/events')

afterEach(cleanUp)

// A script's environment: without what the kit sets, and with `more`.
function environment (more = {}) {
  const { NODE_NO_WARNINGS, DEBUG, ...rest } = process.env
  return { ...rest, ...more }
}

// A script that opens an instance, does `then` with it, and closes it.
const opened = (config, then = '') => `
  const { Infinization } = require('.')
  const instance = new Infinization(${JSON.stringify({ stateDir: newDirectory(), accelerator: 'tcg', bridgeConntrackMode: 'degrade', ...config })})
  instance.initialize()
    .then(async () => { ${then} })
    .finally(() => instance.shutdown())
    .catch((error) => { console.log('failed: ' + error); process.exitCode = 1 })
`

const told = `process.on('warning', ({ name, message }) => console.log(name + ': ' + message));`

describe('warnings', () => {
  test('B21: an unknown key of the configuration is told to the process', async () => {
    const { code, stdout, stderr } = await runNode(told + opened({ stateDri: '/srv', hostServices: [{ protocol: 'tcp', port: 1, prot: 'x' }] }), { env: environment() })
    expect(code).toBe(0)
    expect(stdout).toContain('InfinizationWarning: stateDri is not an option and has no effect\n')
    expect(stdout).toContain('InfinizationWarning: hostServices[0].prot is not an option and has no effect\n')
    expect(stderr).toContain('InfinizationWarning: stateDri')
  })

  test('NODE_NO_WARNINGS silences them, and a process that has nothing to do ends', async () => {
    const { code, stdout, stderr } = await runNode(opened({ stateDri: '/srv' }), { env: environment({ NODE_NO_WARNINGS: '1' }) })
    expect([code, stdout, stderr]).toEqual([0, '', ''])
  })

  test('they are the main thread\'s, whichever thread loaded the library last', async () => {
    const script = `
      ${told}
      require('.')
      const { Worker } = require('node:worker_threads')
      const worker = new Worker(${JSON.stringify(opened({ stateDri: '/srv' }))}, { eval: true, stderr: true })
      worker.stderr.resume()
    `
    expect((await runNode(script, { env: environment() })).stdout).toContain('InfinizationWarning: stateDri')
  })

  test('a worker that warned and ended takes nothing with it', async () => {
    const script = `
      const { Worker } = require('node:worker_threads')
      const run = (number) => new Promise((resolve) => new Worker(
        ${JSON.stringify(opened({ stateDri: '/srv' }))}.replace('stateDri', 'stateDri' + number), { eval: true, stderr: true }
      ).on('exit', resolve).stderr.on('data', (text) => console.log(number, String(text))))
      run(1).then(() => run(2)).then((code) => console.log('ended', code))
    `
    const { stdout } = await runNode(script, { env: environment() })
    expect(stdout).toMatch(/^1 .*stateDri1/m)
    expect(stdout).toMatch(/^2 .*stateDri2/m)
    expect(stdout).toContain('ended 0')
  })

  test('emitWarning that throws stops nothing', async () => {
    const { code, stdout } = await runNode(
      `process.emitWarning = () => { throw new Error('no') };${opened({ stateDri: '/srv' }, "console.log('open')")}`, { env: environment() }
    )
    expect([code, stdout]).toEqual([0, 'open\n'])
  })
})

describe('DEBUG', () => {
  const line = /^\[\d{4}-\d\d-\d\dT[\d:.]+Z\] (DEBUG|INFO|WARN|ERROR) infinization:\w+ \S/

  test.each([['infinization'], ['infinization:*'], ['*'], ['express:*, infinization:manager']])('%s prints the log to stderr', async (DEBUG) => {
    const stateDir = newDirectory()
    // Something that a machine has left.
    mkdirSync(path.join(stateDir, 'vms/vm-1'), { recursive: true })
    const { code, stderr } = await runNode(opened({ stateDir }), { env: environment({ DEBUG, NODE_NO_WARNINGS: '1' }) })
    expect(code).toBe(0)
    const lines = stderr.trim().split('\n')
    expect(lines.filter((text) => !line.test(text))).toEqual([])
    expect(lines.some((text) => text.includes('DEBUG infinization:manager looked after'))).toBe(true)
  })

  test.each([[''], ['express:*'], ['infinization:*:error'], ['*,-infinization']])('"%s" prints nothing', async (DEBUG) => {
    const { stderr } = await runNode(opened(), { env: environment({ DEBUG, NODE_NO_WARNINGS: '1' }) })
    expect(stderr).toBe('')
  })

  test('no secret is in it', async () => {
    const secret = 'k3yB0ard'
    const config = machine(await newBridge(), { displayPassword: secret })
    const script = opened({}, `
      const config = ${JSON.stringify(config)}
      await instance.createVM(config)
      await instance.suspendVM(config.vmId)
      await instance.createVM({ ...config, displayPassword: [config.displayPassword] }).catch(() => {})
      await instance.createVM(config).catch(() => {})
      await instance.stopVM(config.vmId, { graceful: false })
      await instance.startVM(config.vmId)
      await instance.deleteVM(config.vmId, { deleteDisks: true })
    `)
    const { code, stdout, stderr } = await runNode(script, { env: environment({ DEBUG: 'infinization' }) })
    expect([code, stdout]).toEqual([0, ''])
    expect(stderr).toMatch(/infinization:\w+/)
    expect(stderr).not.toContain(secret)
  })
})

describe('B21: unknown keys', () => {
  test('createVM and planVM answer with them', async () => {
    const instance = await openInstance()
    const config = machine(await newBridge(), { cpuCoers: 4, disks: [{ sizeGB: 1, size: 2 }] })
    const warnings = [expect.stringMatching(/^disks\[0\]\.size is not an option/), expect.stringMatching(/^cpuCoers is not an option/)]
    expect((await instance.planVM(config)).warnings).toEqual(warnings)
    deleteAtEnd(instance, config)
    expect((await instance.createVM(config)).warnings).toEqual(warnings)
  })

  test('the options of deleteVM and guestExec are warned about', async () => {
    const instance = await openInstance()
    const told = [warning(/^deleteVM: deleteDisk /), warning(/^guestExec: timeuot /)]
    await instance.deleteVM('vm-1', { deleteDisk: true }).catch(() => {})
    await instance.guestExec('vm-1', '/run/none.sock', 'ls', [], { timeuot: 1 }).catch(() => {})
    expect(await Promise.all(told)).toEqual([
      'deleteVM: deleteDisk is not an option and has no effect (vm: vm-1)',
      'guestExec: timeuot is not an option and has no effect (vm: vm-1)'
    ])
  })
})

describe('F49: an error that nobody listens for', () => {
  const source = { eventHandler: 'the event handler', healthMonitor: 'the health monitor' }

  test.each(Object.keys(source))('of %s does not throw; it is a warning', async (name) => {
    const owner = {
      emitter: new EventEmitter(),
      eventHandler: new EventEmitter(),
      isTold: () => true,
      healthMonitor: new EventEmitter(),
      streams: new Set(),
      withheld: new Withheld()
    }
    const error = { source: name, kind: 'error', vmId: 'vm-1', data: { vmId: 'vm-1', error: 'the database is gone' } }
    const told = warning(/the database is gone/)
    route(owner, JSON.stringify([error]))
    expect(await told).toContain('vm-1')
    const heard = []
    owner[name].on('error', (payload) => heard.push(payload))
    route(owner, JSON.stringify([error]))
    expect(heard).toEqual([error.data])
  })
})
