/**
 * Runs QEMU/KVM virtual machines from Node.js, without libvirt.
 *
 * Every verb rejects with one of the error classes below; `error.code` is stable, `error.message` is
 * for people, `error.cause` is what lay beneath. A verb on a machine rejects with a LifecycleError: what
 * is no refusal of its own it puts under one code (`CREATE_FAILED`, `STOP_FAILED`, …; see each verb),
 * with the original as `cause`. Every result is plain JSON data, except that times are `Date`s. Times
 * and timeouts are milliseconds unless a name says otherwise; GB are GiB (2^30 bytes).
 */
/// <reference types="node" />
import { EventEmitter } from 'node:events'

// ---------------------------------------------------------------------------------------------------
// The manager
// ---------------------------------------------------------------------------------------------------

/** How an {@link Infinization} works. Nothing of it is checked before `initialize()`. */
export interface InfinizationConfig {
  /**
   * Not part of this version: `initialize()` rejects it with `INVALID_CONFIG`. Machines are kept in the
   * embedded store under `stateDir`. So it does when the key is there without a value: a misconfigured
   * program must not start on an empty store. Leave it out.
   */
  prismaClient?: PrismaClientLike
  /** The 16 database operations as an object of yours. Not part of this version; see `prismaClient`. */
  databaseAdapter?: InfinizationDatabase
  /** Accepted, without effect: the embedded store knows one node. Not blank. */
  nodeId?: string
  /**
   * Told what the verbs did, and of crashes, by `emitCRUD('machines', action, vmId, data?)`; never
   * awaited. The actions: `create`, `power_on`, `power_off`, `suspend`, `resume`, `update` (a reset),
   * `crash`. What a guest does by itself is told by `getEventHandler()`.
   */
  eventManager?: EventManagerLike
  /** Milliseconds between two health checks, 100 to a week. Default 30000. */
  healthMonitorInterval?: number
  /** Start the health monitor in `initialize()`. Default true. */
  autoStartHealthMonitor?: boolean
  /**
   * Where the library keeps what it must remember. Default `/var/lib/infinization`. When it is given,
   * `diskDir`, `qmpSocketDir` and `pidfileDir` default to `disks/`, `run/` and `pids/` under it.
   */
  stateDir?: string
  /** Disks and UEFI variables. Default `/var/lib/infinization/disks`. */
  diskDir?: string
  /** Default `/var/run/infinization`. A socket's path must not exceed 107 bytes. */
  qmpSocketDir?: string
  /** Default `/var/run/infinization/pids`. */
  pidfileDir?: string
  /**
   * Confines disks, backing files and ISOs to these directories, and to `diskDir`; a symbolic link
   * does not lead out. Default: not confined.
   */
  allowedPaths?: string[]
  /**
   * What to do on a kernel without connection tracking for bridges (`nf_conntrack_bridge`). `fail`:
   * `initialize()` rejects with `CONNTRACK_UNAVAILABLE`. `degrade`: stateless rules. Default: the environment's
   * `INFINIZATION_BRIDGE_CONNTRACK_MODE`, else `fail`.
   */
  bridgeConntrackMode?: 'fail' | 'degrade'
  /**
   * Services of the host that every guest may reach on its bridge's own addresses. Default: the
   * environment's `INFINIZATION_HOST_SERVICE_PORTS`, else TCP 4000.
   */
  hostServices?: HostService[]
  /**
   * `auto`: KVM where `/dev/kvm` opens and the CPU can, else emulation. Default: the environment's
   * `INFINIZATION_ACCEL`, else `auto`.
   */
  accelerator?: Accelerator
  /**
   * Department overlays. Not part of this version: `initialize()` rejects it with `INVALID_CONFIG`;
   * undefined is fine. The overlay verbs always reject.
   */
  overlay?: OverlayConfig
}

export type Accelerator = 'auto' | 'kvm' | 'tcg'

export interface HostService {
  protocol: 'tcp' | 'udp'
  /** 1 to 65535. */
  port: number
}

export interface OverlayConfig {
  /** This host's address inside the overlay. */
  vtepIp: string
  wgPrivateKeyPath: string
  wgListenPort: number
}

export interface OverlayPeer {
  nodeId: string
  vtepIp: string
  wgPubKey: string
  /** `host:port`. */
  wgEndpoint: string
}

export interface OverlaySegmentSpec {
  deptId: string
  bridgeName: string
  /** 4096 to 16777215. */
  vni: number
  mtu: number
  isGatewayOwner: boolean
  /** `a.b.c.d/n`. */
  gatewayCidr?: string
  /** Without this host itself. */
  peers: OverlayPeer[]
}

/** What the library calls on `eventManager`. */
export interface EventManagerLike {
  emitCRUD?(resource: string, action: string, id: string, data?: unknown): void
  emit?(event: string, data: unknown): unknown
}

/** The last argument, or a member of the options, of calls that may take long. */
export interface Abortable {
  /**
   * Ends the call: it rejects with `ABORTED` and everything this attempt made is removed. A signal
   * that has fired before the call means that nothing is begun.
   */
  signal?: AbortSignal
}

/**
 * The manager of one host's virtual machines.
 *
 * Every method but `initialize`, `shutdown`, `isInitialized`, `getActiveVMs`, `getQMPClient` and
 * `events` needs `initialize()` to have succeeded: before it they fail with `INVALID_STATE`, after
 * `shutdown()` with `CLOSED`. Arguments must be plain data; what is not (NaN, BigInt, Date, Buffer,
 * a cycle, a throwing getter) is `INVALID_CONFIG` with `context.issues` naming each path.
 *
 * An open instance does not keep the process alive; a call under way does. VMs outlive the process.
 */
export class Infinization extends EventEmitter<InfinizationEvents> {
  /** Does no I/O and checks nothing. */
  constructor(config?: InfinizationConfig)

  /**
   * Locks the state directory, sets the firewall up, opens the store, takes back every machine that
   * still runs, finishes or undoes what was under way when an earlier process ended, settles the
   * machines left in a transient status, starts the health monitor (its first cycle has run).
   * Idempotent once it succeeded; after a rejection it may be called again.
   * @throws LifecycleError `INVALID_CONFIG` (an option or an environment variable), `CLOSED`;
   * InfinizationError `STATE_DIR_LOCKED` when another process manages the state directory;
   * NftablesError `CONNTRACK_UNAVAILABLE` (see `bridgeConntrackMode`), `PERMISSION_DENIED` (not root),
   * `COMMAND_FAILED`; ProcessError `PROGRAM_NOT_FOUND` (no `nft`), `STATE_FILE`; PrismaAdapterError
   * `DB_CONNECTION_ERROR` when the store cannot be opened
   */
  initialize(): Promise<void>
  /**
   * Ends monitoring and disconnects; never touches a VM. Safe at any time and more than once. Every
   * method fails with `CLOSED` from then on.
   */
  shutdown(): Promise<void>
  /** Whether `initialize()` has succeeded and `shutdown()` was not called. */
  isInitialized(): boolean
  /** The same as `shutdown()`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>

  /**
   * Says what `createVM` would run, without doing anything.
   * @throws LifecycleError `INVALID_CONFIG`, `INVALID_STATE`, `RESOURCE_UNAVAILABLE`, `DISK_ERROR`,
   * `NETWORK_ERROR` (the bridge): what `createVM` would refuse
   */
  planVM(config: VMCreateConfig): Promise<VMPlan>
  /**
   * Makes the disks, the TAP and the firewall rules of a VM, starts it, and resolves when its guest's
   * CPUs run. On failure everything this attempt made is gone; `error.context.notUndone` names what
   * could not be undone. A machine that exists must be `off` or `error` and have none of its disks.
   * @throws LifecycleError `INVALID_CONFIG`, `INVALID_STATE` (the machine is neither fresh, `off` nor
   * `error`), `RESOURCE_UNAVAILABLE` (a file, device, CPU or accelerator is not there; a QEMU of this
   * `internalName` runs), `DISK_ERROR` (a disk is there already; a backing file cannot be used),
   * `ABORTED`, `CREATE_FAILED` for everything else: its `cause` says why
   */
  createVM(config: VMCreateConfig, options?: Abortable): Promise<VMCreateResult>
  /**
   * Starts a VM that was created before, with all it was created with but the installer `isoPath`.
   * Resolves when the guest's CPUs run, or, with `waitForBoot`, when its agent answers. Succeeds at
   * once when it runs already. A failed or aborted start leaves the machine `off` and its disks as they
   * were; once the guest runs (`waitForBoot`), the VM goes on.
   * @throws LifecycleError `VM_NOT_FOUND`, `INVALID_STATE` (it is neither `off` nor `error`),
   * `INVALID_CONFIG`, `DISK_ERROR` (a disk is missing or damaged), `RESOURCE_UNAVAILABLE` (a file,
   * the TPM's socket, a CPU or the accelerator is not there), `CONCURRENT_MODIFICATION` (another
   * writer was first), `TIMEOUT` (`waitForBoot`), `ABORTED`, `START_FAILED` for everything else; its
   * `cause` is `IDENTITY_UNKNOWN` where a process cannot be proven to be this VM's
   */
  startVM(vmId: string, config?: VMStartConfig & Abortable): Promise<VMOperationResult>
  /**
   * Resolves when QEMU is gone and what the run held is released. Succeeds at once when the VM is off.
   * A suspended guest is resumed first, so that it can hear the power button. A signal ends the wait
   * for the guest; it was asked to shut down and may still do so.
   * @throws LifecycleError `VM_NOT_FOUND`, `TIMEOUT` (it ignored the request and `force` was false: it
   * runs on), `ABORTED`, `STOP_FAILED` for everything else, also for `{ graceful: false, force: false }`;
   * its `cause` is `IDENTITY_UNKNOWN` where a process cannot be proven to be this VM's
   */
  stopVM(vmId: string, config?: VMStopConfig & Abortable): Promise<VMOperationResult>
  /**
   * Stops (by the power button, by force after 30 s) and starts at once, as one operation. The one verb
   * that may resolve with `success: false`: `message` says which half failed, `error` why. A TPM
   * emulator ends with its QEMU, so a machine with `tpmSocketPath` is stopped and started by you.
   * @throws LifecycleError `VM_NOT_FOUND`, `STOP_FAILED`
   */
  restartVM(vmId: string): Promise<VMOperationResult>
  /**
   * Stops the guest's CPUs; its memory stays. The status becomes `suspended`.
   * @throws LifecycleError `VM_NOT_FOUND`, `INVALID_STATE` unless it is `running`, `QMP_ERROR` for
   * everything else
   */
  suspendVM(vmId: string): Promise<VMOperationResult>
  /**
   * Lets the guest's CPUs run again; one that sleeps (S3) is woken. The status becomes `running`.
   * @throws LifecycleError `VM_NOT_FOUND`, `INVALID_STATE` unless it is `suspended` or `paused`,
   * `QMP_ERROR` for everything else
   */
  resumeVM(vmId: string): Promise<VMOperationResult>
  /**
   * Presses the reset button: the guest boots anew in the same QEMU, without being asked. The status
   * stays `running`.
   * @throws LifecycleError `VM_NOT_FOUND`, `INVALID_STATE` unless it is `running`, `QMP_ERROR` for
   * everything else
   */
  resetVM(vmId: string): Promise<VMOperationResult>
  /**
   * Ends QEMU at once, without asking the guest, and releases what the machine had on the host: TAP,
   * firewall chains, sockets, its folder in the state directory. Its disks, UEFI variables and row
   * stay. Interrupts a graceful stop. Succeeds when there is no such machine.
   * @throws LifecycleError `CLEANUP_FAILED` (something could not be released, after three attempts),
   * `STOP_FAILED` for everything else; its `cause` is `IDENTITY_UNKNOWN` where a process cannot be
   * proven to be this VM's
   */
  destroyVM(vmId: string): Promise<VMOperationResult>
  /**
   * What the row says and what there is. Never waits for another operation; a QEMU that does not
   * answer delays it by a second.
   * @throws LifecycleError `VM_NOT_FOUND`, `DATABASE_ERROR` for everything else
   */
  getVMStatus(vmId: string): Promise<VMStatusResult>
  /** The ids of the VMs whose QEMU this instance looks after now. Empty before `initialize()`. */
  getActiveVMs(): string[]

