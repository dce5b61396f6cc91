'use strict'

const { abortable } = require('../../js/abort')
const { cleanUp, newInstance, openInstance, rejection } = require('../kit')

afterEach(cleanUp)

const verbs = [
  ['createVM', (it, signal) => it.createVM({ vmId: 'vm-1' }, { signal })],
  ['startVM', (it, signal) => it.startVM('vm-1', { signal })],
  ['stopVM', (it, signal) => it.stopVM('vm-1', { signal })]
]

test.each(verbs)('F52: %s begins nothing when its signal has fired already', async (_, call) => {
  const error = await rejection(call(await openInstance(), AbortSignal.abort()))
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'ABORTED', vmId: 'vm-1' })
})

test.each([['null', null], ['text', 'now'], ['a look-alike', { aborted: false }]])('a signal that is %s is refused', async (_, signal) => {
  const error = await rejection(newInstance().startVM('vm-1', { signal }))
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'signal' }] } })
})

test('an undefined signal is none', async () => {
  expect((await rejection(newInstance().startVM('vm-1', { signal: undefined }))).code).toBe('INVALID_STATE')
})

test('B18: a throwing signal getter is refused', async () => {
  const error = await rejection(newInstance().startVM('vm-1', { get signal () { throw new Error('no') } }))
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'signal' }] } })
})

test('F52: the signal fires while the call is under way', async () => {
  const controller = new AbortController()
  const cancelled = abortable({ signal: controller.signal, timeout: 5 }, (rest, cancellation) => {
    expect(rest).toEqual({ timeout: 5 })
    return new Promise((resolve) => { cancellation.cancel = () => resolve('cancelled') })
  })
  controller.abort()
  expect(await cancelled).toBe('cancelled')
})

test('the listener goes when the call ends', async () => {
  const { signal } = new AbortController()
  const removed = jest.spyOn(signal, 'removeEventListener')
  const added = jest.spyOn(signal, 'addEventListener')
  await abortable({ signal }, async () => 'done')
  await rejection(abortable({ signal }, async () => { throw new Error('no') }))
  expect(added.mock.calls.map((call) => call[1])).toEqual(removed.mock.calls.map((call) => call[1]))
  expect(added).toHaveBeenCalledTimes(2)
})
