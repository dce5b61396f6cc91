'use strict'

// A QEMU of the test's own, which no instance manages.

const { spawn } = require('node:child_process')
const net = require('node:net')
const path = require('node:path')
const { finally_, newDirectory, unique } = require('./index')

// Starts it with its CPUs stopped, unless `args` say otherwise; resolves once its monitor greets.
async function newQemu (args = ['-S'], directory = newDirectory()) {
  const name = unique('bare')
  const socket = path.join(directory, `${name}.sock`)
  const child = spawn('qemu-system-x86_64', [
    '-nodefaults', '-display', 'none', '-accel', 'tcg', '-m', '64', '-name', name,
    '-qmp', `unix:${socket},server=on,wait=off`, ...args
  ], { stdio: 'ignore' })
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })))
  finally_(async () => { child.kill('SIGKILL'); await ended })
  while (!await greets(socket)) {
    if (child.exitCode !== null) throw new Error('QEMU ended at once')
  }
  return { name, socket, directory, pid: child.pid, ended, kill: (signal) => child.kill(signal) }
}

// Whether a monitor greets who connects. QEMU tells nobody when it listens.
function greets (socket) {
  return new Promise((resolve) => {
    const connection = net.connect(socket)
    const end = (greeted) => { connection.destroy(); resolve(greeted) }
    connection.once('data', () => end(true))
    connection.once('error', () => setTimeout(end, 5, false))
  })
}

module.exports = { newQemu }
