'use strict'

const path = require('node:path')
const { BackupService, GuestAgentClient } = require('../..')
const { cleanUp, guestDisk, newDirectory, openInstance, running } = require('../kit')
const { line } = require('../kit/guest')
const { run } = require('../kit/host')

afterEach(cleanUp)

const BOOT_DEADLINE = 90_000

// A disk that the tiny guest finds, mounts and writes to (scripts/guest/data-disk.sh).
function dataDisk (directory) {
  const [raw, backingFile] = [path.join(directory, 'data.raw'), path.join(directory, 'data.qcow2')]
  run('mkfs.ext4', '-q', '-F', '-J', 'size=4', '-b', '4096', '-L', 'infz-data', raw, '48M')
  run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, backingFile)
  return { sizeGB: 1, backingFile }
}

test('K2: the file system of a guest that writes is frozen by its agent while its disk is backed up, and goes on', async () => {
  const [directory, instance] = [newDirectory(), await openInstance()]
  const agent = path.join(instance.stateDir, 'agent.sock')
  const { vmId, diskPaths: [, disk] } = await running(instance, {
    disks: [guestDisk(), dataDisk(directory)], serialConsole: true, guestAgentSocketPath: agent
  })
  const console = path.join(instance.stateDir, 'vms', vmId, 'serial.log')
  await line(console, /INFZ-DATA/, BOOT_DEADLINE)
  await line(console, /INFZ-READY/, BOOT_DEADLINE)
  const written = async () => Number((await instance.guestExec(vmId, agent, 'cat', ['/run/written'])).stdout)
  const writesOn = async (from) => { while (!(await written() > from)); }
  await writesOn(0)

  const root = path.join(directory, 'backups')
  // A restored backup: whether its file system needs its journal, and how far the guest had come.
  const restored = async (backups, backupId) => {
    const [target, raw] = [path.join(directory, `${backupId}.qcow2`), path.join(directory, `${backupId}.raw`)]
    await backups.restoreBackup({ vmId, backupId, diskPaths: [target] })
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', target, raw)
    return { raw, torn: run('dumpe2fs', '-h', raw).includes('needs_recovery'), counter: Number(run('debugfs', '-R', 'cat /counter', raw)) }
  }
  const stopped = new BackupService({ backupRootDir: root, isVmRunning: () => false, infinization: await openInstance() })
  const made = async (guestAgentFactory) => {
    const backups = new BackupService({ backupRootDir: root, isVmRunning: () => true, guestAgentFactory })
    const { backupId } = await backups.createBackup({ vmId, diskPaths: [disk], destinationDir: path.join(root, vmId), type: 'FULL' })
    return backups.getBackupMetadata(backupId, vmId)
  }

  const before = await written()
  const quiet = await made(() => new GuestAgentClient(agent))
  expect(quiet).toMatchObject({ runningAtBackup: true, crashConsistent: false })
  await writesOn(await written())
  const frozen = await restored(stopped, quiet.id)
  expect(frozen.torn).toBe(false)
  run('e2fsck', '-f', '-n', frozen.raw)
  expect(frozen.counter).toBeGreaterThanOrEqual(before)

  const loud = await made()
  expect(loud).toMatchObject({ runningAtBackup: true, crashConsistent: true })
  expect((await restored(stopped, loud.id)).torn).toBe(true)
}, 2 * BOOT_DEADLINE)
