// Uses the public types as a backend does. It is compiled, never run: what must not compile is marked.

import {
  BackupError,
  BackupService,
  BackupType,
  BridgeManager,
  CgroupsManager,
  CommandExecutor,
  DEFAULT_BACKUP_COMPRESSION,
  DEFAULT_BACKUP_DIR,
  DepartmentNatService,
  EventHandler,
  GuestAgentClient,
  HealthMonitor,
  Infinization,
  KeyedMutex,
  LifecycleErrorCode,
  PrismaAdapter,
  PrismaAdapterError,
  PrismaAdapterErrorCode,
  QMPClient,
  QemuCommandBuilder,
  QemuProcess,
  SUPPORTED_PROTOCOLS,
  SnapshotManager,
  SpiceConfig,
  StateSync,
  StorageError,
  TapDeviceManager,
  VMLifecycle,
  VMOperation,
  VM_CHAIN_PREFIX,
  defineFirewallPreset,
  firewallPresets,
  generateVMChainName,
  isLifecycleError,
  isPrismaAdapterError,
  isValidVMInfo
} from '@infinibay/infinization'
import type {
  BackupCompression,
  BackupMetadata,
  BackupProgress,
  BackupResult,
  CommandExecutionError,
  ConfigDiskOptions,
  ConfigIssue,
  DBVMStatus,
  DatabaseAdapter,
  DiskConfig,
  EventManagerLike,
  NetworkDiskConfig,
  FirewallApplyResult,
  FirewallPlan,
  FirewallPreset,
  FirewallRuleInput,
  GuestAgentFactory,
  InfinizationConfig,
  InfinizationDatabase,
  IsVmRunningProbe,
  JournalEntry,
  JournalOptions,
  JournalRange,
  OverlayPeer,
  PrismaClientLike,
  RestoreResult,
  SnapshotInfo,
  VMConditionEvent,
  VMCreateConfig,
  VMCreateResult,
  VMEventData,
  VMInfo,
  VMLifecycleOptions,
  VMSnapshot,
  VMSnapshotTree
} from '@infinibay/infinization'

// Verbs are passed around by their types, so they must be methods without overloads.
interface NodeExecutor {
  createVM: Infinization['createVM']
  startVM: Infinization['startVM']
  stopVM: Infinization['stopVM']
  restartVM: Infinization['restartVM']
  destroyVM: Infinization['destroyVM']
  getVMStatus: Infinization['getVMStatus']
  guestExec: Infinization['guestExec']
  ensureSegment: Infinization['ensureSegment']
  setPeers: Infinization['setPeers']
  destroySegment: Infinization['destroySegment']
}

const remote: Pick<NodeExecutor, 'createVM' | 'startVM'> = {
  createVM: async (config) => ({
    success: true,
    vmId: config.vmId,
    tapDevice: 'vnet-1',
    qmpSocketPath: '/run/vm.sock',
    displayPort: 5900,
    pid: 1,
    diskPaths: [],
    pidFilePath: '/run/vm.pid'
  }),
  startVM: async (vmId) => ({ success: true, message: '', vmId, timestamp: new Date() })
}

const elsewhere: NetworkDiskConfig = { location: { type: 'nbd', path: '/run/nbd.sock', export: 'disk' }, bus: 'scsi' }
const disk: DiskConfig = { sizeGB: 20, format: 'qcow2', discard: true, backingFile: undefined }

const machine: VMCreateConfig = {
  vmId: 'd2b0c7a4-6b46-4a5e-8f6e-0b2f4b6f8a10',
  name: 'desktop',
  internalName: 'desktop-1',
  os: 'ubuntu-22.04',
  cpuCores: 2,
  ramGB: 4,
  disks: [disk, elsewhere],
  bridge: 'infinibr-1',
  displayType: 'spice',
  displayPort: 5900,
  displayPassword: 'secret',
  isoPath: undefined,
  networkQueues: 1
}

