'use strict'

// A warning of the process. Whoever replaced `emitWarning` by something that throws stops nothing.
function warn (message) {
  try {
    process.emitWarning(message, 'InfinizationWarning')
  } catch {}
}

module.exports = { warn }
