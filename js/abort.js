'use strict'

const { Cancellation } = require('./native')
const { LifecycleError } = require('./errors')

// Takes `signal` out of an options object: what is left goes to native code as plain data. Options
// that cannot be read are passed on whole, so that the native reader says what is wrong with them.
function takeSignal (options) {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) return { rest: options }
  try {
    if (!('signal' in options)) return { rest: options }
    const { signal, ...rest } = options
    return { signal, rest }
  } catch {
    return { rest: options }
  }
}

function requireSignal (signal) {
  if (typeof signal?.aborted === 'boolean' && typeof signal.addEventListener === 'function') return
  const issues = [{ path: 'signal', message: 'must be an AbortSignal' }]
  throw new LifecycleError('INVALID_CONFIG', 'signal must be an AbortSignal', undefined, { issues })
}

// Runs `call(rest, cancellation)`; the signal, if there is one, cancels it. The listener goes when
// the call ends, so that a long-lived signal collects nothing.
async function abortable (options, call) {
  const { signal, rest } = takeSignal(options)
  if (signal === undefined) return call(rest)
  requireSignal(signal)
  const cancellation = new Cancellation()
  const cancel = () => cancellation.cancel()
  if (signal.aborted) cancel()
  signal.addEventListener('abort', cancel, { once: true })
  try {
    return await call(rest, cancellation)
  } finally {
    signal.removeEventListener('abort', cancel)
  }
}

module.exports = { abortable }