  /** All machines of the embedded store, oldest first. @throws PrismaAdapterError */
  listVMs(): Promise<VMSummary[]>
  /** One machine of the embedded store, or null. @throws PrismaAdapterError */
  getVM(vmId: string): Promise<VMDetails | null>
  /**
   * Destroys the VM (see `destroyVM`), forgets it, and removes its disks and UEFI variables when asked
   * to.
   * @throws LifecycleError `VM_NOT_FOUND`, `STOP_FAILED`, `CLEANUP_FAILED`, `DISK_ERROR` (a disk could
   * not be removed; the machine is still known)
   */
  deleteVM(vmId: string, options?: VMDeleteOptions): Promise<VMOperationResult>
  /**
   * Replaces the VM's own rules; if it runs, in one atomic step. A rule that makes no sense is
   * `INVALID_CONFIG`, and the old rules stay.
   * @throws LifecycleError `VM_NOT_FOUND`, `INVALID_CONFIG`; NftablesError; NetworkError when the bridge
   * cannot be read; PrismaAdapterError
   */
  setFirewallRules(vmId: string, rules: FirewallRuleInput[]): Promise<VMOperationResult>

  /**
   * Makes a snapshot of all disks of a VM that runs or is off, all at the same moment, or of none; with
   * `memory` the guest can go on from there. While its memory is written the guest stands still, and
   * QEMU answers nothing (`getVMStatus` says `unresponsive`); its status stays `running`.
   *
   * With `quiesce` the guest's agent freezes its file systems first and thaws them again in any case, even
   * in the next process should this one be killed; a snapshot whose guest cannot be thawed fails and is
   * deleted. So is one that is aborted.
   * @throws StorageError `SNAPSHOT_ALREADY_EXISTS`, `INVALID_SNAPSHOT_NAME`, `INVALID_FORMAT` (a disk is
   * raw), `INSUFFICIENT_SPACE`, `IMAGE_IN_USE` (the VM is off and another process has a disk);
   * LifecycleError `VM_NOT_FOUND`, `INVALID_CONFIG`, `INVALID_STATE` (its status is not `running`,
   * `suspended`, `paused` or `off`; `memory` of a VM that is off; `quiesce` without a guest agent
   * channel or a running guest), `ABORTED`, `QMP_ERROR` (QEMU or, by its `cause`, the agent failed)
   */
  createSnapshot(vmId: string, options: VMSnapshotOptions): Promise<VMOperationResult>
  /**
   * The snapshots of a VM that runs or is off, oldest first; those made by others too. Does not wait for
   * other operations.
   * @throws LifecycleError `VM_NOT_FOUND`; StorageError `IMAGE_IN_USE`, `IMAGE_NOT_FOUND`; QMPError
   */
  listSnapshots(vmId: string): Promise<VMSnapshot[]>
  /**
   * Puts all disks of the VM back, or none; what was written since is lost, the snapshot stays. A running
   * VM goes on from the snapshot's memory (a suspended one stays suspended); of a VM that is off only the
   * disks are put back, and `warnings` says so if there was memory. Without memory a running VM has to be
   * restarted (`restart`), without asking the guest.
   *
   * Saved memory fits only the machine it was taken of: with other devices, CPUs or memory it is refused
   * before anything changes. Should QEMU fail at it all the same, the guest is left `suspended`.
   * @throws StorageError `SNAPSHOT_NOT_FOUND` (or not on every disk), else as `createSnapshot`;
   * LifecycleError `INVALID_STATE` also for a running VM without `restart` where it is needed and for
   * memory of another machine, `STOP_FAILED`, `START_FAILED` of the restart, else as `createSnapshot`
   */
  revertSnapshot(vmId: string, name: string, options?: VMSnapshotRevertOptions): Promise<VMOperationResult>
  /**
   * Deletes a snapshot from every disk that has it, whether the VM runs or is off. Fine when there is no
   * such snapshot.
   * @throws as `createSnapshot`
   */
  deleteSnapshot(vmId: string, name: string): Promise<VMOperationResult>

  /** Emits what QEMU reports of the VMs. Always the same object. */
  getEventHandler(): EventHandler
  /** Emits crashes, and what the periodic checks find. Always the same object. */
  getHealthMonitor(): HealthMonitor
  /**
   * The VM's monitor, shared with the library; undefined unless it is connected. The same object for
   * as long as its QEMU runs.
   */
  getQMPClient(vmId: string): QMPClient | undefined
  /** The embedded store, by the 16 operations. Failures are PrismaAdapterErrors. */
  getPrismaAdapter(): InfinizationDatabase
  /** The firewall, with this instance's settings. */
  getNftablesService(): NftablesService
  /**
   * Every event of this instance in the order it happened, from now on; of one VM when `vmId` is
   * given. Ends at `shutdown()`. A reader that falls 4096 events behind gets one of type `lost`,
   * with the number of those it missed. Waiting for the next one does not keep the process alive.
   */
  events(options?: { vmId?: string }): AsyncIterableIterator<InfinizationEvent>

  /**
   * Settles the machines in these statuses (default `starting`, `powering_off_update`, `rebuilding`)
   * by whether their QEMU is alive: then `running`, else cleaned up and `off` (`error` if it was
   * `rebuilding`). One that cannot be judged is skipped and left as it is. `initialize()` has done it
   * once. The health monitor emits `reconcile-complete`.
   * @throws PrismaAdapterError when the store cannot be read
   */
  reconcileStartupState(statuses?: string[]): Promise<ReconcileSummary>
  /**
   * Takes a running QEMU of this machine back. Does nothing when it is attached; `initialize()` has
   * done it for all. It is found by its identity; `qmpSocketPath` is only named in the error.
   * @throws LifecycleError `VM_NOT_FOUND`, `QMP_ERROR` when there is no such QEMU
   */
  attachToRunningVM(vmId: string, qmpSocketPath: string): Promise<void>
  /**
   * Runs a program in the guest through its agent, without a shell, over a connection of its own (5 s
   * for it to answer). A program that outlives `timeout` is left running: the agent cannot end it.
   * `vmId` is only named in errors. Resolves whatever the exit code is.
   * @throws QMPError `AGENT_CONNECT_FAILED` (no such socket), `AGENT_TIMEOUT` (no agent runs in the
   * guest, or the program does not end), `AGENT_DISCONNECTED`, `AGENT_PROTOCOL`, `AGENT_COMMAND_FAILED`
   * (no such program); LifecycleError `INVALID_CONFIG`
   */
  guestExec(
    vmId: string,
    guestAgentSocketPath: string,
    command: string,
    args?: string[],
    options?: GuestExecOptions
  ): Promise<GuestExecOutput>
  /**
   * Takes the medium out; by the `device` of `queryBlockDevices`. `force` (default true): even if the
   * guest has locked the tray.
   * @throws LifecycleError `VM_NOT_FOUND` when the VM is not attached; QMPError
   */
  ejectCdrom(vmId: string, device: string, force?: boolean): Promise<void>
  /**
   * QEMU's list, with `device` filled where QEMU has no name.
   * @throws LifecycleError `VM_NOT_FOUND` when the VM is not attached; QMPError
   */
  queryBlockDevices(vmId: string): Promise<QMPBlockInfo[]>

  /** Not part of this version. @throws LifecycleError `INVALID_STATE`, always */
  ensureSegment(spec: OverlaySegmentSpec): Promise<void>
  /** Not part of this version. @throws LifecycleError `INVALID_STATE`, always */
  setPeers(deptId: string, bridgeName: string, peers: OverlayPeer[]): Promise<void>
  /** Not part of this version. @throws LifecycleError `INVALID_STATE`, always */
  destroySegment(deptId: string, bridgeName: string): Promise<void>
}

/** What an {@link Infinization} emits itself. */
export interface InfinizationEvents {
  /** The process was too busy to take its events; so many of the oldest were dropped. */
  lost: [details: { count: number }]
}

/** What `events()` yields. */
export interface InfinizationEvent {
  /**
   * Grows from event to event of the whole instance; null for `lost`. It has gaps: what goes to the
   * `eventManager` alone consumes numbers too. An event of type `lost` tells what was missed, not a
   * gap.
   */
  seq: number | null
  vmId: string | null
  /** The name under which an emitter of this instance emits it: `vm:event`, `crash`, … */
  type: string
  timestamp: Date
  /** The payload as the emitter has it. */
  data: unknown
}

// ---------------------------------------------------------------------------------------------------
// Verbs: what they take and give
// ---------------------------------------------------------------------------------------------------

export type DisplayProtocol = 'spice' | 'vnc'
export type FirewallDefaultAction = 'accept' | 'drop'

export interface DiskConfig {
  /**
   * Virtual size in GiB, a whole number from 1 to 2097152 (2 PiB). With a `backingFile` the clone has
   * that image's size, whatever is said here.
   */
  sizeGB: number
  /** Default `qcow2`. */
  format?: 'qcow2' | 'raw'
  /** `virtio`, `scsi`, `sata` or `ide`. Default: the machine's `diskBus`. */
  bus?: string
  /**
   * `none`, `writeback`, `writethrough`, `directsync` or `unsafe` (flushes are ignored). Default: the
   * machine's `diskCacheMode`.
   */
  cache?: string
  /** Give freed blocks back to the host. Default true. */
  discard?: boolean
  /** Absolute path of an image to make a thin clone of (qcow2 only). */
  backingFile?: string
}

