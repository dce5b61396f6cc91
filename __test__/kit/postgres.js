'use strict'

// A PostgreSQL server of a test file's own: its data and its socket are in a directory that goes with
// it. It listens on no network, and keeps nothing that a power cut would have to spare.

const { execFileSync, spawn } = require('node:child_process')
const { once } = require('node:events')
const { chownSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { root } = require('./root')
const { departmentRows, insertStatement, machineRows } = require('./rows')

const READY_DEADLINE = 30_000
const VERSIONS = '/usr/lib/postgresql'
// The server refuses to run as root; its package makes this user.
const USER = 'postgres'
const TEMPLATE = 'infz_template'
const OBJECT_IN_USE = '55006'

const SETTINGS = {
  listen_addresses: '',
  fsync: 'off',
  full_page_writes: 'off',
  // Shared memory ends with the processes or with the directory.
  shared_memory_type: 'mmap',
  dynamic_shared_memory_type: 'mmap',
  shared_buffers: '16MB',
  autovacuum: 'off',
  deadlock_timeout: '100ms',
  log_min_messages: 'warning'
}

function program (name) {
  const installed = existsSync(VERSIONS) ? readdirSync(VERSIONS).sort((a, b) => b - a) : []
  if (installed.length === 0) throw new Error('PostgreSQL is missing: run `npm run setup`')
  return path.join(VERSIONS, installed[0], 'bin', name)
}

const idOf = (flag) => Number(execFileSync('id', [flag, USER], { encoding: 'utf8' }))

class Postgres {
  #process
  #owner
  #data
  #databases = 0

  // Makes a server with an empty set of tables to copy, and starts it.
  static async start () {
    const server = new Postgres()
    await server.start()
    await server.#makeTemplate()
    return server
  }

  constructor () {
    this.directory = mkdtempSync(path.join(tmpdir(), 'infz-pg-'))
    this.#owner = { uid: idOf('-u'), gid: idOf('-g') }
    chownSync(this.directory, this.#owner.uid, this.#owner.gid)
    this.#data = path.join(this.directory, 'data')
    execFileSync(program('initdb'), [
      '--pgdata', this.#data, '--username', USER, '--auth', 'trust', '--encoding', 'UTF8', '--locale', 'C',
      '--no-sync', '--no-instructions'
    ], { ...this.#owner, cwd: this.directory, stdio: ['ignore', 'pipe', 'pipe'] })
  }

  async start () {
    const settings = { ...SETTINGS, unix_socket_directories: this.directory }
    const words = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])
    const server = spawn(program('postgres'), ['-D', this.#data, ...words], {
      ...this.#owner, cwd: this.directory, stdio: ['ignore', 'ignore', 'pipe']
    })
    server.ended = once(server, 'exit')
    this.#process = server
    await ready(server)
  }

  // `fast` ends sessions, `immediate` is a crash.
  async stop (how = 'fast') {
    const server = this.#process
    this.#process = undefined
    if (!server) return
    server.kill(how === 'immediate' ? 'SIGQUIT' : 'SIGINT')
    await server.ended
  }

  // Takes connections, and answers nobody, until `resume()`.
  pause () {
    for (const pid of this.#processes()) process.kill(pid, 'SIGSTOP')
  }

  resume () {
    for (const pid of this.#processes()) process.kill(pid, 'SIGCONT')
  }

  // The server, and one for each connection.
  #processes () {
    const { pid } = this.#process
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean)
    return [pid, ...children.map(Number)]
  }

  get isUp () {
    return this.#process !== undefined
  }

  // Ends the server and everything of it.
  async remove () {
    await this.stop('immediate')
    rmSync(this.directory, { recursive: true, force: true })
  }

  // A database with the tables of schema.sql, and no row.
  async newDatabase () {
    const name = `test_${++this.#databases}`
    await this.#administer(`CREATE DATABASE ${name} TEMPLATE ${TEMPLATE}`)
    return new TestDatabase(this, name)
  }

  // Ends a database's connections and gives it another name.
  async rename (name, other) {
    for (;;) {
      await this.#administer(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${name}'`)
      try {
        return await this.#administer(`ALTER DATABASE ${name} RENAME TO ${other}`)
      } catch (error) {
        // Somebody has connected in between.
        if (error.code !== OBJECT_IN_USE) throw error
      }
    }
  }

  async drop (name) {
    await this.#administer(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)
  }

  // How to reach a database, in words of the driver.
  address (database) {
    return { host: this.directory, user: USER, database }
  }

  async #makeTemplate () {
    await this.#administer(`CREATE DATABASE ${TEMPLATE}`)
    const template = new TestDatabase(this, TEMPLATE)
    await template.sql(readFileSync(path.join(root, '__test__/db/schema.sql'), 'utf8'))
    await template.close()
  }

  #administer (statement) {
    return withSession(this.address('postgres'), (session) => session.query(statement))
  }
}

