'use strict'

// Rows of machines and departments, as the contract names their columns.

// A machine: its own columns, and beside them `configuration` (columns, if it has that row) and
// `rules` (if it has a rule set, which bears the machine's names).
function machineRows ({ configuration, rules, ...columns }) {
  const machine = {
    name: 'A test machine', internalName: columns.id, status: 'off', os: 'linux', cpuCores: 1, ramGB: 1, diskSizeGB: 1, ...columns
  }
  const rows = rules ? ruleSetRows('VM', machine.id, machine, rules) : []
  if (rules) machine.firewallRuleSetId = machine.id
  rows.push({ table: 'Machine', row: machine })
  if (configuration) {
    rows.push({ table: 'MachineConfiguration', row: { id: `${machine.id}-configuration`, machineId: machine.id, ...configuration } })
  }
  return rows
}

// A department: its own columns, and beside them `rules`.
function departmentRows ({ rules, ...columns }) {
  const department = { name: 'A test department', ...columns }
  const rows = rules ? ruleSetRows('DEPARTMENT', department.id, { name: department.name, internalName: department.id }, rules) : []
  if (rules) department.firewallRuleSetId = department.id
  return [...rows, { table: 'Department', row: department }]
}

function ruleSetRows (entityType, id, { name, internalName }, rules) {
  return [
    { table: 'FirewallRuleSet', row: { id, name, internalName, entityType, entityId: id } },
    ...rules.map((rule) => ({ table: 'FirewallRule', row: { ruleSetId: id, ...rule } }))
  ]
}

// Text and values for PostgreSQL. What is an object is a JSON column.
function insertStatement (table, row) {
  const columns = Object.keys(row)
  const text = `INSERT INTO "${table}" (${columns.map((column) => `"${column}"`)}) VALUES (${columns.map((_, i) => `$${i + 1}`)})`
  return [text, Object.values(row).map(jsonText)]
}

// The same rows in the embedded store: SQL with the values in it, for the `sqlite3` program. A rule
// set has no row there: it bears the machine's names.
function sqliteStatements (rows) {
  const machineFirst = [...rows.filter(({ table }) => table === 'Machine'), ...rows.filter(({ table }) => /Rule$|Configuration/.test(table))]
  return machineFirst.map(({ table, row }, position) => {
    const columns = Object.entries(sqliteRow(table, row, position))
    return `INSERT INTO ${snake(table)} (${columns.map(([name]) => name)}) VALUES (${columns.map(([, value]) => literal(value))});`
  })
}

function sqliteRow (table, row, position) {
  const { ruleSetId, firewallRuleSetId, ...rest } = row
  if (table === 'MachineConfiguration') delete rest.id
  const columns = Object.fromEntries(Object.entries(rest).map(([name, value]) => [snake(name), value]))
  if (table !== 'FirewallRule') return columns
  return { overrides_dept: false, ...columns, machine_id: ruleSetId, position }
}

// `ramGB` is `ram_gb`.
const snake = (name) => name.replace(/([a-z])([A-Z])/g, '$1_$2').toLowerCase()

function literal (value) {
  const plain = jsonText(value)
  if (plain === null || plain === undefined) return 'NULL'
  return typeof plain === 'string' ? `'${plain.replaceAll("'", "''")}'` : Number(plain)
}

const jsonText = (value) => value !== null && typeof value === 'object' ? JSON.stringify(value) : value

module.exports = { departmentRows, insertStatement, literal, machineRows, snake, sqliteStatements }