/**
 * A new VM. A value that makes no sense is `INVALID_CONFIG`, with every one of them in `context.issues`;
 * what this host does not have is `RESOURCE_UNAVAILABLE`; a key that is unknown is warned about. Null is
 * the same as absent. Paths are absolute, without `..`, `,` and control characters, and not inside
 * `/proc`, `/sys` or `/dev`; paths of sockets have at most 107 bytes. QEMU's user must be able to open
 * what they name.
 */
export interface VMCreateConfig {
  /** The machine's id: letters, digits, `.`, `_`, `-`, a letter or digit first; at most 128. */
  vmId: string
  /** For people. Not blank; at most 255 characters, without `,`, `=` and control characters. */
  name: string
  /** Names disks, sockets and the process. Same alphabet as `vmId`, at most 64; no other machine's. */
  internalName: string
  /** The guest's OS as free text (`ubuntu-22.04`, `windows11`); it picks the device models. Not blank. */
  os: string
  /** A whole number from 1 to 255. More than the host has is warned about. */
  cpuCores: number
  /** GiB, 0.5 to the host's memory; rounded to whole MiB. With `hugepages`, whole huge pages. */
  ramGB: number
  /** 1 to 32. Disk 0 is `<diskDir>/<internalName>.qcow2`, disk n `<internalName>-disk<n>.qcow2`. */
  disks: DiskConfig[]
  /** An existing bridge: 1 to 15 letters, digits, `.`, `_`, `-`. */
  bridge: string
  displayType: DisplayProtocol
  /**
   * Where to look for a free TCP port from, among 100; the result has the one that was taken. SPICE:
   * 5900 to 65535. VNC: 5900 to 5999, a higher one is refused. Anything else is 5900, with a warning
   * unless it is 0.
   */
  displayPort: number
  /**
   * Handed over by QMP, never on a command line. Required unless the address is loopback. VNC: 1 to 8
   * characters, SPICE: 1 to 60; printable ASCII without `,` and `=`.
   */
  displayPassword?: string
  /**
   * An IP address; `*` is `0.0.0.0`. Default `127.0.0.1`. An address that this host does not have is
   * healed, with a warning: to `0.0.0.0`, since a password guards it. (A start without a password heals
   * to `127.0.0.1`.) So is a host name other than `localhost`.
   */
  displayAddr?: string
  /** What happens to traffic that no rule speaks of. Default `drop`. */
  firewallDefaultAction?: FirewallDefaultAction
  /** The VM's own rules, at most 20000. One that makes no sense is left out, with a warning. */
  firewallRules?: FirewallRuleInput[]
  /**
   * User that QEMU runs as: a login name, or `uid:gid`. Default: the environment's
   * `INFINIZATION_QEMU_USER`, else ours.
   */
  runAsUser?: string
  /** Run QEMU without its seccomp sandbox, for this run only: a later start has it. Default false. */
  disableSandbox?: boolean
  /** Default: the configuration's `accelerator`. */
  accelerator?: Accelerator
  /** Six hex pairs joined by `:`, unicast, no other machine's. Default: derived from `vmId`. */
  macAddress?: string
  /** `0000:01:00.0`, bound to vfio-pci. */
  gpuPciAddress?: string
  /**
   * A video BIOS image, inside `<stateDir>/roms` (`/var/lib/infinization/roms` by default), where
   * nobody but root may write; no symbolic link. Needs `gpuPciAddress`.
   */
  gpuRomfile?: string
  /** `q35` or `pc`. Default `q35`. */
  machineType?: string
  /** A name of `qemu-system-x86_64 -cpu help`, without flags. Default `host`; without KVM that is `max`. */
  cpuModel?: string
  /** `virtio`, `scsi`, `sata` or `ide` (on `pc` at most 4). Default: `virtio`; `ide` for old systems. */
  diskBus?: string
  /**
   * `none`, `writeback`, `writethrough`, `directsync` or `unsafe`. Default: `writeback`; `none` for
   * Windows, `writethrough` for old systems.
   */
  diskCacheMode?: string
  /** `virtio-net-pci` or `e1000`. Default: `virtio-net-pci`; `e1000` for old systems. */
  networkModel?: string
  /** 1 to 4, more become 4 with a warning; always 1 for `e1000`. Default: as many as cores, at most 4. */
  networkQueues?: number
  /** Default false. */
  memoryBalloon?: boolean
  /** Back the guest's memory by huge pages, all taken at start. Default false. */
  hugepages?: boolean
  /**
   * An `OVMF_CODE` file. Default: BIOS. The machine's variables are copied once, to
   * `<diskDir>/uefi-vars-<vmId>.fd`. A build that enforces Secure Boot needs `q35`.
   */
  uefiFirmware?: string
  /** Installation medium: booted from once, by this run. A later start has no such medium. */
  isoPath?: string
  /** 8-4-4-4-12 hex digits. Default: QEMU's own. */
  uuid?: string
  /**
   * Host CPUs that are online, none twice: virtual CPU n runs on the n-th, starting over when the list
   * is shorter. Default: not pinned.
   */
  cpuPinning?: number[]
  /** Not part of this version: true always rejects with `RESOURCE_UNAVAILABLE`. Default false. */
  enableNumaCtlPinning?: boolean
  /** Remembered; only `enableNumaCtlPinning` would ask for it. Default `basic`. */
  cpuPinningStrategy?: 'basic' | 'hybrid'
  /**
   * Control socket of a TPM emulator (`swtpm`), which you start before every `createVM` and `startVM`:
   * it ends with its QEMU.
   */
  tpmSocketPath?: string
  /** Where the guest agent's channel is to listen; for `guestExec` and `waitForBoot`. Default: none. */
  guestAgentSocketPath?: string
  /** Where the channel `org.infinibay.agent` is to listen. Default: none; starts have one. */
  infiniServiceSocketPath?: string
  /** Second medium, with drivers for Windows. */
  virtioDriversIso?: string
  /** A sound card, heard over SPICE. Default false. */
  enableAudio?: boolean
  /** A pointer that follows the mouse. Default: whether `os` contains "windows". */
  enableUsbTablet?: boolean
  /**
   * The first serial port as a socket, `<qmpSocketDir>/<internalName>-console.sock`, and as a log,
   * `<stateDir>/vms/<vmId>/serial.log`. Default false.
   */
  serialConsole?: boolean
}

export interface VMCreateResult {
  success: true
  vmId: string
  tapDevice: string
  qmpSocketPath: string
  /** The TCP port that the display listens on. */
  displayPort: number
  pid: number
  /** In the order of `disks`. */
  diskPaths: string[]
  pidFilePath: string
  /** What `auto` came to. Always there; optional, so that stand-ins of older programs fit. */
  accelerator?: 'kvm' | 'tcg'
  /** What was taken differently than asked, in sentences. Always there, too. */
  warnings?: string[]
}

/** What `createVM` would do: stages one after the other, the steps of a stage at once. */
export interface VMPlan {
  operation: 'create'
  vmId: string
  stages: VMPlanStep[][]
  /** What `createVM` would warn of. */
  warnings: string[]
}

/**
 * One step of a plan, with what it needs. `spawnQemu` has the whole command line (`binary`, `args`),
 * `loadFirewall` the transaction (`rules`). No secret is in it.
 */
export interface VMPlanStep {
  /** `createDisk`, `createTap`, `loadFirewall`, `spawnQemu`, … */
  action: string
  /** How what it makes is released again. */
  undo?: VMPlanUndo[]
  [fact: string]: unknown
}

export interface VMPlanUndo {
  /** `removeFile`, `deleteTap`, `endQemu`, … */
  release: string
  /**
   * When, unless the attempt fails before: `attempt` only then, `run` when QEMU ends, `machine` by
   * `destroyVM`, `data` by `deleteVM({ deleteDisks: true })`.
   */
  lifetime: 'attempt' | 'run' | 'machine' | 'data'
  [fact: string]: unknown
}

export interface VMStartConfig {
  /** Overrules the machine's own, for this run only. */
  firewallDefaultAction?: FirewallDefaultAction
  /** Run QEMU without its seccomp sandbox, for this run only. Default false. */
  disableSandbox?: boolean
  /**
   * Resolve only when the guest's agent answers; without a `guestAgentSocketPath` it is
   * `INVALID_CONFIG`. Default false: when the guest's CPUs run.
   */
  waitForBoot?: boolean
  /** Milliseconds for that, at most a week; then it is `TIMEOUT`, and the VM goes on. Default 60000. */
  bootTimeout?: number
}

export interface VMStopConfig {
  /** Ask the guest first: press its power button, and again every 3 s. Default true. */
  graceful?: boolean
  /** Milliseconds the guest may take, at most a week. Default 30000. */
  timeout?: number
  /**
   * End QEMU when the guest did not stop in time: SIGTERM, SIGKILL after 5 s. Default true. With
   * `graceful: false`, at once.
   */
  force?: boolean
}

export interface VMDeleteOptions {
  /** Also remove the disks and the UEFI variables. Default false. */
  deleteDisks?: boolean
}

export interface VMSnapshotOptions extends Abortable {
  /** 1 to 64 letters, digits, `-` and `_`; no number, and no `-` in front. */
  name: string
  /** A line for people, at most 4096 bytes. Kept in the state directory, until `destroyVM`. */
  description?: string
  /** Also the guest's memory; it goes into the first disk's image. Default false. */
  memory?: boolean
  /** Freezes the guest's file systems by its agent meanwhile; not with `memory`. Default false. */
  quiesce?: boolean
  /** How long connecting to the agent, and freezing, may each take, in milliseconds. Default 10,000. */
  freezeTimeout?: number
}

export interface VMSnapshotRevertOptions {
  /**
   * Where a running VM cannot go on from the snapshot, because that has no memory: ends QEMU, puts the
   * disks back and starts the VM again. Default false.
   */
  restart?: boolean
}

/** One snapshot of a VM. */
export interface VMSnapshot {
  name: string
  description?: string
  /** When it was made: ISO 8601, UTC. */
  date: string
  /** Whether the guest's memory is in it. */
  memory: boolean
  /** The size of that memory, in bytes; 0 without. */
  vmSize: number
  /** How long the machine had run: `HH:MM:SS.mmm`. */
  vmClock: string
  /** Whether every disk has it. One that is not complete cannot be reverted to. */
  complete: boolean
  /** The paths of the disks that have it. */
  disks: string[]
}

export interface VMOperationResult {
  /** False only from `restartVM`; the others reject. */
  success: boolean
  /** A sentence for people. */
  message: string
  /** Why it was not done. */
  error?: string
  vmId: string
  timestamp: Date
  /** QEMU was ended without the guest's consent. Set by `stopVM`. */
  forced?: boolean
  /**
   * What was taken differently than asked, in sentences. Set by `startVM`: a healed display address, a
   * firewall rule left out, …
   */
  warnings?: string[]
}

