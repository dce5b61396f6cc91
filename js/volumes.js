'use strict'

// Volumes that come and go as bytes, and how far copies are. What is here must be JavaScript: streams,
// iterables and the caller's `onProgress`.

const { Readable } = require('node:stream')
const { abortable } = require('./abort')
const { LifecycleError, StorageError } = require('./errors')
const native = require('./native')
const { traced } = require('./traced')

const Upload = traced(class extends native.VolumeUpload {})
const Download = traced(class extends native.VolumeDownload {})

// No larger piece crosses into native code, and about as much waits in a download.
const PIECE = 2 ** 20

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

const news = (bytes, total) => ({ bytes, total, percent: total === null ? null : bytes / total * 100 })

// Runs `call(rest, cancellation, progress)` and tells `onProgress` how far it is. What that throws cancels the
// call and is what it rejects with.
async function copying (options, call) {
  const { onProgress, rest: given } = takeProgress(options)
  if (onProgress === undefined) return abortable(given, call)
  return abortable(given, async (rest, cancellation = new native.Cancellation()) => {
    const progress = new native.CopyProgress()
    const telling = tell(progress, onProgress).catch((error) => {
      cancellation.cancel()
      return { error }
    })
    // Async, so that what refuses before the copy begins ends the telling, too.
    const copy = (async () => call(rest, cancellation, progress))().finally(() => progress.end())
    const [made] = await Promise.allSettled([copy])
    const thrown = await telling
    if (thrown) throw thrown.error
    if (made.status === 'rejected') throw made.reason
    return made.value
  })
}

async function tell (progress, onProgress) {
  for (let told = await progress.next(); told !== null; told = await progress.next()) {
    onProgress(news(told.bytes, told.total))
  }
}

async function upload (owner, pool, name, source, options) {
  const { onProgress, rest: given } = takeProgress(options)
  const pieces = iteratorOf(source)
  return abortable(given, async (rest, cancellation) => {
    const reader = new Reader(pieces, given?.signal)
    const target = new Upload(owner)
    const total = rest?.size ?? (ArrayBuffer.isView(source) ? source.byteLength : null)
    let finished = false
    try {
      await target.begin(pool, name, rest, cancellation)
      let bytes = 0
      for (let piece = await reader.next(); piece !== undefined; piece = await reader.next()) {
        target.stage(piece)
        await target.write()
        bytes += piece.byteLength
        onProgress?.(news(bytes, total))
      }
      // After an abort this is what tells it.
      const made = await target.finish()
      finished = true
      return made
    } finally {
      reader.end()
      if (!finished) {
        letGo(source, pieces)
        await target.abandon()
      }
    }
  })
}

// Gives the source's bytes in pieces of at most a MiB, and nothing more once the signal has fired, even if the
// source never answers.
class Reader {
  #pieces
  #signal
  #rest = new Uint8Array()
  #stop = () => {}
  #abort = () => this.#stop({ done: true })

  constructor (pieces, signal) {
    this.#pieces = pieces
    this.#signal = signal
    signal?.addEventListener('abort', this.#abort)
  }

  async next () {
    while (this.#rest.byteLength === 0) {
      if (this.#signal?.aborted) return undefined
      const { done, value } = await this.#ask()
      if (done) return undefined
      this.#rest = bytesOf(value)
    }
    const piece = this.#rest.subarray(0, PIECE)
    this.#rest = this.#rest.subarray(PIECE)
    return piece
  }

  end () {
    this.#signal?.removeEventListener('abort', this.#abort)
  }

  #ask () {
    return new Promise((resolve, reject) => {
      this.#stop = resolve
      Promise.resolve(this.#pieces.next()).then(resolve, reject)
    })
  }
}

function iteratorOf (source) {
  if (ArrayBuffer.isView(source)) return [source].values()
  const iterator = typeof source === 'object' && (source?.[Symbol.asyncIterator] ?? source?.[Symbol.iterator])
  if (typeof iterator !== 'function') throw refused('source', 'must be bytes, or a stream or iterable of bytes')
  return iterator.call(source)
}

function bytesOf (piece) {
  if (!ArrayBuffer.isView(piece)) throw refused('source', 'must give its bytes as Uint8Arrays')
  return new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength)
}

// A source that is not read to its end. Nobody waits for one that does not answer, or minds what it throws.
function letGo (source, pieces) {
  const ended = async () => typeof source.destroy === 'function' ? source.destroy() : pieces.return?.()
  ended().catch(() => {})
}

class VolumeDownload extends Readable {
  #source
  #bytes = 0
  #onProgress
  #signal
  #abort = () => this.destroy(aborted())

  constructor (source, { size, format }, onProgress, signal) {
    super({ highWaterMark: PIECE })
    Object.defineProperties(this, {
      size: { value: size, enumerable: true },
      format: { value: format, enumerable: true }
    })
    this.#source = source
    this.#onProgress = onProgress
    this.#signal = signal
    signal?.addEventListener('abort', this.#abort, { once: true })
    if (signal?.aborted) this.#abort()
  }

  _read () {
    this.#next().catch((error) => this.destroy(error))
  }

  _destroy (error, callback) {
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#source.close().then(() => callback(error), () => callback(error))
  }

  async #next () {
    const piece = await this.#source.read()
    if (this.destroyed) return
    if (piece.length === 0) {
      this.push(null)
      return
    }
    this.#bytes += piece.length
    this.#onProgress?.(news(this.#bytes, this.size))
    this.push(piece)
  }
}

const aborted = () => new StorageError('ABORTED', 'the transfer was aborted')

async function download (owner, pool, name, options) {
  const { onProgress, rest: given } = takeProgress(options)
  return abortable(given, async (rest, cancellation) => {
    const source = new Download(owner)
    const facts = await source.begin(pool, name, rest, cancellation)
    return new VolumeDownload(source, facts, onProgress, given?.signal)
  })
}

module.exports = { copying, download, upload }
