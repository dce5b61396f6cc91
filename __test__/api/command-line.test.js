'use strict'

// Command lines of one's own: what each call adds, what is refused, and that QEMU takes the whole.

const { chmodSync, mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { spawnSync } = require('node:child_process')
const { CpuPinningAdapter, DisplayError, QemuCommandBuilder, SpiceConfig, VncConfig } = require('../..')

const builder = () => new QemuCommandBuilder()
const line = (add) => add(builder()).build().join(' ')

const SPICE = 'port=5901,addr=127.0.0.1'
const USUAL = 'image-compression=auto_glz,jpeg-wan-compression=auto,zlib-glz-wan-compression=auto,streaming-video=filter,playback-compression=on'
const AGENT = '-device virtio-serial-pci,id=virtio-serial0 -device virtserialport,chardev=spicechannel0,name=com.redhat.spice.0 ' +
  '-chardev spicevmc,id=spicechannel0,name=vdagent'
const disk = { path: '/d/a.qcow2', format: 'qcow2', bus: 'virtio', cache: 'writeback' }
const card = { tapName: 'vnet-1', mac: '52:54:00:00:00:01', model: 'virtio-net-pci' }

test.each([
  ['enableKvm', (b) => b.enableKvm(), '-enable-kvm'],
  ['setMachine', (b) => b.setMachine('q35').setMachine('pc', { accel: 'kvm', kernelIrqchip: 'on' }), '-machine q35 -machine pc,accel=kvm,kernel-irqchip=on'],
  ['setCpu', (b) => b.setCpu('host', 4).setCpu('max', 2, 2, 1), '-cpu host -smp cores=4 -cpu max -smp cores=2,threads=2,sockets=1'],
  ['setMemory', (b) => b.setMemory(2).setMemory(0.5), '-m 2G -m 0.5G'],
  ['enableSeccompSandbox', (b) => b.enableSeccompSandbox(), '-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
  ['setRunAs', (b) => b.setRunAs('nobody'), '-runas nobody'],
  ['addDisks', (b) => b.addDisks([{ ...disk, discard: true }]).addDisks([{ ...disk, path: '/d/b=1.raw', format: 'raw', bus: 'ide', cache: 'none' }]),
    '-drive file=/d/a.qcow2,format=qcow2,if=virtio,cache=writeback,file.locking=on,index=0,discard=unmap ' +
    '-drive file=/d/b=1.raw,format=raw,if=ide,cache=none,file.locking=on,index=1'],
  ['addNetwork', (b) => b.addNetwork(card), '-netdev tap,id=net0,ifname=vnet-1,script=no,downscript=no -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01'],
  ['addNetwork with queues', (b) => b.addNetwork({ ...card, queues: 4 }),
    '-netdev tap,id=net0,ifname=vnet-1,script=no,downscript=no,queues=4,vhost=on -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,mq=on,vectors=10'],
  ['addNetwork with queues that the card has not', (b) => b.addNetwork({ ...card, model: 'e1000', queues: 4 }),
    '-netdev tap,id=net0,ifname=vnet-1,script=no,downscript=no -device e1000,netdev=net0,mac=52:54:00:00:00:01'],
  ['addSpice', (b) => b.addSpice(new SpiceConfig({ port: 5901, disableTicketing: true })), `-spice ${SPICE},disable-ticketing=on,${USUAL} -vga qxl ${AGENT}`],
  ['addSpice with a password and no agent', (b) => b.addSpice({ port: 5901, addr: '127.0.0.1', password: 'geheim', enableAgent: false }), `-spice ${SPICE},${USUAL} -vga qxl`],
  ['addSpice with another card', (b) => b.addSpice(new SpiceConfig({ port: 5901, enableAgent: false }), 64), `-spice ${SPICE},${USUAL} -vga none -device qxl-vga,vgamem_mb=64`],
  ['addSpice, plain, with another card', (b) => b.addSpice({ port: 5901, addr: '127.0.0.1', enableAgent: false }, 64), `-spice ${SPICE},${USUAL} -device qxl-vga,vgamem_mb=64`],
  ['addVnc', (b) => b.addVnc(new VncConfig({ display: 1 })).addVnc({ display: 2, addr: '::1', password: true }), '-vnc 127.0.0.1:1 -vga std -vnc [::1]:2,password=on -vga std'],
  ['addQmp', (b) => b.addQmp('/run/q.sock'), '-qmp unix:/run/q.sock,server,nowait'],
  ['addCdrom', (b) => b.addCdrom('/i/a.iso'), '-cdrom /i/a.iso'],
  ['addSecondCdrom', (b) => b.addSecondCdrom('/i/a.iso').addSecondCdrom('/i/b.iso'),
    '-drive file=/i/a.iso,if=none,media=cdrom,readonly=on,id=cdrom1 -device ide-cd,drive=cdrom1 ' +
    '-drive file=/i/b.iso,if=none,media=cdrom,readonly=on,id=cdrom2 -device ide-cd,drive=cdrom2'],
  ['addGpuPassthrough', (b) => b.addGpuPassthrough('01:00.0', '/var/lib/infinization/roms/a.rom'), '-device vfio-pci,host=01:00.0,multifunction=on,romfile=/var/lib/infinization/roms/a.rom'],
  ['addGpuWithAudio', (b) => b.addGpuWithAudio('01:00.0', '01:00.1'), '-device vfio-pci,host=01:00.0,multifunction=on -device vfio-pci,host=01:00.1'],
  ['addPciPassthrough', (b) => b.addPciPassthrough('0000:02:00.0'), '-device vfio-pci,host=0000:02:00.0'],
  ['addMemoryBalloon', (b) => b.addMemoryBalloon(), '-device virtio-balloon-pci'],
  ['enableHugepages', (b) => b.enableHugepages(), '-mem-prealloc -mem-path /dev/hugepages'],
  ['setFirmware', (b) => b.setFirmware('/f/code.fd').setUefiVars('/f/vars.fd'), '-drive if=pflash,format=raw,readonly=on,file=/f/code.fd -drive if=pflash,format=raw,file=/f/vars.fd'],
  ['setBootOrder', (b) => b.setBootOrder(['c', 'd', 'n']).setBootOrder(['c'], { once: 'd' }), '-boot order=cdn -boot order=c,once=d'],
  ['addTPM', (b) => b.addTPM('/run/tpm.sock'), '-chardev socket,id=chrtpm,path=/run/tpm.sock -tpmdev emulator,id=tpm0,chardev=chrtpm -device tpm-tis,tpmdev=tpm0'],
  ['channels share a bus', (b) => b.addGuestAgentChannel('/run/a').addInfiniServiceChannel('/run/b'),
    '-device virtio-serial-pci,id=virtio-serial0 ' +
    '-chardev socket,path=/run/a,server=on,wait=off,id=chagent0 -device virtserialport,chardev=chagent0,name=org.qemu.guest_agent.0 ' +
    '-chardev socket,path=/run/b,server=on,wait=off,id=chinfini0 -device virtserialport,chardev=chinfini0,name=org.infinibay.agent'],
  ['addAudioDevice', (b) => b.addAudioDevice(), '-device intel-hda -device hda-duplex,audiodev=audio0 -audiodev spice,id=audio0'],
  ['USB devices share a controller', (b) => b.addUsbTablet().addUsbKeyboard(), '-device qemu-xhci,id=usb -device usb-tablet -device usb-kbd'],
  ['setProcessOptions', (b) => b.setProcessOptions({ vmId: '1', name: 'one', uuid: 'u', daemonize: true, pidfile: '/run/p' }), '-name one -uuid u -daemonize -pidfile /run/p'],
  ['addRawArg', (b) => b.addRawArg('-S').addRawArg('a=b,c'), '-S a=b,c']
])('%s', (_name, add, expected) => {
  expect(line(add)).toBe(expected)
})

const odd = '/d/a,readonly=off'

test.each([
  ['a disk', (b) => b.addDisks([{ ...disk, path: odd }])],
  ['a disk of a strange format', (b) => b.addDisks([disk, { ...disk, format: 'vmdk' }])],
  ['a machine', (b) => b.setMachine('q35,accel=tcg')],
  ['an accelerator', (b) => b.setMachine('q35', { accel: 'kvm,x' })],
  ['a CPU', (b) => b.setCpu('host,+vmx')],
  ['half a core', (b) => b.setCpu('host', 0.5)],
  ['memory', (b) => b.setMemory(NaN)],
  ['a user', (b) => b.setRunAs('')],
  ['a TAP', (b) => b.addNetwork({ ...card, tapName: 'a,b' })],
  ['a socket', (b) => b.addQmp('/run/a\n')],
  ['a channel', (b) => b.addVirtioChannel('a=b', '/run/a', 'c')],
  ['a ROM', (b) => b.addGpuPassthrough('01:00.0', '/var/lib/infinization/roms/../a.rom')],
  ['a GPU that is its own audio', (b) => b.addGpuWithAudio('0a:00.0', '0A:00.0')],
  ['an address', (b) => b.addPciPassthrough('1:0.0')],
  ['a boot device', (b) => b.setBootOrder(['x'])],
  ['a name', (b) => b.setProcessOptions({ vmId: '1', name: 'a,debug-threads=on' })],
  ['a strategy', (b) => b.enableCpuPinning('best', 1)]
])('B2, B3: %s that would say more is refused, and adds nothing', (_name, add) => {
  const its = builder()
  expect(() => add(its)).toThrow(expect.objectContaining({ name: 'QemuArgValidationError' }))
  expect(its.build()).toEqual([])
})

test('a builder tells what it was told, and hands out copies', () => {
  const its = builder().setBinary('/usr/bin/qemu').enableKvm()
  expect([its.getBinary(), its.isDaemonizeEnabled(), its.getPidfilePath(), its.isCpuPinningEnabled(), its.getCpuPinningStrategy()])
    .toEqual(['/usr/bin/qemu', false, null, false, null])
  its.setProcessOptions({ vmId: '1', name: 'one', daemonize: true, pidfile: '/run/p' }).enableCpuPinning('hybrid', 2)
  expect([its.isDaemonizeEnabled(), its.getPidfilePath(), its.isCpuPinningEnabled(), its.getCpuPinningStrategy()]).toEqual([true, '/run/p', true, 'hybrid'])
  its.build().push('-S')
  its.buildCommand().args.push('-S')
  expect(its.buildCommand()).toEqual({ command: '/usr/bin/qemu', args: its.build() })
  expect(its.build()).not.toContain('-S')
})

test('QEMU takes what can be tried without a host of its own', () => {
  const its = builder().setMachine('q35', { accel: 'tcg' }).setCpu('max', 2).setMemory(0.25).addVnc({ display: 77, addr: '127.0.0.1', password: true })
    .addMemoryBalloon().addUsbTablet().addUsbKeyboard().setBootOrder(['c', 'd']).enableSeccompSandbox()
    .setProcessOptions({ vmId: '1', name: 'of-ones-own', uuid: '12345678-1234-1234-1234-123456789abc' }).addRawArg('-S')
  const monitor = { input: '{"execute":"qmp_capabilities"}{"execute":"quit"}', timeout: 60_000 }
  const ran = spawnSync(its.getBinary(), [...its.build(), '-nodefaults', '-display', 'none', '-qmp', 'stdio'], monitor)
  expect([ran.status, String(ran.stderr)]).toEqual([0, ''])
})

describe('displays', () => {
  const codesOf = (make) => {
    try {
      make()
      return []
    } catch (error) {
      expect(error).toBeInstanceOf(DisplayError)
      const codes = error.context.validationErrors.map(({ code }) => code)
      expect(error.code).toBe(codes[0])
      return codes
    }
  }

  test.each([
    [{ port: 5900 }, []],
    [{ port: 65535, addr: 'spice.example.org', password: 'x'.repeat(60) }, []],
    [{ port: 5899 }, ['PORT_OUT_OF_RANGE']],
    [{ port: '5900' }, ['INVALID_PORT']],
    [{ port: 5900, addr: '10.0.0.256' }, ['INVALID_ADDRESS']],
    [{ port: 5900, addr: 'a,tls-port=1' }, ['INVALID_ADDRESS']],
    [{ port: 5900, password: '' }, ['INVALID_PASSWORD']],
    [{ port: 5900, password: 'a', disableTicketing: true }, ['CONFLICTING_OPTIONS']],
    [{ port: 5900, imageCompression: 'best', streamingVideo: 'some' }, ['INVALID_COMPRESSION_MODE', 'INVALID_STREAMING_MODE']],
    [{ port: 5900, rendernode: '/dev/null' }, ['INVALID_GL_CONFIG']],
    [{ port: 5900, gl: true, rendernode: '/dev/dri/none' }, ['RENDERNODE_NOT_FOUND']]
  ])('SPICE %j', (options, codes) => {
    expect(codesOf(() => new SpiceConfig(options))).toEqual(codes)
  })

  test.each([
    [{ display: 0 }, []],
    [{ display: 99, addr: '::' }, []],
    [{ display: 100 }, ['INVALID_DISPLAY_NUMBER']],
    [{ display: 1.5, addr: '' }, ['INVALID_DISPLAY_NUMBER', 'INVALID_ADDRESS']]
  ])('VNC %j', (options, codes) => {
    expect(codesOf(() => new VncConfig(options))).toEqual(codes)
  })

  test('B38: they tell what they are, and no password', () => {
    const spice = new SpiceConfig({ port: 5905, addr: '::1', password: 'geheim', gl: true, rendernode: '/dev/null', disableCopyPaste: true, disableAgentFileXfer: true, seamlessMigration: true })
    expect([spice.getPort(), spice.getAddr(), spice.hasPassword(), spice.isAgentEnabled(), spice.validate()])
      .toEqual([5905, '::1', true, true, { valid: true, errors: [], validationErrors: [] }])
    const { args, vgaType } = spice.generateArgs()
    expect(args).toEqual(['-spice', `port=5905,addr=::1,${USUAL},gl=on,rendernode=/dev/null,disable-copy-paste=on,disable-agent-file-xfer=on,seamless-migration=on`])
    expect(vgaType).toBe('qxl')
    const vnc = new VncConfig({ display: 7, password: true })
    expect([vnc.getDisplay(), vnc.getPort(), vnc.getAddr(), vnc.hasPassword(), vnc.validate().valid]).toEqual([7, 5907, '127.0.0.1', true, true])
    expect([VncConfig.displayToPort(3), VncConfig.portToDisplay(5903), VncConfig.getMaxPasswordLength()]).toEqual([5903, 3, 8])
  })
})

describe('pinning', () => {
  const adapter = new CpuPinningAdapter()
  const { PATH } = process.env
  let programs
  let warnings

  beforeAll(() => {
    programs = mkdtempSync(path.join(os.tmpdir(), 'infz-programs-'))
    writeFileSync(path.join(programs, 'numactl'), '')
    chmodSync(path.join(programs, 'numactl'), 0o755)
  })

  beforeEach(() => {
    warnings = []
    jest.spyOn(process, 'emitWarning').mockImplementation((message) => warnings.push(message))
    adapter.clearCache()
  })

  afterEach(() => jest.restoreAllMocks())

  afterAll(() => {
    process.env.PATH = PATH
    rmSync(programs, { recursive: true })
  })

  test('a topology is this host\'s, and a copy', async () => {
    const { nodes, totalCpus, isNumaSystem } = await adapter.getNumaTopology()
    expect(totalCpus).toBe([...nodes.values()].flat().length)
    expect(totalCpus).toBeGreaterThanOrEqual(os.availableParallelism())
    expect(isNumaSystem).toBe(nodes.size > 1)
    nodes.clear()
    expect((await adapter.getNumaTopology()).nodes.size).toBeGreaterThan(0)
    await expect(adapter.validateCores([...(await adapter.getNumaTopology()).nodes.values()].flat())).resolves.toBeUndefined()
    await expect(adapter.validateCores([8191])).rejects.toThrow('8191')
  })

  test('a command is wrapped by numactl', async () => {
    process.env.PATH = `${programs}:${PATH}`
    const { nodes } = await adapter.getNumaTopology()
    for (const strategy of ['basic', 'hybrid']) {
      const made = await adapter.generatePinningCommand(1, strategy, 'qemu', ['-S'], { seed: 42 })
      expect(made).toMatchObject({ wrapperCommand: 'numactl', originalCommand: 'qemu', originalArgs: ['-S'], pinningApplied: true })
      const [core] = made.pinnedCores
      const [node] = made.numaNodes
      expect(nodes.get(node)).toContain(core)
      expect(made.wrapperArgs).toEqual([`--physcpubind=${core}`, `--membind=${node}`])
      expect(made.hybridSeed).toBe(strategy === 'hybrid' ? 42 : undefined)
    }
    const whole = await builder().enableCpuPinning('basic', 1).enableKvm().buildCommandWithPinning()
    expect(whole).toMatchObject({ command: 'qemu-system-x86_64', args: ['-enable-kvm'], wrapperCommand: 'numactl', pinningApplied: true })
  })

  test('what cannot be pinned is not, and that is told', async () => {
    process.env.PATH = '/nowhere'
    expect(await adapter.isNumactlAvailable()).toBe(false)
    const without = { wrapperCommand: null, wrapperArgs: [], originalCommand: 'qemu', originalArgs: [], pinningApplied: false, pinnedCores: [], numaNodes: [] }
    expect(await adapter.generatePinningCommand(1, 'basic', 'qemu', [])).toEqual(without)
    expect(warnings).toEqual(['qemu is not pinned: there is no numactl'])
    expect(await adapter.generatePinningCommand(1, 'none', 'qemu', [])).toEqual(without)
    process.env.PATH = programs
    adapter.clearCache()
    for (const [vcpus, strategy] of [[-1, 'basic'], [1, 'best'], [0, 'basic']]) {
      expect(await adapter.generatePinningCommand(vcpus, strategy, 'qemu', [])).toEqual(without)
    }
    expect(warnings).toHaveLength(4)
  })
})
