'use strict'

// The tiny guest: it reports on its serial console, answers on ports and has an agent.

const { watch } = require('node:fs')
const { get } = require('node:http')
const net = require('node:net')
const path = require('node:path')
const { read } = require('./host')
const { guestDisk, newBridge, running } = require('./index')

// It boots in 7 s on an idle machine.
const BOOT_DEADLINE = 90_000
const ANSWER_DEADLINE = 15_000
// Long enough to tell a dropped packet from a slow guest.
const SILENCE = 1_500

// A machine with the guest on it, booting. Only one file may have such guests at a time: each takes
// an address of 10.177.0.0/16 on its bridge.
async function guest (instance, more) {
  const bridge = await newBridge('10.177.200.1/16')
  const agent = path.join(instance.stateDir, 'agent.sock')
  const machine = await running(instance, {
    bridge, disks: [guestDisk()], serialConsole: true, guestAgentSocketPath: agent, ...more
  })
  return { ...machine, agent, log: path.join(instance.stateDir, 'vms', machine.vmId, 'serial.log') }
}

// Waits until the guest is up; its address.
async function booted ({ log }) {
  await line(log, /INFZ-READY/, BOOT_DEADLINE)
  const [, address] = await line(log, /INFZ-NET \S+ \S+ (10\.177\.\S+)/, ANSWER_DEADLINE)
  return address
}

// The first match in a log that is still written.
function line (log, pattern, deadline) {
  return new Promise((resolve, reject) => {
    const watcher = watch(path.dirname(log), look)
    const timer = setTimeout(() => end(reject, new Error(`no ${pattern} in ${deadline} ms: ${read(log).slice(-300)}`)), deadline)
    function end (settle, value) {
      clearTimeout(timer)
      watcher.close()
      settle(value)
    }
    function look () {
      const match = read(log).match(pattern)
      if (match) end(resolve, match)
    }
    look()
  })
}

// The body of the guest's page.
function page (address) {
  return new Promise((resolve, reject) => {
    const request = get({ host: address, timeout: ANSWER_DEADLINE, agent: false }, (response) => {
      let body = ''
      response.setEncoding('utf8').on('data', (chunk) => { body += chunk }).on('end', () => resolve(body.trim()))
    })
    request.on('timeout', () => request.destroy(new Error('no answer')))
    request.on('error', reject)
  })
}

// `open`, `refused` or `silent`.
function portState (address, port) {
  return new Promise((resolve) => {
    const socket = net.connect({ host: address, port, timeout: SILENCE })
    const end = (state) => { socket.destroy(); resolve(state) }
    socket.on('connect', () => end('open'))
    socket.on('timeout', () => end('silent'))
    socket.on('error', () => end('refused'))
  })
}

module.exports = { booted, guest, line, page, portState }
