'use strict'

// How far a call is, for the caller's `onProgress`. That must be JavaScript: it is called while the call is under way.

const { abortable } = require('./abort')
const { LifecycleError } = require('./errors')
const native = require('./native')

const refused = (path, message) =>
  new LifecycleError('INVALID_CONFIG', `${path} ${message}`, undefined, { issues: [{ path, message }] })

// Takes `onProgress` out of an options object. What cannot be read as one is passed on whole, so that the
// native reader says what is wrong with it.
function takeProgress (options) {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) return { rest: options }
  const { onProgress, ...rest } = options
  if (onProgress !== undefined && typeof onProgress !== 'function') throw refused('onProgress', 'must be a function')
  return { onProgress, rest }
}

// Runs `call(rest, cancellation, progress)`, whose `progress` is a `Progress` if somebody wants to know, and tells
// `onProgress` each of its news as `shown`. What that throws cancels the call and is what it rejects with.
async function telling (options, Progress, shown, call) {
  const { onProgress, rest: given } = takeProgress(options)
  if (onProgress === undefined) return abortable(given, call)
  return abortable(given, async (rest, cancellation = new native.Cancellation()) => {
    const progress = new Progress()
    const told = tell(progress, (news) => onProgress(shown(news))).catch((error) => {
      cancellation.cancel()
      return { error }
    })
    // Async, so that what refuses before the work begins ends the telling, too.
    const work = (async () => call(rest, cancellation, progress))().finally(() => progress.end())
    const [done] = await Promise.allSettled([work])
    const thrown = await told
    if (thrown) throw thrown.error
    if (done.status === 'rejected') throw done.reason
    return done.value
  })
}

const news = (bytes, total) => ({ bytes, total, percent: total === null ? null : bytes / total * 100 })

// The same for a copy of a disk.
const copying = (options, call) => telling(options, native.CopyProgress, ({ bytes, total }) => news(bytes, total), call)

async function tell (progress, hear) {
  for (let news = await progress.next(); news !== null; news = await progress.next()) hear(news)
}

module.exports = { copying, news, refused, takeProgress, telling }
