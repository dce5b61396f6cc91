'use strict'

const { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { CgroupsManager } = require('../..')
const { cleanUp, finally_, host, newDirectory, rejection, warning } = require('../kit')

afterEach(cleanUp)

// A host with the CPUs 0-3 and 8 on two nodes, whose cgroups are ordinary files.
function fakeHost (more = {}) {
  const directory = newDirectory()
  const at = (...names) => path.join(directory, ...names)
  const files = {
    'cgroup/cgroup.controllers': 'cpuset cpu memory\n', 'cgroup/cgroup.subtree_control': '',
    'online': '0-3,8\n', 'node/node0/cpulist': '0-1\n', 'node/node1/cpulist': '2-3,8\n', 'node/node2/cpulist': '\n'
  }
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(path.dirname(at(name)), { recursive: true })
    writeFileSync(at(name), text)
  }
  const manager = new CgroupsManager({ cgroupsV2Base: at('cgroup'), onlineCpusPath: at('online'), nodeSysfsBase: at('node'), ...more })
  const slice = at('cgroup', 'infinization.slice')
  const scopes = () => existsSync(slice) ? readdirSync(slice).filter((name) => name.endsWith('.scope')) : []
  return { at, manager, scopes, slice, read: (...names) => readFileSync(path.join(slice, ...names), 'utf8') }
}

test('a process goes into a scope with its CPUs and their nodes', async () => {
  const { at, manager, read, scopes } = fakeHost()
  expect(await manager.applyCpuPinning(4711, [8, 1, 1])).toEqual({ applied: true })
  expect(scopes()).toEqual(['qemu-4711.scope'])
  expect(read('qemu-4711.scope', 'cpuset.cpus')).toBe('1,8')
  expect(read('qemu-4711.scope', 'cpuset.mems')).toBe('0,1')
  expect(read('qemu-4711.scope', 'cgroup.procs')).toBe('4711')
  expect(read('cgroup.subtree_control')).toBe('+cpuset')
  expect(readFileSync(at('cgroup', 'cgroup.subtree_control'), 'utf8')).toBe('+cpuset')
  // Another choice for the same process.
  expect(await manager.applyCpuPinning(4711, [2])).toEqual({ applied: true })
  expect([read('qemu-4711.scope', 'cpuset.cpus'), read('qemu-4711.scope', 'cpuset.mems')]).toEqual(['2', '1'])
})

test('a host that does not tell its nodes has node 0', async () => {
  const { at, read } = fakeHost()
  const manager = new CgroupsManager({ cgroupsV2Base: at('cgroup'), onlineCpusPath: at('online'), nodeSysfsBase: at('none') })
  expect(await manager.applyCpuPinning(1, [8])).toEqual({ applied: true })
  expect(read('qemu-1.scope', 'cpuset.mems')).toBe('0')
})

test('the slice may be elsewhere', async () => {
  const elsewhere = path.join(newDirectory(), 'mine.slice')
  const { manager, scopes } = fakeHost({ infinizationSlice: elsewhere })
  expect(await manager.applyCpuPinning(5, [0])).toEqual({ applied: true })
  expect([scopes(), readdirSync(elsewhere).sort()]).toEqual([[], ['cgroup.subtree_control', 'qemu-5.scope']])
})

test.each([
  ['a CPU that is not online', 4711, [0, 4, 7], 'these CPUs are not online: 4,7'],
  ['a negative CPU', 4711, [-1], 'these CPUs are not online: -1'],
  ['no CPU', 4711, [], 'no CPU is named'],
  ['a number that no process has', 0, [0], '0 is no process'],
  ['what is no list', 4711, 'all', expect.stringMatching(/^cores /)]
])('G2, F46: %s is not applied, which is told, and leaves no scope', async (_, pid, cores, reason) => {
  warning(/^CPUs were not pinned/)
  const { manager, scopes } = fakeHost()
  expect(await manager.applyCpuPinning(pid, cores)).toEqual({ applied: false, reason })
  expect(scopes()).toEqual([])
})

