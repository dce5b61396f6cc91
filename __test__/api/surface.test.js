'use strict'

const { readFileSync } = require('node:fs')
const path = require('node:path')
const lib = require('../..')
const native = require('../../native.js')
const { root, runNode } = require('../kit')

const declarations = readFileSync(path.join(root, 'index.d.ts'), 'utf8')
const declaredValues = [...declarations.matchAll(/^export (?:class|const|function) (\w+)/gm)].map((match) => match[1])

test('exports exactly the values that index.d.ts declares', () => {
  expect(Object.keys(lib).sort()).toEqual(declaredValues.sort())
})

test('every export is an own enumerable property, so that a mock can spread it', () => {
  const spread = { ...lib, Infinization: 'fake' }
  expect(Object.keys(spread).sort()).toEqual(Object.keys(lib).sort())
  expect(spread.KeyedMutex).toBe(lib.KeyedMutex)
})

test('the class has every method that index.d.ts declares', () => {
  const body = declarations.slice(declarations.indexOf('export class Infinization'))
  const methods = [...body.slice(0, body.indexOf('\n}')).matchAll(/^ {2}(\w+)\(/gm)].map((match) => match[1])
  const instance = new lib.Infinization()
  for (const name of methods.filter((name) => name !== 'constructor')) {
    expect([name, typeof instance[name]]).toEqual([name, 'function'])
  }
})

test('the class has no method that index.d.ts does not declare', () => {
  for (const name of Object.getOwnPropertyNames(native.Infinization.prototype)) {
    expect(declarations).toContain(` ${name}(`)
  }
})

test('ESM sees the same names', async () => {
  const { stdout } = await runNode(`
    import('./index.js').then((m) => console.log(Object.keys(m).filter((k) => !['default', 'module.exports'].includes(k)).sort().join()))
  `)
  expect(stdout.trim()).toBe(declaredValues.sort().join())
})

test('constants have the values that index.d.ts declares', () => {
  const literals = [...declarations.matchAll(/^export const (\w+): (\d+|'[^']*')$/gm)]
  expect(literals.length).toBeGreaterThan(10)
  for (const [, name, literal] of literals) {
    expect([name, lib[name]]).toEqual([name, literal.startsWith("'") ? literal.slice(1, -1) : Number(literal)])
  }
})
