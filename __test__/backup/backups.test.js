'use strict'

const { execFileSync } = require('node:child_process')
const { chmodSync, existsSync, readFileSync, statSync, writeFileSync } = require('node:fs')
const { EventEmitter } = require('node:events')
const path = require('node:path')
const {
  BackupCompression, BackupError, BackupErrorCode, BackupService, BackupStatus, BackupType, QemuImgService, isBackupError,
  isValidBackupStatus, isValidBackupType
} = require('../..')
const { cleanUp, files, newDirectory, openInstance, rejection, running, warning } = require('../kit')

afterEach(cleanUp)

const io = (image, command) => execFileSync('qemu-io', ['-f', 'qcow2', '-c', command, image], { encoding: 'utf8' })
const holds = (image, pattern, at) => expect(io(image, `read -P ${pattern} ${at}`)).not.toContain('verification failed')

let directory, root, disk
beforeEach(async () => {
  directory = newDirectory()
  root = path.join(directory, 'backups')
  disk = path.join(directory, 'disk.qcow2')
  await new QemuImgService().createImage({ path: disk, sizeGB: 1 / 64, format: 'qcow2' })
  io(disk, 'write -P 1 0 1M')
})

const service = (options = {}) => new BackupService({ backupRootDir: root, isVmRunning: async () => false, ...options })
const config = (more = {}) => ({
  vmId: 'vm-1', diskPaths: [disk], destinationDir: path.join(root, 'vm-1'), type: BackupType.FULL, ...more
})

test('made, listed, read back, deleted', async () => {
  const backups = service()
  const made = await backups.createBackup(config({ description: 'by hand', tags: ['x'], compression: BackupCompression.GZIP }))
  const file = path.join(root, 'vm-1', made.backupId, 'disk-0.qcow2.gz')
  expect(made).toEqual({
    success: true, backupId: expect.any(String), vmId: 'vm-1', type: 'FULL', totalSize: statSync(file).size,
    durationMs: expect.any(Number), disks: [expect.objectContaining({ sourcePath: disk, backupPath: file, format: 'qcow2' })]
  })
  expect(BigInt(made.totalSize)).toBeGreaterThan(0n)
  const metadata = await backups.getBackupMetadata(made.backupId, 'vm-1')
  expect(metadata).toMatchObject({
    id: made.backupId, status: BackupStatus.COMPLETED, createdAt: expect.stringMatching(/^\d{4}-.*Z$/), totalOriginalSize: 2 ** 24,
    description: 'by hand', tags: ['x'], compression: 'GZIP', runningAtBackup: false, crashConsistent: false
  })
  expect(await backups.getBackupMetadata(made.backupId)).toEqual(metadata)
  expect(await backups.listBackups('vm-1')).toEqual([metadata])
  expect(await backups.listBackups('vm-2')).toEqual([])
  expect(await backups.verifyBackup(made.backupId, 'vm-1')).toEqual({ valid: true, links: 1, problems: [] })
  expect(JSON.parse(readFileSync(path.join(path.dirname(file), 'backup.json')))).toMatchObject({ version: 1, id: made.backupId })

  io(disk, 'write -P 2 0 1M')
  const restored = await backups.restoreBackup({ vmId: 'vm-1', backupId: made.backupId, diskPaths: [disk], overwriteExisting: true })
  expect(restored).toEqual({ success: true, backupId: made.backupId, vmId: 'vm-1', restoredDiskPaths: [disk], durationMs: expect.any(Number) })
  holds(disk, 1, '0 1M')
  await backups.deleteBackup(made.backupId, 'vm-1')
  expect(files(root)).toEqual(['vm-1/lock'])
})

test('an incremental chain, and what deleting a parent is refused with', async () => {
  const backups = service()
  const { backupId: full } = await backups.createBackup(config())
  io(disk, 'write -P 2 0 64k')
  const { backupId: next, totalSize } = await backups.createBackup(config({ type: 'INCREMENTAL', parentBackupId: full }))
  expect(totalSize).toBeLessThan(2 ** 20)
  io(disk, 'write -P 3 0 1M')
  const copy = path.join(directory, 'copy.qcow2')
  await backups.restoreBackup({ vmId: 'vm-1', backupId: next, diskPaths: [copy] })
  holds(copy, 2, '0 64k')
  holds(copy, 1, '64k 960k')
  expect(await rejection(backups.deleteBackup(full, 'vm-1'))).toMatchObject({ code: 'DEPENDENCY', backupId: full, vmId: 'vm-1' })
})