export interface VMStatusResult {
  vmId: string
  status: string
  /** QEMU's own word, or null when there is no QEMU or it does not answer. */
  qmpStatus: string | null
  pid: number | null
  /** Seconds since QEMU started. */
  uptime: number | null
  processAlive: boolean
  /** QEMU is there, but its monitor is not connected or did not answer within a second. */
  unresponsive: boolean
  /**
   * Whether row and process agree: `running`, `suspended` and `paused` go with a QEMU, `off` and
   * `error` with none, any other status with both.
   */
  consistent: boolean
  tapDevice: string | null
  qmpSocketPath: string | null
  /** Why the last QEMU ended, if this process saw it end. */
  lastExit?: VMExitCause
}

/** Why a QEMU ended. */
export interface VMExitCause {
  /**
   * QEMU's own reason, if it gave one (`guest-shutdown`, `guest-reset`, `host-qmp-quit`, `host-signal`,
   * …), or `signal`, `exit-code`, `host-kill` (killed by us), `host-reboot`, `unknown` (it was not our
   * child, or nobody watched).
   */
  reason: string
  /** The signal's number, with `signal`. */
  signal?: number
  /** With `exit-code`. */
  exitCode?: number
  /** QEMU's last words of a crash, at most 8 KiB. */
  stderr?: string
}

export interface GuestExecOptions {
  /** Milliseconds the program may run, at most a week. Default 30000. */
  timeout?: number
  /** Ignored: the guest agent has no such thing. */
  cwd?: string
}

export interface GuestExecOutput {
  /** As UTF-8; what is none becomes U+FFFD. */
  stdout: string
  stderr: string
  /** -1 when the agent gave none. */
  exitCode: number
}

/** A machine of the embedded store. */
export interface VMSummary {
  vmId: string
  name: string
  internalName: string
  os: string
  /** One of {@link DBVMStatus}, or a word of yours. */
  status: string
  cpuCores: number
  ramGB: number
  diskSizeGB: number
  /** Whether its QEMU is there and ours. */
  processAlive: boolean
  createdAt: Date
  updatedAt: Date
}

/** A machine of the embedded store with what it was last run with. */
export interface VMDetails extends VMSummary {
  bridge: string | null
  tapDevice: string | null
  pid: number | null
  qmpSocketPath: string | null
  displayType: string | null
  displayPort: number | null
  displayAddr: string | null
  diskPaths: string[] | null
  /** Its own rules. */
  firewallRules: FirewallRuleInput[]
}

/** The statuses the library writes. */
export type DBVMStatus =
  | 'starting'
  | 'running'
  | 'off'
  | 'suspended'
  | 'paused'
  | 'updating_hardware'
  | 'powering_off_update'
  | 'error'
export function isValidDBStatus(status: unknown): status is DBVMStatus

/** The ids of the machines that were settled, and how. */
export interface ReconcileSummary {
  totalChecked: number
  /** Their QEMU is alive and ours. */
  promotedToRunning: string[]
  /** Their QEMU is gone. */
  resetToOff: string[]
  /** They were `rebuilding`. */
  resetToError: string[]
  /** They could not be judged and are as they were. */
  skipped: string[]
  timestamp: Date
  /** Machine by machine. */
  results: ReconcileResult[]
}

/** What became of one machine. */
export interface ReconcileResult {
  vmId: string
  previousStatus: string
  /** Its QEMU's, if it has one. */
  pid: number | null
  pidAlive: boolean
  action: 'promoted_running' | 'reset_off' | 'reset_error' | 'skipped'
  /** Why it was skipped. */
  reason?: string
}

/** What the health monitor emits when machines were reconciled: their ids. */
export interface ReconcileCompleteEvent {
  promotedToRunning: string[]
  resetToOff: string[]
  resetToError: string[]
  skipped: string[]
  timestamp: Date
}

// ---------------------------------------------------------------------------------------------------
// Firewall
// ---------------------------------------------------------------------------------------------------

export interface FirewallRuleInput {
  id: string
  name: string
  description?: string | null
  action: 'ACCEPT' | 'DROP' | 'REJECT'
  /** As the guest sees it: `IN` comes to it. */
  direction: 'IN' | 'OUT' | 'INOUT'
  /** Lower comes first. */
  priority: number
  /** `tcp`, `udp`, `icmp` or `all`; empty is `all`. */
  protocol: string
  /** 0 to 65535, `tcp` and `udp` only. Absent: any. */
  srcPortStart?: number | null
  /** Absent: the first port alone. */
  srcPortEnd?: number | null
  /** 0 to 65535, `tcp` and `udp` only. Absent: any. */
  dstPortStart?: number | null
  /** Absent: the first port alone. */
  dstPortEnd?: number | null
  /** IPv4 or IPv6. Absent: any. */
  srcIpAddr?: string | null
  /** A prefix length, or (IPv4) a dotted mask. Absent: the one address. */
  srcIpMask?: string | null
  /** IPv4 or IPv6. Absent: any. */
  dstIpAddr?: string | null
  /** A prefix length, or (IPv4) a dotted mask. Absent: the one address. */
  dstIpMask?: string | null
  /** Absent: any state. At least one must be true. */
  connectionState?: ConnectionStateConfig | null
  /** Takes the place of an equal rule of the department (protocol, direction, ports, addresses). */
  overridesDept?: boolean
}

export interface ConnectionStateConfig {
  established?: boolean
  new?: boolean
  related?: boolean
  invalid?: boolean
}

export interface FirewallApplyResult {
  totalRules: number
  appliedRules: number
  /** More than 0: the VM is not protected as asked. The others are in force all the same. */
  failedRules: number
  /** `vm_<24 hex digits>`. */
  chainName: string
  failures: { ruleName: string; error: string }[]
  /** Rules in force in a weaker form, which this kernel forces on them. Always there. */
  degraded?: { ruleName: string; reason: string }[]
}

/** What {@link NftablesService} is made with. */
export interface NftablesServiceConfig {
  /** As in {@link InfinizationConfig}. */
  bridgeConntrackMode?: 'fail' | 'degrade'
  /** As in {@link InfinizationConfig}. */
  hostServices?: HostService[]
  /** Accepted for compatibility. Nothing is persisted: machines get their rules when they start. */
  enablePersistence?: boolean
}

/**
 * The firewall of one machine at a time. The verbs do all of this by themselves.
 *
 * Everything a machine sends or receives is filtered, whatever it talks to; a TAP called `vnet-*`
 * without rules is closed. Changes are atomic: on an error the old rules are in force. Failures are
 * NftablesErrors `PERMISSION_DENIED` (not root), `COMMAND_FAILED` (nft refused) or `RULESET_MISMATCH`
 * (the kernel confirmed something else), ProcessErrors `PROGRAM_NOT_FOUND` (no `nft`), and
 * LifecycleErrors: `INVALID_CONFIG` for malformed arguments and settings, `INVALID_STATE` and `CLOSED`
 * when it is an instance's (`getNftablesService()`) that is not open. Each method also has these.
 */
export class NftablesService {
  /** Touches nothing; a `config` that makes no sense is told by the first method. */
  constructor(config?: NftablesServiceConfig)
  /**
   * Sets up the table and its hooks. Idempotent.
   * @throws NftablesError `CONNTRACK_UNAVAILABLE` (mode `fail`, and the kernel cannot)
   */
  initialize(): Promise<void>
  /**
   * Makes the machine's chains, closed, unless it has some, and attaches the port. Resolves with the
   * visible chain's name.
   */
  createVMChain(vmId: string, tapName: string): Promise<string>
  /** As `createVMChain`, without attaching a port. */
  ensureVMChain(vmId: string): Promise<string>
  /** Sends the port's frames through the machine's chains; without chains it is `COMMAND_FAILED`. */
  attachJumpRules(vmId: string, tapName: string): Promise<void>
  /** Closes the machine's ports; the chains stay. What fails on the host is a warning, no rejection. */
  detachJumpRules(vmId: string): Promise<void>
  /**
   * Loads everything of the machine in one transaction: chains, rules, dispatch. A rule that makes no
   * sense is reported in the result and the others are in force.
   * @param departmentRules stand before the machine's own of the same priority
   * @param defaultAction what happens to a packet no rule decides; default `drop`
   * @throws NftablesError `RULE_INVALID` (more than 20000 rules), `CONNTRACK_UNAVAILABLE`; NetworkError
   * when the bridge's addresses cannot be read
   */
  applyRules(
    vmId: string,
    tapName: string,
    departmentRules: FirewallRuleInput[],
    vmRules: FirewallRuleInput[],
    defaultAction?: FirewallDefaultAction
  ): Promise<FirewallApplyResult>
  /**
   * As `applyRules`, unless the kernel holds exactly that already: then `changed` is false, and there
   * is no `result`.
   */
  applyRulesIfChanged(
    vmId: string,
    tapName: string,
    departmentRules: FirewallRuleInput[],
    vmRules: FirewallRuleInput[],
    defaultAction?: FirewallDefaultAction
  ): Promise<{ changed: boolean; result?: FirewallApplyResult }>
  /**
   * Removes the user's rules: the machine is closed then, but for what every one is allowed. What fails
   * on the host is a warning, no rejection.
   */
  flushVMRules(vmId: string): Promise<void>
  /**
   * Removes the machine's chains and what leads to them; fine if there are none. What fails on the host
   * is a warning, no rejection.
   */
  removeVMChain(vmId: string): Promise<void>
  /** The same, by the visible chain's name (`vm_…`). Other names are left alone, with a warning. */
  removeVMChainByName(chainName: string): Promise<void>
  /** The names of all chains of the table, helpers included; none if there is no table. */
  listChains(): Promise<string[]>
  /** Whether the table has a chain of this name. */
  chainExists(chainName: string): Promise<boolean>
}

/** `vm_` and the first 24 hex digits of the id's SHA-256. @throws LifecycleError `INVALID_CONFIG` */
export function generateVMChainName(vmId: string): string

/**
 * Rules as tokens of `nft add rule`, for showing. The library itself loads something better (IPv6,
 * replies). All are synchronous and touch nothing. Refusals are thrown as
 * {@link FirewallTranslationError}s.
 */
