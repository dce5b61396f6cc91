'use strict'

// Sentences for the tests.

const { execFile } = require('node:child_process')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { Infinization } = require('../..')

const root = path.resolve(__dirname, '../..')
const undo = []

// An instance of its own under a directory of its own; both go when the test ends.
function newInstance (config = {}) {
  const stateDir = mkdtempSync(path.join(tmpdir(), 'infinization-test-'))
  const instance = new Infinization({
    stateDir, accelerator: 'tcg', bridgeConntrackMode: 'degrade', ...config
  })
  undo.push(async () => {
    await instance.shutdown()
    rmSync(stateDir, { recursive: true, force: true })
  })
  return instance
}

async function openInstance (config) {
  const instance = newInstance(config)
  await instance.initialize()
  return instance
}

async function cleanUp () {
  for (const step of undo.splice(0).reverse()) await step()
}

// What a call rejects with; the test fails when it does not reject.
async function rejection (promise) {
  return promise.then(
    (value) => { throw new Error(`resolved with ${JSON.stringify(value)}`) },
    (error) => error
  )
}

// Runs a script in a Node.js of its own and tells how that ended.
function runNode (script, { timeout = 20000 } = {}) {
  return new Promise((resolve) => {
    execFile(process.execPath, ['-e', script], { cwd: root, timeout }, (error, stdout, stderr) => {
      resolve({ code: error ? error.code : 0, signal: error?.signal ?? null, stdout, stderr })
    })
  })
}

// A promise of the next event, or of the first one that `wanted` takes.
function next (emitter, name, wanted = () => true) {
  return new Promise((resolve) => {
    emitter.on(name, function listener (payload) {
      if (!wanted(payload)) return
      emitter.off(name, listener)
      resolve(payload)
    })
  })
}

module.exports = { cleanUp, newInstance, next, openInstance, rejection, root, runNode }
