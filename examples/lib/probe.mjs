// Speaks with the guest as its users would.

import { connect } from 'node:net'
import { get } from 'node:http'

/** The body of `http://host:port/`. */
export function httpGet (host, port, deadline) {
  return new Promise((resolve, reject) => {
    const request = get({ host, port, timeout: deadline, agent: false }, response => {
      let body = ''
      response.setEncoding('utf8').on('data', chunk => { body += chunk }).on('end', () => resolve(body.trim()))
    })
    request.on('timeout', () => request.destroy(new Error(`no answer from ${host}:${port} in ${deadline} ms`)))
    request.on('error', reject)
  })
}

/** Whether `open`, `refused` or `silent` (nothing came back before the deadline). */
export function portState (host, port, deadline) {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, timeout: deadline })
    const end = state => {
      socket.destroy()
      resolve(state)
    }
    socket.on('connect', () => end('open'))
    socket.on('timeout', () => end('silent'))
    socket.on('error', error => {
      if (error.code === 'ECONNREFUSED') end('refused')
      else if (error.code === 'ETIMEDOUT') end('silent')
      else reject(error)
    })
  })
}

/** Types `command` into the shell behind a serial console and returns the first line `pattern` matches. */
export function typeOnConsole (socketPath, command, pattern, deadline) {
  return new Promise((resolve, reject) => {
    let heard = ''
    const socket = connect({ path: socketPath, timeout: deadline })
    socket.setEncoding('utf8')
    socket.on('connect', () => socket.write(`${command}\n`))
    socket.on('data', chunk => {
      heard += chunk
      const match = heard.match(pattern)
      if (!match) return
      socket.destroy()
      resolve(match[0])
    })
    socket.on('timeout', () => socket.destroy(new Error(`the console did not answer in ${deadline} ms`)))
    socket.on('error', reject)
  })
}
