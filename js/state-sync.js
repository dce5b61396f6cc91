'use strict'

const native = require('./native')
const { QMPClient } = require('./qmp-client')
const { traced } = require('./traced')
const { databasePort } = require('./vm-lock')

const State = traced(class extends native.StateSync {})

class StateSync extends State {
  constructor (db) {
    super(databasePort(db))
  }

  async syncState (vmId, client) {
    return super.syncState(vmId, client instanceof QMPClient ? client : undefined)
  }
}

module.exports = { StateSync }
