'use strict'

// The contract's words for machines and their configurations as data: enums, usual and extreme sizes, and guards. They
// describe what programs hand around; `createVM` asks none of them, it checks by itself.

const path = require('node:path')
const { isValidDBStatus, sameNamed } = require('./constants')
const { normalizePciAddress, validatePciAddress } = require('./pci-address')

const ROM_DIR = '/var/lib/infinization/roms'

const VMOperation = sameNamed('CREATE', 'START', 'STOP', 'RESTART', 'SUSPEND', 'RESUME', 'RESET', 'DELETE')
const VMOperationStatus = sameNamed('PENDING', 'IN_PROGRESS', 'SUCCESS', 'FAILED', 'TIMEOUT')

const ConfigDefaults = Object.freeze({
  display: Object.freeze({ spicePort: 5900, vncDisplay: 0, address: '0.0.0.0', enableAgent: true }),
  network: Object.freeze({ bridge: 'virbr0', model: 'virtio-net-pci' }),
  storage: Object.freeze({ format: 'qcow2', bus: 'virtio', cache: 'writeback', sizeGB: 20 }),
  qemu: Object.freeze({ machineType: 'q35', cpuModel: 'host', cpuCores: 2, ramGB: 4 }),
  limits: Object.freeze({
    minCpuCores: 1,
    maxCpuCores: 64,
    minRamGB: 1,
    maxRamGB: 512,
    minDiskSizeGB: 10,
    maxDiskSizeGB: 2048,
    minSpicePort: 5900,
    maxSpicePort: 65535,
    maxVncDisplay: 99
  })
})

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)
const isText = (value) => typeof value === 'string' && value !== ''
const isPositive = (value) => typeof value === 'number' && value > 0
const areStrings = (object, ...names) => isObject(object) && names.every((name) => typeof object[name] === 'string')

function isValidVMInfo (info) {
  return areStrings(info, 'id', 'name', 'internalName', 'os') && isValidDBStatus(info.status) && isObject(info.resources)
}

function isValidDisplayConfig (config) {
  return isObject(config) && ['spice', 'vnc'].includes(config.type) && isPositive(config.port)
}

// What is given must be in order; nothing has to be given.
function isValidGpuPassthroughConfig (config) {
  if (!isObject(config)) return false
  const { gpuPciAddress, gpuAudioPciAddress, gpuRomfile } = config
  const addresses = [gpuPciAddress, gpuAudioPciAddress].filter((address) => address != null)
  if (!addresses.every((address) => validatePciAddress(address).valid)) return false
  if (new Set(addresses.map(normalizePciAddress)).size < addresses.length) return false
  return gpuRomfile == null || isInRomDirectory(gpuRomfile)
}

function isInRomDirectory (file) {
  return isText(file) && path.isAbsolute(file) && path.resolve(file).startsWith(`${ROM_DIR}/`)
}

module.exports = {
  ConfigDefaults,
  DEFAULT_VM_CPU_CORES: 2,
  DEFAULT_VM_DISK_SIZE_GB: 20,
  DEFAULT_VM_RAM_GB: 4,
  MAX_VM_CPU_CORES: 64,
  MAX_VM_DISK_SIZE_GB: 2048,
  MAX_VM_RAM_GB: 512,
  MIN_VM_CPU_CORES: 1,
  MIN_VM_DISK_SIZE_GB: 10,
  MIN_VM_RAM_GB: 1,
  VMOperation,
  VMOperationStatus,
  isInRomDirectory,
  isValidDisplayConfig,
  isValidGpuPassthroughConfig,
  isValidNetworkConfig: (config) => isObject(config) && isText(config.bridge),
  isValidStorageConfig: (config) => isObject(config) && isText(config.path) && isPositive(config.sizeGB),
  isValidVMCompleteConfig: (config) => isObject(config) && areStrings(config.vm, 'id', 'name', 'internalName'),
  isValidVMInfo,
  isValidVMOperation: (operation) => typeof operation === 'string' && Object.hasOwn(VMOperation, operation),
  isValidVMStatus: isValidDBStatus
}