class TestDatabase {
  #session

  constructor (server, name) {
    Object.assign(this, { server, name })
  }

  get address () {
    return this.server.address(this.name)
  }

  // Runs SQL beside the library; the rows it answers.
  async sql (text, values) {
    this.#session ??= openSession(this.address)
    const { rows } = await (await this.#session).query(text, values)
    return rows
  }

  // A connection to hold transactions open on. Close it with `end()`.
  newSession () {
    return openSession(this.address)
  }

  // Adds a machine with what belongs to it; see `machineRows`.
  machine (given) {
    return this.#insert(machineRows(given))
  }

  // Adds a department with its rules; see `departmentRows`.
  department (given) {
    return this.#insert(departmentRows(given))
  }

  async #insert (rows) {
    for (const { table, row } of rows) await this.sql(...insertStatement(table, row))
  }

  async row (id) {
    const [row] = await this.sql('SELECT * FROM "Machine" WHERE id = $1', [id])
    return row
  }

  async configuration (id) {
    const [row] = await this.sql('SELECT * FROM "MachineConfiguration" WHERE "machineId" = $1', [id])
    return row
  }

  // Takes the database away from everyone but the answer's `sql`, until its `show()`.
  async hide () {
    const [server, name, other] = [this.server, this.name, `${this.name}_aside`]
    await this.close()
    await server.rename(name, other)
    const aside = new TestDatabase(server, other)
    return {
      sql: (text) => aside.sql(text),
      async show () {
        await aside.close()
        await server.rename(other, name)
      }
    }
  }

  // Waits until a session of somebody else waits for a lock that we hold.
  async someoneWaits () {
    const waiting = 'SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = \'Lock\''
    // The server tells of no such event.
    while ((await this.sql(waiting)).length === 0) await new Promise((resolve) => setImmediate(resolve))
  }

  // Ends the connections of everyone else; their number.
  async terminateOthers () {
    const ended = await this.sql(
      'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()'
    )
    return ended.length
  }

  // Forgets our own connection, which the server's end has cut.
  async close () {
    const session = this.#session
    this.#session = undefined
    await (await session?.catch(() => undefined))?.end().catch(() => undefined)
  }

  async drop () {
    await this.close()
    await this.server.drop(this.name)
  }
}

async function openSession (address) {
  // Loaded late: most files have no database.
  const { Client } = require('../db/prisma6/node_modules/pg')
  const session = new Client(address)
  // A connection that is cut tells it here too.
  session.on('error', () => undefined)
  await session.connect()
  return session
}

async function withSession (address, act) {
  const session = await openSession(address)
  try {
    return await act(session)
  } finally {
    await session.end()
  }
}

// Resolves once the server takes connections; rejects with its own words.
function ready (server) {
  return new Promise((resolve, reject) => {
    let said = ''
    const timer = setTimeout(() => fail('is not ready'), READY_DEADLINE)
    function fail (what) {
      clearTimeout(timer)
      reject(new Error(`the PostgreSQL server ${what}: ${said.slice(-500)}`))
    }
    server.on('exit', () => fail('ended'))
    server.stderr.setEncoding('utf8').on('data', (text) => {
      said = (said + text).slice(-4096)
      if (!/ready to accept connections/.test(said)) return
      clearTimeout(timer)
      resolve()
    })
  })
}

module.exports = { Postgres }
