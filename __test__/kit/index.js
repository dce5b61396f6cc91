'use strict'

// Sentences for the tests.

const { execFile, spawn } = require('node:child_process')
const { randomBytes } = require('node:crypto')
const { existsSync, mkdtempSync, readdirSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { BridgeManager, Infinization, generateVMChainName } = require('../..')
const host = require('./host')
const { guestDir, root } = require('./root')

const undo = []
const names = new Set()
const warnings = []
// What every test may warn of: kernels without connection tracking for bridges are common.
const alwaysExpected = [/^this kernel cannot track connections on bridges/]
let expected = []
// Where the machines of this file look for a display port. Two files run at once: in one range they would now and then
// take a port from each other, and a launch that has to take another one claims the row and starts QEMU once more.
const firstPort = 5900 + 20 * (Number(process.env.JEST_WORKER_ID) - 1)

// The library's warnings; what a test did not expect is shown.
const { emitWarning } = process
process.emitWarning = (message, ...rest) => {
  const ours = rest[0] === 'InfinizationWarning'
  if (!ours || ![...alwaysExpected, ...expected].some((pattern) => pattern.test(message))) {
    return emitWarning.call(process, message, ...rest)
  }
  warnings.push(message)
  process.emit('a warning that was expected')
}

// Expects a warning in this test; a promise of its text.
function warning (pattern) {
  expected.push(pattern)
  return new Promise((resolve) => {
    process.on('a warning that was expected', function look () {
      const found = warnings.find((text) => pattern.test(text))
      if (found === undefined) return
      process.off('a warning that was expected', look)
      resolve(found)
    })
  })
}

// Runs when the test ends, the latest first.
function finally_ (step) {
  undo.push(step)
}

const unique = (prefix) => `${prefix}-${randomBytes(3).toString('hex')}`

// A directory with a short name: a unix socket's path has at most 107 bytes.
function newDirectory () {
  const directory = mkdtempSync(path.join(tmpdir(), 'infz-test-'))
  names.add(directory)
  finally_(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

// An instance of its own under a directory of its own; both go when the test ends.
function newInstance (config = {}) {
  const stateDir = config.stateDir ?? newDirectory()
  const instance = new Infinization({
    stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade', ...config
  })
  instance.stateDir = stateDir
  finally_(() => instance.shutdown())
  return instance
}

async function openInstance (config) {
  const instance = newInstance(config)
  await instance.initialize()
  return instance
}

// A bridge of its own, without an address.
async function newBridge (address) {
  const [bridges, name] = [new BridgeManager(), unique('br')]
  await bridges.create(name)
  names.add(name)
  finally_(() => bridges.destroy(name))
  if (address) await bridges.assignIP(name, address)
  return name
}

// The configuration of a small machine; its id is its internal name. It boots nothing by itself.
function machine (bridge, more = {}) {
  const vmId = more.vmId ?? unique('vm')
  expectGone(vmId)
  return {
    vmId, internalName: vmId, name: 'A test machine', os: 'linux', cpuCores: 1, ramGB: 0.5,
    disks: [{ sizeGB: 1 }], bridge, displayType: 'vnc', displayPort: firstPort, ...more
  }
}

// A disk with the tiny guest on it.
const guestDisk = () => ({ sizeGB: 1, backingFile: path.join(guestDir, 'tiny.qcow2') })

// From now on the test's end looks for what this machine may have left.
function expectGone (vmId) {
  const chain = generateVMChainName(vmId)
  for (const name of [vmId, chain.slice(3), `vnet-${chain.slice(3, 13)}`]) names.add(name)
}

// A running machine, which is deleted when the test ends.
async function running (instance, more) {
  const config = machine(more?.bridge ?? await newBridge(), more)
  deleteAtEnd(instance, config)
  return { config, ...await instance.createVM(config) }
}

// Whether the machine exists then or not.
function deleteAtEnd (instance, { vmId }) {
  finally_(() => instance.deleteVM(vmId, { deleteDisks: true }).catch((error) => {
    if (!['VM_NOT_FOUND', 'CLOSED'].includes(error.code)) throw error
  }))
}

// Undoes what the test made, then looks whether anything of it is left on the host.
async function cleanUp () {
  const failures = []
  for (const step of undo.splice(0).reverse()) {
    try {
      await step()
    } catch (error) {
      failures.push(error)
    }
  }
  const left = traces([...names])
  names.clear()
  warnings.length = 0
  expected = []
  if (failures.length > 0) throw new AggregateError(failures, failures.map(String).join('; '))
  if (left.length > 0) throw new Error(`left behind: ${left.join(', ')}`)
}

// What bears one of these names.
function traces (wanted) {
  const bears = (text) => wanted.some((name) => text.includes(name))
  return [
    ...host.links().filter(bears).map((name) => `link ${name}`),
    ...host.chains().filter(bears).map((name) => `chain ${name}`),
    ...host.dispatched().filter(bears).map((name) => `element ${name}`),
    ...host.cgroups().filter(bears).map((name) => `cgroup ${name}`),
    ...wanted.flatMap((name) => host.sockets(name)).map((line) => `socket ${line}`),
    ...wanted.flatMap((name) => host.processes(name)).map(({ pid, words }) => `process ${pid} ${words[0]}`),
    ...wanted.filter((name) => name.startsWith('/') && existsSync(name))
  ]
}

// All files below a directory, without it in front.
const files = (directory) => readdirSync(directory, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name))).sort()

// What a call rejects with; the test fails when it does not reject.
async function rejection (promise) {
  return promise.then(
    (value) => { throw new Error(`resolved with ${JSON.stringify(value)}`) },
    (error) => error
  )
}

// The scripts of tests warn of this kernel, too.
const quietly = { ...process.env, NODE_NO_WARNINGS: '1' }

// Runs a script in a Node.js of its own and tells how that ended. `under` is the command line of a program that runs it.
function runNode (script, { timeout = 20000, env = quietly, under = [] } = {}) {
  const [program, ...args] = [...under, process.execPath, '-e', script]
  return new Promise((resolve) => {
    execFile(program, args, { cwd: root, timeout, env }, (error, stdout, stderr) => {
      resolve({ code: error ? error.code : 0, signal: error?.signal ?? null, stdout, stderr })
    })
  })
}

// Starts a script in a Node.js of its own. `said(pattern)` waits for a line it prints.
function startNode (script) {
  const child = spawn(process.execPath, ['-e', script], { cwd: root, env: quietly, stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })))
  finally_(async () => { child.kill('SIGKILL'); await ended })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk) => { text += chunk })
  const said = (pattern) => new Promise((resolve, reject) => {
    const look = () => {
      const match = text.match(pattern)
      if (match) resolve(match)
    }
    child.stdout.on('data', look)
    child.on('exit', () => reject(new Error(`it ended without saying ${pattern}: ${text}`)))
    look()
  })
  return { child, ended, said }
}

// A promise of the next event, or of the first one that `wanted` takes.
function next (emitter, name, wanted = () => true) {
  return new Promise((resolve) => {
    emitter.on(name, function listener (payload) {
      if (!wanted(payload)) return
      emitter.off(name, listener)
      resolve(payload)
    })
  })
}

module.exports = {
  cleanUp,
  deleteAtEnd,
  expectGone,
  files,
  finally_,
  guestDir,
  guestDisk,
  host,
  machine,
  newBridge,
  newDirectory,
  newInstance,
  next,
  openInstance,
  rejection,
  root,
  runNode,
  running,
  startNode,
  unique,
  warning
}
