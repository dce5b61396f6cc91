'use strict'

const { KeyedMutex } = require('../..')

// A promise with its resolve at hand.
function gate () {
  let open
  const opened = new Promise((resolve) => { open = resolve })
  return { open, opened }
}

test('one key: first come, first served, one at a time', async () => {
  const mutex = new KeyedMutex()
  const order = []
  const { open, opened } = gate()
  const first = mutex.runExclusive('k', async () => { order.push('1 in'); await opened; order.push('1 out') })
  const others = [2, 3].map((n) => mutex.runExclusive('k', async () => { order.push(`${n} in`); order.push(`${n} out`) }))
  open()
  await Promise.all([first, ...others])
  expect(order).toEqual(['1 in', '1 out', '2 in', '2 out', '3 in', '3 out'])
})

test('keys are independent', async () => {
  const mutex = new KeyedMutex()
  const { open, opened } = gate()
  const held = mutex.runExclusive('a', () => opened)
  expect(await mutex.runExclusive('b', async () => 7)).toBe(7)
  expect(mutex.activeKeyCount).toBe(1)
  open()
  await held
  expect(mutex.activeKeyCount).toBe(0)
})

test('a failure poisons nothing', async () => {
  const mutex = new KeyedMutex()
  const failed = mutex.runExclusive('k', async () => { throw new Error('no') })
  const thrown = mutex.runExclusive('k', () => { throw new Error('sync') })
  const after = mutex.runExclusive('k', async () => 'ran')
  await expect(failed).rejects.toThrow('no')
  await expect(thrown).rejects.toThrow('sync')
  expect(await after).toBe('ran')
  expect(mutex.activeKeyCount).toBe(0)
})

test('tryRunExclusive never waits', async () => {
  const mutex = new KeyedMutex()
  const { open, opened } = gate()
  const held = mutex.runExclusive('k', () => opened)
  const skipped = await mutex.tryRunExclusive('k', async () => { throw new Error('must not run') })
  expect(skipped).toEqual({ ran: false, result: expect.any(Symbol) })
  open()
  await held
  expect(await mutex.tryRunExclusive('k', async () => 7)).toEqual({ ran: true, result: 7 })
})
