'use strict'

const { execFileSync } = require('node:child_process')
const { readFileSync } = require('node:fs')
const path = require('node:path')
const { BackupError, BackupScheduler, BackupService, QemuImgService } = require('../..')
const { cleanUp, files, newBridge, newDirectory, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

const KEY = 'a-key-nobody-guesses'
const PATTERN = 'INFZ-PLAIN-TEXT!'

// What the machine's own QEMU writes for a guest, and the words are in no file.
async function write (qmp) {
  const file = path.join(newDirectory(), 'pattern')
  require('node:fs').writeFileSync(file, PATTERN)
  const line = `qemu-io -d /machine/peripheral/disk0/virtio-backend "write -s ${file} 0 1M"`
  expect(await qmp.execute('human-monitor-command', { 'command-line': line })).toBe('')
}

const inPlain = (root) => files(root).filter((file) => readFileSync(path.join(root, file)).includes(PATTERN.repeat(2)))

test('an instance that runs the machine has its keys; others are given them', async () => {
  const instance = await openInstance()
  const { vmId, diskPaths: [disk] } = await running(instance, { bridge: await newBridge(), disks: [{ sizeGB: 1, encryptionKey: KEY }] })
  await write(instance.getQMPClient(vmId))
  const root = path.join(newDirectory(), 'backups')
  const backups = new BackupService({ backupRootDir: root, infinization: instance })
  const config = { vmId, diskPaths: [disk], destinationDir: path.join(root, vmId), type: 'FULL' }
  const slip = await rejection(backups.createBackup({ ...config, diskKeys: { [disk]: 'wrong' } }))
  expect(slip).toBeInstanceOf(BackupError)
  expect(slip).toMatchObject({ code: 'AUTH_FAILED', diskPath: disk })
  expect(await rejection(backups.createBackup({ ...config, diskKeys: 'wrong' }))).toMatchObject({ code: 'INVALID_CONFIG', message: expect.not.stringContaining('wrong') })
  expect(await rejection(backups.createBackup({ ...config, diskKeys: { [disk]: Buffer.from([0xff]) } }))).toMatchObject({ code: 'INVALID_CONFIG' })
  const made = await backups.createBackup(config)
  expect(made.disks).toEqual([expect.objectContaining({ encrypted: true })])
  expect(inPlain(root)).toEqual([])

  const target = path.join(root, 'restored.qcow2')
  await instance.stopVM(vmId, { graceful: false, force: true })
  const others = new BackupService({ backupRootDir: root, isVmRunning: async () => false })
  const restore = { vmId, backupId: made.backupId, diskPaths: [target] }
  expect(await rejection(others.restoreBackup(restore))).toMatchObject({ code: 'KEY_REQUIRED' })
  await others.restoreBackup({ ...restore, diskKeys: { [target]: Buffer.from(KEY) } })
  expect(await new QemuImgService().checkImage(target, 'qcow2', { encryptionKey: KEY })).toMatchObject({ corruptions: 0 })
  expect(inPlain(root)).toEqual([])
  const read = ['--object', `secret,id=k,data=${KEY}`, '-r', '-c', `read -P ${PATTERN.charCodeAt(0)} 0 1`]
  const image = `driver=qcow2,encrypt.format=luks,encrypt.key-secret=k,file.filename=${target}`
  expect(execFileSync('qemu-io', [...read, '--image-opts', image], { encoding: 'utf8' })).not.toContain('verification failed')
}, 240_000)

test('a disk is given another key while its machine runs, and a schedule begins a new chain', async () => {
  const instance = await openInstance()
  const { vmId, diskPaths: [disk] } = await running(instance, { bridge: await newBridge(), disks: [{ sizeGB: 1, encryptionKey: KEY }] })
  const root = path.join(newDirectory(), 'backups')
  const backups = new BackupService({ backupRootDir: root, infinization: instance })
  const scheduler = new BackupScheduler(backups, null, root)
  scheduler.addSchedule({
    id: 's', vmId, diskPaths: [disk], type: 'INCREMENTAL', cronExpression: '0 0 1 1 *', retentionCount: 0, destinationDir: path.join(root, vmId), enabled: true
  })
  await scheduler.runNow('s')
  expect(await rejection(instance.changeDiskKey(vmId, disk))).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await rejection(instance.changeDiskKey(vmId, '/x', { newKey: 'n' }))).toMatchObject({ code: 'INVALID_CONFIG' })
  const changed = await instance.changeDiskKey(vmId, disk, { newKey: Buffer.from('next'), iterTime: 10 })
  expect(changed).toMatchObject({ success: true, vmId })
  await scheduler.runNow('s')
  await scheduler.runNow('s')
  scheduler.stopAll()
  const types = (await backups.listBackups(vmId)).map(({ type, status }) => `${status} ${type}`)
  expect(types.reverse().filter((made) => made.startsWith('COMPLETED'))).toEqual(['COMPLETED FULL', 'COMPLETED FULL', 'COMPLETED INCREMENTAL'])
  await instance.stopVM(vmId, { graceful: false, force: true })
  expect((await rejection(instance.startVM(vmId, { diskKeys: { [disk]: KEY } }))).code).toBe('START_FAILED')
  expect(await instance.startVM(vmId, { diskKeys: { [disk]: 'next' } })).toMatchObject({ success: true })
}, 240_000)
