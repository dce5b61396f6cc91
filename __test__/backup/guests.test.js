'use strict'

const { Guests } = require('../../js/guests')

const deferred = () => {
  const it = {}
  it.promise = new Promise((resolve, reject) => Object.assign(it, { resolve, reject }))
  return it
}

// An agent that writes down what is asked of it.
function agentOf (calls, more = {}) {
  const note = (name, answer) => async () => { calls.push(name); return answer }
  return { fsFreeze: note('freeze', 2), fsThaw: note('thaw', 2), disconnect: note('disconnect'), ...more }
}

test('a guest is frozen, thawed and let go', async () => {
  const calls = []
  const guests = new Guests(undefined, () => agentOf(calls))
  expect(await guests.answer('{"ask":"freeze","vmId":"a"}')).toBe('{"value":2}')
  expect(await guests.answer('{"ask":"thaw","vmId":"a"}')).toBe('{"value":true}')
  expect(await guests.answer('{"ask":"thaw","vmId":"a"}')).toBe('{"value":false}')
  expect(calls).toEqual(['freeze', 'thaw', 'disconnect'])
})

test('F39: a guest whose agent connects too late is not frozen any more', async () => {
  const calls = []
  const connected = deferred()
  const guests = new Guests(undefined, async () => agentOf(calls, { isConnected: () => false, connect: () => connected.promise }))
  const freezing = guests.freeze('a')
  await new Promise(setImmediate)
  expect(await guests.thaw('a')).toBe(false)
  connected.resolve()
  expect(await freezing).toBe(0)
  expect(calls).toEqual(['disconnect'])
})

test('F39: a freeze that comes about too late is undone', async () => {
  const calls = []
  const frozen = deferred()
  const guests = new Guests(undefined, () => agentOf(calls, { fsFreeze: () => frozen.promise }))
  const freezing = guests.freeze('a')
  await new Promise(setImmediate)
  expect(await guests.thaw('a')).toBe(true)
  frozen.resolve(1)
  await freezing
  expect(calls).toEqual(['thaw', 'disconnect', 'thaw'])
})

test('F39: a thaw that fails can be tried again', async () => {
  let attempts = 0
  const guests = new Guests(undefined, () => agentOf([], { fsThaw: async () => { if (++attempts < 3) throw new Error('busy') } }))
  await guests.freeze('a')
  const thaw = () => guests.answer('{"ask":"thaw","vmId":"a"}')
  expect([await thaw(), await thaw(), await thaw()]).toEqual(['{"error":"busy"}', '{"error":"busy"}', '{"value":true}'])
})

test('F39: the client of a thaw that failed is let go before the next connects', async () => {
  const calls = []
  const broken = async () => { throw new Error('broken') }
  const agents = [agentOf(calls, { fsThaw: broken }), agentOf(calls, { isConnected: () => false, connect: async () => { calls.push('connect') } })]
  const guests = new Guests(undefined, () => agents.shift())
  await guests.freeze('a')
  expect(await guests.answer('{"ask":"thaw","vmId":"a"}')).toBe('{"error":"broken"}')
  await guests.freeze('a')
  await guests.thaw('a')
  expect(calls).toEqual(['freeze', 'disconnect', 'connect', 'freeze', 'thaw', 'disconnect'])
})

test('what callbacks throw is an answer', async () => {
  const guests = new Guests(() => { throw new Error('no database') }, () => { throw new Error('no agent') })
  expect(await guests.answer('{"ask":"isRunning","vmId":"a"}')).toBe('{"error":"no database"}')
  expect(await guests.answer('{"ask":"freeze","vmId":"a"}')).toBe('{"error":"no agent"}')
  expect(await new Guests().answer('{"ask":"freeze","vmId":"a"}')).toBe('{"value":null}')
})
