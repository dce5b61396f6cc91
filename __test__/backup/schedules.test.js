'use strict'

const { execFileSync } = require('node:child_process')
const { once } = require('node:events')
const { mkdirSync, promises, readFileSync, rmSync, truncateSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { BackupScheduleService, BackupScheduler, BackupService, QemuImgService } = require('../..')
const { cleanUp, files, newDirectory, rejection, warning } = require('../kit')

afterEach(cleanUp)

// An adapter whose clock the test turns.
class Clock {
  jobs = new Set()
  next = '2099-01-01T00:00:00.000Z'
  schedule (cron, callback) {
    if (cron === 'never') throw new Error('that never comes')
    const job = { cron, callback, stop: () => this.jobs.delete(job), getNextRunDate: () => this.next }
    this.jobs.add(job)
    return job
  }

  tick () {
    for (const job of this.jobs) job.callback()
  }
}

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

test('a schedule that the adapter refuses keeps no other from starting, and can be mended', async () => {
  const before = new BackupScheduleService(backups, clock, { backupRootDir: root })
  const input = { vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: 'never' }
  const refused = await before.createSchedule(input)
  const good = await before.createSchedule({ ...input, cronExpression: '0 2 * * *' })
  await before.stop()
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  const [[told, error]] = await Promise.all([once(service, 'schedule:failed'), service.start()])
  expect([told, error]).toMatchObject([{ id: refused.id }, { name: 'BackupError', code: 'INVALID_CONFIG' }])
  expect([service.activeJobCount, [...clock.jobs].map(({ cron }) => cron)]).toEqual([1, ['0 2 * * *']])
  expect(await rejection(service.updateSchedule(refused.id, { label: 'still' }))).toMatchObject({ code: 'INVALID_CONFIG' })
  expect(await service.getSchedule(refused.id)).not.toHaveProperty('label')
  await service.disableSchedule(refused.id)
  await service.updateSchedule(refused.id, { enabled: true, cronExpression: '0 3 * * *' })
  expect([...clock.jobs].map(({ cron }) => cron).sort()).toEqual(['0 2 * * *', '0 3 * * *'])
  await service.deleteSchedule(good.id)
  await service.stop()
  expect(clock.jobs.size).toBe(0)
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

test('schedules are kept, and a missed run is made up once', async () => {
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  const told = []
  for (const name of ['schedule:created', 'schedule:enabled', 'schedule:disabled', 'schedule:updated', 'schedule:deleted', 'loaded', 'persisted']) {
    service.on(name, () => told.push(name))
  }
  await service.start()
  const input = { vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *' }
  const created = await service.createSchedule(input)
  expect(created).toMatchObject({
    ...input, id: expect.any(String), retentionCount: 5, compression: 'NONE', enabled: true, destinationDir: path.join(root, 'vm-1')
  })
  expect(await service.disableSchedule(created.id)).toMatchObject({ enabled: false })
  expect(service.activeJobCount).toBe(0)
  await service.enableSchedule(created.id)
  await service.updateSchedule(created.id, { label: 'nightly', retentionCount: 3 })
  const { id: gone } = await service.createSchedule({ ...input, vmId: 'vm-2' })
  expect((await service.listSchedules('vm-2')).map(({ id }) => id)).toEqual([gone])
  await service.deleteSchedule(gone)
  expect(await rejection(service.deleteSchedule(gone))).toMatchObject({ name: 'BackupError', code: 'BACKUP_NOT_FOUND' })
  expect(await rejection(service.createSchedule({ ...input, cronExpression: 'never' }))).toMatchObject({ code: 'INVALID_CONFIG' })
  await service.stop()
  expect(told.filter((name) => name !== 'persisted')).toEqual([
    'loaded', 'schedule:created', 'schedule:disabled', 'schedule:enabled', 'schedule:updated', 'schedule:created', 'schedule:deleted'
  ])
  expect(files(root)).toEqual(['schedules.json'])

  const file = path.join(root, 'schedules.json')
  const kept = JSON.parse(readFileSync(file, 'utf8'))
  expect(kept).toMatchObject({ version: 1, schedules: [{ id: created.id, label: 'nightly', retentionCount: 3, nextRunAt: expect.any(String) }] })
  kept.schedules[0].nextRunAt = '2020-01-01T00:00:00.000Z'
  writeFileSync(file, JSON.stringify(kept))
  const again = new BackupScheduleService(backups, clock, { backupRootDir: root })
  const [name] = await Promise.all([once(again, 'schedule:completed'), again.start()])
  expect(name[1]).toMatchObject({ status: 'COMPLETED' })
  expect(again.scheduleCount).toBe(1)
  await again.stop()
  expect(await backups.listBackups('vm-1')).toHaveLength(1)
  expect(JSON.parse(readFileSync(file, 'utf8')).schedules[0].nextRunAt).toBe('2099-01-01T00:00:00.000Z')
})

test('C3: a run that the end of the process cut short is made up, and ends', async () => {
  const kept = () => JSON.parse(readFileSync(path.join(root, 'schedules.json'), 'utf8')).schedules[0]
  const hangs = { createBackup: () => new Promise(() => {}), listBackups: async () => [] }
  const due = '2020-01-01T02:00:00.000Z'
  const dying = new BackupScheduleService(hangs, clock, { backupRootDir: root })
  await dying.start()
  clock.next = due
  const { id } = await dying.createSchedule({ vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *' })
  clock.next = '2099-01-01T00:00:00.000Z'
  const persisted = once(dying, 'persisted')
  clock.tick()
  await persisted
  await dying.updateSchedule(id, { label: 'nightly' })
  expect(kept()).toMatchObject({ nextRunAt: due, lastRunAt: expect.any(String), label: 'nightly' })
  clock.jobs.clear()

  // It makes up for it, and is cut short as well.
  const [started] = await startAnd('schedule:started', hangs)
  expect(started).toMatchObject({ id, nextRunAt: due })
  expect(kept()).toMatchObject({ nextRunAt: due })

  const [ended, metadata] = await startAnd('schedule:completed', backups)
  expect([ended, metadata]).toMatchObject([{ id, nextRunAt: clock.next }, { status: 'COMPLETED' }])
  expect(kept()).toMatchObject({ nextRunAt: clock.next })
})

// A process that begins, and what it then tells first.
async function startAnd (event, service) {
  const schedules = new BackupScheduleService(service, clock, { backupRootDir: root })
  const [told] = await Promise.all([once(schedules, event), schedules.start()])
  await schedules.stop()
  return told
}

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

test('C4: writes at once do not lose each other', async () => {
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  const input = { vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *' }
  await Promise.all(Array.from({ length: 20 }, () => service.createSchedule(input)))
  await service.stop()
  expect(JSON.parse(readFileSync(path.join(root, 'schedules.json'), 'utf8')).schedules).toHaveLength(20)
  const again = new BackupScheduleService(backups, clock, { backupRootDir: root })
  expect(await again.listSchedules()).toHaveLength(20)
})

test('C4: a schedule that is deleted while others are asked for stays deleted', async () => {
  const before = new BackupScheduleService(backups, clock, { backupRootDir: root })
  const input = { vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *' }
  const [gone, stays] = [await before.createSchedule(input), await before.createSchedule(input)]
  await before.stop()
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  await Promise.all([service.deleteSchedule(gone.id), service.listSchedules(), service.getSchedule(gone.id)])
  await service.updateSchedule(stays.id, { label: 'nightly' })
  expect(await service.listSchedules()).toMatchObject([{ id: stays.id }])
  expect(JSON.parse(readFileSync(path.join(root, 'schedules.json'), 'utf8')).schedules).toMatchObject([{ id: stays.id }])
})

test('C3: start() keeps when each is due', async () => {
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  await service.createSchedule({ vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *' })
  await service.start()
  await once(service, 'persisted')
  const { schedules } = JSON.parse(readFileSync(path.join(root, 'schedules.json'), 'utf8'))
  expect(schedules).toMatchObject([{ nextRunAt: clock.next }])
  await service.stop()
})

test('of start() and stop() the last that was called counts', async () => {
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  await service.createSchedule({ vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *' })
  await Promise.all([service.start(), service.stop()])
  expect(service.activeJobCount).toBe(0)
  await Promise.all([service.start(), service.stop(), service.start()])
  expect(service.activeJobCount).toBe(1)
  await service.stop()
  expect(clock.jobs.size).toBe(0)
})

test('a change that cannot be kept has not happened', async () => {
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  await service.start()
  const input = { vmId: 'vm-1', diskPaths: [disk], type: 'FULL', cronExpression: '0 2 * * *' }
  const { id } = await service.createSchedule(input)
  const before = [await service.listSchedules(), readFileSync(path.join(root, 'schedules.json'), 'utf8')]
  const told = jest.fn()
  for (const name of ['schedule:created', 'schedule:updated', 'schedule:disabled', 'schedule:deleted']) service.on(name, told)
  const full = jest.spyOn(promises, 'rename').mockRejectedValue(Object.assign(new Error('no space'), { code: 'ENOSPC' }))
  const changes = [
    service.createSchedule(input), service.updateSchedule(id, { cronExpression: '0 3 * * *' }), service.disableSchedule(id), service.deleteSchedule(id)
  ].map(rejection)
  for (const refused of await Promise.all(changes)) expect(refused).toMatchObject({ name: 'BackupError', code: 'OPERATION_FAILED' })
  full.mockRestore()
  expect([await service.listSchedules(), readFileSync(path.join(root, 'schedules.json'), 'utf8')]).toEqual(before)
  expect([...clock.jobs].map(({ cron }) => cron)).toEqual(['0 2 * * *'])
  expect(told).not.toHaveBeenCalled()
  expect(files(root)).toEqual(['schedules.json'])
  await service.deleteSchedule(id)
  await service.stop()
})

test.each(['{', '{"version":2,"schedules":[]}', '[]'])('a file that makes no sense (%s) is put aside', async (text) => {
  mkdirSync(root)
  writeFileSync(path.join(root, 'schedules.json'), text)
  const service = new BackupScheduleService(backups, clock, { backupRootDir: root })
  expect(await rejection(service.start())).toMatchObject({ name: 'BackupError', code: 'OPERATION_FAILED' })
  expect(files(root)).toEqual(['schedules.json.corrupt'])
  await service.start()
  expect(service.scheduleCount).toBe(0)
  await service.stop()
})
