// Uses the public types as a backend does. It is compiled, never run: what must not compile is marked.

import {
  BridgeManager,
  Infinization,
  KeyedMutex,
  LifecycleErrorCode,
  PrismaAdapterError,
  PrismaAdapterErrorCode,
  SUPPORTED_PROTOCOLS,
  SnapshotManager,
  StorageError,
  TapDeviceManager,
  VM_CHAIN_PREFIX,
  generateVMChainName,
  isLifecycleError,
  isPrismaAdapterError
} from '@infinibay/infinization'
import type {
  ConfigIssue,
  DiskConfig,
  FirewallApplyResult,
  FirewallRuleInput,
  InfinizationConfig,
  InfinizationDatabase,
  OverlayPeer,
  SnapshotInfo,
  VMCreateConfig,
  VMEventData,
  VMSnapshot
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

const disk: DiskConfig = { sizeGB: 20, format: 'qcow2', discard: true, backingFile: undefined }

const machine: VMCreateConfig = {
  vmId: 'd2b0c7a4-6b46-4a5e-8f6e-0b2f4b6f8a10',
  name: 'desktop',
  internalName: 'desktop-1',
  os: 'ubuntu-22.04',
  cpuCores: 2,
  ramGB: 4,
  disks: [disk],
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

  const nftables = infinization.getNftablesService()
  await nftables.initialize()
  const applied: FirewallApplyResult = await nftables.applyRules(created.vmId, created.tapDevice, [], rules, 'drop')
  if (applied.failedRules > 0) for (const failure of applied.failures) void [failure.ruleName, failure.error]
  for (const chain of await nftables.listChains()) {
    if (chain.startsWith(VM_CHAIN_PREFIX) && chain !== generateVMChainName(created.vmId)) {
      await nftables.removeVMChainByName(chain)
    }
  }

  const qmp = infinization.getQMPClient(created.vmId)
  const answer = await qmp?.execute<{ enabled: boolean }>('query-spice')
  void answer?.enabled

  for await (const event of infinization.events({ vmId: created.vmId })) void [event.seq, event.type]

  await using short = new Infinization()
  return (await short.getVMStatus(created.vmId)).status
}

async function host(image: string): Promise<number> {
  const [bridges, taps, snapshots] = [new BridgeManager(), new TapDeviceManager(), new SnapshotManager()]
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
  return taken.filter(({ complete, memory }) => complete && memory).flatMap(({ disks }) => disks).concat(warnings)
}

function check(protocol: string): boolean {
  return (SUPPORTED_PROTOCOLS as readonly string[]).includes(protocol)
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

const mutex = new KeyedMutex()
const seven: Promise<number> = mutex.runExclusive('key', async () => 7)

// @ts-expect-error a display is spice or vnc
const wrongDisplay: VMCreateConfig = { ...machine, displayType: 'rdp' }
// @ts-expect-error an id is text
void remote.startVM(5)
// @ts-expect-error there is no such code
const wrongCode: LifecycleErrorCode = 'NO_SUCH_CODE'

export { check, explain, host, run, seven, snapshot, wrongCode, wrongDisplay }