export class FirewallRuleTranslator {
  private constructor()
  /**
   * A rule for `IN` or `OUT`: interface, protocol, addresses, ports, state, verdict, comment.
   * @throws FirewallTranslationError `RULE_INVALID` (also `INOUT`, which is two rules),
   * `UNSUPPORTED_PROTOCOL`, `INVALID_IP_ADDRESS`, `INVALID_SUBNET_MASK`, `INVALID_PORT_RANGE`
   */
  static translateToTokens(rule: FirewallRuleInput, tapName: string): string[]
  /** `IN` is `oifname <tap>`, `OUT` is `iifname <tap>`. @throws FirewallTranslationError `RULE_INVALID` */
  static translateDirectionToTokens(direction: 'IN' | 'OUT', tapName: string): string[]
  /**
   * `tcp` is `ip protocol tcp`; `all`, empty and absent are nothing.
   * @throws FirewallTranslationError `UNSUPPORTED_PROTOCOL`
   */
  static translateProtocolToTokens(protocol?: string | null): string[]
  /**
   * `tcp sport 1000-2000 tcp dport 22`; without ports, nothing.
   * @throws FirewallTranslationError `INVALID_PORT_RANGE`, `UNSUPPORTED_PROTOCOL`, `RULE_INVALID` (ports
   * without `tcp` or `udp`)
   */
  static translatePortsToTokens(
    protocol: string | null | undefined,
    srcPortStart?: number | null,
    srcPortEnd?: number | null,
    dstPortStart?: number | null,
    dstPortEnd?: number | null
  ): string[]
  /**
   * `ip saddr 10.0.0.5/24 ip daddr 1.2.3.4`. IPv4 only.
   * @throws FirewallTranslationError `INVALID_IP_ADDRESS`, `INVALID_SUBNET_MASK`
   */
  static translateIpAddressesToTokens(
    srcIpAddr?: string | null,
    srcIpMask?: string | null,
    dstIpAddr?: string | null,
    dstIpMask?: string | null
  ): string[]
  /**
   * `ct state established`; several states are one token, `{ established, new }`; absent is nothing.
   * @throws FirewallTranslationError `RULE_INVALID` (no state is true, or one is unknown)
   */
  static translateConnectionStateToTokens(state?: ConnectionStateConfig | null): string[]
  /** `accept`, `drop` or `reject`. @throws FirewallTranslationError `RULE_INVALID` */
  static translateAction(action: string): string
  /**
   * Checks everything about a rule but the TAP it is for; `INOUT` is fine here.
   * @throws FirewallTranslationError as `translateToTokens`
   */
  static validateRule(rule: FirewallRuleInput): void
  /** IPv4, without leading zeros. */
  static isValidIpAddress(text: string): boolean
  /** `a.b.c.d/n`. */
  static isValidCidr(text: string): boolean
  /** 0 to 32, or dotted without holes. */
  static isValidSubnetMask(text: string): boolean
}

// ---------------------------------------------------------------------------------------------------
// Links
// ---------------------------------------------------------------------------------------------------

/**
 * The host's bridges. A name is 1 to 15 letters, digits, `.`, `_`, `-`; another one is
 * `INVALID_CONFIG` ("Invalid bridge name: …"). Failures are NetworkErrors.
 */
export class BridgeManager {
  /** Touches nothing. */
  constructor()
  /** False for a link that is no bridge. */
  exists(bridge: string): Promise<boolean>
  /**
   * Makes a bridge, up and without transmit checksum offload. What fails half-way is removed.
   * @throws NetworkError `BRIDGE_ALREADY_EXISTS`, `PERMISSION_DENIED`, `COMMAND_FAILED`
   */
  create(bridge: string): Promise<void>
  /** `create` has done it. Never rejects for the host's reasons. */
  disableChecksumOffloading(bridge: string): Promise<void>
  /** Fine when there is none. A link of that name that is no bridge stays. */
  destroy(bridge: string): Promise<void>
  /** @throws NetworkError `BRIDGE_NOT_FOUND`, `DEVICE_NOT_FOUND`, `BRIDGE_FULL` */
  addInterface(bridge: string, interfaceName: string): Promise<void>
  /** Fine when it is no port of the bridge. */
  removeInterface(bridge: string, interfaceName: string): Promise<void>
  /** Its ports; none when they cannot be told. */
  listInterfaces(bridge: string): Promise<string[]>
  /**
   * Gives it an IPv4 address, `a.b.c.d/n`; it may have it already. What is none is `INVALID_CONFIG`
   * ("Invalid IPv4/CIDR: …").
   * @throws NetworkError `BRIDGE_NOT_FOUND`
   */
  assignIP(bridge: string, cidr: string): Promise<void>
  /** Takes an address away; it may not have it. @throws NetworkError `BRIDGE_NOT_FOUND` */
  removeIP(bridge: string, cidr: string): Promise<void>
  /** Its IPv4 addresses, `a.b.c.d/n`. @throws NetworkError `BRIDGE_NOT_FOUND` */
  getIPs(bridge: string): Promise<string[]>
}

/** The host's TAP devices. Failures are NetworkErrors ("Failed to … TAP device <name>: …"). */
export class TapDeviceManager {
  /** Touches nothing. */
  constructor()
  /**
   * Makes the machine's TAP, persistent and down, with one queue; one left from earlier goes. Its
   * name. `bridge` is ignored: see `configure`.
   * @throws NetworkError `DEVICE_ALREADY_EXISTS` when a process has it open
   */
  create(vmId: string, bridge?: string): Promise<string>
  /** Raises it and makes it a port of `bridge`. @throws NetworkError */
  configure(tapName: string, bridge?: string): Promise<void>
  /** Fine when there is none. A link of that name that is no TAP stays. @throws NetworkError */
  destroy(tapName: string): Promise<void>
  /** Never rejects for the host's reasons. */
  bringDown(tapName: string): Promise<void>
  /** Takes it off its bridge and down. Never rejects for the host's reasons. */
  detachFromBridge(tapName: string): Promise<void>
  /** Raises it and makes it a port. @throws NetworkError `DEVICE_NOT_FOUND`, `BRIDGE_NOT_FOUND` */
  attachToBridge(tapName: string, bridge: string): Promise<void>
  /** Whether there is a link of this name. */
  exists(tapName: string): Promise<boolean>
  /** Up, and a process has it open. False when that cannot be told. */
  hasCarrier(tapName: string): Promise<boolean>
  /** The TAPs called `vnet-*`. */
  listAllTapDevices(): Promise<string[]>
  /** Persistent, and no process has it open. A stopped machine's TAP is so, too. */
  isOrphaned(tapName: string): Promise<boolean>
  /**
   * Deletes the orphans called `vnet-*` that belong to no machine (it would have a firewall chain) and
   * that this process did not make in the last minute.
   */
  cleanupOrphanedTapDevices(): Promise<{ total: number; cleaned: number; failed: number }>
  /**
   * In the style of `ip link`: `7: vnet-1: <BROADCAST,MULTICAST,UP> mtu 1500 master br0 state UP`,
   * with `UP`, `DOWN` or `UNKNOWN`; or `Error: …`.
   */
  getDeviceState(tapName: string): Promise<string>
}

/** Addresses for guests. */
export class MacAddressGenerator {
  private constructor()
  /** `52:54:` and four random octets. */
  static generate(): string
  /** `52:54:` and the first four octets of the id's SHA-256: what a machine has by default. */
  static generateFromVmId(vmId: string): string
  /** Six hex pairs joined by `:`, in either case. */
  static validate(mac: string): boolean
  /** The same, beginning with `52:54:`. */
  static isQemuMac(mac: string): boolean
}

/** Six hex pairs joined by `:`. */
export type MacAddress = string

export type NetworkDeviceState = 'up' | 'down' | 'unknown'
export const NetworkDeviceState: {
  readonly UP: 'up'
  readonly DOWN: 'down'
  readonly UNKNOWN: 'unknown'
}

export type NftablesFamily = 'bridge' | 'inet' | 'ip' | 'ip6'
export const NftablesFamily: {
  readonly BRIDGE: 'bridge'
  readonly INET: 'inet'
  readonly IP: 'ip'
  readonly IP6: 'ip6'
}

export type NftablesHookType = 'prerouting' | 'input' | 'forward' | 'output' | 'postrouting'
export const NftablesHookType: {
  readonly PREROUTING: 'prerouting'
  readonly INPUT: 'input'
  readonly FORWARD: 'forward'
  readonly OUTPUT: 'output'
  readonly POSTROUTING: 'postrouting'
}

export type NftablesChainPolicy = 'accept' | 'drop'
export const NftablesChainPolicy: { readonly ACCEPT: 'accept'; readonly DROP: 'drop' }

// ---------------------------------------------------------------------------------------------------
// Images
// ---------------------------------------------------------------------------------------------------

export type ImageFormat = 'qcow2' | 'raw' | 'vmdk' | 'vdi' | 'vhdx'
export const SUPPORTED_IMAGE_FORMATS: readonly ImageFormat[]
export function isValidImageFormat(format: unknown): format is ImageFormat

export interface CreateImageOptions {
  /** Absolute. Nothing may be there. */
  path: string
  /** Virtual size in GiB. Ignored with a `backingFile`: the overlay has that image's size. */
  sizeGB?: number
  format: ImageFormat
  /** Bytes, a power of two from 512 to 2097152 (qcow2). Default: QEMU's, 65536. */
  clusterSize?: number
  /** Default `off`. */
  preallocation?: 'off' | 'metadata' | 'falloc' | 'full'
  /** Absolute path of a qcow2 image to make an overlay on (qcow2 only). */
  backingFile?: string
}

export interface ConvertImageOptions {
  sourcePath: string
  /** Default `qcow2`. It is never guessed: a guest can write any header into its disk. */
  sourceFormat?: ImageFormat
  /** Nothing may be there. */
  destPath: string
  destFormat: ImageFormat
  /** Compress the copy (qcow2 only). Default false. */
  compress?: boolean
}

export interface ResizeImageOptions {
  /** Default `qcow2`. */
  format?: ImageFormat
  /** Consent to lose what lies beyond a smaller size. Default false. */
  shrink?: boolean
}

export interface ImageInfo {
  filename: string
  format: ImageFormat
  /** The disk's size as a guest sees it, in bytes. */
  virtualSize: number
  /** What it takes on the host's disk, in bytes. */
  actualSize: number
  clusterSize?: number
  encrypted: boolean
  /** Oldest first; absent when there is none. */
  snapshots?: SnapshotInfo[]
  backingFile?: string
}

/** What `qemu-img check` counts. Damage is a result, not an error. */
export interface ImageCheckResult {
  /** Trouble while checking. */
  errors: number
  /** Clusters that nothing uses: lost space. */
  leaks: number
  /** Tables that contradict each other: lost data. */
  corruptions: number
  totalClusters: number
  allocatedClusters: number
}

/**
 * Disk images that no machine runs on, by way of `qemu-img`. Paths are absolute. A new image appears
 * whole or not at all, and never in the place of another file. Failures are {@link StorageError}s;
 * an image that a process has open is `IMAGE_IN_USE` before anything else is said about it.
 */
export class QemuImgService {
  /** Touches nothing. */
  constructor()
  /**
   * @throws StorageError `IMAGE_ALREADY_EXISTS`, `INVALID_FORMAT`, `INVALID_SIZE`, `IMAGE_NOT_FOUND`
   * (the backing file, the directory), `UNSAFE_BACKING_FILE`, `PERMISSION_DENIED`,
   * `INSUFFICIENT_SPACE`, `ABORTED`, `COMMAND_FAILED`
   */
  createImage(options: CreateImageOptions & Abortable): Promise<void>
  /**
   * @param format default `qcow2`; it is never guessed
   * @throws StorageError `IMAGE_NOT_FOUND`, `IMAGE_IN_USE`, `INVALID_FORMAT` (it is none of that format),
   * `IMAGE_CORRUPT`, `PARSE_ERROR`
   */
  getImageInfo(path: string, format?: ImageFormat): Promise<ImageInfo>
  /** @throws StorageError `INVALID_SIZE`, `DATA_LOSS_REFUSED`, `IMAGE_NOT_FOUND`, `IMAGE_IN_USE` */
  resizeImage(path: string, newSizeGB: number, options?: ResizeImageOptions): Promise<void>
  /** @throws StorageError as `createImage` */
  convertImage(options: ConvertImageOptions & Abortable): Promise<void>
  /** @throws StorageError `INVALID_FORMAT` for formats without tables (raw), `IMAGE_NOT_FOUND` */
  checkImage(path: string, format?: ImageFormat, options?: Abortable): Promise<ImageCheckResult>
}

