'use strict'

// The public face. Every export is an own enumerable property by its own name, so that CommonJS, ESM named
// imports and `{ ...require('@infinibay/infinization') }` all see the same names. Nothing else is named
// here: the one file that is made of all modules (`npm run build:facade`) would rename what is called alike.


exports.BackupService = require('./backup').BackupService

exports.BackupErrorCode = require('./codes').BackupErrorCode
exports.DisplayErrorCode = require('./codes').DisplayErrorCode
exports.InfinizationErrorCode = require('./codes').InfinizationErrorCode
exports.LifecycleErrorCode = require('./codes').LifecycleErrorCode
exports.NetworkErrorCode = require('./codes').NetworkErrorCode
exports.NftablesErrorCode = require('./codes').NftablesErrorCode
exports.PrismaAdapterErrorCode = require('./codes').PrismaAdapterErrorCode
exports.ProcessErrorCode = require('./codes').ProcessErrorCode
exports.QMPErrorCode = require('./codes').QMPErrorCode
exports.StorageErrorCode = require('./codes').StorageErrorCode
exports.SyncErrorCode = require('./codes').SyncErrorCode

exports.BACKUP_MANIFEST_FILENAME = require('./constants').BACKUP_MANIFEST_FILENAME
exports.BackupCompression = require('./constants').BackupCompression
exports.BackupStatus = require('./constants').BackupStatus
exports.BackupType = require('./constants').BackupType
exports.CLEANUP_RETRY_BASE_DELAY_MS = require('./constants').CLEANUP_RETRY_BASE_DELAY_MS
exports.CLEANUP_RETRY_MAX_DELAY_MS = require('./constants').CLEANUP_RETRY_MAX_DELAY_MS
exports.CONNECTION_STATES = require('./constants').CONNECTION_STATES
exports.CleanupResourceType = require('./constants').CleanupResourceType
exports.CleanupStatus = require('./constants').CleanupStatus
exports.DEFAULT_BACKUP_COMPRESSION = require('./constants').DEFAULT_BACKUP_COMPRESSION
exports.DEFAULT_BACKUP_DIR = require('./constants').DEFAULT_BACKUP_DIR
exports.DEFAULT_BACKUP_TYPE = require('./constants').DEFAULT_BACKUP_TYPE
exports.DEFAULT_BOOT_TIMEOUT = require('./constants').DEFAULT_BOOT_TIMEOUT
exports.DEFAULT_CHAIN_PRIORITY = require('./constants').DEFAULT_CHAIN_PRIORITY
exports.DEFAULT_CLUSTER_SIZE = require('./constants').DEFAULT_CLUSTER_SIZE
exports.DEFAULT_DISK_BUS = require('./constants').DEFAULT_DISK_BUS
exports.DEFAULT_DISK_CACHE = require('./constants').DEFAULT_DISK_CACHE
exports.DEFAULT_DISK_DIR = require('./constants').DEFAULT_DISK_DIR
exports.DEFAULT_DISK_EXTENSION = require('./constants').DEFAULT_DISK_EXTENSION
exports.DEFAULT_DISK_FORMAT = require('./constants').DEFAULT_DISK_FORMAT
exports.DEFAULT_DISK_PATH_PREFIX = require('./constants').DEFAULT_DISK_PATH_PREFIX
exports.DEFAULT_HEALTH_CHECK_INTERVAL = require('./constants').DEFAULT_HEALTH_CHECK_INTERVAL
exports.DEFAULT_INSTALLATION_TIMEOUT = require('./constants').DEFAULT_INSTALLATION_TIMEOUT
exports.DEFAULT_NETWORK_MODEL = require('./constants').DEFAULT_NETWORK_MODEL
exports.DEFAULT_PIDFILE_DIR = require('./constants').DEFAULT_PIDFILE_DIR
exports.DEFAULT_QMP_CONNECT_TIMEOUT = require('./constants').DEFAULT_QMP_CONNECT_TIMEOUT
exports.DEFAULT_QMP_SOCKET_DIR = require('./constants').DEFAULT_QMP_SOCKET_DIR
exports.DEFAULT_QMP_SOCKET_PATH_PREFIX = require('./constants').DEFAULT_QMP_SOCKET_PATH_PREFIX
exports.DEFAULT_RETENTION_COUNT = require('./constants').DEFAULT_RETENTION_COUNT
exports.DEFAULT_STOP_TIMEOUT = require('./constants').DEFAULT_STOP_TIMEOUT
exports.DEFAULT_SYNC_TIMEOUT = require('./constants').DEFAULT_SYNC_TIMEOUT
exports.INFINIZATION_TABLE_FAMILY = require('./constants').INFINIZATION_TABLE_FAMILY
exports.INFINIZATION_TABLE_NAME = require('./constants').INFINIZATION_TABLE_NAME
exports.MAX_CHAIN_NAME_LENGTH = require('./constants').MAX_CHAIN_NAME_LENGTH
exports.MAX_CLEANUP_RETRIES = require('./constants').MAX_CLEANUP_RETRIES
exports.MAX_CONCURRENT_BACKUPS = require('./constants').MAX_CONCURRENT_BACKUPS
exports.MAX_SNAPSHOT_NAME_LENGTH = require('./constants').MAX_SNAPSHOT_NAME_LENGTH
exports.MAX_SYNC_RETRIES = require('./constants').MAX_SYNC_RETRIES
exports.MAX_TAP_NAME_LENGTH = require('./constants').MAX_TAP_NAME_LENGTH
exports.NFTABLES_COMMENT_PREFIX = require('./constants').NFTABLES_COMMENT_PREFIX
exports.NFTABLES_PERSISTENCE_DIR = require('./constants').NFTABLES_PERSISTENCE_DIR
exports.NetworkDeviceState = require('./constants').NetworkDeviceState
exports.NftablesChainPolicy = require('./constants').NftablesChainPolicy
exports.NftablesFamily = require('./constants').NftablesFamily
exports.NftablesHookType = require('./constants').NftablesHookType
exports.OS_INSTALLATION_TIMEOUTS = require('./constants').OS_INSTALLATION_TIMEOUTS
exports.PROCESS_EXIT_POLL_INTERVAL = require('./constants').PROCESS_EXIT_POLL_INTERVAL
exports.QEMU_MAC_PREFIX = require('./constants').QEMU_MAC_PREFIX
exports.RESTART_DELAY_MS = require('./constants').RESTART_DELAY_MS
exports.RUNTIME_DISK_SIZE_PLACEHOLDER_GB = require('./constants').RUNTIME_DISK_SIZE_PLACEHOLDER_GB
exports.SUPPORTED_IMAGE_FORMATS = require('./constants').SUPPORTED_IMAGE_FORMATS
exports.SUPPORTED_PROTOCOLS = require('./constants').SUPPORTED_PROTOCOLS
exports.TAP_NAME_PREFIX = require('./constants').TAP_NAME_PREFIX
exports.VM_CHAIN_PREFIX = require('./constants').VM_CHAIN_PREFIX
exports.getInstallationTimeout = require('./constants').getInstallationTimeout
exports.isValidBackupStatus = require('./constants').isValidBackupStatus
exports.isValidBackupType = require('./constants').isValidBackupType
exports.isValidDBStatus = require('./constants').isValidDBStatus
exports.isValidImageFormat = require('./constants').isValidImageFormat
exports.isValidOSType = require('./constants').isValidOSType
exports.isValidQMPStatus = require('./constants').isValidQMPStatus

