'use strict'

const { execFileSync } = require('node:child_process')
const { existsSync, readFileSync } = require('node:fs')
const { root } = require('./root')
const { objects } = require('./host')
const { generateClients } = require('./prisma')

// The tests make links, rulesets and machines: only where nobody else's are.
module.exports = () => {
  if (process.getuid() !== 0) throw new Error('TAPs, bridges and nftables need root: use sudo')
  const routes = readFileSync('/proc/net/route', 'utf8').trim().split('\n').slice(1)
  if (routes.length > 0) throw new Error('this network is in use: run `bash scripts/private npx jest`')
  if (!existsSync(`${root}/.guest/tiny.qcow2`) && !process.env.INFINIZATION_GUEST_DIR) {
    throw new Error('the guest image is missing: run `npm run setup`')
  }
  execFileSync('npm', ['run', '--silent', 'build:facade'], { cwd: root })
  generateClients()
  execFileSync('nft', ['list', 'tables'])
  globalThis.objectsBefore = objects()
}
