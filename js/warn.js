'use strict'

// A warning of the process. Whoever replaced `emitWarning` by something that throws stops nothing.
function warn (message) {
  try {
    process.emitWarning(message, 'InfinizationWarning')
  } catch {}
}

// What was thrown, in words. Anything may be, also what has none.
const messageOf = (thrown) => inWords(() => thrown?.message ?? thrown)

// The same for whoever looks for the place.
const stackOf = (thrown) => inWords(() => thrown instanceof Error ? thrown.stack : thrown)

function inWords (say) {
  try {
    return String(say())
  } catch {
    return 'something that cannot be said'
  }
}

module.exports = { messageOf, stackOf, warn }
