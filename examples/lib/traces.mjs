// What a machine could leave on this host, read from the kernel rather than from the library.

import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readdir, readFile, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

// Where the library works when it is told no other place.
const DEFAULT_FOLDERS = ['/etc/infinization', '/run/infinization', '/var/lib/infinization']

/**
 * Everything on this host that bears one of `names` (a machine's ids, its links, its folder), plus the
 * library's default folders.
 * @param {string[]} names
 * @returns {Promise<string[]>} one line per object
 */
export async function traces (names) {
  const found = await Promise.all([
    links(names), rules(names), processes(names), sockets(names), openFiles(names), defaultFolders()
  ])
  return found.flat()
}

async function defaultFolders () {
  return DEFAULT_FOLDERS.filter(folder => existsSync(folder)).map(folder => `folder ${folder}`)
}

async function links (names) {
  return (await readdir('/sys/class/net')).filter(name => names.includes(name)).map(name => `link ${name}`)
}

async function rules (names) {
  const { stdout } = await run('nft', ['-j', 'list', 'ruleset'], { maxBuffer: 1 << 26 })
  return JSON.parse(stdout).nftables
    .map(object => JSON.stringify(object))
    .filter(text => names.some(name => text.includes(name)))
    .map(text => `nftables ${text}`)
}

async function processes (names) {
  const numbers = (await readdir('/proc')).filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
  const lines = await Promise.all(numbers.map(async pid => {
    // A process may end while it is looked at.
    const words = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    return names.some(name => words.includes(name)) ? [`process ${pid} ${words.replaceAll('\0', ' ')}`] : []
  }))
  return lines.flat()
}

async function sockets (names) {
  const table = await readFile('/proc/net/unix', 'utf8')
  return table.split('\n')
    .filter(line => names.some(name => line.includes(name)))
    .map(line => `socket ${line.split(' ').at(-1)}`)
}

/** Files that our own process still holds open. */
async function openFiles (names) {
  const numbers = await readdir('/proc/self/fd')
  const targets = await Promise.all(numbers.map(number => readlink(join('/proc/self/fd', number)).catch(() => '')))
  return targets.filter(target => names.some(name => target.includes(name))).map(target => `open file ${target}`)
}

/** All files below `folder`, folders left out. */
export async function filesBelow (folder) {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries.filter(entry => !entry.isDirectory()).map(entry => join(entry.parentPath, entry.name)).sort()
}
