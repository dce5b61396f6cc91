'use strict'

const { execFileSync } = require('node:child_process')
const { once } = require('node:events')
const { rmSync, truncateSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { BackupScheduler, BackupService, QemuImgService } = require('../..')
const { cleanUp, newDirectory, warning } = require('../kit')
const { Clock } = require('../kit/clock')

afterEach(cleanUp)

let directory, root, disk, clock, backups
beforeEach(async () => {
  directory = newDirectory()
  root = path.join(directory, 'backups')
  disk = path.join(directory, 'disk.qcow2')
  clock = new Clock()
  backups = new BackupService({ backupRootDir: root })
  await new QemuImgService().createImage({ path: disk, sizeGB: 1 / 256, format: 'qcow2' })
})

const schedule = (more = {}) => ({
  id: 'nightly', vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *', retentionCount: 2,
  destinationDir: path.join(root, 'vm-1'), enabled: true, ...more
})

const run = async (scheduler) => {
  const ended = Promise.race(['schedule:completed', 'schedule:failed'].map((name) => once(scheduler, name).then((args) => [name, ...args])))
  clock.tick()
  return ended
}

test('a tick makes a backup that list and restore find, and retention keeps two', async () => {
  const scheduler = new BackupScheduler(backups, clock)
  scheduler.addSchedule(schedule({ label: 'nightly' }))
  expect(scheduler.activeJobCount).toBe(1)
  const made = []
  for (let n = 0; n < 4; n++) {
    const [name, told, metadata] = await run(scheduler)
    expect([name, told.id, metadata.status, metadata.tags]).toEqual(['schedule:completed', 'nightly', 'COMPLETED', ['scheduled', 'nightly']])
    made.unshift(metadata.id)
  }
  expect((await backups.listBackups('vm-1')).map(({ id }) => id)).toEqual(made.slice(0, 2))
  expect(scheduler.getSchedule('nightly')).toMatchObject({ lastRunAt: expect.any(String), nextRunAt: '2099-01-01T00:00:00.000Z' })
})

test('C1: retention deletes no backup that somebody else made, whatever its tags or the schedule are called', async () => {
  const made = async (tags) => (await backups.createBackup({ ...schedule(), tags })).backupId
  const theirs = [await made(['nightly']), await made(['scheduled']), await made(['scheduled', 'weekly'])]
  const ours = []
  for (const id of ['nightly', 'scheduled']) {
    const scheduler = new BackupScheduler(backups, clock)
    scheduler.addSchedule(schedule({ id, retentionCount: 1 }))
    await run(scheduler)
    ours.push((await run(scheduler))[2].id)
    scheduler.stopAll()
  }
  const left = (await backups.listBackups('vm-1')).map(({ id }) => id)
  expect(left.sort()).toEqual([...theirs, ...ours].sort())
})

test('C1: a number that is larger than any that counts keeps all', async () => {
  const scheduler = new BackupScheduler(backups, clock)
  scheduler.addSchedule(schedule({ retentionCount: 2 ** 32 + 1 }))
  for (let n = 0; n < 3; n++) await run(scheduler)
  expect(await backups.listBackups('vm-1')).toHaveLength(3)
})

test('without an adapter its own timers make a backup each minute, and it restores', async () => {
  jest.useFakeTimers({ now: new Date(2026, 0, 1, 10, 0, 30), doNotFake: ['nextTick', 'queueMicrotask', 'setImmediate'] })
  try {
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write -P 65 0 64k', disk])
    const scheduler = new BackupScheduler(backups)
    scheduler.addSchedule(schedule({ type: 'INCREMENTAL', cronExpression: '* * * * *' }))
    const minute = async (pattern) => {
      const ended = Promise.race(['schedule:completed', 'schedule:failed'].map((name) => once(scheduler, name)))
      jest.advanceTimersByTime(60_000)
      const [, told] = await ended
      execFileSync('qemu-io', ['-f', 'qcow2', '-c', `write -P ${pattern} 0 64k`, disk])
      return told
    }
    const [first, second] = [await minute(66), await minute(67)]
    expect([first, second]).toMatchObject([{ type: 'FULL', sequence: 1 }, { type: 'INCREMENTAL', parentBackupId: first.id, sequence: 2 }])
    expect(scheduler.getSchedule('nightly')).toMatchObject({ nextRunAt: new Date(2026, 0, 1, 10, 3).toISOString() })
    scheduler.stopAll()
    jest.advanceTimersByTime(600_000)
    expect(await backups.listBackups('vm-1')).toHaveLength(2)
    for (const [{ id }, pattern] of [[first, 65], [second, 66]]) {
      const restored = path.join(directory, `${pattern}.qcow2`)
      await backups.restoreBackup({ backupId: id, vmId: 'vm-1', diskPaths: [restored] })
      const read = execFileSync('qemu-io', ['-f', 'qcow2', '-c', `read -P ${pattern} 0 64k`, restored], { encoding: 'utf8' })
      expect(read).not.toMatch(/failed/)
    }
  } finally {
    jest.useRealTimers()
  }
})

test('C2: an incremental schedule begins with a full one, and with another after seven', async () => {
  const scheduler = new BackupScheduler(backups, clock)
  scheduler.addSchedule(schedule({ type: 'INCREMENTAL', retentionCount: 0 }))
  const types = []
  for (let n = 0; n < 9; n++) {
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', `write -P ${n + 1} 0 64k`, disk])
    const [name, , metadata] = await run(scheduler)
    expect([name, metadata?.message]).toEqual(['schedule:completed', undefined])
    types.push(metadata.type)
  }
  expect(types).toEqual(['FULL', ...Array(6).fill('INCREMENTAL'), 'FULL', 'INCREMENTAL'])
})

test.each([
  ['a file of its chain is gone', 'disk-0.qcow2', (file) => rmSync(file), /schedule nightly begins a new chain/],
  ['a file of its chain was cut', 'disk-0.qcow2', (file) => truncateSync(file, 512), /schedule nightly begins a new chain/],
  ['a manifest of its chain makes no sense', 'backup.json', (file) => writeFileSync(file, '{'), /a backup was left out/]
])('C2: where %s, an incremental schedule begins a new one', async (_what, name, damage, telling) => {
  const warned = warning(telling)
  const scheduler = new BackupScheduler(backups, clock)
  scheduler.addSchedule(schedule({ type: 'INCREMENTAL', retentionCount: 0 }))
  const [, , full] = await run(scheduler)
  await run(scheduler)
  damage(path.join(root, 'vm-1', full.id, name))
  const made = [await run(scheduler), await run(scheduler)]
  expect(made.map(([event, , { type }]) => [event, type])).toEqual([
    ['schedule:completed', 'FULL'], ['schedule:completed', 'INCREMENTAL']
  ])
  expect(made[1][2].parentBackupId).toBe(made[0][2].id)
  expect(await backups.verifyBackup(made[1][2].id, 'vm-1')).toMatchObject({ valid: true, links: 2 })
  await warned
})

test('C3: every run ends, also one that cannot', async () => {
  const scheduler = new BackupScheduler(backups, clock)
  scheduler.addSchedule(schedule({ diskPaths: undefined }))
  expect(await run(scheduler)).toEqual(['schedule:failed', expect.objectContaining({ id: 'nightly' }), expect.objectContaining({ code: 'INVALID_CONFIG' })])
  const resolving = new BackupScheduler(backups, clock, { diskPathResolver: async (vmId) => [path.join(directory, `${vmId}.qcow2`)] })
  scheduler.stopAll()
  resolving.addSchedule(schedule({ diskPaths: undefined }))
  expect(await run(resolving)).toEqual(['schedule:failed', expect.anything(), expect.objectContaining({ code: 'DISK_NOT_FOUND' })])
})

test('C3: a run ends also where nobody says which disks there are', async () => {
  jest.useFakeTimers({ doNotFake: ['nextTick', 'queueMicrotask', 'setImmediate'] })
  try {
    const scheduler = new BackupScheduler(backups, clock, { diskPathResolver: () => new Promise(() => {}) })
    scheduler.addSchedule(schedule({ diskPaths: undefined }))
    for (let n = 0; n < 2; n++) {
      const ended = once(scheduler, 'schedule:failed')
      clock.tick()
      jest.advanceTimersByTime(60_000)
      expect((await ended)[1]).toMatchObject({ name: 'BackupError', code: 'OPERATION_FAILED' })
    }
  } finally {
    jest.useRealTimers()
  }
})

test('a tick during a run is skipped', async () => {
  let made = 0
  let finish
  const slow = {
    createBackup: () => { made++; return new Promise((resolve) => { finish = () => resolve({ backupId: 'x' }) }) },
    getBackupMetadata: async () => ({ id: 'x' }),
    listBackups: async () => []
  }
  const scheduler = new BackupScheduler(slow, clock)
  scheduler.addSchedule(schedule())
  clock.tick()
  clock.tick()
  const ended = once(scheduler, 'schedule:completed')
  await new Promise(setImmediate)
  finish()
  await ended
  expect(made).toBe(1)
})

test('a retention that fails is a warning: the backup was made', async () => {
  const warned = warning(/retention of schedule nightly failed: no list/)
  const broken = {
    createBackup: async () => ({ backupId: 'x' }),
    getBackupMetadata: async () => ({ id: 'x' }),
    listBackups: async () => { throw new Error('no list') }
  }
  const scheduler = new BackupScheduler(broken, clock)
  scheduler.addSchedule(schedule())
  expect((await run(scheduler))[0]).toBe('schedule:completed')
  await warned
})

test('a backup that cannot be deleted keeps no other, and is tried again', async () => {
  const scheduler = new BackupScheduler(backups, clock)
  scheduler.addSchedule(schedule({ retentionCount: 3 }))
  const made = []
  for (let n = 0; n < 3; n++) made.push((await run(scheduler))[2].id)
  const warned = warning(new RegExp(`retention of schedule nightly could not delete ${made[1]}: busy`))
  const { deleteBackup } = backups
  backups.deleteBackup = async (id, vmId) => {
    if (id === made[1]) throw new Error('busy')
    return deleteBackup.call(backups, id, vmId)
  }
  scheduler.updateSchedule(schedule({ retentionCount: 1 }))
  const ids = async () => (await backups.listBackups('vm-1')).map(({ id }) => id)
  made.push((await run(scheduler))[2].id)
  await warned
  expect(await ids()).toEqual([made[3], made[1]])
  backups.deleteBackup = deleteBackup
  made.push((await run(scheduler))[2].id)
  expect(await ids()).toEqual([made[4]])
})

test('jobs of the adapter that throw stop nothing', async () => {
  const warned = [warning(/nobody can say when schedule nightly is due: no idea/), warning(/schedule nightly could not be stopped: null/)]
  warning(/schedule weekly/)
  const throwing = {
    schedule: (cron, callback) => ({
      ...clock.schedule(cron, callback),
      stop: () => { throw null },
      getNextRunDate: () => { throw new Error('no idea') }
    })
  }
  const scheduler = new BackupScheduler(backups, throwing)
  scheduler.addSchedule(schedule())
  for (let n = 0; n < 2; n++) expect((await run(scheduler))[0]).toBe('schedule:completed')
  expect(scheduler.getSchedule('nightly').nextRunAt).toBeUndefined()
  scheduler.addSchedule(schedule({ id: 'weekly' }))
  scheduler.stopAll()
  const started = jest.fn()
  scheduler.on('schedule:started', started)
  clock.tick()
  expect(started).not.toHaveBeenCalled()
  scheduler.removeSchedule('nightly')
  expect([scheduler.activeJobCount, scheduler.getAllSchedules()]).toEqual([0, [expect.objectContaining({ id: 'weekly' })]])
  await Promise.all(warned)
})

test('an adapter that gives nothing to stop a schedule by is heard until it is stopped', async () => {
  const scheduler = new BackupScheduler(backups, { schedule: (cron, callback) => { clock.schedule(cron, callback) } })
  scheduler.addSchedule(schedule())
  expect((await run(scheduler))[0]).toBe('schedule:completed')
  scheduler.stopAll()
  const started = jest.fn()
  scheduler.on('schedule:started', started)
  clock.tick()
  expect(started).not.toHaveBeenCalled()
})

test('what is refused', () => {
  const scheduler = new BackupScheduler(backups, clock, root)
  scheduler.addSchedule(schedule())
  const throwing = [
    [() => scheduler.addSchedule(schedule()), 'BACKUP_EXISTS'],
    [() => scheduler.addSchedule(schedule({ id: 'b', cronExpression: 'never' })), 'INVALID_CONFIG'],
    [() => scheduler.addSchedule(schedule({ id: 'b', type: 'full' })), 'INVALID_CONFIG'],
    [() => scheduler.addSchedule(schedule({ id: 'b', retentionCount: -1 })), 'INVALID_CONFIG'],
    [() => scheduler.addSchedule(schedule({ id: 'b', destinationDir: 'x' })), 'INVALID_CONFIG'],
    [() => scheduler.addSchedule(null), 'INVALID_CONFIG'],
    [() => scheduler.updateSchedule(schedule({ id: 'b' })), 'BACKUP_NOT_FOUND'],
    [() => scheduler.updateSchedule(schedule({ cronExpression: 'never' })), 'INVALID_CONFIG']
  ]
  for (const [call, code] of throwing) expect(call).toThrow(expect.objectContaining({ name: 'BackupError', code }))
  expect(scheduler.getAllSchedules()).toEqual([expect.objectContaining({ id: 'nightly', cronExpression: '0 2 * * *' })])
  expect(scheduler.activeJobCount).toBe(1)
  scheduler.removeSchedule('nightly')
  scheduler.removeSchedule('nightly')
  expect([scheduler.activeJobCount, clock.jobs.size]).toEqual([0, 0])
})

test('a schedule that was disabled in its run is due no more', async () => {
  let finish
  const slow = { createBackup: () => new Promise((resolve, reject) => { finish = reject }), listBackups: async () => [] }
  const scheduler = new BackupScheduler(slow, clock)
  scheduler.addSchedule(schedule())
  clock.tick()
  scheduler.updateSchedule(schedule({ enabled: false, nextRunAt: clock.next }))
  const ended = once(scheduler, 'schedule:failed')
  await new Promise(setImmediate)
  finish(new Error('gone'))
  expect((await ended)[0].nextRunAt).toBeUndefined()
})
