'use strict'

const { execFileSync } = require('node:child_process')
const { objects } = require('./host')

// What the tests left on the host fails the run. The library's tables stay by design, without content: files
// run side by side, and none may take a table from another.
module.exports = () => {
  const before = new Set(globalThis.objectsBefore)
  const left = objects().filter((object) => !before.has(object))
  for (const table of ['bridge infinization', 'ip infinibay_nat']) {
    execFileSync('nft', [`add table ${table}; delete table ${table}`])
  }
  if (left.length > 0) throw new Error(`left behind: ${left.join(', ')}`)
}
