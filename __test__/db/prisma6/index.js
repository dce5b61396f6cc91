'use strict'

module.exports = require('@prisma/adapter-pg')
