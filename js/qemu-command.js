'use strict'

// A QEMU command line of one's own, option by option, in the order of the calls and byte for byte as the contract has it.
// The engine's own command line is another (`planVM` shows it). What is given can add no option to the one it is for:
// what would have to be escaped is refused. `addRawArg` alone takes everything.

const { CpuPinningAdapter } = require('./cpu-pinning')
const { SpiceConfig, VncConfig } = require('./display')
const { isInRomDirectory } = require('./machine-model')
const { PCI_ADDRESS_REGEX } = require('./pci-address')

const FORMATS = ['qcow2', 'raw']
const BUSES = ['virtio', 'sata', 'scsi', 'ide']
const CACHES = ['none', 'writeback', 'writethrough', 'directsync', 'unsafe']
const MACHINES = ['q35', 'pc']
const MODELS = ['virtio-net-pci', 'e1000']
const BOOT_DEVICES = ['c', 'd', 'n']
const STRATEGIES = ['basic', 'hybrid', 'none']
const USUAL_QXL_MEMORY_MB = 16

class QemuArgValidationError extends Error {
  constructor (message) {
    super(message)
    this.name = 'QemuArgValidationError'
  }
}

function refuse (message) {
  throw new QemuArgValidationError(message)
}

function safeValue (name, value) {
  if (typeof value !== 'string' || value === '' || /[,=\p{Cc}]/u.test(value)) {
    refuse(`${name} must be text without ',', '=' and control characters`)
  }
  return value
}

function safePath (name, value) {
  if (typeof value !== 'string' || value === '' || /[,\p{Cc}]/u.test(value)) {
    refuse(`${name} must be a path without ',' and control characters`)
  }
  return value
}

function oneOf (name, value, words) {
  return words.includes(value) ? value : refuse(`${name} must be one of ${words.join(', ')}`)
}

function whole (name, value, least = 1) {
  return Number.isInteger(value) && value >= least ? value : refuse(`${name} must be a whole number, ${least} or more`)
}

function pciAddress (name, value) {
  return typeof value === 'string' && PCI_ADDRESS_REGEX.test(value) ? value : refuse(`${name} must be a PCI address`)
}

// `,romfile=…`, or nothing.
function romPart (romfile) {
  if (romfile === undefined) return ''
  if (!isInRomDirectory(safePath('romfile', romfile))) refuse('romfile must be inside /var/lib/infinization/roms')
  return `,romfile=${romfile}`
}

const part = (name, value) => value === undefined ? '' : `,${name}=${value}`

class QemuCommandBuilder {
  #binary = 'qemu-system-x86_64'
  #args = []
  #once = new Set()
  #disks = 0
  #cdroms = 0
  #daemonize = false
  #pidfile = null
  #pinning = null

