'use strict'

const path = require('node:path')
const { GuestAgentClient } = require('../..')
const deep = require('../../dist/core/GuestAgentClient')
const { cleanUp, finally_, guestDir, newDirectory, rejection, root } = require('../kit')
const { newQemu } = require('../kit/qemu')

afterEach(cleanUp)

const BOOT_DEADLINE = 90_000

// The tiny guest with its agent's channel.
async function agentOfGuest () {
  const directory = newDirectory()
  const socket = path.join(directory, 'ga.sock')
  await newQemu([
    '-m', '256', '-drive', `file=${guestDir}/tiny.qcow2,snapshot=on,if=virtio`, '-device', 'virtio-serial-pci',
    '-chardev', `socket,id=ga,path=${socket},server=on,wait=off`, '-device', 'virtserialport,chardev=ga,name=org.qemu.guest_agent.0'
  ], directory)
  return socket
}

function newClient (socket, options) {
  const client = new GuestAgentClient(socket, options)
  finally_(() => client.disconnect())
  return client
}

test('the deep path that tests mock is the same class', () => {
  expect(deep.GuestAgentClient).toBe(GuestAgentClient)
  expect(require(path.join(root, 'package.json')).files).toContain('dist')
})

test('a guest: programs, bytes, freezing, and the end of a connection', async () => {
  const client = newClient(await agentOfGuest(), { connectTimeout: BOOT_DEADLINE })
  expect(client.isConnected()).toBe(false)
  expect(await rejection(client.fsThaw())).toMatchObject({ name: 'QMPError', code: 'AGENT_DISCONNECTED', message: expect.stringContaining('not connected') })
  await client.connect()
  await client.connect()
  expect(client.isConnected()).toBe(true)
  expect(await client.execute('guest-fsfreeze-status')).toBe('thawed')

  const script = "printf 'Gr\\303\\274\\303\\237e'; printf '\\377\\n' >&2; exit 3"
  expect(await client.guestExec('sh', ['-c', script])).toEqual({ stdout: 'Grüße', stderr: '\xff\n', exitCode: 3 })
  const raw = await client.guestExecRaw('sh', ['-c', script])
  expect(raw).toEqual({ stdout: Buffer.from('Grüße'), stderr: Buffer.from([0xff, 0x0a]), exitCode: 3 })
  expect(Buffer.isBuffer(raw.stdout)).toBe(true)
  expect(await client.guestExec('sh', ['-c', 'kill -9 $$'])).toMatchObject({ exitCode: -1 })

  const late = await rejection(client.guestExec('sleep', ['4711'], { timeout: 500 }))
  expect(late).toMatchObject({ code: 'AGENT_TIMEOUT', context: { ended: true } })
  expect((await client.guestExec('sh', ['-c', 'cat /proc/[0-9]*/cmdline'])).stdout).not.toContain('4711')

  expect(await rejection(client.execute('guest-teleport'))).toMatchObject({ code: 'AGENT_COMMAND_FAILED', context: { class: 'CommandNotFound' } })
  expect(await rejection(client.guestExec('sleep', '60'))).toMatchObject({ code: 'INVALID_CONFIG' })

  const running = rejection(client.guestExec('sleep', ['60']))
  await client.guestExec('true')
  await client.disconnect()
  expect(await running).toMatchObject({ code: 'AGENT_DISCONNECTED' })
  expect(client.isConnected()).toBe(false)
  await client.disconnect()
  await client.connect()
  expect(await client.guestExec('echo', ['again'])).toMatchObject({ stdout: 'again\n', exitCode: 0 })
}, 2 * BOOT_DEADLINE)

test('F39: no socket, and no agent behind it', async () => {
  expect(await rejection(newClient('/nonexistent/ga.sock').connect())).toMatchObject({ code: 'AGENT_CONNECT_FAILED', context: { errno: 2 } })
  const { socket } = await newQemu()
  expect(await rejection(newClient(socket, { connectTimeout: 200 }).connect())).toMatchObject({ code: 'AGENT_TIMEOUT' })
  const client = newClient(socket, { connectTimeout: 60_000 })
  const connecting = rejection(client.connect())
  await client.disconnect()
  expect(await connecting).toMatchObject({ code: 'AGENT_DISCONNECTED' })
})

test.each([[[undefined], /socketPath/], [['ga.sock'], /absolute/], [['/run/ga.sock', { commandTimeout: '5' }], /commandTimeout/]])('B20: new GuestAgentClient(...%p) is told by connect()', async (args, message) => {
  expect(await rejection(new GuestAgentClient(...args).connect())).toMatchObject({ code: 'INVALID_CONFIG', message: expect.stringMatching(message) })
})