exports.CommandExecutor = require('./command-executor').CommandExecutor

exports.CpuPinningAdapter = require('./cpu-pinning').CpuPinningAdapter

exports.Debugger = require('./debugger').Debugger

exports.DEFAULT_SPICE_ADDR = require('./display').DEFAULT_SPICE_ADDR
exports.DEFAULT_VNC_ADDR = require('./display').DEFAULT_VNC_ADDR
exports.SPICE_MAX_PORT = require('./display').SPICE_MAX_PORT
exports.SPICE_MIN_PORT = require('./display').SPICE_MIN_PORT
exports.SpiceConfig = require('./display').SpiceConfig
exports.VNC_BASE_PORT = require('./display').VNC_BASE_PORT
exports.VNC_MAX_PASSWORD_LENGTH = require('./display').VNC_MAX_PASSWORD_LENGTH
exports.VncConfig = require('./display').VncConfig

exports.BackupError = require('./errors').BackupError
exports.DisplayError = require('./errors').DisplayError
exports.FirewallTranslationError = require('./errors').FirewallTranslationError
exports.InfinizationError = require('./errors').InfinizationError
exports.LifecycleError = require('./errors').LifecycleError
exports.NetworkError = require('./errors').NetworkError
exports.NftablesError = require('./errors').NftablesError
exports.PrismaAdapterError = require('./errors').PrismaAdapterError
exports.ProcessError = require('./errors').ProcessError
exports.QMPError = require('./errors').QMPError
exports.StorageError = require('./errors').StorageError
exports.createLifecycleError = require('./errors').createLifecycleError
exports.isBackupError = require('./errors').isBackupError
exports.isLifecycleError = require('./errors').isLifecycleError
exports.isPrismaAdapterError = require('./errors').isPrismaAdapterError

