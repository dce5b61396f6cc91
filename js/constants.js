'use strict'

// The contract's constants and enums, as plain data, and the guards that go with them.

const SUPPORTED_IMAGE_FORMATS = ['qcow2', 'raw', 'vmdk', 'vdi', 'vhdx']

const NftablesFamily = Object.freeze({ BRIDGE: 'bridge', INET: 'inet', IP: 'ip', IP6: 'ip6' })

const sameNamed = (...names) => Object.freeze(Object.fromEntries(names.map((name) => [name, name])))

// What the library writes into the status column.
const DB_STATUSES = [
  'starting', 'running', 'off', 'suspended', 'paused', 'updating_hardware', 'powering_off_update', 'error'
]

// The run states that have a status; QEMU knows some more.
const QMP_STATUSES = [
  'running', 'paused', 'shutdown', 'inmigrate', 'postmigrate', 'prelaunch', 'finish-migrate', 'restore-vm', 'suspended',
  'watchdog', 'guest-panicked', 'io-error', 'colo'
]

// Milliseconds. Installers fetch most of what they install, and Windows updates itself on the way.
const OS_INSTALLATION_TIMEOUTS = Object.freeze({
  ubuntu: 2700000, fedora: 3600000, windows10: 5400000, windows11: 7200000
})

const DEFAULT_INSTALLATION_TIMEOUT = 3600000

const isValidOSType = (os) => typeof os === 'string' && Object.hasOwn(OS_INSTALLATION_TIMEOUTS, os)

const BackupType = Object.freeze({ FULL: 'FULL', INCREMENTAL: 'INCREMENTAL', SNAPSHOT: 'SNAPSHOT' })

const BackupStatus = Object.freeze({
  PENDING: 'PENDING',
  IN_PROGRESS: 'IN_PROGRESS',
  COMPLETED: 'COMPLETED',
  FAILED: 'FAILED',
  CANCELLED: 'CANCELLED'
})

const BackupCompression = Object.freeze({ NONE: 'NONE', QCOW2: 'QCOW2', GZIP: 'GZIP', ZSTD: 'ZSTD' })

module.exports = {
  BACKUP_MANIFEST_FILENAME: 'backup.json',
  BackupCompression,
  BackupStatus,
  BackupType,
  CLEANUP_RETRY_BASE_DELAY_MS: 1000,
  CLEANUP_RETRY_MAX_DELAY_MS: 10000,
  CONNECTION_STATES: ['established', 'new', 'related', 'invalid'],
  CleanupResourceType: sameNamed(
    'TAP_DEVICE', 'FIREWALL_CHAIN', 'QMP_SOCKET', 'SOCKET', 'PIDFILE', 'FILE', 'PROCESS', 'CGROUP', 'DB_CONFIGURATION'
  ),
  CleanupStatus: sameNamed('PENDING', 'SUCCESS', 'FAILED', 'RETRYING'),
  DEFAULT_BACKUP_COMPRESSION: BackupCompression.NONE,
  DEFAULT_BACKUP_DIR: '/var/lib/infinization/backups',
  DEFAULT_BACKUP_TYPE: BackupType.FULL,
  DEFAULT_BOOT_TIMEOUT: 60000,
  DEFAULT_CHAIN_PRIORITY: 0,
  DEFAULT_CLUSTER_SIZE: 65536,
  DEFAULT_DISK_BUS: 'virtio',
  DEFAULT_DISK_CACHE: 'writeback',
  DEFAULT_DISK_DIR: '/var/lib/infinization/disks',
  DEFAULT_DISK_EXTENSION: '.qcow2',
  DEFAULT_DISK_FORMAT: 'qcow2',
  DEFAULT_DISK_PATH_PREFIX: '/var/lib/infinization/disks',
  DEFAULT_HEALTH_CHECK_INTERVAL: 30000,
  DEFAULT_INSTALLATION_TIMEOUT,
  DEFAULT_NETWORK_MODEL: 'virtio-net-pci',
  DEFAULT_PIDFILE_DIR: '/var/run/infinization/pids',
  DEFAULT_QMP_CONNECT_TIMEOUT: 5000,
  DEFAULT_QMP_SOCKET_DIR: '/var/run/infinization',
  DEFAULT_QMP_SOCKET_PATH_PREFIX: '/var/run/infinization',
  DEFAULT_RETENTION_COUNT: 5,
  DEFAULT_STOP_TIMEOUT: 30000,
  DEFAULT_SYNC_TIMEOUT: 5000,
  INFINIZATION_TABLE_FAMILY: NftablesFamily.BRIDGE,
  INFINIZATION_TABLE_NAME: 'infinization',
  MAX_CHAIN_NAME_LENGTH: 31,
  MAX_CLEANUP_RETRIES: 3,
  MAX_CONCURRENT_BACKUPS: 2,
  MAX_SNAPSHOT_NAME_LENGTH: 64,
  MAX_SYNC_RETRIES: 3,
  MAX_TAP_NAME_LENGTH: 15,
  NFTABLES_COMMENT_PREFIX: 'infinization',
  NFTABLES_PERSISTENCE_DIR: '/etc/infinization/nftables',
  NetworkDeviceState: Object.freeze({ UP: 'up', DOWN: 'down', UNKNOWN: 'unknown' }),
  NftablesChainPolicy: Object.freeze({ ACCEPT: 'accept', DROP: 'drop' }),
  NftablesFamily,
  NftablesHookType: Object.freeze({
    PREROUTING: 'prerouting',
    INPUT: 'input',
    FORWARD: 'forward',
    OUTPUT: 'output',
    POSTROUTING: 'postrouting'
  }),
  OS_INSTALLATION_TIMEOUTS,
  PROCESS_EXIT_POLL_INTERVAL: 100,
  QEMU_MAC_PREFIX: '52:54:00',
  RESTART_DELAY_MS: 2000,
  RUNTIME_DISK_SIZE_PLACEHOLDER_GB: 1,
  SUPPORTED_IMAGE_FORMATS,
  SUPPORTED_PROTOCOLS: ['tcp', 'udp', 'icmp', 'all'],
  TAP_NAME_PREFIX: 'vnet-',
  VM_CHAIN_PREFIX: 'vm_',
  sameNamed,
  getInstallationTimeout: (os) => isValidOSType(os) ? OS_INSTALLATION_TIMEOUTS[os] : DEFAULT_INSTALLATION_TIMEOUT,
  isValidBackupStatus: (status) => Object.hasOwn(BackupStatus, String(status)) && typeof status === 'string',
  isValidBackupType: (type) => Object.hasOwn(BackupType, String(type)) && typeof type === 'string',
  isValidDBStatus: (status) => DB_STATUSES.includes(status),
  isValidImageFormat: (format) => SUPPORTED_IMAGE_FORMATS.includes(format),
  isValidOSType,
  isValidQMPStatus: (status) => QMP_STATUSES.includes(status)
}
