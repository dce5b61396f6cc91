'use strict'

const { readFileSync } = require('node:fs')
const path = require('node:path')
const lib = require('../..')
const native = require('../../native.js')
const { root } = require('../kit')

const declarations = readFileSync(path.join(root, 'index.d.ts'), 'utf8')
const enums = Object.keys(lib).filter((name) => name.endsWith('ErrorCode'))

// What 'export type X = | 'A' | 'B'' lists.
function declared (name) {
  const union = declarations.match(new RegExp(`^export type ${name} =([^]*?)\\nexport const`, 'm'))[1]
  return [...union.matchAll(/'(\w+)'/g)].map((match) => match[1])
}

test.each(enums)('%s is a plain object of NAME: NAME, as declared', (name) => {
  expect(Object.keys(lib[name])).toEqual(declared(name))
  for (const [key, value] of Object.entries(lib[name])) expect(value).toBe(key)
})

test('every code of the core is in the enum of its class', () => {
  for (const { class: className, code } of native.errorTable()) {
    expect(lib[`${className}Code`] ?? lib[className.replace(/Error$/, 'ErrorCode')]).toHaveProperty(code)
  }
})

test('every class of the core is exported', () => {
  for (const { class: className } of native.errorTable()) expect(typeof lib[className]).toBe('function')
})
