'use strict'

// The public face. Every export is an own enumerable property of this one literal, so that CommonJS,
// ESM named imports and `{ ...require('@infinibay/infinization') }` all see the same names.

const {
  DisplayErrorCode,
  InfinizationErrorCode,
  LifecycleErrorCode,
  NetworkErrorCode,
  NftablesErrorCode,
  PrismaAdapterErrorCode,
  ProcessErrorCode,
  QMPErrorCode,
  StorageErrorCode
} = require('./js/codes')
const {
  DEFAULT_BOOT_TIMEOUT,
  DEFAULT_DISK_BUS,
  DEFAULT_DISK_CACHE,
  DEFAULT_DISK_DIR,
  DEFAULT_DISK_FORMAT,
  DEFAULT_NETWORK_MODEL,
  DEFAULT_PIDFILE_DIR,
  DEFAULT_QMP_CONNECT_TIMEOUT,
  DEFAULT_QMP_SOCKET_DIR,
  DEFAULT_STOP_TIMEOUT,
  PROCESS_EXIT_POLL_INTERVAL,
  RESTART_DELAY_MS,
  RUNTIME_DISK_SIZE_PLACEHOLDER_GB
} = require('./js/constants')
const {
  DisplayError,
  InfinizationError,
  LifecycleError,
  NetworkError,
  NftablesError,
  PrismaAdapterError,
  ProcessError,
  QMPError,
  StorageError,
  createLifecycleError,
  isLifecycleError,
  isPrismaAdapterError
} = require('./js/errors')
const { Infinization } = require('./js/infinization')
const { KeyedMutex } = require('./js/keyed-mutex')

module.exports = {
  DEFAULT_BOOT_TIMEOUT,
  DEFAULT_DISK_BUS,
  DEFAULT_DISK_CACHE,
  DEFAULT_DISK_DIR,
  DEFAULT_DISK_FORMAT,
  DEFAULT_NETWORK_MODEL,
  DEFAULT_PIDFILE_DIR,
  DEFAULT_QMP_CONNECT_TIMEOUT,
  DEFAULT_QMP_SOCKET_DIR,
  DEFAULT_STOP_TIMEOUT,
  DisplayError,
  DisplayErrorCode,
  Infinization,
  InfinizationError,
  InfinizationErrorCode,
  KeyedMutex,
  LifecycleError,
  LifecycleErrorCode,
  NetworkError,
  NetworkErrorCode,
  NftablesError,
  NftablesErrorCode,
  PROCESS_EXIT_POLL_INTERVAL,
  PrismaAdapterError,
  PrismaAdapterErrorCode,
  ProcessError,
  ProcessErrorCode,
  QMPError,
  QMPErrorCode,
  RESTART_DELAY_MS,
  RUNTIME_DISK_SIZE_PLACEHOLDER_GB,
  StorageError,
  StorageErrorCode,
  createLifecycleError,
  isLifecycleError,
  isPrismaAdapterError
}
