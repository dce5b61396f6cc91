'use strict'

const { LifecycleError } = require('./errors')

// The form: an optional domain, bus, slot, function. A slot has 5 bits and a function 3.
const PCI_ADDRESS_REGEX = Object.freeze(/^([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]$/)
const IN_RANGE = /:[01][0-9a-fA-F]\.[0-7]$/

// Whether `createVM` takes it as an address; whether there is such a device is another matter.
function validatePciAddress (address) {
  const valid = typeof address === 'string' && PCI_ADDRESS_REGEX.test(address) && IN_RANGE.test(address)
  return valid ? { valid } : { valid, error: 'must be a PCI address such as 0000:01:00.0' }
}

// In lower case, with its domain.
function normalizePciAddress (address) {
  const { valid, error } = validatePciAddress(address)
  if (!valid) {
    const issues = [{ path: 'address', message: error }]
    throw new LifecycleError('INVALID_CONFIG', `the address ${error}`, undefined, { issues })
  }
  const lower = address.toLowerCase()
  return lower.length === '01:00.0'.length ? `0000:${lower}` : lower
}

module.exports = { PCI_ADDRESS_REGEX, normalizePciAddress, validatePciAddress }
