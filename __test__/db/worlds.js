'use strict'

// The databases that the scenario is played on; see there for what a world has.

const { execFileSync } = require('node:child_process')
const path = require('node:path')
const { openInstance } = require('../kit')
const { literal, machineRows, snake, sqliteStatements } = require('../kit/rows')

// The embedded store, whose file is written beside the library.
async function sqliteWorld () {
  const instance = await openInstance()
  const file = path.join(instance.stateDir, 'infinization.db')
  const sql = (...statements) => execFileSync('sqlite3', ['-bail', file], {
    input: `.timeout 5000\nPRAGMA foreign_keys = ON;\n${statements.join('\n')}\n`, stdio: ['pipe', 'ignore', 'pipe']
  })
  const set = (machine, columns) => {
    const changes = Object.entries(columns).map(([name, value]) => `${snake(name)} = ${literal(value)}`)
    sql(`UPDATE machine SET ${changes} WHERE id = ${literal(machine)};`)
  }
  return {
    store: instance.getPrismaAdapter(),
    // It has no nodes.
    add: ({ nodeId, ...machine }) => sql('BEGIN;', ...sqliteStatements(machineRows(machine)), 'COMMIT;'),
    set,
    setJson: (machine, column, value) =>
      sql(`UPDATE machine_configuration SET ${snake(column)} = ${literal(JSON.stringify(value))} WHERE machine_id = ${literal(machine)};`),
    remove: (machine) => sql(`DELETE FROM machine WHERE id = ${literal(machine)};`)
  }
}

// A database of PostgreSQL, by whatever speaks with it.
function postgresWorld (database, store) {
  return {
    shared: true,
    store,
    add: (machine) => database.machine(machine),
    addDepartment: (department) => database.department(department),
    set: async (machine, columns) => {
      for (const [name, value] of Object.entries(columns)) {
        await database.sql(`UPDATE "Machine" SET "${name}" = $2 WHERE id = $1`, [machine, value])
      }
    },
    setJson: (machine, column, value) =>
      database.sql(`UPDATE "MachineConfiguration" SET "${column}" = $2 WHERE "machineId" = $1`, [machine, JSON.stringify(value)]),
    remove: (machine) => database.sql('DELETE FROM "Machine" WHERE id = $1', [machine])
  }
}

const prismaWorld = (database, client) => postgresWorld(database, new PrismaAdapter(client, NODE))

module.exports = { postgresWorld, sqliteWorld }
