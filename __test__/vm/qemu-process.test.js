'use strict'

const { existsSync, readFileSync, writeFileSync } = require('node:fs')
const net = require('node:net')
const path = require('node:path')
const { QMPClient, QemuCommandBuilder, QemuProcess } = require('../..')
const { cleanUp, finally_, host, newDirectory, rejection, runNode, unique } = require('../kit')
const { newQemu } = require('../kit/qemu')

afterEach(cleanUp)

// A QEMU with its CPUs stopped; it is gone when the test ends.
function newProcess ({ daemonize = false, token = true, args = [], name = unique('own') } = {}) {
  const directory = newDirectory()
  const [socket, pidfile] = [path.join(directory, 'qmp.sock'), path.join(directory, 'qemu.pid')]
  const builder = new QemuCommandBuilder().setMachine('q35', { accel: 'tcg' }).setMemory(0.0625).addQmp(socket)
    .addRawArg('-nodefaults').addRawArg('-display').addRawArg('none').addRawArg('-S')
    .setProcessOptions({ vmId: name, name, pidfile, daemonize })
  for (const arg of args) builder.addRawArg(arg)
  const qemu = new QemuProcess(name, builder)
  qemu.setQmpSocketPath(socket)
  if (token) qemu.setIdentityToken(name)
  finally_(() => gone(name))
  return { builder, directory, name, pidfile, qemu, socket }
}

// Ends what a test leaves of this name. Until it is reaped, a thread of it may have its sockets.
async function gone (name) {
  const pids = host.processes(name).map(({ pid }) => pid)
  for (const pid of pids) process.kill(pid, 'SIGKILL')
  while (pids.some((pid) => existsSync(`/proc/${pid}`))) await new Promise((resolve) => setImmediate(resolve))
}

test('a QEMU is started until its monitor greets, and stopped with all it left', async () => {
  const { builder, name, pidfile, qemu, socket } = newProcess()
  expect([qemu.isAlive(), qemu.getPid()]).toEqual([false, null])
  await qemu.start()
  const pid = qemu.getPid()
  expect([qemu.isAlive(), host.isAlive(pid)]).toEqual([true, true])
  expect(host.read(`/proc/${pid}/cmdline`).split('\0').slice(1, -1)).toEqual(builder.build())
  expect(Number(readFileSync(pidfile, 'utf8'))).toBe(pid)
  // Its monitor is free for whoever comes.
  const client = new QMPClient(socket)
  await client.connect()
  expect((await client.execute('query-name')).name).toBe(name)
  await client.disconnect()
  await qemu.stop()
  expect([qemu.isAlive(), qemu.getPid(), host.processes(name)]).toEqual([false, null, []])
  expect([existsSync(pidfile), existsSync(socket)]).toEqual([false, false])
  await qemu.stop()
})

test('it is started again after it has ended by itself', async () => {
  const { qemu, socket } = newProcess()
  await qemu.start()
  const first = qemu.getPid()
  process.kill(first, 'SIGKILL')
  const client = new QMPClient(socket)
  await expect(client.connect()).rejects.toThrow()
  while (qemu.isAlive()) await new Promise((resolve) => setImmediate(resolve))
  expect(qemu.getPid()).toBe(null)
  // What SIGKILL has left is in nobody's way.
  expect(existsSync(socket)).toBe(true)
  await qemu.start()
  expect(qemu.getPid()).not.toBe(first)
  await qemu.forceKill()
  expect([qemu.isAlive(), existsSync(socket)]).toEqual([false, false])
})

test('-daemonize is left out: it works under the sandbox, and the process is known', async () => {
  const { builder, name, qemu } = newProcess({ daemonize: true })
  builder.enableSeccompSandbox()
  await qemu.start()
  const [{ pid, words }] = host.processes(`${name}`)
  expect([qemu.getPid(), words.includes('-daemonize'), builder.build().includes('-daemonize')]).toEqual([pid, false, true])
  // A session of its own.
  expect(Number(host.read(`/proc/${pid}/stat`).split(' ')[5])).toBe(pid)
  await qemu.stop()
})

test('B16: one that does not act on SIGTERM is killed after the deadline', async () => {
  const { name, qemu } = newProcess()
  await qemu.start()
  // Stopped, it acts on nothing until it is told to go on: `stop` does.
  process.kill(qemu.getPid(), 'SIGSTOP')
  await qemu.stop(20_000)
  expect(host.processes(name)).toEqual([])
  await qemu.start()
  await qemu.stop(0)
  expect(host.processes(name)).toEqual([])
})