export interface SnapshotCreateOptions {
  imagePath: string
  /** 1 to 64 letters, digits, `-` and `_`; no number, and no `-` in front. */
  name: string
  /** Accepted for compatibility; a qcow2 image has no room for one. */
  description?: string
}

export interface SnapshotInfo {
  /** The number the image gave it. */
  id: string
  name: string
  /** The saved memory of a machine, in bytes; 0 for the disk alone. */
  vmSize: number
  /** ISO 8601, UTC. */
  date: string
  /** How long the machine had run: `HH:MM:SS.mmm`. */
  vmClock: string
}

/**
 * Internal snapshots of qcow2 images that no machine runs on; those of a machine are
 * `Infinization.createSnapshot` and its neighbours. Failures are {@link StorageError}s:
 * `IMAGE_IN_USE`, `IMAGE_NOT_FOUND`, `INVALID_SNAPSHOT_NAME`, `INVALID_FORMAT`, `IMAGE_CORRUPT`,
 * `COMMAND_FAILED`.
 */
export class SnapshotManager {
  /** Touches nothing. */
  constructor()
  /** @throws StorageError also `SNAPSHOT_ALREADY_EXISTS` */
  createSnapshot(options: SnapshotCreateOptions): Promise<void>
  /** Oldest first. */
  listSnapshots(imagePath: string): Promise<SnapshotInfo[]>
  /** Puts the disk back; what was written since is lost. @throws StorageError also `SNAPSHOT_NOT_FOUND` */
  revertSnapshot(imagePath: string, name: string): Promise<void>
  /** A copy (qcow2) of the disk as it was. @throws StorageError also `IMAGE_ALREADY_EXISTS`, `ABORTED` */
  materializeSnapshot(sourcePath: string, name: string, destPath: string, options?: Abortable): Promise<void>
  /** Fine when there is no such snapshot. */
  deleteSnapshot(imagePath: string, name: string): Promise<void>
  /** False for an image that does not exist; any other trouble rejects. */
  snapshotExists(imagePath: string, name: string): Promise<boolean>
}

// ---------------------------------------------------------------------------------------------------
// Events
// ---------------------------------------------------------------------------------------------------

export type QMPEventType =
  | 'SHUTDOWN'
  | 'POWERDOWN'
  | 'RESET'
  | 'STOP'
  | 'RESUME'
  | 'SUSPEND'
  | 'WAKEUP'
  | 'DEVICE_DELETED'
  | 'BLOCK_JOB_COMPLETED'

export interface VMEventData {
  vmId: string
  event: QMPEventType
  previousStatus: string
  newStatus: string
  timestamp: Date
  qmpData?: unknown
}

/**
 * For one event of QEMU: its own name, then the resulting status if it is another, then `vm:event`. STOP,
 * RESUME, SUSPEND and WAKEUP are emitted only if they change the status. `vm:shutdown` comes when QEMU
 * has ended and is cleaned up after, also after a stop.
 */
export interface EventHandlerEvents {
  'vm:event': [data: VMEventData]
  'vm:reset': [data: VMEventData]
  'vm:shutdown': [data: VMEventData]
  'vm:powerdown': [data: VMEventData]
  'vm:stop': [data: VMEventData]
  'vm:resume': [data: VMEventData]
  'vm:suspend': [data: VMEventData]
  'vm:wakeup': [data: VMEventData]
  'vm:off': [data: VMEventData]
  'vm:suspended': [data: VMEventData]
  'vm:running': [data: VMEventData]
  /** The monitor's connection ended; `transient`: it is being made again. */
  'vm:disconnect': [data: { vmId: string; timestamp: Date; transient: boolean }]
  'vm:reconnect': [data: { vmId: string }]
  /** The monitor could not be reached again, though QEMU lives. */
  'vm:stale': [data: { vmId: string; reason: string }]
  /**
   * A status could not be written: `event` is that status, `error` why. The host is as it should be,
   * the row is not. Never thrown: without a listener it is dropped.
   */
  error: [data: { vmId: string; event: string; error: string }]
}

/** What `getEventHandler()` returns. The new status is stored before an event is emitted. */
export interface EventHandler extends EventEmitter<EventHandlerEvents> {
  /** The VMs whose monitor is connected. */
  getAttachedVMs(): string[]
  isAttached(vmId: string): boolean
  /** As {@link Infinization.getQMPClient}. */
  getQMPClient(vmId: string): QMPClient | undefined
}

/**
 * A QEMU ended without saying why (SHUTDOWN). The row is `off` already, unless it says `error` or a claim
 * of yours, and the clean-up was tried.
 */
export interface CrashEvent {
  vmId: string
  pid: number
  /** The status before. */
  lastKnownStatus: string
  detectedAt: Date
  /** Whether everything of the run was released; if not, a `cleanup-alert` follows. */
  cleanupPerformed: boolean
  /** What of the run was given back, thing by thing. */
  cleanupResult: CleanupResult
  cause: VMExitCause
}

/** A living QEMU that a pidfile in `pidfileDir` names and no machine owns. */
export interface OrphanEvent {
  /** The internal name where no row is known. */
  vmId: string
  pid: number
  /** Null when there is no row. */
  dbStatus: string | null
  pidfilePath: string
  detectedAt: Date
  /**
   * It was ended. That is done only when there is no row or the row says `off`, and only when the scan
   * before saw it too; all others are told and left alone.
   */
  killed: boolean
  /** What it had on the host was released. */
  cleanupPerformed: boolean
}

/** What a clean-up gives back. `DB_CONFIGURATION` is the machine's row. */
export type CleanupResourceType =
  | 'TAP_DEVICE'
  | 'FIREWALL_CHAIN'
  | 'QMP_SOCKET'
  | 'SOCKET'
  | 'PIDFILE'
  | 'FILE'
  | 'PROCESS'
  | 'CGROUP'
  | 'DB_CONFIGURATION'

/** One thing that was to be given back. What failed stays on the machine's list and is tried again. */
export interface CleanupResourceState {
  type: CleanupResourceType
  /** The device, the path, or the machine's id. */
  identifier: string
  status: 'SUCCESS' | 'FAILED'
  /** At most 3. */
  attempts: number
  /** Why it failed. */
  lastError?: string
  lastAttemptAt: Date
}

/** A clean-up that is over. */
export interface CleanupResult {
  vmId: string
  totalResources: number
  successfulCleanups: number
  failedCleanups: number
  resources: CleanupResourceState[]
  timestamp: Date
}

export interface CleanupAlertEvent {
  vmId: string
  failedResources: CleanupResourceState[]
  timestamp: Date
  /** `error` from three failures on. */
  severity: 'warning' | 'error'
}

export interface HealthCheckResult {
  vmId: string
  pid: number | null
  isAlive: boolean
  status: string
  timestamp: Date
}

export interface HealthCheckSummary {
  /** Machines whose row claims a QEMU: `running`, `suspended`, `paused`. */
  totalChecked: number
  /** Their QEMU is there. */
  alive: number
  /** It is not. */
  crashed: number
  /** They could not be judged. */
  errors: number
  orphansDetected: number
  /** Orphans ended, and pidfiles removed whose process is dead. */
  orphansCleaned: number
  timestamp: Date
  results: HealthCheckResult[]
}

export interface HealthMonitorEvents {
  crash: [event: CrashEvent]
  'orphan-detected': [event: OrphanEvent]
  'cleanup-alert': [event: CleanupAlertEvent]
  'check-complete': [summary: HealthCheckSummary]
  /** By `reconcileStartupState()`, and by `initialize()`. */
  'reconcile-complete': [summary: ReconcileCompleteEvent]
  /** A cycle failed. Never thrown: without a listener it is dropped. */
  error: [event: { message: string; timestamp: Date }]
}

/**
 * What `getHealthMonitor()` returns. A crash is noticed at once, whether it monitors or not; its
 * cycles find what nobody watches: rows that claim a QEMU that is gone, and QEMUs that no machine owns.
 * After `shutdown()` its asynchronous methods reject with LifecycleError `CLOSED`.
 */
export interface HealthMonitor extends EventEmitter<HealthMonitorEvents> {
  /**
   * Runs one cycle before it resolves, then one every `healthMonitorInterval`. Nothing happens when it
   * monitors already. A cycle that fails is told by `error`.
   */
  start(): Promise<void>
  /** Runs no further cycle. Crashes are still noticed. */
  stop(): Promise<void>
  /** Whether cycles are run. */
  isMonitoring(): boolean
  /**
   * One cycle now: machines and pidfiles. Emits `orphan-detected` for each orphan, then
   * `check-complete`.
   * @throws PrismaAdapterError when the store cannot be read
   */
  checkAllVMs(): Promise<HealthCheckSummary>
  /**
   * Looks at the pidfiles now; resolves with the orphans.
   * @throws PrismaAdapterError when the store cannot be read
   */
  checkOrphanProcesses(): Promise<OrphanEvent[]>
  /** As {@link Infinization.reconcileStartupState}. */
  reconcileTransientStates(statuses?: string[]): Promise<ReconcileSummary>
}

// ---------------------------------------------------------------------------------------------------
// QMP
// ---------------------------------------------------------------------------------------------------

export interface QMPTimestamp {
  seconds: number
  microseconds: number
}

export interface QMPEvent<T = unknown> {
  event: string
  data?: T
  timestamp: QMPTimestamp
}

export interface QMPGreeting {
  QMP: {
    version: { qemu: { major: number; minor: number; micro: number }; package: string }
    capabilities: string[]
  }
}

/**
 * A VM's monitor, as `getQMPClient()` returns it, for as long as one QEMU runs. The library uses the
 * same connection, so it cannot be closed from here. Every event of QEMU is emitted under its own name
 * with `(data, timestamp)`, and as `event` with the whole; `disconnect`, `reconnect` and
 * `reconnect_failed` have no payload. Failures are QMPErrors; `QMP_COMMAND_FAILED` when QEMU itself
 * refused.
 */
