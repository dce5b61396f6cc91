'use strict'

// The managers of this process from initialize() to shutdown(): they are needed even when nobody refers
// to them, and a backup finds the monitor of the machine it copies.

const instances = new Set()

const remember = (instance) => instances.add(instance)

const forget = (instance) => instances.delete(instance)

const openInstances = () => [...instances].filter((instance) => instance.isInitialized())

module.exports = { forget, openInstances, remember }