test('progress, completed and restored are told, in order and before the promise', async () => {
  const backups = service()
  expect(backups).toBeInstanceOf(EventEmitter)
  const told = []
  for (const name of ['progress', 'completed', 'restored']) backups.on(name, (data) => told.push([name, data]))
  expect(backups.activeBackupCount).toBe(0)
  const making = backups.createBackup(config())
  expect(backups.activeBackupCount).toBe(1)
  const { backupId } = await making
  expect(told.at(-1)).toEqual(['completed', await backups.getBackupMetadata(backupId, 'vm-1')])
  const progress = told.slice(0, -1).map(([, data]) => data)
  expect(progress.at(-1)).toMatchObject({ backupId, vmId: 'vm-1', currentDisk: 0, totalDisks: 1, diskProgress: 100, overallProgress: 100 })
  const restored = await backups.restoreBackup({ vmId: 'vm-1', backupId, diskPaths: [`${disk}.copy`] })
  expect(told.at(-1)).toEqual(['restored', restored])
})

test('verifying is told of to whoever asked, and ends with what onProgress throws', async () => {
  const backups = service()
  const { backupId } = await backups.createBackup(config())
  backups.on('progress', () => { throw new Error('that is of backups and restores') })
  const told = []
  const verified = await backups.verifyBackup(backupId, 'vm-1', { onProgress: (progress) => told.push(progress) })
  expect(verified).toMatchObject({ valid: true })
  expect(told.at(-1)).toMatchObject({ backupId, vmId: 'vm-1', totalDisks: 1, diskProgress: 100, overallProgress: 100 })
  const thrown = new Error('mine')
  const throwing = backups.verifyBackup(backupId, 'vm-1', { onProgress: () => { throw thrown } })
  expect(await rejection(throwing)).toBe(thrown)
})

test('errors are BackupErrors, also when the consumer makes them', async () => {
  const backups = service()
  const cases = [
    [() => backups.deleteBackup('4f3b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b', 'vm-1'), 'BACKUP_NOT_FOUND'],
    [() => backups.deleteBackup('../../etc', 'vm-1'), 'BACKUP_NOT_FOUND'],
    [() => backups.getBackupMetadata('4f3b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b'), 'BACKUP_NOT_FOUND'],
    [() => backups.createBackup(config({ diskPaths: ['/none'] })), 'DISK_NOT_FOUND'],
    [() => backups.createBackup(config({ destinationDir: 'relative' })), 'INVALID_DESTINATION'],
    [() => backups.createBackup(config({ vmId: '../x' })), 'INVALID_CONFIG'],
    [() => backups.createBackup(), 'INVALID_CONFIG'],
    [() => backups.createBackup(config({ tags: 5n })), 'INVALID_CONFIG'],
    [() => backups.createBackup(config({ signal: 5 })), 'INVALID_CONFIG'],
    [() => backups.verifyBackup('4f3b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b', 'vm-1', { onProgress: 5 }), 'INVALID_CONFIG'],
    [() => backups.listBackups(7), 'INVALID_CONFIG'],
    [() => new BackupService({ backupRootDir: 'x' }).listBackups('vm-1'), 'INVALID_CONFIG']
  ]
  for (const [call, code] of cases) {
    const error = await rejection(call())
    expect([isBackupError(error), error.code, error.message]).toEqual([true, code, expect.any(String)])
  }
  const error = new BackupError(BackupErrorCode.VM_RUNNING, 'it runs', { vmId: 'vm-1', diskPath: '/a' })
  expect(error).toBeInstanceOf(Error)
  expect(error.toInfo()).toEqual({ code: 'VM_RUNNING', message: 'it runs', vmId: 'vm-1', diskPath: '/a' })
  expect([isValidBackupType('FULL'), isValidBackupType('full'), isValidBackupStatus('FAILED'), isValidBackupStatus({})])
    .toEqual([true, false, true, false])
})

test.each([
  ['says yes', async () => true],
  ['does not know', () => null],
  ['answers nonsense', () => 'no'],
  ['throws', () => { throw new Error('the database is away') }]
])('a probe that %s refuses', async (how, isVmRunning) => {
  const warned = how === 'throws' && warning(/^isVmRunning failed/)
  expect(await rejection(service({ isVmRunning }).createBackup(config()))).toMatchObject({ code: 'VM_RUNNING', vmId: 'vm-1' })
  expect(files(root)).toEqual(['vm-1/lock'])
  await warned
})

test('K8: an AbortSignal cancels, and nothing is left', async () => {
  const backups = service()
  const controller = new AbortController()
  const completed = new Promise((resolve) => backups.once('completed', resolve))
  backups.once('progress', () => controller.abort())
  io(disk, 'write -P 5 0 16M')
  const error = await rejection(backups.createBackup(config({ signal: controller.signal })))
  expect(error).toMatchObject({ code: 'CANCELLED', backupId: expect.any(String) })
  expect(await completed).toMatchObject({ id: error.backupId, status: 'CANCELLED' })
  expect(files(path.join(root, 'vm-1', error.backupId))).toEqual(['backup.json'])
  expect(await rejection(backups.createBackup(config({ signal: AbortSignal.abort() })))).toMatchObject({ code: 'CANCELLED' })
})