async function run(database: InfinizationDatabase, peers: OverlayPeer[]): Promise<string> {
  const config: InfinizationConfig = {
    databaseAdapter: database,
    diskDir: '/srv/disks',
    overlay: undefined,
    eventManager: { emitCRUD: (resource, action, id, data) => void [resource, action, id, data] }
  }
  const infinization = new Infinization(config)
  await infinization.initialize()

  const handler = infinization.getEventHandler()
  handler.on('vm:event', async (data: VMEventData) => void data.newStatus.length)
  handler.on('vm:disconnect', ({ vmId, transient }) => void [vmId.length, transient])
  infinization.getHealthMonitor().on('crash', (crash) => void crash.detectedAt.getTime())

  const summary = await infinization.reconcileStartupState()
  void (summary.promotedToRunning.length + summary.skipped.length)

  const created = await infinization.createVM(machine, { signal: AbortSignal.timeout(60_000) })
  const port: number = created.displayPort
  await infinization.startVM(created.vmId, { disableSandbox: true })
  const stopped = await infinization.stopVM(created.vmId, { graceful: true, timeout: 120_000, force: true })
  void (stopped.forced === true && port)

  for (const device of await infinization.queryBlockDevices(created.vmId)) {
    if (device.removable && device.inserted?.file) await infinization.ejectCdrom(created.vmId, device.device)
  }
  await infinization.setPeers('dept', 'infinibr-1', peers)

  const rules: FirewallRuleInput[] = [
    { id: '1', name: 'ssh', action: 'ACCEPT', direction: 'IN', priority: 1, protocol: 'tcp', dstPortStart: 22, dstPortEnd: 22 }
  ]
  void (await infinization.setFirewallRules(created.vmId, rules)).success
  void (await infinization.setAddresses(created.vmId, ['10.0.0.5', 'fd00::5'])).success

  const postgres: FirewallPreset = defineFirewallPreset({ name: 'PostgreSQL', ports: [{ protocol: 'tcp', port: 5432 }] })
  await infinization.setFirewallRules(created.vmId, [...firewallPresets.ssh({ from: '10.0.0.0/8' }), ...postgres()])
  // @ts-expect-error a typo would open the service to everybody
  firewallPresets.ssh({ form: '10.0.0.0/8' })
  const explained: FirewallPlan = await infinization.explainFirewall(created.vmId)
  const network = await infinization.networks.create({
    name: 'lab', subnet: '10.20.0.0/24', mode: 'isolated', dhcp: { hosts: [{ mac: '52:54:00:00:00:01', ip: '10.20.0.5' }] }, dns: false
  })
  const until: Date | undefined = (await infinization.networks.leases(network.name))[0]?.expiresAt
  const kept: RestoreResult = await infinization.getNftablesService().getPersistence().restoreFromDisk()
  // @ts-expect-error a mode is one of three words
  await infinization.networks.create({ name: 'lab', subnet: '10.20.0.0/24', mode: 'bridged' })
  void [until, kept.rulesLoaded]
  void [explained.text, explained.json.nftables.length, explained.chains[0]?.rules]
  infinization.getHealthMonitor().on('firewall-repaired', ({ missing, failed, timestamp }) => {
    void [missing.map(({ vmId, part, name }) => `${vmId ?? part} ${name}`), failed[0]?.error, timestamp.getTime()]
  })

  const nftables = infinization.getNftablesService()
  await nftables.initialize()
  void (await nftables.applyDepartmentRules(rules, [{ vmId: created.vmId, tapName: created.tapDevice }]))[0].result?.appliedRules
  void (await nftables.planRules(created.vmId, created.tapDevice, [], rules)).defaultAction
  const applied: FirewallApplyResult = await nftables.applyRules(created.vmId, created.tapDevice, [], rules, 'drop')
  if (applied.failedRules > 0) for (const failure of applied.failures) void [failure.ruleName, failure.error]
  for (const chain of await nftables.listChains()) {
    if (chain.startsWith(VM_CHAIN_PREFIX) && chain !== generateVMChainName(created.vmId)) {
      await nftables.removeVMChainByName(chain)
    }
  }

  const monitor = infinization.getHealthMonitor()
  monitor.on('database-outage', ({ error, timestamp }) => void [error.code, error.message, timestamp.getTime()])
  monitor.on('database-restored', ({ startedAt, delivered, lost }) => void [startedAt.getTime(), delivered, lost])
  monitor.on('cleanup-alert', ({ vmId }) => void monitor.retryCleanup(vmId, { tapDeviceName: created.tapDevice }))
  const left = await monitor.retryCleanup(created.vmId)
  if (left.failedCleanups > 0) for (const resource of left.resources) void [resource.type, resource.lastError]

  const qmp = infinization.getQMPClient(created.vmId)
  const answer = await qmp?.execute<{ enabled: boolean }>('query-spice')
  void answer?.enabled

  for await (const event of infinization.events({ vmId: created.vmId })) void [event.seq, event.type]
  const missed: number = infinization.events().lost
  const range: JournalRange | null = await infinization.getJournalRange(created.vmId)
  const options: JournalOptions = { vmId: created.vmId, since: range?.lastSeq, until: new Date(), follow: true }
  for await (const entry of infinization.journal(options)) {
    const { seq, actor, kind, phase, timestamp }: JournalEntry = entry
    if (kind === 'exit' && actor === 'process') void [missed, seq, phase, timestamp.getTime()]
  }
  const { condition, lastExit } = await infinization.getVMStatus(created.vmId)
  if (condition?.kind === 'io-error') void [condition.reason, condition.device, condition.since.getTime()]
  void [lastExit?.evidence, lastExit?.endedAt?.getTime()]
  infinization.getEventHandler().on('vm:condition', ({ condition }: VMConditionEvent) => condition?.kind)

  await using short = new Infinization()
  return (await short.getVMStatus(created.vmId)).status
}

