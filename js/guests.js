'use strict'

// The user's view of the machines, as the core asks for it: `isVmRunning` and `guestAgentFactory`. Every
// answer is an envelope; a callback that throws is an answer, too.
//
// The core waits for a freeze only so long, then thaws and goes on. So a freeze that comes about after
// that is undone here: no guest is left frozen.

const { messageOf } = require('./warn')

class Guests {
  #isVmRunning
  #guestAgentFactory
  #attempts = new Map()

  constructor (isVmRunning, guestAgentFactory) {
    this.#isVmRunning = isVmRunning
    this.#guestAgentFactory = guestAgentFactory
  }

  async answer (request) {
    try {
      const { ask, vmId } = JSON.parse(request)
      return JSON.stringify({ value: await this[ask](vmId) ?? null })
    } catch (error) {
      return JSON.stringify({ error: messageOf(error) })
    }
  }

  // Without a probe the disks' own locks decide.
  async isRunning (vmId) {
    if (this.#isVmRunning === undefined || this.#isVmRunning === null) return false
    const running = await this.#isVmRunning(vmId)
    return typeof running === 'boolean' ? running : null
  }

  // How many file systems, or null when nobody in the guest can freeze them.
  async freeze (vmId) {
    const [before, attempt] = [this.#attempts.get(vmId), { over: false }]
    this.#attempts.set(vmId, attempt)
    await letGo(before?.agent)
    const agent = await this.#guestAgentFactory?.(vmId)
    if (!agent) return null
    if (agent.isConnected?.() === false) await agent.connect?.()
    if (attempt.over) {
      await agent.disconnect?.()
      return 0
    }
    attempt.agent = agent
    const frozen = await agent.fsFreeze()
    if (attempt.over) await agent.fsThaw()
    return frozen
  }

  // Whether the guest was asked, which it is not where nobody got as far as freezing it.
  async thaw (vmId) {
    const attempt = this.#attempts.get(vmId)
    if (!attempt) return false
    attempt.over = true
    if (attempt.agent) {
      await attempt.agent.fsThaw()
      await attempt.agent.disconnect?.()
    }
    this.#attempts.delete(vmId)
    return attempt.agent !== undefined
  }
}

// What is left of a thaw that failed: an agent has one client at a time.
async function letGo (agent) {
  try {
    await agent?.disconnect?.()
  } catch {}
}

module.exports = { Guests }
