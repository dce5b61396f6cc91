'use strict'

const { EventEmitter, once } = require('node:events')
const { rmSync } = require('node:fs')
const net = require('node:net')
const path = require('node:path')
const { QMPClient, QMPError } = require('../..')
const { cleanUp, finally_, newDirectory, openInstance, rejection, runNode, running, warning } = require('../kit')
const { newQemu } = require('../kit/qemu')

afterEach(cleanUp)

function newClient (socket, options) {
  const client = new QMPClient(socket, options)
  finally_(() => client.disconnect())
  return client
}

async function connected (options, args) {
  const qemu = await newQemu(args)
  const client = newClient(qemu.socket, options)
  await client.connect()
  return { qemu, client }
}

// A listening socket behind which the test plays QEMU: `play(connection)` for each connection.
async function stage (play) {
  const socket = path.join(newDirectory(), 'stage.sock')
  const connections = new Set()
  const server = net.createServer((connection) => {
    connections.add(connection.on('error', () => {}))
    play(connection)
  })
  await new Promise((resolve) => server.listen(socket, resolve))
  finally_(async () => {
    for (const connection of connections) connection.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
  return { socket, server }
}

const greeting = '{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"t"},"capabilities":[]}}\r\n'

// Answers the handshake, and every command with `{}`.
function polite (connection) {
  connection.write(greeting)
  connection.on('data', (bytes) => {
    for (const line of bytes.toString().trim().split('\n')) {
      const { id, execute } = JSON.parse(line)
      const answer = execute === 'query-status' ? { running: true, singlestep: false, status: 'running' } : {}
      if (execute !== 'never') connection.write(`${JSON.stringify({ return: answer, id })}\r\n`)
    }
  })
}

test('connects, asks, hears, and ends for good', async () => {
  const qemu = await newQemu()
  const client = newClient(qemu.socket)
  expect(client).toBeInstanceOf(EventEmitter)
  expect([client.isConnected(), client.isReconnecting(), client.getGreeting()]).toEqual([false, false, null])
  expect(await rejection(client.queryStatus())).toMatchObject({ name: 'QMPError', code: 'QMP_DISCONNECTED', message: expect.stringContaining('not connected') })
  const resumed = once(client, 'RESUME')
  const whole = once(client, 'event')
  await client.connect()
  await client.connect()
  expect(client.getGreeting().QMP.version.qemu.major).toBeGreaterThan(4)
  expect(await client.queryStatus()).toMatchObject({ running: false, status: 'prelaunch' })
  expect(await client.queryCpus()).toMatchObject([{ 'cpu-index': 0 }])
  expect(await client.queryBlock()).toEqual([])
  expect(await client.execute('query-name')).toEqual({ name: qemu.name })
  await client.cont()
  expect(await resumed).toEqual([{}, { seconds: expect.any(Number), microseconds: expect.any(Number) }])
  expect(await whole).toEqual([{ event: 'RESUME', data: {}, timestamp: expect.any(Object) }])
  const gone = once(client, 'disconnect')
  await client.disconnect()
  await gone
  expect(client.isConnected()).toBe(false)
  expect(await rejection(client.connect())).toMatchObject({ code: 'QMP_DISCONNECTED', message: expect.stringContaining('disconnect() was called') })
  await client.disconnect()
})

test('F8: events that come faster than they are taken are counted, and that is told', async () => {
  const sent = 1000
  const { socket } = await stage((connection) => {
    polite(connection)
    connection.on('data', (bytes) => {
      if (!bytes.includes('query-name')) return
      for (let number = 0; number < sent; number++) {
        connection.write(`{"event":"STOP","data":{"number":${number}},"timestamp":{"seconds":1,"microseconds":0}}\r\n`)
      }
      connection.write('{"event":"RESUME","data":{},"timestamp":{"seconds":1,"microseconds":0}}\r\n')
    })
  })
  warning(/missed events/)
  const client = newClient(socket)
  expect(client.lost).toBe(0)
  let [heard, told] = [0, 0]
  client.on('STOP', () => {
    // A listener that takes its time.
    if (heard++ === 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500)
  })
  client.on('lost', ({ count }) => { told += count })
  await client.connect()
  const last = once(client, 'RESUME')
  await client.execute('query-name')
  await last
  expect(told).toBeGreaterThan(0)
  expect(client.lost).toBe(told)
  expect(heard + told).toBe(sent)
})

test('what QEMU refuses has its class and words', async () => {
  const { client } = await connected()
  const error = await rejection(client.eject('no-such-drive', true))
  expect(error).toBeInstanceOf(QMPError)
  expect(error).toMatchObject({ code: 'QMP_COMMAND_FAILED', message: expect.stringMatching(/^QMP error: .*no-such-drive.* \(\w+\)/), context: { class: expect.any(String) } })
  expect(await rejection(client.queryBalloon())).toMatchObject({ code: 'QMP_COMMAND_FAILED' })
})

test('quit is no failure, and kills of QEMU are disconnects', async () => {
  const { qemu, client } = await connected()
  const closed = once(client, 'disconnect')
  await client.quit()
  await qemu.ended
  // Until the client has seen the end, a quit is answered by it.
  await closed
  expect(await rejection(client.quit())).toMatchObject({ code: 'QMP_DISCONNECTED' })
  await client.quit({ ignoreErrors: true })
  const other = await connected()
  const gone = once(other.client, 'disconnect')
  other.qemu.kill('SIGKILL')
  await gone
  // Its listening socket may go after the connection.
  await other.qemu.ended
  expect(other.client.isReconnecting()).toBe(false)
  expect(await rejection(other.client.connect())).toMatchObject({ code: 'QMP_CONNECT_FAILED', context: { errno: 111 } })
})

test('F4: a silent monitor, an absent one, and one that is not QMP', async () => {
  const silent = await stage(() => {})
  expect(await rejection(newClient(silent.socket, { connectTimeout: 200 }).connect())).toMatchObject({ code: 'QMP_TIMEOUT' })
  expect(await rejection(newClient('/nonexistent/qmp.sock').connect())).toMatchObject({ code: 'QMP_CONNECT_FAILED', context: { errno: 2 } })
  const http = await stage((connection) => connection.write('HTTP/1.1 200 OK\r\n'))
  expect(await rejection(newClient(http.socket).connect())).toMatchObject({ name: 'QMPError', code: 'QMP_PROTOCOL' })
})

test('F5: calls under way reject when the connection is lost, and when it is closed', async () => {
  let latest
  const { socket } = await stage((connection) => { latest = connection; polite(connection) })
  const client = newClient(socket)
  await client.connect()
  const lost = rejection(client.execute('never'))
  await client.execute('ping')
  latest.destroy()
  expect(await lost).toMatchObject({ code: 'QMP_DISCONNECTED' })
  // A lost connection may be made anew.
  await client.connect()
  const closed = rejection(client.execute('never'))
  await client.disconnect()
  expect(await closed).toMatchObject({ code: 'QMP_DISCONNECTED' })
})

test('a broken connection is made again as often as asked, then given up', async () => {
  const connections = []
  const { socket, server } = await stage((connection) => { connections.push(connection); polite(connection) })
  const client = newClient(socket, { reconnect: true, reconnectDelay: 20, maxReconnectAttempts: 2 })
  const told = []
  for (const name of ['disconnect', 'reconnect', 'reconnect_failed']) client.on(name, (...payload) => told.push([name, ...payload]))
  await client.connect()
  const again = once(client, 'reconnect')
  connections[0].destroy()
  await again
  expect(client.isConnected()).toBe(true)
  await client.execute('ping')
  server.close()
  rmSync(socket, { force: true })
  const failed = once(client, 'reconnect_failed')
  connections.at(-1).destroy()
  await once(client, 'disconnect')
  expect([client.isConnected(), client.isReconnecting()]).toEqual([false, true])
  await failed
  expect([client.isConnected(), client.isReconnecting()]).toEqual([false, false])
  expect(told).toEqual([['disconnect'], ['reconnect'], ['disconnect'], ['reconnect_failed']])
})

test('disconnect() ends a pending reconnect, and a connect() under way', async () => {
  const connections = []
  const { socket } = await stage((connection) => { connections.push(connection); if (connections.length === 1) polite(connection) })
  const client = newClient(socket, { reconnect: true, reconnectDelay: 60_000 })
  await client.connect()
  connections[0].destroy()
  await once(client, 'disconnect')
  await client.disconnect()
  expect([client.isConnected(), client.isReconnecting(), connections.length]).toEqual([false, false, 1])
  const second = newClient(socket, { connectTimeout: 60_000 })
  const connecting = rejection(second.connect())
  await second.disconnect()
  expect(await connecting).toMatchObject({ code: 'QMP_DISCONNECTED' })
})

test.each([
  [[undefined], /socketPath/], [[5], /socketPath/], [['relative.sock'], /socketPath must be an absolute path/], [[10n], /socketPath/],
  [['/run/x.sock', 5], /options/], [['/run/x.sock', { reconnect: 'yes' }], /reconnect/], [['/run/x.sock', { connectTimeout: NaN }], /connectTimeout/]
])('B20: new QMPClient(...%p) is told by connect()', async (args, message) => {
  const client = new QMPClient(...args)
  expect(await rejection(client.connect())).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG', message: expect.stringMatching(message) })
  expect(client.isConnected()).toBe(false)
})

test('a connected client hears even when nobody refers to it, until it is disconnected', async () => {
  const { socket } = await newQemu(['-S'])
  const { code, stdout } = await runNode(`
    require('node:v8').setFlagsFromString('--expose-gc')
    const gc = require('node:vm').runInNewContext('gc')
    const { QMPClient } = require('./index.js')
    const collected = async () => { for (let i = 0; i < 5; i++) { await new Promise(setImmediate); gc() } }
    const connected = async () => {
      const client = new QMPClient(${JSON.stringify(socket)})
      client.on('RESUME', () => console.log('heard'))
      await client.connect()
      return new WeakRef(client)
    }
    connected().then(async (client) => {
      await collected()
      await client.deref().cont()
      await client.deref().disconnect()
      await collected()
      console.log(client.deref())
    })
  `)
  expect([code, stdout.trim().split('\n')]).toEqual([0, ['heard', 'undefined']])
})

test('F10: a connection keeps no process alive', async () => {
  const { socket } = await newQemu()
  const { code, stdout } = await runNode(`
    const { QMPClient } = require('./index.js')
    new QMPClient(${JSON.stringify(socket)}, { reconnect: true }).connect().then(() => console.log('connected'))
  `)
  expect([code, stdout.trim()]).toEqual([0, 'connected'])
})

test('the monitor of a VM is a QMPClient too, and not one to close', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const client = instance.getQMPClient(vmId)
  expect(client).toBeInstanceOf(QMPClient)
  await client.connect()
  expect(await rejection(client.disconnect())).toMatchObject({ code: 'INVALID_STATE' })
  expect(client.isConnected()).toBe(true)
  expect(await client.queryStatus()).toMatchObject({ status: 'running' })
})