test('B12: forceKill without a token, or with another\'s, touches nothing', async () => {
  const { qemu } = newProcess({ token: false })
  await qemu.start()
  const pid = qemu.getPid()
  expect(await rejection(qemu.forceKill())).toMatchObject({ name: 'ProcessError', code: 'IDENTITY_UNKNOWN' })
  qemu.setIdentityToken('somebody-else')
  expect(await rejection(qemu.forceKill())).toMatchObject({ code: 'IDENTITY_UNKNOWN' })
  expect(await rejection(qemu.stop())).toMatchObject({ code: 'IDENTITY_UNKNOWN' })
  expect([qemu.getPid(), host.isAlive(pid)]).toEqual([pid, true])
})

test('F12: a token must be all of a name, and be there from the start', async () => {
  const { name, pidfile, qemu, socket } = newProcess()
  qemu.setIdentityToken(name.slice(0, -1))
  expect(await rejection(qemu.start())).toMatchObject({ code: 'IDENTITY_UNKNOWN', vmId: name })
  expect(host.processes(name)).toEqual([])
  for (const token of [name, pidfile, socket]) {
    qemu.setIdentityToken(token)
    await qemu.start()
    await qemu.forceKill()
    expect(qemu.isAlive()).toBe(false)
  }
})

test('a program that is not called qemu cannot be proven to be one', async () => {
  const { builder, directory, name, qemu } = newProcess()
  builder.setBinary(path.join(directory, 'kvm'))
  expect(await rejection(qemu.start())).toMatchObject({ code: 'IDENTITY_UNKNOWN', message: expect.stringContaining('not called qemu') })
  expect(host.processes(name)).toEqual([])
})

test('one that an earlier program has started is found by its pidfile and token', async () => {
  const { name, pidfile, qemu, socket, builder } = newProcess()
  await qemu.start()
  const pid = qemu.getPid()
  const later = new QemuProcess(name, builder)
  later.setQmpSocketPath(socket)
  later.setIdentityToken(name)
  expect(await rejection(later.start())).toMatchObject({ name: 'LifecycleError', code: 'INVALID_STATE', vmId: name })
  expect(host.isAlive(pid)).toBe(true)
  await later.forceKill()
  expect([host.isAlive(pid), existsSync(pidfile), qemu.isAlive()]).toEqual([false, false, false])
})

test('B12: a number in a pidfile that is another process\' is left alone', async () => {
  const { name, pidfile, qemu } = newProcess()
  const other = await newQemu()
  writeFileSync(pidfile, `${other.pid}\n`)
  await qemu.forceKill()
  await qemu.stop()
  expect([host.isAlive(other.pid), existsSync(pidfile)]).toEqual([true, true])
  expect(host.processes(name)).toEqual([])
})

test('a QEMU that does not start says why, and nothing of it is left', async () => {
  const { name, qemu, socket, pidfile } = newProcess({ args: ['-device', 'no-such-device,password=hunter2'] })
  const error = await rejection(qemu.start())
  expect(error).toMatchObject({ name: 'ProcessError', code: 'QEMU_START_FAILED', vmId: name })
  expect(error.message).toMatch(/no-such-device/)
  expect(JSON.stringify([error.message, error.context])).not.toContain('hunter2')
  expect([host.processes(name), existsSync(socket), existsSync(pidfile), qemu.isAlive()]).toEqual([[], false, false, false])
})

test('without a path for the monitor a start has failed that ends within a second', async () => {
  const name = unique('own')
  const builder = new QemuCommandBuilder().addRawArg('-no-such-option').setProcessOptions({ vmId: name, name })
  expect(await rejection(new QemuProcess(name, builder).start())).toMatchObject({ code: 'QEMU_START_FAILED' })
  builder.setBinary('/no/such/qemu')
  expect(await rejection(new QemuProcess(name, builder).start())).toMatchObject({ code: 'PROGRAM_NOT_FOUND' })
})

test('a monitor that another QEMU listens at is not taken from it', async () => {
  const other = await newQemu()
  const { name, qemu } = newProcess()
  qemu.setQmpSocketPath(other.socket)
  expect(await rejection(qemu.start())).toMatchObject({ code: 'ADDRESS_IN_USE', vmId: name })
  expect([host.processes(name), host.isAlive(other.pid), existsSync(other.socket)]).toEqual([[], true, true])
})

test('what is in the place of the socket and is none is not touched', async () => {
  const { directory, name, qemu } = newProcess()
  const file = path.join(directory, 'precious')
  writeFileSync(file, 'data')
  qemu.setQmpSocketPath(file)
  expect(await rejection(qemu.start())).toMatchObject({ code: 'HOST_FILE' })
  expect([readFileSync(file, 'utf8'), host.processes(name)]).toEqual(['data', []])
})

test('a monitor that never comes is given up, and QEMU with it', async () => {
  const { directory, name, qemu } = newProcess()
  qemu.setQmpSocketPath(path.join(directory, 'elsewhere.sock'))
  expect(await rejection(qemu.start())).toMatchObject({ name: 'LifecycleError', code: 'TIMEOUT' })
  expect(host.processes(name)).toEqual([])
})

