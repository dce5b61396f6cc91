// What libvirt takes for a machine of the same shape, driven through one interactive virsh, so that no
// program's start is in the times. It gets no packet filter; ours has one. Prints figures as JSON lines.
// Run as root inside scripts/private, where /run is empty; its other folders are covered here.

import { execFileSync, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { figure, median } from './lib/figures.cjs'

const ROUNDS = 15
const scratch = mkdtempSync(join(tmpdir(), 'libvirt-'))
const image = join(scratch, 'disk.qcow2')
const run = (program, ...args) => execFileSync(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })

const domain = `<domain type='qemu'><name>bench</name><memory unit='MiB'>512</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${image}'/><target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><source bridge='vbr0'/><model type='virtio'/></interface>
<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/><video><model type='vga'/></video>
</devices></domain>`

class Virsh {
  constructor () {
    this.process = spawn('virsh', ['-c', 'qemu:///system', '--quiet'], { stdio: ['pipe', 'pipe', 'pipe'] })
    this.output = ''
    const take = (chunk) => { this.output += chunk; this.wake?.() }
    this.process.stdout.on('data', take)
    this.process.stderr.on('data', take)
  }

  // Runs one command; `echo` behind it says when it is done.
  async command (line) {
    const mark = `done-${Math.random().toString(36).slice(2)}`
    this.output = ''
    this.process.stdin.write(`${line}\necho ${mark}\n`)
    // Standard input is not echoed: the mark appears once, behind a prompt.
    while (!this.output.includes(mark)) {
      await new Promise((resolve) => { this.wake = resolve })
    }
    if (/error:/.test(this.output)) throw new Error(`${line}: ${this.output}`)
  }

  end () {
    this.process.stdin.end('quit\n')
    return new Promise((resolve) => this.process.on('exit', resolve))
  }
}

async function timed (times, work) {
  const began = performance.now()
  await work()
  times.push(performance.now() - began)
}

async function startDaemon () {
  for (const folder of ['/var/lib/libvirt', '/var/cache/libvirt', '/var/log/libvirt', '/etc/libvirt']) {
    mkdirSync(folder, { recursive: true })
    run('mount', '-t', 'tmpfs', 'tmpfs', folder)
  }
  writeFileSync('/etc/libvirt/libvirtd.conf', 'auth_unix_rw = "none"\n')
  // The log file without its daemon, and no label or owner changes: what a bare run does.
  writeFileSync('/etc/libvirt/qemu.conf', 'stdio_handler = "file"\nsecurity_driver = "none"\nuser = "root"\ngroup = "root"\ndynamic_ownership = 0\n')
  const daemon = spawn('libvirtd', [], { stdio: 'ignore' })
  for (let tries = 0; tries < 100; tries++) {
    try {
      run('virsh', '-c', 'qemu:///system', '--quiet', 'uri')
      return daemon
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  throw new Error('libvirtd does not answer')
}

async function main () {
  run('ip', 'link', 'add', 'vbr0', 'type', 'bridge')
  run('ip', 'link', 'set', 'vbr0', 'up')
  const daemon = await startDaemon()
  const xml = join(scratch, 'domain.xml')
  writeFileSync(xml, domain)
  const virsh = new Virsh()
  const times = { create: [], start: [], stop: [], destroy: [] }
  for (let round = 0; round < ROUNDS; round++) {
    await timed(times.create, async () => {
      run('qemu-img', 'create', '-f', 'qcow2', image, '1G')
      await virsh.command(`define ${xml}`)
      await virsh.command('start bench')
    })
    await timed(times.stop, () => virsh.command('destroy bench'))
    await timed(times.start, () => virsh.command('start bench'))
    await timed(times.destroy, async () => {
      await virsh.command('destroy bench')
      await virsh.command('undefine bench')
    })
    rmSync(image)
  }
  figure('libvirt: qemu-img, define and start', median(times.create), 'ms')
  figure('libvirt: start', median(times.start), 'ms')
  figure('libvirt: destroy (a forced stop)', median(times.stop), 'ms')
  figure('libvirt: destroy and undefine', median(times.destroy), 'ms')
  await virsh.end()
  daemon.kill()
  await new Promise((resolve) => daemon.on('exit', resolve))
  run('ip', 'link', 'delete', 'vbr0')
  for (const left of [scratch, '/run/libvirt', '/run/libvirtd.pid']) rmSync(left, { recursive: true, force: true })
}

await main()