export interface QMPClient extends EventEmitter {
  isConnected(): boolean
  /** The connection broke, and is being made again for as long as QEMU lives. */
  isReconnecting(): boolean
  getGreeting(): QMPGreeting | null
  /** Any command; its answer is QEMU's own JSON. */
  execute<T = unknown>(command: string, args?: Record<string, unknown>): Promise<T>
  queryStatus(): Promise<QMPStatusInfo>
  queryCpus(): Promise<QMPCpuInfo[]>
  queryBlock(): Promise<QMPBlockInfo[]>
  queryBalloon(): Promise<QMPBalloonInfo>
  /** Presses the power button; resolves before the guest reacts. */
  powerdown(): Promise<void>
  reset(): Promise<void>
  stop(): Promise<void>
  cont(): Promise<void>
  /** Asks the guest to give or take memory until it has `bytes`. */
  balloon(bytes: number): Promise<void>
  /** By the `device` of `queryBlockDevices`. `force` (default false): even if the guest has locked it. */
  eject(device: string, force?: boolean): Promise<void>
  /** Ends QEMU at once, without asking the guest. */
  quit(): Promise<void>
}

export type QMPVMStatus =
  | 'running'
  | 'paused'
  | 'shutdown'
  | 'inmigrate'
  | 'postmigrate'
  | 'prelaunch'
  | 'finish-migrate'
  | 'restore-vm'
  | 'suspended'
  | 'watchdog'
  | 'guest-panicked'
  | 'io-error'
  | 'colo'
/** False for the states that QEMU has beside these; `error` stands for them. */
export function isValidQMPStatus(status: unknown): status is QMPVMStatus

export interface QMPStatusInfo {
  running: boolean
  singlestep: boolean
  status: QMPVMStatus
}

export interface QMPCpuInfo {
  'cpu-index': number
  'qom-path': string
  'thread-id': number
  props?: { 'core-id'?: number; 'thread-id'?: number; 'socket-id'?: number; 'node-id'?: number }
  target?: string
}

export interface QMPBalloonInfo {
  /** Bytes the guest has. */
  actual: number
}

export interface QMPBlockImageInfo {
  filename: string
  format: string
  'virtual-size': number
  'actual-size'?: number
  'dirty-flag'?: boolean
  'cluster-size'?: number
  encrypted?: boolean
  compressed?: boolean
  'backing-filename'?: string
  'full-backing-filename'?: string
  'backing-filename-format'?: string
  'backing-image'?: QMPBlockImageInfo
}

export interface QMPBlockInsertedInfo {
  file: string
  'node-name'?: string
  ro: boolean
  drv: string
  encrypted: boolean
  bps?: number
  bps_rd?: number
  bps_wr?: number
  iops?: number
  iops_rd?: number
  iops_wr?: number
  image?: QMPBlockImageInfo
  detect_zeroes?: string
  write_threshold?: number
}

export interface QMPBlockInfo {
  device: string
  qdev?: string
  type: string
  removable: boolean
  locked: boolean
  tray_open?: boolean
  'io-status'?: string
  inserted?: QMPBlockInsertedInfo
}

// ---------------------------------------------------------------------------------------------------
// Databases of your own
// ---------------------------------------------------------------------------------------------------

/** The part of a Prisma client that the library calls. */
export interface PrismaClientLike {
  machine: {
    findUnique(args: any): Promise<any>
    findFirst(args: any): Promise<any>
    findMany(args: any): Promise<any>
    updateMany(args: any): Promise<any>
  }
  machineConfiguration: {
    upsert(args: any): Promise<any>
    updateMany(args: any): Promise<any>
  }
  $transaction(run: (tx: any) => Promise<any>, options?: any): Promise<any>
}

export interface MachineRecord {
  id: string
  status: string
}

export interface MachineConfigurationRecord {
  qemuPid: number | null
  tapDeviceName: string | null
  qmpSocketPath: string | null
  guestAgentSocketPath: string | null
  infiniServiceSocketPath: string | null
}

export interface RunningVMRecord {
  id: string
  status: string
  internalName: string
  /** The capital M is part of the contract. */
  MachineConfiguration: MachineConfigurationRecord | null
}

export interface ExtendedMachineConfigurationRecord extends MachineConfigurationRecord {
  graphicProtocol: string | null
  graphicPort: number | null
  graphicPassword: string | null
  graphicHost: string | null
  assignedGpuBus: string | null
  bridge: string | null
  machineType: string | null
  cpuModel: string | null
  diskBus: string | null
  diskCacheMode: string | null
  networkModel: string | null
  networkQueues: number | null
  memoryBalloon: boolean | null
  diskPaths: string[] | null
  uefiFirmware: string | null
  hugepages: boolean | null
  cpuPinning: { cores: number[] } | null
  enableNumaCtlPinning: boolean | null
  cpuPinningStrategy: string | null
  tpmSocketPath: string | null
  virtioDriversIso: string | null
  enableAudio: boolean | null
  enableUsbTablet: boolean | null
}

export type MachineConfigUpdate = {
  [K in keyof ExtendedMachineConfigurationRecord]?: ExtendedMachineConfigurationRecord[K] | null
}

export interface FirewallRuleRecord {
  id: string
  name: string
  description: string | null
  action: 'ACCEPT' | 'DROP' | 'REJECT'
  direction: 'IN' | 'OUT' | 'INOUT'
  priority: number
  protocol: string
  srcPortStart: number | null
  srcPortEnd: number | null
  dstPortStart: number | null
  dstPortEnd: number | null
  srcIpAddr: string | null
  srcIpMask: string | null
  dstIpAddr: string | null
  dstIpMask: string | null
  connectionState: ConnectionStateConfig | null
  overridesDept: boolean
}

export interface FirewallRuleSetRecord {
  id: string
  name: string
  internalName: string
  priority: number
  isActive: boolean
  rules: FirewallRuleRecord[]
}

export interface DepartmentRecord {
  id: string
  name: string
  firewallRuleSet: FirewallRuleSetRecord | null
}

export interface VMConfigRecord {
  id: string
  status: string
  name: string
  internalName: string
  os: string
  cpuCores: number
  ramGB: number
  diskSizeGB: number
  gpuPciAddress: string | null
  configuration: ExtendedMachineConfigurationRecord | null
  firewallRuleSet: FirewallRuleSetRecord | null
  department: DepartmentRecord | null
  version: number
}

/** What the scans need of a database. Failures reject; null means that there is no such row. */
export interface DatabaseAdapter {
  findMachine(id: string): Promise<MachineRecord | null>
  updateMachineStatus(id: string, status: string, options?: { onlyIfNotIn?: string[] }): Promise<void>
  findRunningVMs(): Promise<RunningVMRecord[]>
  findMachinesByStatuses(statuses: string[]): Promise<RunningVMRecord[]>
  clearMachineConfiguration(id: string): Promise<void>
  clearVolatileMachineConfiguration(id: string): Promise<void>
  findMachineByInternalName(internalName: string): Promise<RunningVMRecord | null>
  findMachineWithConfig(id: string): Promise<VMConfigRecord | null>
}

/** The 16 operations the library needs of a database. */
export interface InfinizationDatabase extends DatabaseAdapter {
  updateMachineConfiguration(id: string, update: MachineConfigUpdate): Promise<void>
  transitionVMStatus(
    id: string,
    expectedStatus: string,
    newStatus: string,
    expectedVersion: number
  ): Promise<{ success: boolean; newVersion: number; vmConfig: VMConfigRecord }>
  getMachineInternalName(id: string): Promise<string | null>
  getMachineDiskPath(id: string): Promise<string | null>
  getFirewallRules(vmId: string): Promise<FirewallRuleRecord[]>
  getFirewallRulesSplit(
    vmId: string
  ): Promise<{ departmentRules: FirewallRuleRecord[]; vmRules: FirewallRuleRecord[] }>
  getDepartmentFirewallPolicy(vmId: string): Promise<string | null>
  getFirewallRuleSetId(vmId: string): Promise<string | null>
}

// ---------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------

export type LifecycleErrorCode =
  | 'VM_NOT_FOUND'
  | 'CREATE_FAILED'
  | 'START_FAILED'
  | 'STOP_FAILED'
  | 'CLEANUP_FAILED'
  | 'TIMEOUT'
  | 'QMP_ERROR'
  | 'DISK_ERROR'
  | 'NETWORK_ERROR'
  | 'FIREWALL_ERROR'
  | 'INVALID_CONFIG'
  | 'PROCESS_ERROR'
  | 'DATABASE_ERROR'
  | 'INVALID_STATE'
  | 'CONCURRENT_MODIFICATION'
  | 'RESOURCE_UNAVAILABLE'
  | 'CLOSED'
  | 'ABORTED'
  | 'ALREADY_RUNNING'
  | 'ALREADY_STOPPED'
export const LifecycleErrorCode: { readonly [K in LifecycleErrorCode]: K }

/** A verb failed. `INVALID_CONFIG` has `context.issues`, one {@link ConfigIssue} per refused value. */
export class LifecycleError extends Error {
  constructor(
    code: LifecycleErrorCode,
    message: string,
    vmId?: string,
    context?: Record<string, unknown>
  )
  readonly code: LifecycleErrorCode
  readonly vmId?: string
  readonly context?: Record<string, unknown>
}

export interface ConfigIssue {
  /** `disks[0].sizeGB`; the argument's name when it is refused as a whole. */
  path: string
  /** Follows the path in a sentence: `must be at least 1`. */
  message: string
}

export function isLifecycleError(error: unknown): error is LifecycleError
export function createLifecycleError(
  code: LifecycleErrorCode,
  message: string,
  vmId?: string,
  context?: Record<string, unknown>
): LifecycleError

export type PrismaAdapterErrorCode =
  | 'MACHINE_NOT_FOUND'
  | 'DB_CONNECTION_ERROR'
  | 'UPDATE_FAILED'
  | 'QUERY_FAILED'
  | 'INVALID_INPUT'
  | 'CONSTRAINT_VIOLATION'
  | 'VERSION_CONFLICT'
export const PrismaAdapterErrorCode: { readonly [K in PrismaAdapterErrorCode]: K }

/** A database failed. Its constructor takes the message first. */
export class PrismaAdapterError extends Error {
  constructor(
    message: string,
    code: PrismaAdapterErrorCode,
    vmId?: string,
    details?: Record<string, unknown>
  )
  readonly code: PrismaAdapterErrorCode
  readonly vmId?: string
  readonly details?: Record<string, unknown>
}

export function isPrismaAdapterError(error: unknown): error is PrismaAdapterError

export type StorageErrorCode =
  | 'IMAGE_NOT_FOUND'
  | 'IMAGE_ALREADY_EXISTS'
  | 'SNAPSHOT_NOT_FOUND'
  | 'SNAPSHOT_ALREADY_EXISTS'
  | 'INVALID_SNAPSHOT_NAME'
  | 'INVALID_FORMAT'
  | 'INVALID_SIZE'
  | 'DATA_LOSS_REFUSED'
  | 'IMAGE_IN_USE'
  | 'IMAGE_CORRUPT'
  | 'UNSAFE_BACKING_FILE'
  | 'PERMISSION_DENIED'
  | 'INSUFFICIENT_SPACE'
  | 'ABORTED'
  | 'TIMEOUT'
  | 'COMMAND_FAILED'
  | 'PARSE_ERROR'