// A client as one generates it: narrower arguments and answers than what is asked of it.
interface GeneratedClient {
  machine: {
    findUnique<T extends { where: { id?: string } }>(args: T): Promise<{ id: string } | null> & { fluent(): void }
    findFirst(args?: { where?: object }): Promise<{ id: string } | null>
    findMany(args?: { where?: object }): Promise<{ id: string }[]>
    updateMany(args: { where?: object; data: object }): Promise<{ count: number }>
    create(args: object): Promise<object>
  }
  machineConfiguration: {
    upsert(args: { where: object; create: object; update: object }): Promise<object>
    updateMany(args: { where?: object; data: object }): Promise<{ count: number }>
  }
  $transaction<P extends Promise<unknown>[]>(steps: [...P]): Promise<unknown[]>
  $transaction<R>(run: (tx: Omit<GeneratedClient, '$transaction'>) => Promise<R>, options?: { timeout?: number }): Promise<R>
}

async function answer(client: GeneratedClient, method: keyof InfinizationDatabase, args: unknown[]): Promise<unknown> {
  const prismaClient: PrismaClientLike = client
  const database: InfinizationDatabase = new PrismaAdapter(client, 'node-1')
  const infinization = new Infinization({ prismaClient, nodeId: undefined, databaseTimeout: 5000 })
  await infinization.getPrismaAdapter().clearMachineConfiguration('vm-1')
  return (database[method] as (...args: unknown[]) => Promise<unknown>).apply(database, args)
}

async function host(image: string): Promise<number> {
  const [bridges, taps, snapshots] = [new BridgeManager(), new TapDeviceManager(), new SnapshotManager()]
  const nat = new DepartmentNatService()
  await nat.initialize()
  if (!(await nat.hasMasquerade('infinibr-1'))) await nat.addMasquerade('10.0.0.0/24', 'infinibr-1')
  if (!(await bridges.exists('infinibr-1'))) await bridges.create('infinibr-1')
  await bridges.assignIP('infinibr-1', '10.0.0.1/24')
  for (const tap of await taps.listAllTapDevices()) {
    const state = (await taps.getDeviceState(tap)).match(/state\s+(\w+)/)?.[1]
    if (state !== 'UP' && (await taps.isOrphaned(tap))) await taps.destroy(tap)
  }
  await snapshots.createSnapshot({ imagePath: image, name: 'before', description: 'an update' })
  const taken: SnapshotInfo[] = await snapshots.listSnapshots(image)
  return taken.reduce((latest, { date }) => Math.max(latest, new Date(date).getTime()), 0)
}