test('F46: a move that is refused takes its scope away, unless it was there before', async () => {
  warning(/^CPUs were not pinned/)
  const { manager, slice, scopes } = fakeHost()
  mkdirSync(slice)
  // Has room for the slice, the scope and the files of its CPUs and nodes, but not for that of its processes.
  host.run('mount', '-t', 'tmpfs', '-o', 'nr_inodes=5', 'tmpfs', slice)
  finally_(() => host.run('umount', slice))
  const refused = { applied: false, reason: expect.stringMatching(/qemu-6\.scope\/cgroup\.procs was not taken: No space left/) }
  expect(await manager.applyCpuPinning(6, [0])).toEqual(refused)
  expect(scopes()).toEqual([])
  mkdirSync(path.join(slice, 'qemu-6.scope'))
  expect(await manager.applyCpuPinning(6, [0])).toEqual(refused)
  expect(scopes()).toEqual(['qemu-6.scope'])
})

test('a host without cgroup v2 has no scopes', async () => {
  warning(/^CPUs were not pinned/)
  const directory = newDirectory()
  const manager = new CgroupsManager({ cgroupsV2Base: directory })
  expect(await manager.applyCpuPinning(process.pid, [0])).toEqual({ applied: false, reason: `no cgroup v2 tree at ${directory}` })
  expect(readdirSync(directory)).toEqual([])
})

test('on this host itself a process that is not there is not pinned, and nothing stays', async () => {
  warning(/^CPUs were not pinned/)
  const { applied, reason } = await new CgroupsManager().applyCpuPinning(2 ** 22 + 1, [0])
  expect([applied, typeof reason]).toEqual([false, 'string'])
  expect(existsSync('/sys/fs/cgroup/infinization.slice/qemu-4194305.scope')).toBe(false)
})

test('G4: scopes without a process are removed, and only these', async () => {
  const { manager, scopes, slice } = fakeHost()
  expect(await manager.cleanupEmptyScopes()).toBe(0)
  for (const name of ['qemu-1.scope', 'qemu-2.scope', 'qemu-3.scope', 'other.scope']) mkdirSync(path.join(slice, name), { recursive: true })
  writeFileSync(path.join(slice, 'qemu-2.scope', 'cgroup.procs'), '')
  writeFileSync(path.join(slice, 'qemu-3.scope', 'cgroup.procs'), '4711\n')
  expect(await manager.cleanupEmptyScopes()).toBe(2)
  expect(scopes().sort()).toEqual(['other.scope', 'qemu-3.scope'])
})

test('G1: what counts is what is online, not how many there are', async () => {
  const { manager } = fakeHost()
  expect(await manager.getHostCpuCount()).toBe(5)
  await manager.validateCores([])
  await manager.validateCores([0, 8])
  const offline = await rejection(manager.validateCores([4, 8]))
  expect(offline).toMatchObject({ code: 'RESOURCE_UNAVAILABLE', message: 'these CPUs are not online: 4' })
  expect(await rejection(manager.validateCores([-1]))).toMatchObject({ code: 'RESOURCE_UNAVAILABLE' })
  expect(await rejection(manager.validateCores([1.5]))).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await new CgroupsManager().getHostCpuCount()).toBeGreaterThan(0)
})

test('options that make no sense are told by the methods', async () => {
  warning(/^(CPUs were not pinned|cgroups were not swept)/)
  const manager = new CgroupsManager({ cgroupsV2Base: 'relative' })
  expect(await manager.applyCpuPinning(1, [0])).toEqual({ applied: false, reason: expect.stringContaining('cgroupsV2Base') })
  expect(await manager.cleanupEmptyScopes()).toBe(0)
  expect(await rejection(manager.getHostCpuCount())).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path: 'cgroupsV2Base' }] } })
})
