'use strict'

const { EventEmitter } = require('node:events')
const { emitGuarded } = require('../../js/events')
const { warning } = require('../kit')

const unsayable = Object.create(null)

test.each([
  ['throws', () => { throw unsayable }],
  ['rejects with', async () => { throw unsayable }],
  ['throws an error with such a stack as', () => { throw Object.defineProperty(new Error('x'), 'stack', { value: unsayable }) }]
])('a listener that %s what cannot be said stops nobody', async (_how, listener) => {
  const warned = warning(/^listener for 'x' failed: something that cannot be said$/)
  const emitter = new EventEmitter()
  const heard = jest.fn()
  emitter.on('x', listener)
  emitter.on('x', heard)
  emitGuarded(emitter, 'x', 7)
  await warned
  expect(heard).toHaveBeenCalledWith(7)
})
