'use strict'

module.exports = {
  testEnvironment: 'node',
  testMatch: ['<rootDir>/__test__/**/*.test.js'],
  // A fault in the addon must fail one file, not hang the run.
  testTimeout: 30000
}
