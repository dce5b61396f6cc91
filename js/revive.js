'use strict'

// The fields that the public contract declares as Date. The core sends milliseconds since 1970 or
// an ISO 8601 text there; QMP's own `timestamp` (an object) is left alone.
const DATE_FIELDS = new Set([
  'timestamp', 'detectedAt', 'createdAt', 'updatedAt', 'startedAt', 'completedAt', 'lastAttemptAt',
  'endedAt', 'since', 'expiresAt', 'mainFileModified'
])

const toDate = (key, value) =>
  DATE_FIELDS.has(key) && (typeof value === 'number' || typeof value === 'string')
    ? new Date(value)
    : value

// The registered reviver: JSON text becomes values of the caller's realm. `ours` is false for
// QEMU's own JSON, which is parsed and otherwise left alone.
const revive = (json, ours) => JSON.parse(json, ours ? toDate : undefined)

module.exports = { revive }
