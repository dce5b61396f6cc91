'use strict'

const { emitGuarded } = require('./events')
const native = require('./native')
const { traced } = require('./traced')

// A VM's monitor while one QEMU runs, as `getQMPClient()` returns it.
const QMPClient = traced(class QMPClient extends native.QMPClient {
  constructor (owner, vmId) {
    let self
    super(owner, vmId, (event) => self.deref()?.#deliver(JSON.parse(event)))
    self = new WeakRef(this)
  }

  #deliver ({ link, event, data, timestamp }) {
    if (link) return emitGuarded(this, link)
    emitGuarded(this, event, data, timestamp)
    emitGuarded(this, 'event', { event, data, timestamp })
  }
})

module.exports = { QMPClient }
