'use strict'

const { EventEmitter } = require('node:events')
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

// The methods a class (or the interface of an object of ours) declares, and whether they are static.
function declaredMethods (name) {
  const start = declarations.search(new RegExp(`^export (class|interface) ${name}\\b`, 'm'))
  const body = declarations.slice(start, declarations.indexOf('\n}', start))
  return [...body.matchAll(/^ {2}(static )?(?:get )?(\w+)(?:<\w+(?: = \w+)?>)?\(/gm)]
    .filter((match) => match[2] !== 'constructor')
    .map((match) => `${match[1] ?? ''}${match[2]}`).sort()
}

// The methods there are, below EventEmitter, Object and Function (whichever realm's).
function methods (Class) {
  const found = new Set([
    ...below(Class.prototype), ...below(Class).filter((name) => name !== 'prototype').map((name) => `static ${name}`)
  ])
  for (const name of ['constructor', 'static name', 'static length', 'static arguments', 'static caller']) found.delete(name)
  return [...found].sort()
}

function below (object) {
  const root = object === EventEmitter || object === EventEmitter.prototype || ['hasOwnProperty', 'apply'].some((name) => Object.hasOwn(object, name))
  return root ? [] : [...Object.getOwnPropertyNames(object), ...below(Object.getPrototypeOf(object))]
}

const classes = declaredValues.filter((name) => declarations.includes(`export class ${name} `) && !name.endsWith('Error'))

test.each(classes)('%s has the methods that index.d.ts declares, and no others', (name) => {
  expect(methods(lib[name])).toEqual(declaredMethods(name))
})

test.each([
  ['InfinizationDatabase', () => native.InfinizationDatabase, []]
])('%s has the methods that index.d.ts declares, and no others', (name, Class, inJavaScript) => {
  const inherited = name === 'InfinizationDatabase' ? declaredMethods('DatabaseAdapter') : []
  expect([...methods(Class()), ...inJavaScript].sort()).toEqual([...declaredMethods(name), ...inherited].sort())
})

test('every error class takes what index.d.ts declares', () => {
  const errors = declaredValues.filter((name) => declarations.includes(`export class ${name} extends Error`))
  expect(errors.length).toBe(11)
  for (const name of errors) {
    expect(new lib[name]('CODE', 'message')).toMatchObject({ name })
    expect(new lib[name]('CODE', 'message')).toBeInstanceOf(Error)
  }
})

test('ESM sees the same names', async () => {
  const { stdout } = await runNode(`
    import('./index.js').then((m) => console.log(Object.keys(m).filter((k) => !['default', 'module.exports'].includes(k)).sort().join()))
  `)
  expect(stdout.trim()).toBe(declaredValues.sort().join())
})

test('what is shipped in one file calls functions and classes by their names', async () => {
  const { stdout } = await runNode(`
    const named = Object.entries(require('./index.js')).filter(([, value]) => typeof value === 'function')
    console.log(JSON.stringify(named.map(([name, value]) => [name, value.name])))
  `)
  const here = Object.entries(lib).filter(([, value]) => typeof value === 'function')
  expect(here.length).toBeGreaterThan(50)
  expect(JSON.parse(stdout)).toEqual(here.map(([name, value]) => [name, value.name]))
})

test('constants have the values that index.d.ts declares', () => {
  const literals = [...declarations.matchAll(/^export const (\w+): (\d+|'[^']*')$/gm)]
  expect(literals.length).toBeGreaterThan(20)
  for (const [, name, literal] of literals) {
    expect([name, lib[name]]).toEqual([name, literal.startsWith("'") ? literal.slice(1, -1) : Number(literal)])
  }
})

test('enums have the values that index.d.ts declares', () => {
  const enums = [...declarations.matchAll(/^export const (\w+): \{([^}[]*readonly[^}[]*)\}$/gm)]
  expect(enums).toHaveLength(7)
  for (const [, name, body] of enums) {
    const members = [...body.matchAll(/readonly (\w+): '([^']*)'/g)].map((match) => [match[1], match[2]])
    expect([name, lib[name]]).toEqual([name, Object.fromEntries(members)])
  }
  expect(lib.SUPPORTED_PROTOCOLS).toEqual(['tcp', 'udp', 'icmp', 'all'])
  expect(lib.CONNECTION_STATES).toEqual(['established', 'new', 'related', 'invalid'])
  expect(lib.SUPPORTED_IMAGE_FORMATS.filter(lib.isValidImageFormat)).toHaveLength(5)
  expect(lib.isValidImageFormat('iso')).toBe(false)
})

test('enums are frozen', () => {
  const enums = Object.entries(lib).filter(([, value]) => Object.getPrototypeOf(value) === Object.getPrototypeOf(lib.NftablesFamily))
  expect(enums.length).toBeGreaterThan(12)
  for (const [name, value] of enums) expect([name, Object.isFrozen(value)]).toEqual([name, true])
})

// What 'export type X = | 'A' | 'B'' lists.
const union = (name) => [...declarations.match(new RegExp(`^export type ${name} =([^]*?)\nexport`, 'm'))[1].matchAll(/'([\w-]+)'/g)]
  .map((match) => match[1])

test.each([['isValidDBStatus', 'DBVMStatus', 8], ['isValidQMPStatus', 'QMPVMStatus', 13], ['isValidOSType', 'OSType', 4]])('%s knows what %s is', (guard, type, count) => {
  const words = union(type)
  expect(words).toHaveLength(count)
  expect(words.filter(lib[guard])).toEqual(words)
  expect(['backing_up', 'debug', 'RUNNING', '', null, undefined, 5].filter(lib[guard])).toEqual([])
})

test('installation timeouts', () => {
  const minutes = { ubuntu: 45, fedora: 60, windows10: 90, windows11: 120 }
  expect(lib.OS_INSTALLATION_TIMEOUTS).toEqual(Object.fromEntries(Object.entries(minutes).map(([os, wait]) => [os, wait * 60_000])))
  expect(Object.keys(minutes).map(lib.getInstallationTimeout)).toEqual(Object.values(minutes).map((wait) => wait * 60_000))
  const others = ['ubuntu-22.04', 'Windows11', 'constructor', '', null, undefined]
  expect(others.map(lib.getInstallationTimeout)).toEqual(others.map(() => lib.DEFAULT_INSTALLATION_TIMEOUT))
})

test('B35: PCI addresses', () => {
  const form = ['0000:01:00.0', '01:00.0', 'ABCD:ef:1f.7', '00:20.0', '01:00.8']
  expect(form.filter((address) => !lib.PCI_ADDRESS_REGEX.test(address))).toEqual([])
  const wrong = ['1:0.0', '0000:01:00.8', '00:20.0', '0000:01:00.0 ', '01:00.0;reboot', '', undefined, 5]
  expect(wrong.map(lib.validatePciAddress)).toEqual(wrong.map(() => ({ valid: false, error: expect.any(String) })))
  expect(lib.validatePciAddress('01:00.0')).toEqual({ valid: true })
  expect(['01:00.0', 'ABCD:EF:1F.7'].map(lib.normalizePciAddress)).toEqual(['0000:01:00.0', 'abcd:ef:1f.7'])
  expect(() => lib.normalizePciAddress('1:0.0')).toThrow(expect.objectContaining({ name: 'LifecycleError', code: 'INVALID_CONFIG' }))
})
