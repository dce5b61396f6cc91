'use strict'

const native = require('./native')
const { traced } = require('./traced')

const Agent = traced(class extends native.GuestAgentClient {})

// The agent inside a guest.
class GuestAgentClient extends Agent {
  #connecting = new Set()

  async connect () {
    const cancellation = new native.Cancellation()
    this.#connecting.add(cancellation)
    try {
      return await super.connect(cancellation)
    } finally {
      this.#connecting.delete(cancellation)
    }
  }

  // Calls of the addon begin in no certain order: what was asked before is given up here.
  async disconnect () {
    for (const cancellation of this.#connecting) cancellation.cancel()
    return super.disconnect()
  }

  async guestExecRaw (command, args, options) {
    const { stdout, stderr, exitCode } = await super.guestExecRaw(command, args, options)
    return { stdout: Buffer.from(stdout, 'latin1'), stderr: Buffer.from(stderr, 'latin1'), exitCode }
  }
}

module.exports = { GuestAgentClient }