async function snapshot(instance: Infinization, vmId: string): Promise<string[]> {
  await instance.createSnapshot(vmId, { name: 'before', memory: true, signal: AbortSignal.timeout(60_000) })
  // @ts-expect-error a snapshot has a name
  await instance.createSnapshot(vmId, { memory: true })
  const taken: VMSnapshot[] = await instance.listSnapshots(vmId)
  const { warnings = [] } = await instance.revertSnapshot(vmId, 'before', { restart: true })
  await instance.deleteSnapshot(vmId, 'before')
  await instance.createSnapshot(vmId, { name: 'outside', kind: 'external' })
  const tree: VMSnapshotTree = await instance.snapshotTree(vmId)
  const files: string[] = tree.snapshots.flatMap((snapshot) => snapshot.layers.map((layer) => layer.path))
  await instance.revertSnapshot(vmId, tree.current ?? 'outside', { keep: 'tip' })
  await instance.commitSnapshot(vmId, 'tip', { signal: AbortSignal.timeout(60_000) })
  await instance.deleteSnapshot(vmId, 'outside', { children: 'rebase' })
  await instance.changeDiskKey(vmId, files[0] ?? '', { newKey: Buffer.from('next'), iterTime: 500 })
  // @ts-expect-error a change needs the new key
  await instance.changeDiskKey(vmId, '/d/a.qcow2', { encryptionKey: 'old' })
  return taken.filter(({ complete, memory }) => complete && memory).flatMap(({ disks }) => disks).concat(warnings)
}

function check(protocol: string): boolean {
  return SUPPORTED_PROTOCOLS.includes(protocol)
}

function explain(error: unknown): string {
  if (isLifecycleError(error) && error.code === LifecycleErrorCode.INVALID_CONFIG) {
    const issues = error.context?.issues as ConfigIssue[]
    return issues.map((issue) => `${issue.path} ${issue.message}`).join(', ')
  }
  if (isPrismaAdapterError(error)) return error.code
  if (error instanceof StorageError) return error.toInfo().message
  const code: PrismaAdapterErrorCode = 'MACHINE_NOT_FOUND'
  return new PrismaAdapterError('gone', code, 'vm-1').message
}

async function backUp(probe: IsVmRunningProbe, agents: GuestAgentFactory): Promise<bigint> {
  const service = new BackupService({ backupRootDir: DEFAULT_BACKUP_DIR, isVmRunning: probe, guestAgentFactory: agents })
  const onProgress = ({ vmId, overallProgress }: BackupProgress) => { void [vmId, overallProgress] }
  service.on('progress', onProgress)
  try {
    const result: BackupResult = await service.createBackup({
      vmId: 'vm-1', diskPaths: ['/d/a.qcow2'], destinationDir: `${DEFAULT_BACKUP_DIR}/vm-1`, type: BackupType.FULL,
      compression: DEFAULT_BACKUP_COMPRESSION as BackupCompression, description: undefined, parentBackupId: undefined, tags: undefined
    })
    await service.verifyBackup(result.backupId, 'vm-1', { onProgress, signal: AbortSignal.timeout(1000) })
    const metadata: BackupMetadata = await service.getBackupMetadata(result.backupId, 'vm-1')
    return BigInt(result.totalSize) + BigInt(metadata.totalOriginalSize)
  } catch (error) {
    if (error instanceof BackupError && error.code === 'BACKUP_NOT_FOUND') return 0n
    throw error
  } finally {
    service.off('progress', onProgress)
  }
}

const mutex = new KeyedMutex()
const seven: Promise<number> = mutex.runExclusive('key', async () => 7)

// @ts-expect-error a display is spice or vnc
const wrongDisplay: VMCreateConfig = { ...machine, displayType: 'rdp' }
// @ts-expect-error an id is text
void remote.startVM(5)
// @ts-expect-error there is no such code
const wrongCode: LifecycleErrorCode = 'NO_SUCH_CODE'