test('K2: a running machine is copied by its QEMU, and its guest thawed', async () => {
  const instance = await openInstance()
  const guestAgentSocketPath = path.join(instance.stateDir, 'agent.sock')
  const { vmId, diskPaths: [live] } = await running(instance, { guestAgentSocketPath })
  // What a process that comes after ours would thaw it by.
  const note = path.join(instance.stateDir, 'vms', vmId, 'guest-frozen')
  const calls = []
  const agent = {
    isConnected: () => false,
    connect: async () => { calls.push('connect') },
    fsFreeze: async () => calls.push(existsSync(note) ? 'freeze' : 'freeze without a note'),
    fsThaw: async () => calls.push('thaw'),
    disconnect: async () => { calls.push('disconnect') }
  }
  const backups = service({ isVmRunning: () => true, guestAgentFactory: () => agent })
  const of = (more) => config({ vmId, diskPaths: [live], destinationDir: path.join(root, vmId), ...more })
  const io = async (command) => {
    const { inserted: { 'node-name': node }, qdev } = (await instance.getQMPClient(vmId).queryBlock()).find(({ inserted }) => inserted?.drv === 'qcow2')
    expect(node).toEqual(expect.any(String))
    const told = await instance.getQMPClient(vmId).execute('human-monitor-command', { 'command-line': `qemu-io -d ${qdev} "${command}"` })
    expect(told).toBe('')
  }
  await io('write -P 7 0 1M')
  const { backupId: full } = await backups.createBackup(of())
  expect(calls).toEqual(['connect', 'freeze', 'thaw', 'disconnect'])
  expect(existsSync(note)).toBe(false)
  await io('write -P 8 0 64k')
  const { backupId: next, totalSize } = await backups.createBackup(of({ type: 'INCREMENTAL', parentBackupId: full }))
  expect(totalSize).toBeLessThan(2 ** 20)
  await io('write -P 9 0 64k')
  expect(await backups.getBackupMetadata(next, vmId)).toMatchObject({ runningAtBackup: true, crashConsistent: false })
  const restore = { vmId, backupId: next, diskPaths: [live], overwriteExisting: true }
  expect(await rejection(backups.restoreBackup(restore))).toMatchObject({ code: 'VM_RUNNING' })
  await instance.stopVM(vmId, { graceful: false })
  const stopped = service()
  await stopped.restoreBackup(restore)
  holds(live, 8, '0 64k')
  holds(live, 7, '64k 960k')
  await instance.startVM(vmId)
})

test('F39: that a guest could not be thawed stays noted as long as its agent is not reached', async () => {
  const instance = await openInstance()
  const guestAgentSocketPath = path.join(instance.stateDir, 'agent.sock')
  const { vmId, diskPaths } = await running(instance, { guestAgentSocketPath })
  const note = path.join(instance.stateDir, 'vms', vmId, 'guest-frozen')
  const thawedBy = (fsThaw) => () => ({ fsFreeze: async () => 1, fsThaw })
  const backUp = async (guestAgentFactory) => {
    const backups = service({ isVmRunning: () => true, guestAgentFactory })
    await backups.createBackup(config({ vmId, diskPaths, destinationDir: path.join(root, vmId) }))
    return existsSync(note)
  }
  expect(await backUp(() => null)).toBe(false)
  expect(await backUp(thawedBy(async () => { throw new Error('busy') }))).toBe(true)
  expect(await backUp(() => null)).toBe(true)
  expect(await backUp(() => { throw new Error('away') })).toBe(true)
  expect(await backUp(thawedBy(async () => 1))).toBe(false)
})

test('a QEMU that runs as somebody else writes the one file it is given, and does not keep it', async () => {
  const stateDir = newDirectory()
  for (const open of [stateDir, directory]) chmodSync(open, 0o711)
  const instance = await openInstance({ stateDir })
  const { vmId, diskPaths } = await running(instance, { runAsUser: 'nobody' })
  const { disks: [{ backupPath }] } = await service().createBackup(config({ vmId, diskPaths, destinationDir: path.join(root, vmId) }))
  const { uid, mode } = statSync(backupPath)
  expect([uid, mode & 0o777]).toEqual([process.getuid(), 0o600])
})

test('without its monitor a running machine is refused', async () => {
  const instance = await openInstance()
  const { vmId, diskPaths } = await running(instance)
  const other = await openInstance()
  const backups = service({ infinization: other, isVmRunning: undefined })
  const error = await rejection(backups.createBackup(config({ vmId, diskPaths })))
  expect(error).toMatchObject({ code: 'VM_RUNNING', diskPath: diskPaths[0] })
})

test('a torn manifest is told, and left out of lists', async () => {
  const backups = service()
  const { backupId } = await backups.createBackup(config())
  const warned = warning(/^a backup was left out/)
  writeFileSync(path.join(root, 'vm-1', backupId, 'backup.json'), '{')
  expect(await backups.listBackups('vm-1')).toEqual([])
  expect(await rejection(backups.getBackupMetadata(backupId, 'vm-1'))).toMatchObject({ code: 'CORRUPT_BACKUP' })
  await warned
})
