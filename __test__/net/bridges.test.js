'use strict'

const { existsSync } = require('node:fs')
const { BridgeManager, NetworkError } = require('../..')
const { cleanUp, finally_, host, newBridge, rejection, unique } = require('../kit')

afterEach(cleanUp)

const bridges = new BridgeManager()
const ip = (...words) => host.run('ip', ...words)

function newPort () {
  const name = unique('port')
  ip('tuntap', 'add', name, 'mode', 'tap')
  finally_(() => ip('link', 'del', name))
  return name
}

test('a bridge is made, up, and destroyed', async () => {
  const name = await newBridge()
  expect(existsSync(`/sys/class/net/${name}/bridge`)).toBe(true)
  expect(ip('link', 'show', name)).toContain('UP')
  expect(await bridges.exists(name)).toBe(true)
  await bridges.disableChecksumOffloading(name)
  await bridges.destroy(name)
  expect(await bridges.exists(name)).toBe(false)
  expect(host.links()).not.toContain(name)
  await bridges.destroy(name)
})

test('two instances see the same bridges at once', async () => {
  const name = await newBridge()
  expect(await new BridgeManager().exists(name)).toBe(true)
})

test('a bridge that exists is left alone', async () => {
  const name = await newBridge()
  const error = await rejection(bridges.create(name))
  expect(error).toBeInstanceOf(NetworkError)
  expect(error).toMatchObject({ name: 'NetworkError', code: 'BRIDGE_ALREADY_EXISTS', context: { device: name } })
})

test.each(['', 'sixteen-letters-', 'a b', 'br;reboot', '../x'])('B32: %p is no name for a bridge', async (name) => {
  const error = await rejection(bridges.create(name))
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG', context: { issues: [{ path: 'bridge' }] } })
  expect(error.message).toContain(`Invalid bridge name: ${name}`)
})

test('B32: a link that is no bridge is none, and stays', async () => {
  const port = newPort()
  expect(await bridges.exists(port)).toBe(false)
  await rejection(bridges.assignIP(port, '10.9.0.1/24'))
  await rejection(bridges.destroy(port))
  expect(host.links()).toContain(port)
})

test('ports come and go', async () => {
  const [name, port] = [await newBridge(), newPort()]
  await bridges.addInterface(name, port)
  expect(await bridges.listInterfaces(name)).toEqual([port])
  await bridges.addInterface(name, port)
  await bridges.removeInterface(name, port)
  expect(await bridges.listInterfaces(name)).toEqual([])
  await bridges.removeInterface(name, port)
  await bridges.removeInterface(name, 'no-such-port')
  expect(await bridges.listInterfaces('no-such-bridge')).toEqual([])
  expect(await rejection(bridges.addInterface('no-such-bridge', port))).toMatchObject({ code: 'BRIDGE_NOT_FOUND' })
  expect(await rejection(bridges.addInterface(name, 'no-such-port'))).toMatchObject({ code: 'DEVICE_NOT_FOUND' })
})

test('addresses come and go, each once', async () => {
  const name = await newBridge()
  await bridges.assignIP(name, '10.9.0.1/24')
  await bridges.assignIP(name, '10.9.0.1/24')
  await bridges.assignIP(name, '10.9.1.1/16')
  expect((await bridges.getIPs(name)).sort()).toEqual(['10.9.0.1/24', '10.9.1.1/16'])
  await bridges.removeIP(name, '10.9.0.1/24')
  await bridges.removeIP(name, '10.9.0.1/24')
  expect(await bridges.getIPs(name)).toEqual(['10.9.1.1/16'])
})

test.each(['10.9.0.1', '10.9.0.1/33', '010.9.0.1/24', '10.9.0.1/24 ', '::1/64', ''])('B25: %p is no address for a bridge', async (cidr) => {
  const name = await newBridge()
  const error = await rejection(bridges.assignIP(name, cidr))
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', message: expect.stringContaining('Invalid IPv4/CIDR: ') })
  expect(await bridges.getIPs(name)).toEqual([])
})
