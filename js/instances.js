'use strict'

// The managers of this process, so that a backup finds the monitor of the machine it copies. They are
// not kept alive by this.

const instances = new Set()

function remember (instance) {
  instances.add(new WeakRef(instance))
}

function openInstances () {
  const open = []
  for (const reference of instances) {
    const instance = reference.deref()
    if (instance?.isInitialized()) open.push(instance)
    else if (instance === undefined) instances.delete(reference)
  }
  return open
}

module.exports = { openInstances, remember }