export const StorageErrorCode: { readonly [K in StorageErrorCode]: K }

export interface StorageErrorInfo {
  code: StorageErrorCode
  message: string
  path?: string
  command?: string
}

/** An image or snapshot operation failed. */
export class StorageError extends Error {
  constructor(code: StorageErrorCode, message: string, path?: string, command?: string)
  readonly code: StorageErrorCode
  readonly path?: string
  readonly command?: string
  readonly context?: Record<string, unknown>
  toInfo(): StorageErrorInfo
}

export type NftablesErrorCode =
  | 'TABLE_NOT_FOUND'
  | 'CHAIN_NOT_FOUND'
  | 'RULE_INVALID'
  | 'INVALID_IP_ADDRESS'
  | 'INVALID_SUBNET_MASK'
  | 'INVALID_PORT_RANGE'
  | 'UNSUPPORTED_PROTOCOL'
  | 'PERMISSION_DENIED'
  | 'COMMAND_FAILED'
  | 'CONNTRACK_UNAVAILABLE'
  | 'RULESET_MISMATCH'
  | 'TABLE_EXISTS'
  | 'CHAIN_EXISTS'
export const NftablesErrorCode: { readonly [K in NftablesErrorCode]: K }

/** A rule has no translation ({@link FirewallRuleTranslator}). */
export class FirewallTranslationError extends Error {
  /** With a `ruleId`, `[Rule <id>] ` stands before the message. */
  constructor(code: NftablesErrorCode, message: string, ruleId?: string)
  readonly code: NftablesErrorCode
  readonly ruleId?: string
}

/** The firewall could not be read or changed; the old rules are in force. */
export class NftablesError extends Error {
  constructor(code: NftablesErrorCode, message: string, context?: Record<string, unknown>, vmId?: string)
  readonly code: NftablesErrorCode
  readonly context?: Record<string, unknown>
  readonly vmId?: string
}

export type NetworkErrorCode =
  | 'DEVICE_NOT_FOUND'
  | 'DEVICE_ALREADY_EXISTS'
  | 'BRIDGE_NOT_FOUND'
  | 'BRIDGE_ALREADY_EXISTS'
  | 'BRIDGE_FULL'
  | 'INVALID_MAC_ADDRESS'
  | 'COMMAND_FAILED'
  | 'TIMEOUT'
  | 'PERMISSION_DENIED'
export const NetworkErrorCode: { readonly [K in NetworkErrorCode]: K }

/** A TAP or bridge could not be made or changed; `context.errno` is the kernel's answer. */
export class NetworkError extends Error {
  constructor(code: NetworkErrorCode, message: string, context?: Record<string, unknown>, vmId?: string)
  readonly code: NetworkErrorCode
  readonly context?: Record<string, unknown>
  readonly vmId?: string
}

export type DisplayErrorCode =
  | 'INVALID_PORT'
  | 'INVALID_PASSWORD'
  | 'INVALID_ADDRESS'
  | 'INVALID_DISPLAY_NUMBER'
  | 'PASSWORD_TOO_LONG'
  | 'PORT_OUT_OF_RANGE'
  | 'CONFLICTING_OPTIONS'
  | 'INVALID_COMPRESSION_MODE'
  | 'INVALID_STREAMING_MODE'
  | 'INVALID_GL_CONFIG'
  | 'RENDERNODE_NOT_FOUND'
export const DisplayErrorCode: { readonly [K in DisplayErrorCode]: K }

/**
 * For compatibility, and for you to throw: a display that makes no sense is `INVALID_CONFIG` of
 * `createVM`.
 */
export class DisplayError extends Error {
  constructor(code: DisplayErrorCode, message: string, context?: Record<string, unknown>)
  readonly code: DisplayErrorCode
  readonly context?: Record<string, unknown>
}

export type QMPErrorCode =
  | 'QMP_CONNECT_FAILED'
  | 'QMP_TIMEOUT'
  | 'QMP_DISCONNECTED'
  | 'QMP_PROTOCOL'
  | 'QMP_COMMAND_FAILED'
  | 'QMP_ARGUMENTS'
  | 'AGENT_CONNECT_FAILED'
  | 'AGENT_TIMEOUT'
  | 'AGENT_DISCONNECTED'
  | 'AGENT_PROTOCOL'
  | 'AGENT_COMMAND_FAILED'
export const QMPErrorCode: { readonly [K in QMPErrorCode]: K }

/** A monitor refused, timed out or went away. `QMP_COMMAND_FAILED` has QEMU's words in `context`. */
export class QMPError extends Error {
  constructor(code: QMPErrorCode, message: string, context?: Record<string, unknown>, vmId?: string)
  readonly code: QMPErrorCode
  readonly context?: Record<string, unknown>
  readonly vmId?: string
}

export type ProcessErrorCode =
  | 'PROGRAM_NOT_FOUND'
  | 'SPAWN_FAILED'
  | 'QEMU_START_FAILED'
  | 'ADDRESS_IN_USE'
  | 'IDENTITY_UNKNOWN'
  | 'SIGNAL_FAILED'
  | 'STILL_ALIVE'
  | 'STATE_FILE'
  | 'HOST_FILE'
export const ProcessErrorCode: { readonly [K in ProcessErrorCode]: K }

/** A program could not be started, or ended badly. */
export class ProcessError extends Error {
  constructor(code: ProcessErrorCode, message: string, context?: Record<string, unknown>, vmId?: string)
  readonly code: ProcessErrorCode
  readonly context?: Record<string, unknown>
  readonly vmId?: string
}

/** Kept for compatibility; never thrown. */
export type SyncErrorCode = 'QMP_UNAVAILABLE' | 'DB_ERROR' | 'VM_NOT_FOUND' | 'INVALID_STATUS'
export const SyncErrorCode: { readonly [K in SyncErrorCode]: K }

export type InfinizationErrorCode =
  | 'STATE_DIR_LOCKED'
  | 'INTERNAL'
export const InfinizationErrorCode: { readonly [K in InfinizationErrorCode]: K }

/** The state directory is another process', or (`INTERNAL`) the library has a defect. */
export class InfinizationError extends Error {
  constructor(
    code: InfinizationErrorCode,
    message: string,
    context?: Record<string, unknown>,
    vmId?: string
  )
  readonly code: InfinizationErrorCode
  readonly context?: Record<string, unknown>
  readonly vmId?: string
}

// ---------------------------------------------------------------------------------------------------
// Helpers and constants
// ---------------------------------------------------------------------------------------------------

/** One queue per key: first come, first served; keys are independent, and a failure poisons nothing. */
export class KeyedMutex {
  /** How many keys are busy. */
  get activeKeyCount(): number
  runExclusive<T>(key: string, fn: () => Promise<T>): Promise<T>
  /** Runs `fn` only when nobody holds or waits for `key`. */
  tryRunExclusive<T>(
    key: string,
    fn: () => Promise<T>
  ): Promise<{ ran: true; result: T } | { ran: false; result: symbol }>
}

/** Milliseconds a guest may take to stop. */
export const DEFAULT_STOP_TIMEOUT: 30000
/** Milliseconds. */
export const DEFAULT_BOOT_TIMEOUT: 60000
/** Milliseconds. */
export const DEFAULT_QMP_CONNECT_TIMEOUT: 5000
export const DEFAULT_QMP_SOCKET_DIR: '/var/run/infinization'
export const DEFAULT_DISK_DIR: '/var/lib/infinization/disks'
export const DEFAULT_PIDFILE_DIR: '/var/run/infinization/pids'
export const DEFAULT_NETWORK_MODEL: 'virtio-net-pci'
export const DEFAULT_DISK_BUS: 'virtio'
export const DEFAULT_DISK_CACHE: 'writeback'
export const DEFAULT_DISK_FORMAT: 'qcow2'
export const DEFAULT_DISK_EXTENSION: '.qcow2'
/** `getMachineDiskPath` answers with a path below it, whatever `diskDir` says. */
export const DEFAULT_DISK_PATH_PREFIX: '/var/lib/infinization/disks'
export const DEFAULT_QMP_SOCKET_PATH_PREFIX: '/var/run/infinization'
/** Milliseconds. */
export const DEFAULT_HEALTH_CHECK_INTERVAL: 30000
/** Kept for compatibility, in milliseconds; a status has its own deadlines. */
export const DEFAULT_SYNC_TIMEOUT: 5000
/** Kept for compatibility. */
export const MAX_SYNC_RETRIES: 3
/** How often a clean-up tries to give one thing back. */
export const MAX_CLEANUP_RETRIES: 3
/** Milliseconds from the first try to the second; then twice as long. */
export const CLEANUP_RETRY_BASE_DELAY_MS: 1000
/** Milliseconds. */
export const CLEANUP_RETRY_MAX_DELAY_MS: 10000
/** Kept for compatibility; nothing pauses this long. */
export const RESTART_DELAY_MS: 2000
/** Kept for compatibility; nothing polls. */
export const PROCESS_EXIT_POLL_INTERVAL: 100
/** The size of a disk that is known by its path alone. */
export const RUNTIME_DISK_SIZE_PLACEHOLDER_GB: 1
/** The prefix of the MAC addresses that QEMU itself gives. */
export const QEMU_MAC_PREFIX: '52:54:00'
/** Of a network interface. */
export const MAX_TAP_NAME_LENGTH: 15
/** Machines' TAPs are called so, then ten hex digits. */
export const TAP_NAME_PREFIX: 'vnet-'
/** The nftables table that is the library's. */
export const INFINIZATION_TABLE_NAME: 'infinization'
export const INFINIZATION_TABLE_FAMILY: 'bridge'
/** Of the table's hooks. */
export const DEFAULT_CHAIN_PRIORITY: 0
export const NFTABLES_COMMENT_PREFIX: 'infinization'
export const MAX_CHAIN_NAME_LENGTH: 31
/** The visible chains of machines are called so, then 24 hex digits. */
export const VM_CHAIN_PREFIX: 'vm_'
export const SUPPORTED_PROTOCOLS: readonly ['tcp', 'udp', 'icmp', 'all']
export const CONNECTION_STATES: readonly ['established', 'new', 'related', 'invalid']
/** QEMU's, in bytes. */
export const DEFAULT_CLUSTER_SIZE: 65536
export const MAX_SNAPSHOT_NAME_LENGTH: 64

/** The form of a PCI address, `[dddd:]bb:ss.f`. `validatePciAddress` looks at the numbers, too. */
export const PCI_ADDRESS_REGEX: RegExp

export interface PciAddressValidationResult {
  valid: boolean
  /** What is wrong, in a sentence. */
  error?: string
}

/** Whether `createVM` takes `address` as one; not whether there is such a device. */
export function validatePciAddress(address: string): PciAddressValidationResult
/** In lower case, with its domain. @throws LifecycleError `INVALID_CONFIG` */
export function normalizePciAddress(address: string): string