exports.EventHandler = require('./event-handler').EventHandler

exports.defineFirewallPreset = require('./firewall-presets').defineFirewallPreset
exports.firewallPresets = require('./firewall-presets').firewallPresets

exports.GuestAgentClient = require('./guest-agent-client').GuestAgentClient

exports.HealthMonitor = require('./health-monitor').HealthMonitor

exports.PrismaAdapter = require('./database').PrismaAdapter

exports.Infinization = require('./infinization').Infinization

exports.KeyedMutex = require('./keyed-mutex').KeyedMutex

exports.ConfigDefaults = require('./machine-model').ConfigDefaults
exports.DEFAULT_VM_CPU_CORES = require('./machine-model').DEFAULT_VM_CPU_CORES
exports.DEFAULT_VM_DISK_SIZE_GB = require('./machine-model').DEFAULT_VM_DISK_SIZE_GB
exports.DEFAULT_VM_RAM_GB = require('./machine-model').DEFAULT_VM_RAM_GB
exports.MAX_VM_CPU_CORES = require('./machine-model').MAX_VM_CPU_CORES
exports.MAX_VM_DISK_SIZE_GB = require('./machine-model').MAX_VM_DISK_SIZE_GB
exports.MAX_VM_RAM_GB = require('./machine-model').MAX_VM_RAM_GB
exports.MIN_VM_CPU_CORES = require('./machine-model').MIN_VM_CPU_CORES
exports.MIN_VM_DISK_SIZE_GB = require('./machine-model').MIN_VM_DISK_SIZE_GB
exports.MIN_VM_RAM_GB = require('./machine-model').MIN_VM_RAM_GB
exports.VMOperation = require('./machine-model').VMOperation
exports.VMOperationStatus = require('./machine-model').VMOperationStatus
exports.isValidDisplayConfig = require('./machine-model').isValidDisplayConfig
exports.isValidGpuPassthroughConfig = require('./machine-model').isValidGpuPassthroughConfig
exports.isValidNetworkConfig = require('./machine-model').isValidNetworkConfig
exports.isValidStorageConfig = require('./machine-model').isValidStorageConfig
exports.isValidVMCompleteConfig = require('./machine-model').isValidVMCompleteConfig
exports.isValidVMInfo = require('./machine-model').isValidVMInfo
exports.isValidVMOperation = require('./machine-model').isValidVMOperation
exports.isValidVMStatus = require('./machine-model').isValidVMStatus

exports.PCI_ADDRESS_REGEX = require('./pci-address').PCI_ADDRESS_REGEX
exports.normalizePciAddress = require('./pci-address').normalizePciAddress
exports.validatePciAddress = require('./pci-address').validatePciAddress

exports.BackupScheduler = require('./scheduler').BackupScheduler

exports.BackupScheduleService = require('./schedules').BackupScheduleService

exports.QMPClient = require('./qmp-client').QMPClient

exports.QemuCommandBuilder = require('./qemu-command').QemuCommandBuilder

exports.QemuProcess = require('./qemu-process').QemuProcess

exports.decryptSecret = require('./secrets').decryptSecret
exports.encryptSecret = require('./secrets').encryptSecret

exports.StateSync = require('./state-sync').StateSync

exports.VMLifecycle = require('./vm-lifecycle').VMLifecycle

exports.BridgeManager = require('./services').BridgeManager
exports.CgroupsManager = require('./services').CgroupsManager
exports.DepartmentNatService = require('./services').DepartmentNatService
exports.FirewallRuleTranslator = require('./services').FirewallRuleTranslator
exports.MacAddressGenerator = require('./services').MacAddressGenerator
exports.NftablesPersistence = require('./services').NftablesPersistence
exports.NftablesService = require('./services').NftablesService
exports.QemuImgService = require('./services').QemuImgService
exports.SnapshotManager = require('./services').SnapshotManager
exports.TapDeviceManager = require('./services').TapDeviceManager
exports.firewallServiceUnit = require('./services').firewallServiceUnit
exports.generateVMChainName = require('./services').generateVMChainName
exports.installFirewallService = require('./services').installFirewallService
