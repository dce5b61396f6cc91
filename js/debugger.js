'use strict'

// Log lines of a program's own in the library's namespaces. `error` and `warn` are always told, the rest where DEBUG names
// `infinization:<module>` or `infinization:<module>:<level>` (`*` stands for anything, a leading `-` takes out).

const { format } = require('node:util')
const native = require('./native')

const LEVELS = ['error', 'warn', 'info', 'debug', 'trace']
const ALWAYS = ['error', 'warn']

class Debugger {
  #module

  constructor (module) {
    this.#module = String(module)
  }

  log (...parts) {
    const level = LEVELS.includes(parts[0]) ? parts.shift() : 'debug'
    const context = typeof parts.at(-1) === 'object' ? parts.pop() : undefined
    this.#tell(level, parts.join(' '), context)
  }

  error (message, context) { this.#tell('error', message, context) }
  warn (message, context) { this.#tell('warn', message, context) }
  info (message, context) { this.#tell('info', message, context) }
  debug (message, context) { this.#tell('debug', message, context) }

  #tell (level, message, context) {
    const name = `infinization:${this.#module}`
    if (!ALWAYS.includes(level) && !isWanted([name, `${name}:${level}`])) return
    const more = context == null ? '' : format(' %j', context)
    const line = `[${new Date().toISOString()}] ${level.toUpperCase()} ${name} ${message}${more}`
    console.error(native.redacted(line))
  }
}

// Asked each time: a program may change its environment.
function isWanted (names) {
  const patterns = (process.env.DEBUG ?? '').split(/[\s,]+/).filter(Boolean)
  const matches = (pattern) => names.some((name) => matcher(pattern).test(name))
  const out = patterns.filter((pattern) => pattern.startsWith('-')).map((pattern) => pattern.slice(1))
  return !out.some(matches) && patterns.some((pattern) => !pattern.startsWith('-') && matches(pattern))
}

const matcher = (pattern) => new RegExp(`^${pattern.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replaceAll('*', '.*')}$`)

module.exports = { Debugger }
