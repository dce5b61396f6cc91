'use strict'

// A volume as a stream of its bytes.

const { Readable } = require('node:stream')
const { StorageError } = require('./errors')

// About as much waits to be read.
const HIGH_WATER_MARK = 2 ** 20

class VolumeDownload extends Readable {
  #source
  #bytes = 0
  #tell
  #signal
  #abort = () => this.destroy(new StorageError('ABORTED', 'the transfer was aborted'))

  // `tell(bytes)`, if there is one, hears how many bytes have come so far.
  constructor (source, { size, format }, tell, signal) {
    super({ highWaterMark: HIGH_WATER_MARK })
    Object.defineProperties(this, {
      size: { value: size, enumerable: true },
      format: { value: format, enumerable: true }
    })
    this.#source = source
    this.#tell = tell
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
    this.#tell?.(this.#bytes)
    this.push(piece)
  }
}

module.exports = { VolumeDownload }
