'use strict'

// Displays as text for a command line of one's own (`QemuCommandBuilder`). The engine's displays are its own matter:
// `createVM` checks them where the host is known. A password is never part of the text: QEMU is told it by its monitor.

const { existsSync } = require('node:fs')
const { DisplayError } = require('./errors')

const LOOPBACK = '127.0.0.1'
const SPICE_PORTS = [5900, 65535]
const VNC_BASE_PORT = 5900
const VNC_LAST_DISPLAY = 99
const VNC_MAX_PASSWORD_LENGTH = 8

const HOST_NAME = /^(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$/
const ALL_DIGITS = /^[\d.]+$/

const WORDS = {
  imageCompression: ['auto_glz', 'auto_lz', 'quic', 'glz', 'lz', 'off'],
  jpegWanCompression: ['auto', 'never', 'always'],
  zlibGlzWanCompression: ['auto', 'never', 'always'],
  streamingVideo: ['filter', 'off', 'all'],
  playbackCompression: ['on', 'off']
}

// An address of digits and dots is no name.
function isAddress (address) {
  if (typeof address !== 'string') return false
  return net().isIP(address) !== 0 || (HOST_NAME.test(address) && !ALL_DIGITS.test(address))
}

// Loaded by the first who asks: most processes make no command line of their own, and it brings all of Node's streams.
const net = () => require('node:net')

const issue = (code, message) => ({ code, message })

function result (validationErrors) {
  return { valid: validationErrors.length === 0, errors: validationErrors.map(({ message }) => message), validationErrors }
}

function refuseUnlessValid ({ validationErrors }) {
  if (validationErrors.length === 0) return
  const [{ code, message }] = validationErrors
  throw new DisplayError(code, message, { validationErrors })
}

class SpiceConfig {
  #options

  constructor (options) {
    this.#options = {
      addr: LOOPBACK,
      disableTicketing: false,
      enableAgent: true,
      gl: false,
      disableCopyPaste: false,
      disableAgentFileXfer: false,
      seamlessMigration: false,
      ...Object.fromEntries(Object.entries(WORDS).map(([name, [first]]) => [name, first])),
      ...given(options)
    }
    refuseUnlessValid(this.validate())
  }

  validate () {
    const { port, addr, password, disableTicketing } = this.#options
    const issues = []
    if (!Number.isInteger(port)) {
      issues.push(issue('INVALID_PORT', 'the SPICE port must be a whole number'))
    } else if (port < SPICE_PORTS[0] || port > SPICE_PORTS[1]) {
      issues.push(issue('PORT_OUT_OF_RANGE', `the SPICE port must be ${SPICE_PORTS[0]} to ${SPICE_PORTS[1]}`))
    }
    if (!isAddress(addr)) issues.push(issue('INVALID_ADDRESS', 'the SPICE address must be an IP address or a host name'))
    if (password !== undefined && (typeof password !== 'string' || password === '')) {
      issues.push(issue('INVALID_PASSWORD', 'the SPICE password must be text, and not empty'))
    }
    if (password !== undefined && disableTicketing) {
      issues.push(issue('CONFLICTING_OPTIONS', 'a SPICE password and disableTicketing exclude each other'))
    }
    return result([...issues, ...this.#wordIssues(), ...this.#glIssues()])
  }

  #wordIssues () {
    const wrong = Object.entries(WORDS).filter(([name, words]) => !words.includes(this.#options[name]))
    return wrong.map(([name, words]) => {
      const code = name === 'streamingVideo' ? 'INVALID_STREAMING_MODE' : 'INVALID_COMPRESSION_MODE'
      return issue(code, `${name} must be one of ${words.join(', ')}`)
    })
  }

  #glIssues () {
    const { gl, rendernode } = this.#options
    if (rendernode === undefined) return []
    if (!gl) return [issue('INVALID_GL_CONFIG', 'a rendernode needs gl')]
    if (typeof rendernode !== 'string' || /[,\p{Cc}]/u.test(rendernode)) {
      return [issue('INVALID_GL_CONFIG', 'the rendernode must be a path without commas')]
    }
    return existsSync(rendernode) ? [] : [issue('RENDERNODE_NOT_FOUND', `there is no rendernode ${rendernode}`)]
  }

  generateArgs () {
    const its = this.#options
    const parts = [
      `port=${its.port}`,
      `addr=${its.addr}`,
      its.disableTicketing && 'disable-ticketing=on',
      `image-compression=${its.imageCompression}`,
      `jpeg-wan-compression=${its.jpegWanCompression}`,
      `zlib-glz-wan-compression=${its.zlibGlzWanCompression}`,
      `streaming-video=${its.streamingVideo}`,
      `playback-compression=${its.playbackCompression}`,
      its.gl && 'gl=on',
      its.rendernode && `rendernode=${its.rendernode}`,
      its.disableCopyPaste && 'disable-copy-paste=on',
      its.disableAgentFileXfer && 'disable-agent-file-xfer=on',
      its.seamlessMigration && 'seamless-migration=on'
    ]
    return { args: ['-spice', parts.filter(Boolean).join(',')], vgaType: 'qxl' }
  }

  getPort () { return this.#options.port }
  getAddr () { return this.#options.addr }
  hasPassword () { return this.#options.password !== undefined }
  isAgentEnabled () { return this.#options.enableAgent }
}

class VncConfig {
  #options

  constructor (options) {
    this.#options = { addr: LOOPBACK, password: false, ...given(options) }
    refuseUnlessValid(this.validate())
  }

  validate () {
    const { display, addr } = this.#options
    const issues = []
    if (!Number.isInteger(display) || display < 0 || display > VNC_LAST_DISPLAY) {
      issues.push(issue('INVALID_DISPLAY_NUMBER', `the VNC display must be a whole number, 0 to ${VNC_LAST_DISPLAY}`))
    }
    if (!isAddress(addr)) issues.push(issue('INVALID_ADDRESS', 'the VNC address must be an IP address or a host name'))
    return result(issues)
  }

  generateArgs () {
    const { addr, display, password } = this.#options
    const host = net().isIPv6(addr) ? `[${addr}]` : addr
    return { args: ['-vnc', `${host}:${display}${password ? ',password=on' : ''}`], vgaType: 'std' }
  }

  getDisplay () { return this.#options.display }
  getPort () { return displayToPort(this.#options.display) }
  getAddr () { return this.#options.addr }
  hasPassword () { return Boolean(this.#options.password) }

  static displayToPort (display) { return displayToPort(display) }
  static portToDisplay (port) { return port - VNC_BASE_PORT }
  static getMaxPasswordLength () { return VNC_MAX_PASSWORD_LENGTH }
}

const displayToPort = (display) => VNC_BASE_PORT + display

// Undefined is not given.
function given (options) {
  return Object.fromEntries(Object.entries(options ?? {}).filter(([, value]) => value !== undefined))
}

module.exports = {
  DEFAULT_SPICE_ADDR: LOOPBACK,
  DEFAULT_VNC_ADDR: LOOPBACK,
  SPICE_MAX_PORT: SPICE_PORTS[1],
  SPICE_MIN_PORT: SPICE_PORTS[0],
  SpiceConfig,
  VNC_BASE_PORT,
  VNC_MAX_PASSWORD_LENGTH,
  VncConfig
}
