'use strict'

const path = require('node:path')

const root = path.resolve(__dirname, '../..')

module.exports = { root, guestDir: process.env.INFINIZATION_GUEST_DIR ?? path.join(root, '.guest') }
