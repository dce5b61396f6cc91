'use strict'

const { once } = require('node:events')
const { mkdirSync, promises, readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { BackupScheduleService, BackupService, QemuImgService } = require('../..')
const { cleanUp, files, newDirectory, rejection } = require('../kit')
const { Clock } = require('../kit/clock')

afterEach(cleanUp)

let root, disk, clock, backups
beforeEach(async () => {
  const directory = newDirectory()
  root = path.join(directory, 'backups')
  disk = path.join(directory, 'disk.qcow2')
  clock = new Clock()
  backups = new BackupService({ backupRootDir: root })
  await new QemuImgService().createImage({ path: disk, sizeGB: 1 / 256, format: 'qcow2' })
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