export { answer, backUp, check, explain, host, run, seven, snapshot, wrongCode, wrongDisplay }

// The classes a program constructs itself, over eight methods of its own.
async function ownClasses (db: DatabaseAdapter, infinization: Infinization): Promise<void> {
  const status: DBVMStatus = new StateSync({} as DatabaseAdapter).mapQMPStatusToDBStatus('paused')
  const vmLock = new KeyedMutex()
  const client = new QMPClient('/run/vm-1.sock', { reconnect: true })
  client.on('SHUTDOWN', (data: unknown) => console.log(status, data))
  await client.connect()
  const { running } = await client.queryStatus()
  const handler: EventHandler = running ? new EventHandler(db, { vmLock }) : infinization.getEventHandler()
  handler.on('vm:event', ({ vmId, newStatus }) => console.log(vmId, newStatus))
  await handler.attachToVM('vm-1', client)
  handler.markInstallInProgress('vm-1')
  const monitor: HealthMonitor = new HealthMonitor(db, { checkIntervalMs: 5000, vmLock, onCrashDetected: async (vmId) => console.log(vmId) })
  monitor.on('crash', ({ cleanupResult }) => console.log(cleanupResult?.failedCleanups))
  const alive: boolean = monitor.checkVM('vm-1', 1)
  const agent = new GuestAgentClient('/run/vm-1.ga')
  await agent.connect()
  const frozen: number = await agent.fsFreeze()
  const { stdout } = await agent.guestExecRaw('cat', ['/etc/hostname'], { timeout: 1000 })
  console.log(alive, frozen, stdout.toString('utf8'))
  // @ts-expect-error: a client is needed
  await handler.attachToVM('vm-1')
}
void ownClasses

// Command lines and data of one's own.

export async function commandLine (): Promise<string[]> {
  const builder = new QemuCommandBuilder()
    .setMachine('q35', { accel: 'tcg' })
    .addDisks([{ path: '/a', format: 'qcow2', bus: 'virtio', cache: 'none' }])
    .addSpice(new SpiceConfig({ port: 5901 }))
    .enableCpuPinning('basic', 2)
  // @ts-expect-error no such machine
  builder.setMachine('microvm')
  const { wrapperArgs, command, args } = await builder.buildCommandWithPinning()
  return [...wrapperArgs, command, ...args]
}

export function described (value: unknown): VMInfo | undefined {
  const operation: VMOperation = VMOperation.START
  return isValidVMInfo(value) && operation ? value : undefined
}

export const prepared: ConfigDiskOptions = { path: '/a', format: 'qcow2', bus: 'scsi', cache: 'none' }

// Machines, QEMUs and programs without an instance.

export async function withoutInstance (db: InfinizationDatabase, eventManager: EventManagerLike): Promise<number | null> {
  const handler = new EventHandler(db)
  const options: VMLifecycleOptions = { stateDir: '/srv/vms', accelerator: 'tcg' }
  const lifecycle = new VMLifecycle(db, handler, eventManager, options)
  const { pid }: VMCreateResult = await lifecycle.create(machine, { signal: AbortSignal.timeout(60_000) })
  await lifecycle.stop('vm-1', { force: true })
  // @ts-expect-error the database is what is given
  const wrong: VMLifecycleOptions = { prismaClient: {} }
  const { applied, reason } = await new CgroupsManager({ cgroupsV2Base: '/sys/fs/cgroup' }).applyCpuPinning(pid, [0, 1])
  const told: string = await new CommandExecutor().execute('uname', ['-r'], { timeoutMs: 1000 }).catch((error: CommandExecutionError) => {
    return `${error.code} ${error.signal} ${error.stderr} ${error.timedOut} ${error.cause.code}`
  })
  const qemu = new QemuProcess('vm-2', new QemuCommandBuilder())
  qemu.setQmpSocketPath('/run/vm-2.sock')
  qemu.setIdentityToken('vm-2')
  await qemu.start()
  await qemu.stop(1000)
  console.log(applied, reason, told, wrong)
  return qemu.getPid()
}
