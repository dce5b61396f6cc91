'use strict'

// Volumes that come and go as bytes. What is here must be JavaScript: streams, iterables and the caller's
// `onProgress`.

const { abortable } = require('./abort')
const native = require('./native')
const { news, refused, takeProgress } = require('./progress')
const { traced } = require('./traced')

const Upload = traced(class extends native.VolumeUpload {})
const Download = traced(class extends native.VolumeDownload {})

// No larger piece crosses into native code.
const PIECE = 2 ** 20

async function upload (owner, pool, name, source, options) {
  const { onProgress, rest: given } = takeProgress(options)
  const pieces = iteratorOf(source)
  // A stream that fails is told of as the upload fails, also where nobody reads it yet or any more: an `error` that
  // nobody listens to ends the process.
  if (typeof source.on === 'function') source.on('error', () => {})
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

async function download (owner, pool, name, options) {
  const { onProgress, rest: given } = takeProgress(options)
  return abortable(given, async (rest, cancellation) => {
    const source = new Download(owner)
    const facts = await source.begin(pool, name, rest, cancellation)
    const tell = onProgress && ((bytes) => onProgress(news(bytes, facts.size)))
    // Loaded by the first download: it brings all of Node's streams.
    const { VolumeDownload } = require('./volume-download')
    return new VolumeDownload(source, facts, tell, given?.signal)
  })
}

module.exports = { download, upload }
