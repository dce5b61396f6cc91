'use strict'

// A QEMU of the test's own, which no instance manages.

const { spawn } = require('node:child_process')
const { existsSync, watch } = require('node:fs')
const path = require('node:path')
const { finally_, newDirectory, unique } = require('./index')

// Starts it with its CPUs stopped, unless `args` say otherwise; resolves once its monitor listens.
async function newQemu (args = ['-S'], directory = newDirectory()) {
  const name = unique('bare')
  const socket = path.join(directory, `${name}.sock`)
  const appeared = file(socket)
  const child = spawn('qemu-system-x86_64', [
    '-nodefaults', '-display', 'none', '-accel', 'tcg', '-m', '64', '-name', name,
    '-qmp', `unix:${socket},server=on,wait=off`, ...args
  ], { stdio: 'ignore' })
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })))
  finally_(async () => { child.kill('SIGKILL'); await ended })
  await Promise.race([appeared, ended.then(() => { throw new Error('QEMU ended at once') })])
  return { name, socket, directory, pid: child.pid, ended, kill: (signal) => child.kill(signal) }
}

// Resolves once the file is there.
function file (wanted) {
  return new Promise((resolve) => {
    const watcher = watch(path.dirname(wanted), look)
    function look () {
      if (!existsSync(wanted)) return
      watcher.close()
      resolve()
    }
    look()
  })
}

module.exports = { newQemu }
