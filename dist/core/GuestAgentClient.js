'use strict'

// A path that programs mock in their tests. It exports what the package itself does.

const { GuestAgentClient } = require('../../index.js')

module.exports = { GuestAgentClient }