test('forceKill waits for no start', async () => {
  const { directory, name, qemu } = newProcess()
  qemu.setQmpSocketPath(path.join(directory, 'elsewhere.sock'))
  const started = rejection(qemu.start())
  while (!qemu.isAlive()) await new Promise((resolve) => setImmediate(resolve))
  await qemu.forceKill()
  expect(await started).toMatchObject({ code: 'QEMU_START_FAILED', context: { exit: expect.stringContaining('9') } })
  expect(host.processes(name)).toEqual([])
})

test('two starts at once start one', async () => {
  const { name, qemu } = newProcess()
  const both = await Promise.allSettled([qemu.start(), qemu.start()])
  expect(both.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected'])
  expect(both.find(({ reason }) => reason).reason).toMatchObject({ code: 'INVALID_STATE' })
  expect(host.processes(name)).toHaveLength(1)
  await qemu.stop()
})

// A script that has such a QEMU as `qemu`.
const starts = (name, directory) => `
  const { QemuCommandBuilder, QemuProcess } = require('.')
  const builder = new QemuCommandBuilder().setMachine('q35', { accel: 'tcg' }).setMemory(0.0625).addRawArg('-nodefaults')
    .addRawArg('-display').addRawArg('none').addRawArg('-S').addQmp('${directory}/qmp.sock')
    .setProcessOptions({ vmId: 'x', name: '${name}', pidfile: '${directory}/qemu.pid' })
  const qemu = new QemuProcess('x', builder)
  qemu.setQmpSocketPath('${directory}/qmp.sock')
  qemu.setIdentityToken('${name}')
`

test('it outlives the process that has started it', async () => {
  const { directory, name, pidfile } = newProcess()
  const script = `${starts(name, directory)}; qemu.start().then(() => console.log(qemu.getPid()))`
  const { stdout, stderr } = await runNode(script)
  expect([Number(stdout), stderr]).toEqual([host.processes(name)[0].pid, ''])
  const later = new QemuProcess(name, new QemuCommandBuilder())
  later.setPidFilePath(pidfile)
  later.setIdentityToken(name)
  await later.stop()
  expect(host.processes(name)).toEqual([])
})

test('numactl keeps it on the CPUs that the builder asks for', async () => {
  const { directory, name } = newProcess()
  // Becomes the program behind its own arguments, as numactl does.
  const numactl = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
  writeFileSync(path.join(directory, 'numactl'), numactl, { mode: 0o755 })
  const script = `
    ${starts(name, directory)}
    builder.enableCpuPinning('basic', 1)
    const pinning = () => [qemu.isCpuPinningApplied(), qemu.getPinnedCores(), qemu.getNumaNodes()]
    const before = pinning()
    qemu.start().then(async () => {
      console.log(JSON.stringify([before, pinning()]))
      await qemu.forceKill()
    })
  `
  const env = { ...process.env, PATH: `${directory}:${process.env.PATH}` }
  const { stdout, stderr } = await runNode(script, { env })
  expect(stderr).toBe('')
  expect(JSON.parse(stdout)).toEqual([[false, [], []], [true, [expect.any(Number)], [expect.any(Number)]]])
  expect(host.processes(name)).toEqual([])
})

test('arguments that make no sense are told by the methods', async () => {
  const { builder } = newProcess()
  expect(await rejection(new QemuProcess('a b', builder).start())).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await rejection(new QemuProcess('vm', {}).start())).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'builder' }] } })
  const qemu = new QemuProcess('vm', builder)
  expect(await rejection(qemu.stop('soon'))).toMatchObject({ context: { issues: [{ path: 'timeoutMs' }] } })
  qemu.setQmpSocketPath('relative.sock')
  qemu.setIdentityToken(' ')
  const { context } = await rejection(qemu.start())
  expect(context.issues.map(({ path }) => path).sort()).toEqual(['identityToken', 'qmpSocketPath'])
  expect([new QemuProcess().isAlive(), new QemuProcess().getPid()]).toEqual([false, null])
})

test('a monitor that hangs up instead of greeting is given up, and QEMU with it', async () => {
  const { directory, name, qemu } = newProcess()
  const socket = path.join(directory, 'mute.sock')
  const server = net.createServer((connection) => connection.end())
  qemu.setQmpSocketPath(socket)
  const started = rejection(qemu.start())
  while (host.processes(name).length === 0) await new Promise((resolve) => setImmediate(resolve))
  await new Promise((resolve) => server.listen(socket, resolve))
  finally_(() => new Promise((resolve) => server.close(resolve)))
  expect(await started).toMatchObject({ code: 'QMP_DISCONNECTED' })
  expect(host.processes(name)).toEqual([])
})
