'use strict'

const lib = require('../..')
const { fail } = require('../../js/errors')
const { cleanUp, newInstance, openInstance, rejection } = require('../kit')

afterEach(cleanUp)

test('a rejection is a real LifecycleError in the realm of the caller', async () => {
  const error = await rejection(newInstance().getVMStatus('vm-1'))
  expect(error).toBeInstanceOf(Error)
  expect(error).toBeInstanceOf(lib.LifecycleError)
  expect(lib.isLifecycleError(error)).toBe(true)
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_STATE' })
})

test('the stack leads to the caller', async () => {
  const theCaller = async () => newInstance().getVMStatus('vm-1')
  const error = await rejection(theCaller())
  expect(error.stack).toMatch(/^LifecycleError: .*\n.*theCaller/)
})

test('results, their arrays and their Dates belong to the realm of the caller', async () => {
  const summary = await (await openInstance()).reconcileStartupState()
  expect(Object.getPrototypeOf(summary)).toBe(Object.prototype)
  expect(summary.skipped).toBeInstanceOf(Array)
  expect(summary.timestamp).toBeInstanceOf(Date)
})

test('a method answers with a promise of the realm of the caller', () => {
  const promise = newInstance().shutdown()
  expect(promise).toBeInstanceOf(Promise)
  return promise
})

test('a VM that does not exist says "not found"', async () => {
  const error = await rejection((await openInstance()).getVMStatus('no-such-vm'))
  expect(error).toMatchObject({ code: 'VM_NOT_FOUND', vmId: 'no-such-vm' })
  expect(error.message).toMatch(/not found/i)
})

test('what void methods answer is undefined', async () => {
  expect(await newInstance().shutdown()).toBeUndefined()
})

describe('what the factory makes of a chain', () => {
  test('causes become error.cause, outermost first', () => {
    const error = fail(JSON.stringify([
      { class: 'LifecycleError', code: 'CREATE_FAILED', message: 'no', vmId: 'vm-1', context: { step: 'tap' } },
      { class: 'NetworkError', code: 'BRIDGE_NOT_FOUND', message: 'no bridge', context: { bridge: 'br0' } },
      { class: 'ProcessError', code: 'HOST_FILE', message: 'no file' }
    ]))
    expect(error).toMatchObject({ code: 'CREATE_FAILED', vmId: 'vm-1', context: { step: 'tap' } })
    expect(error.cause).toBeInstanceOf(lib.NetworkError)
    expect(error.cause.context).toEqual({ bridge: 'br0' })
    expect(error.cause.cause).toBeInstanceOf(lib.ProcessError)
    expect(error.cause.cause.cause).toBeUndefined()
  })

  test('each class gets its arguments where it wants them', () => {
    const database = fail(JSON.stringify([{ class: 'PrismaAdapterError', code: 'UPDATE_FAILED', message: 'm', vmId: 'v', context: { prismaCode: 'P2034' } }]))
    expect(database).toMatchObject({ message: 'm', code: 'UPDATE_FAILED', vmId: 'v', details: { prismaCode: 'P2034' } })
    const storage = fail(JSON.stringify([{ class: 'StorageError', code: 'IMAGE_IN_USE', message: 'm', context: { path: '/a', command: 'qemu-img', holder: 7 } }]))
    expect(storage).toBeInstanceOf(lib.StorageError)
    expect(storage.toInfo()).toEqual({ code: 'IMAGE_IN_USE', message: 'm', path: '/a', command: 'qemu-img' })
    expect(storage.context.holder).toBe(7)
  })

  test('every class of the table can be made', () => {
    for (const { class: name, code } of require('../../native.js').errorTable()) {
      const error = fail(JSON.stringify([{ class: name, code, message: 'm' }]))
      expect(error).toBeInstanceOf(lib[name])
      expect(error).toMatchObject({ name, code, message: 'm' })
    }
  })
})

describe('the classes as the consumer makes them', () => {
  test('PrismaAdapterError takes the message first', () => {
    const error = new lib.PrismaAdapterError('gone', 'MACHINE_NOT_FOUND', 'vm-1', { a: 1 })
    expect(error).toMatchObject({ name: 'PrismaAdapterError', message: 'gone', code: 'MACHINE_NOT_FOUND', vmId: 'vm-1', details: { a: 1 } })
    expect(lib.isPrismaAdapterError(error)).toBe(true)
    expect(lib.isPrismaAdapterError(new Error('gone'))).toBe(false)
  })

  test('LifecycleError takes the code first', () => {
    const error = lib.createLifecycleError('START_FAILED', 'no', 'vm-1', { a: 1 })
    expect(error).toBeInstanceOf(lib.LifecycleError)
    expect(error).toMatchObject({ code: 'START_FAILED', message: 'no', vmId: 'vm-1', context: { a: 1 } })
  })

  test('DisplayError and NftablesError carry a context', () => {
    expect(new lib.DisplayError('INVALID_PORT', 'no', { port: 1 })).toMatchObject({ name: 'DisplayError', context: { port: 1 } })
    expect(new lib.NftablesError('COMMAND_FAILED', 'no', { stderr: 'x' })).toMatchObject({ code: 'COMMAND_FAILED', context: { stderr: 'x' } })
  })
})
