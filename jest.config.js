'use strict'

const path = require('node:path')

module.exports = {
  testEnvironment: 'node',
  testMatch: ['<rootDir>/__test__/**/*.test.js'],
  globalSetup: '<rootDir>/__test__/kit/before-all.js',
  globalTeardown: '<rootDir>/__test__/kit/after-all.js',
  // The sources are run as they are, so that stacks and their names are Node's own.
  transform: {},
  // And from `js/`, not from the one file that is made of it: that is what the Node processes load which tests start.
  moduleNameMapper: { '^\\.\\./\\.\\.(/index\\.js)?$': '<rootDir>/js/index.js' },
  // Not in the temporary directory: that is looked through for what tests leave behind.
  cacheDirectory: path.join(__dirname, 'node_modules/.cache/jest'),
  // Files with guests share the machine's cores: two at a time, whatever the machine.
  maxWorkers: 2,
  // A fault in the addon must fail one file, not hang the run.
  testTimeout: 30000
}