  #add (...args) {
    this.#args.push(...args)
    return this
  }

  // A device that others share.
  #addOnce (id, ...args) {
    if (!this.#once.has(id)) this.#add(...args)
    this.#once.add(id)
  }

  setBinary (binary) {
    this.#binary = safePath('binary', binary)
    return this
  }

  getBinary () { return this.#binary }

  enableKvm () { return this.#add('-enable-kvm') }

  setMachine (type, { accel, kernelIrqchip } = {}) {
    if (accel !== undefined) safeValue('accel', accel)
    if (kernelIrqchip !== undefined) safeValue('kernelIrqchip', kernelIrqchip)
    const machine = oneOf('machine', type, MACHINES)
    return this.#add('-machine', `${machine}${part('accel', accel)}${part('kernel-irqchip', kernelIrqchip)}`)
  }

  setCpu (model, cores, threads, sockets) {
    const numbers = { cores, threads, sockets }
    for (const [name, number] of Object.entries(numbers)) if (number !== undefined) whole(name, number)
    const topology = Object.entries(numbers).map(([name, number]) => part(name, number)).join('').slice(1)
    this.#add('-cpu', safeValue('model', model))
    return topology === '' ? this : this.#add('-smp', topology)
  }

  setMemory (gb) {
    if (typeof gb !== 'number' || !(gb > 0) || !Number.isFinite(gb)) refuse('memory must be a number of GiB above 0')
    return this.#add('-m', `${gb}G`)
  }

  enableSeccompSandbox () {
    return this.#add('-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny')
  }

  setRunAs (user) { return this.#add('-runas', safeValue('user', user)) }

  addDisks (disks) {
    const drives = disks.map(({ path, format, bus, cache, discard }, at) => [
      `file=${safePath('path', path)}`,
      `format=${oneOf('format', format, FORMATS)}`,
      `if=${oneOf('bus', bus, BUSES)}`,
      `cache=${oneOf('cache', cache, CACHES)}`,
      'file.locking=on',
      `index=${this.#disks + at}`,
      ...(discard ? ['discard=unmap'] : [])
    ].join(','))
    this.#disks += drives.length
    return this.#add(...drives.flatMap((drive) => ['-drive', drive]))
  }

  addNetwork ({ tapName, mac, model, queues = 1 }) {
    const tap = safeValue('tapName', tapName)
    const card = oneOf('model', model, MODELS)
    const many = whole('queues', queues) > 1 && card === 'virtio-net-pci'
    const backend = `tap,id=net0,ifname=${tap},script=no,downscript=no${many ? `,queues=${queues},vhost=on` : ''}`
    const device = `${card},netdev=net0,mac=${safeValue('mac', mac)}${many ? `,mq=on,vectors=${2 * queues + 2}` : ''}`
    return this.#add('-netdev', backend, '-device', device)
  }

  addSpice (spice, qxlMemoryMB = USUAL_QXL_MEMORY_MB) {
    whole('qxlMemoryMB', qxlMemoryMB)
    const config = spice instanceof SpiceConfig ? spice : new SpiceConfig(spice)
    const usual = qxlMemoryMB === USUAL_QXL_MEMORY_MB
    const { args, vgaType } = config.generateArgs()
    const device = ['-device', `qxl-vga,vgamem_mb=${qxlMemoryMB}`]
    const without = config === spice ? ['-vga', 'none'] : []
    this.#add(...args, ...(usual ? ['-vga', vgaType] : [...without, ...device]))
    return config.isAgentEnabled() ? this.#addSpiceAgent() : this
  }

  #addSpiceAgent () {
    this.#addSerialBus()
    return this.#add(
      '-device', 'virtserialport,chardev=spicechannel0,name=com.redhat.spice.0',
      '-chardev', 'spicevmc,id=spicechannel0,name=vdagent'
    )
  }

  #addSerialBus () { this.#addOnce('virtio-serial', '-device', 'virtio-serial-pci,id=virtio-serial0') }

  addVnc (vnc) {
    const { args, vgaType } = (vnc instanceof VncConfig ? vnc : new VncConfig(vnc)).generateArgs()
    return this.#add(...args, '-vga', vgaType)
  }

  addQmp (path) { return this.#add('-qmp', `unix:${safePath('path', path)},server,nowait`) }

  addCdrom (path) { return this.#add('-cdrom', safePath('path', path)) }

  addSecondCdrom (path) {
    const file = safePath('path', path)
    const id = `cdrom${++this.#cdroms}`
    return this.#add('-drive', `file=${file},if=none,media=cdrom,readonly=on,id=${id}`, '-device', `ide-cd,drive=${id}`)
  }

  addGpuPassthrough (address, romfile) {
    return this.#add('-device', `vfio-pci,host=${pciAddress('address', address)},multifunction=on${romPart(romfile)}`)
  }

  addGpuWithAudio (gpu, audio, romfile) {
    const host = pciAddress('audio', audio)
    if (String(gpu).toLowerCase() === audio.toLowerCase()) refuse('the GPU and its audio must be two functions')
    return this.addGpuPassthrough(gpu, romfile).#add('-device', `vfio-pci,host=${host}`)
  }

  addPciPassthrough (address, romfile) {
    return this.#add('-device', `vfio-pci,host=${pciAddress('address', address)}${romPart(romfile)}`)
  }

  addMemoryBalloon () { return this.#add('-device', 'virtio-balloon-pci') }

  enableHugepages () { return this.#add('-mem-prealloc', '-mem-path', '/dev/hugepages') }

  setFirmware (path) { return this.#add('-drive', `if=pflash,format=raw,readonly=on,file=${safePath('path', path)}`) }

  setUefiVars (path) { return this.#add('-drive', `if=pflash,format=raw,file=${safePath('path', path)}`) }

  setBootOrder (devices, { once } = {}) {
    const order = devices.map((device) => oneOf('boot device', device, BOOT_DEVICES)).join('')
    if (order === '') refuse('the boot order must name a device')
    if (once !== undefined) oneOf('once', once, BOOT_DEVICES)
    return this.#add('-boot', `order=${order}${part('once', once)}`)
  }

  addTPM (path) {
    return this.#add(
      '-chardev', `socket,id=chrtpm,path=${safePath('path', path)}`,
      '-tpmdev', 'emulator,id=tpm0,chardev=chrtpm',
      '-device', 'tpm-tis,tpmdev=tpm0'
    )
  }

  addVirtioChannel (channelName, socketPath, chardevId) {
    const [name, path, id] = [safeValue('channelName', channelName), safePath('socketPath', socketPath), safeValue('chardevId', chardevId)]
    this.#addSerialBus()
    return this.#add(
      '-chardev', `socket,path=${path},server=on,wait=off,id=${id}`,
      '-device', `virtserialport,chardev=${id},name=${name}`
    )
  }

  addGuestAgentChannel (path) { return this.addVirtioChannel('org.qemu.guest_agent.0', path, 'chagent0') }

  addInfiniServiceChannel (path) { return this.addVirtioChannel('org.infinibay.agent', path, 'chinfini0') }

  addAudioDevice () {
    return this.#add('-device', 'intel-hda', '-device', 'hda-duplex,audiodev=audio0', '-audiodev', 'spice,id=audio0')
  }

  addUsbTablet () { return this.#addUsb('usb-tablet') }

  addUsbKeyboard () { return this.#addUsb('usb-kbd') }

  #addUsb (device) {
    this.#addOnce('usb', '-device', 'qemu-xhci,id=usb')
    return this.#add('-device', device)
  }

  setProcessOptions ({ name, uuid, daemonize = false, pidfile }) {
    this.#add('-name', safeValue('name', name))
    if (uuid !== undefined) this.#add('-uuid', safeValue('uuid', uuid))
    if (daemonize) this.#add('-daemonize')
    if (pidfile !== undefined) this.#add('-pidfile', safePath('pidfile', pidfile))
    this.#daemonize = Boolean(daemonize)
    this.#pidfile = pidfile ?? null
    return this
  }

  addRawArg (arg) { return this.#add(arg) }

  enableCpuPinning (strategy, vcpus) {
    this.#pinning = { strategy: oneOf('strategy', strategy, STRATEGIES), vcpus: whole('vcpus', vcpus) }
    return this
  }

  isCpuPinningEnabled () { return this.#pinning !== null && this.#pinning.strategy !== 'none' }

  getCpuPinningStrategy () { return this.#pinning?.strategy ?? null }

  isDaemonizeEnabled () { return this.#daemonize }

  getPidfilePath () { return this.#pidfile }

  buildCommand () { return { command: this.#binary, args: this.build() } }

  build () { return [...this.#args] }

  async buildCommandWithPinning () {
    const { strategy, vcpus } = this.#pinning ?? { strategy: 'none', vcpus: 0 }
    const { command, args } = this.buildCommand()
    const pinned = await new CpuPinningAdapter().generatePinningCommand(vcpus, strategy, command, args)
    const { wrapperCommand, wrapperArgs, pinningApplied, pinnedCores, numaNodes } = pinned
    return { command, args, wrapperCommand, wrapperArgs, pinningApplied, pinnedCores, numaNodes }
  }
}

module.exports = { QemuCommandBuilder }
