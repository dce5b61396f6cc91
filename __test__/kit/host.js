'use strict'

// What is on this host, asked of the kernel rather than of the library.

const { execFileSync } = require('node:child_process')
const { existsSync, readFileSync, readdirSync } = require('node:fs')

const links = () => readdirSync('/sys/class/net')

const run = (...words) => execFileSync(words[0], words.slice(1), {
  encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'pipe']
})

const ruleset = () => JSON.parse(run('nft', '-j', 'list', 'ruleset')).nftables

// The rules of the chains whose names end so, in order; in place of a jump to a chain that machines share,
// the rules of that.
function rulesOf (end, all = ruleset()) {
  const rules = all.flatMap(({ rule }) => rule?.chain.endsWith(end) ? [rule] : [])
  const shared = ({ expr }) => expr.map(({ jump }) => jump?.target).find((target) => target?.startsWith('dept_'))
  return rules.flatMap((rule) => shared(rule) ? rulesOf(shared(rule), all) : [rule])
}

// The names of the chains of our table, but for its two hooks.
const chains = () => ruleset()
  .flatMap(({ chain }) => chain?.table === 'infinization' && !chain.hook ? [chain.name] : [])

// The ports that are dispatched to chains: `vnet-… → from_…`.
const dispatched = () => ruleset().flatMap(({ map }) => map?.elem ?? [])
  .map(([port, verdict]) => `${port} → ${verdict.jump.target}`)

// The processes with this text in their arguments, zombies left out: { pid, words }.
function processes (text) {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .map((pid) => ({ pid: Number(pid), words: read(`/proc/${pid}/cmdline`).split('\0') }))
    .filter(({ words }) => words.some((word) => word.includes(text)))
}

// The unix sockets with this text in their paths.
const sockets = (text) => read('/proc/net/unix').split('\n').filter((line) => line.includes(text))

function cgroups () {
  const top = '/sys/fs/cgroup'
  if (!existsSync(top)) return []
  return run('find', top, '-type', 'd', '-path', '*infinization*/*').split('\n').filter(Boolean)
}

// The masqueraded networks: their table stays.
const masquerades = () => run('nft', 'list', 'ruleset', 'ip').split('\n')
  .map((line) => line.trim()).filter((line) => line.includes(' masquerade '))

// Everything that outlives the tests if they leave it.
const objects = () => [
  ...links().map((name) => `link ${name}`),
  ...chains().map((name) => `chain ${name}`),
  ...dispatched().map((element) => `element ${element}`),
  ...masquerades().map((rule) => `rule ${rule}`),
  ...processes('qemu-system').map(({ pid, words }) => `process ${pid} ${words.slice(0, 3).join(' ')}`)
]

// A process may end while it is looked at.
function read (file) {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

const isAlive = (pid) => existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(read(`/proc/${pid}/status`))

module.exports = { cgroups, chains, dispatched, isAlive, links, objects, processes, read, rulesOf, ruleset, run, sockets }
