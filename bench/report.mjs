// Makes docs/benchmarks.md of the figures on standard input.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'

const figures = readFileSync(0, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line))
const version = (program) => execFileSync(program, ['--version'], { encoding: 'utf8' }).split('\n')[0].trim()
const rows = (wanted) => figures.filter(wanted)
  .map(({ name, value, unit, goal }) => `| ${name.replace(/^(firewall|storage): /, '')} | ${value} ${unit} | ${goal} |`.replaceAll('  ', ' '))
const table = (wanted) => ['| what | figure | goal |', '| --- | ---: | ---: |', ...rows(wanted)].join('\n')
const about = (...starts) => ({ name }) => starts.some((start) => name.startsWith(start))

const verbs = about('bare', 'createVM over', 'createVM', 'startVM', 'stopVM', 'destroyVM', 'getVMStatus', 'suspendVM', 'resumeVM', '8 creates', 'SIGKILL')
const programs = about('programs')
const libvirt = about('libvirt')
const firewall = about('firewall: ')
const storage = about('storage: ')
const lives = ({ name }) => / lives: /.test(name)
const node = (figure) => ![verbs, programs, firewall, storage, libvirt, lives].some((wanted) => wanted(figure)) || figure.name.includes('from Node')

console.log(`<!-- Written by \`npm run bench -- --write\`: do not edit. -->

# Benchmarks

Taken with \`npm run bench\` on ${cpus().length} CPUs (${cpus()[0].model.trim()}), ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, ${version('qemu-system-x86_64')},
Node ${process.versions.node}. Guests are emulated (TCG) and have no system on their disk; times are medians. A goal without a
figure beside it is what the project wants to reach; a row that misses its goal says so here and is work to do.

"Bare spawn" is the start of the very argv that \`createVM\` uses, from the spawn to its \`query-status\` reply. \`createVM\`
makes a qcow2 disk, a TAP on a bridge and a verified firewall on top of that, and stores all of it.

## The main job

${table((figure) => verbs(figure) && !figure.name.includes('from Node'))}

## Programs run

${table(programs)}

## The firewall

\`nft\` is given the same batch as one document, as JSON with an echo or as text, and ends only when the kernel has freed
what was replaced. Rules are compiled, loaded, and confirmed by the kernel; nothing is measured before that.
As netlink messages alone, the same batch is neither compiled nor looked up in what is there already. libnftables is
an \`nft -i\` that stays. What another program flushes is timed from the command to it on.

${table(firewall)}

## Storage

A qcow2 of 10 GiB that holds 256 MiB. Each operation and the bare one take turns. A copy is done when it is on the
disk, on either side; ours also has a checksum and a manifest by then. The pause of a guest that writes is the longest
time in which nothing of it reaches its files; without a snapshot it is what the emulated guest itself takes.

${table(storage)}

## libvirt in the same run

One interactive \`virsh\` against a \`libvirtd\` of its own; the same machine, without a packet filter.

${table(libvirt)}

## The Node process

${table(node)}

## What many lives leave

One life is create, forced stop, start, destroy, delete.

${table(lives)}`)
