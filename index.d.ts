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
import { Readable } from 'node:stream'

// ---------------------------------------------------------------------------------------------------
// The manager
// ---------------------------------------------------------------------------------------------------

/** How an {@link Infinization} works. Nothing of it is checked before `initialize()`. */
export interface InfinizationConfig {
  /**
   * Your Prisma client, an extended one too: machines are rows of your own database then. You make and
   * delete the rows; the library reads them and writes their status, their version and their
   * configuration, with the calls {@link PrismaClientLike} names and no others. Without it and without
   * `databaseAdapter` machines are kept in an embedded store under `stateDir`. `initialize()` rejects
   * with `INVALID_CONFIG` when both are given, or a key is there without a value: a misconfigured program
   * must not start on an empty store.
   */
  prismaClient?: PrismaClientLike
  /**
   * The 16 database operations as an object of yours, for rows that are further away. Its methods are
   * called on it, with plain JSON, and may answer with plain JSON (no Dates needed, further members are
   * ignored). An error is known by its `code` (one of {@link PrismaAdapterErrorCode}), whoever made it.
   */
  databaseAdapter?: InfinizationDatabase
  /**
   * Which machines of `prismaClient`'s database are this node's (the column `nodeId`); lists of machines
   * hold no others. Default: all. The embedded store and a `databaseAdapter` know one node. Not blank.
   */
  nodeId?: string
  /**
   * Milliseconds that one answer of `prismaClient` or `databaseAdapter` may take, 100 to a week; then it
   * is a `DB_CONNECTION_ERROR`, and an answer that comes later is not looked at. Default 20000.
   */
  databaseTimeout?: number
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
   * Encrypts the secrets of the embedded store (displays' passwords, keys of encrypted disks): 32 bytes, or 64 hexadecimal
   * digits or base64 of as many. Secrets that were stored before are encrypted by `initialize()`. Without it passwords
   * are stored as they are, in a file that only its owner can read, and keys of disks are not stored at all. Not for a
   * database of your own (`INVALID_CONFIG`): encrypt there, with {@link encryptSecret}.
   */
  secretsKey?: string | Uint8Array
  /**
   * What to do on a kernel without connection tracking for bridges (`nf_conntrack_bridge`). `fail`:
   * `initialize()` rejects with `CONNTRACK_UNAVAILABLE`, and may be called again once the module is loaded.
   * `degrade`: stateless rules. Default: the environment's `INFINIZATION_BRIDGE_CONNTRACK_MODE`, else `fail`.
   */
  bridgeConntrackMode?: 'fail' | 'degrade'
  /**
   * Services of the host that every guest may reach on its bridge's own addresses. Default: the
   * environment's `INFINIZATION_HOST_SERVICE_PORTS`, else TCP 4000.
   */
  hostServices?: HostService[]
  /**
   * Keeps the firewall's table in this directory, so that it can be loaded again when the host boots
   * ({@link installFirewallService}). Written behind the verbs, half a second after the last change; a
   * failure fails nothing and is an `error` of `getHealthMonitor()`. Default: the environment's
   * `INFINIZATION_FIREWALL_PERSISTENCE_DIR`, else nothing is kept. {@link NFTABLES_PERSISTENCE_DIR} is the usual
   * one.
   */
  firewallPersistenceDir?: string
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

/** How the guest's CPUs run: by KVM, by emulation (TCG, some ten times slower), or by whichever there is. */
export type Accelerator = 'auto' | 'kvm' | 'tcg'

/** A port of this host that guests may reach. */
export interface HostService {
  protocol: 'tcp' | 'udp'
  /** 1 to 65535. */
  port: number
}

/** For a later version: what this host is in an overlay. */
export interface OverlayConfig {
  /** This host's address inside the overlay. */
  vtepIp: string
  wgPrivateKeyPath: string
  wgListenPort: number
}

/** For a later version: another host of an overlay. */
export interface OverlayPeer {
  nodeId: string
  vtepIp: string
  wgPubKey: string
  /** `host:port`. */
  wgEndpoint: string
}

/** For a later version: a department's part of an overlay. */
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

/**
 * How a {@link VMLifecycle} works: as {@link InfinizationConfig} says, for a database of yours. The state directory
 * is its own: one engine at a time has it.
 */
export type VMLifecycleOptions = Omit<
  InfinizationConfig,
  'prismaClient' | 'databaseAdapter' | 'nodeId' | 'eventManager' | 'healthMonitorInterval' | 'autoStartHealthMonitor'
>

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
   * Idempotent once it succeeded; after a rejection it may be called again. What `getEventHandler()` and
   * `getHealthMonitor()` have to tell of it (crashes found, `firewall-orphans`, `database-outage`) they emit right
   * after it has resolved: whoever listens as soon as it has, hears it. `events()` yields it at once.
   * @throws LifecycleError `INVALID_CONFIG` (an option or an environment variable), `CLOSED`;
   * InfinizationError `STATE_DIR_LOCKED` when another process manages the state directory;
   * NftablesError `CONNTRACK_UNAVAILABLE` (see `bridgeConntrackMode`), `PERMISSION_DENIED` (not root),
   * `COMMAND_FAILED`; ProcessError `PROGRAM_NOT_FOUND` (no `nft`), `STATE_FILE`; PrismaAdapterError
   * `DB_CONNECTION_ERROR` when the embedded store cannot be opened, `SCHEMA_MISMATCH` when your database
   * lacks what is needed (`details.missing` lists it). One of yours that cannot be reached is only warned
   * of: the machines of this host are watched all the same
   */
  initialize(): Promise<void>
  /**
   * Ends monitoring and disconnects; never touches a VM. Safe at any time and more than once. Every
   * method fails with `CLOSED` from then on. A backup that copies a running VM through this instance is ended
   * first: its promise rejects with `CANCELLED`.
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
   * Says which firewall rules a start of this machine would load now, its department's included, as text
   * and as JSON. The machine may run or not; nothing is changed. A `firewallDefaultAction` that was given
   * to `startVM` is shown as long as that run lasts; a bridge that does not exist has no addresses.
   * @throws LifecycleError `VM_NOT_FOUND`; PrismaAdapterError; NetworkError when the bridge cannot be read
   */
  explainFirewall(vmId: string): Promise<FirewallPlan>
  /**
   * Makes the disks, the TAP and the firewall rules of a VM, starts it, and resolves when its guest's
   * CPUs run. On failure everything this attempt made is gone; `error.context.notUndone` names what
   * could not be undone. A machine that exists must be `off` or `error` and have none of its disks.
   * @throws LifecycleError `INVALID_CONFIG`, `INVALID_STATE` (the machine is neither fresh, `off` nor
   * `error`), `RESOURCE_UNAVAILABLE` (a file, device, CPU, accelerator or block driver is not there; a QEMU of this
   * `internalName` runs), `DISK_ERROR` (a disk is there already; a backing file or an NBD export cannot be used),
   * `VM_NOT_FOUND` (your own database has no row of it), `CONCURRENT_MODIFICATION` (another writer was
   * first), `ABORTED`, `CREATE_FAILED` for everything else: its `cause` says why
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
   * writer was first), `TIMEOUT` (`waitForBoot`), `DISK_ERROR` with the cause `KEY_REQUIRED` (an encrypted disk, and no
   * key; nothing was begun) and `START_FAILED` with the cause `AUTH_FAILED` (another key), `ABORTED`, `START_FAILED` for everything else; its
   * `cause` is `IDENTITY_UNKNOWN` where a process cannot be proven to be this VM's
   */
  startVM(vmId: string, config?: VMStartConfig & Abortable): Promise<VMOperationResult>
  /**
   * Resolves when QEMU is gone and what the run held is released. Succeeds at once when the VM is off.
   * A suspended guest is resumed first, so that it can hear the power button. A signal ends the wait
   * for the guest; it was asked to shut down and may still do so.
   * @throws LifecycleError `VM_NOT_FOUND`, `TIMEOUT` (it ignored the request and `force` was false: it
   * runs on), `INVALID_STATE` (a graceful stop while it cannot be found out how far an interrupted
   * `commitSnapshot` has come), `ABORTED`, `STOP_FAILED` for everything else, also for
   * `{ graceful: false, force: false }`;
   * its `cause` is `IDENTITY_UNKNOWN` where a process cannot be proven to be this VM's
   */
  stopVM(vmId: string, config?: VMStopConfig & Abortable): Promise<VMOperationResult>
  /**
   * Stops (by the power button, by force after 30 s) and starts at once, as one operation. The one verb
   * that may resolve with `success: false`: `message` says which half failed, `error` why. A TPM
   * emulator ends with its QEMU, so a machine with `tpmSocketPath` is stopped and started by you.
   * @throws LifecycleError `VM_NOT_FOUND`, `STOP_FAILED`; StorageError `KEY_REQUIRED` (an encrypted disk whose key neither
   * this process nor the embedded store has: the VM runs on)
   */
  restartVM(vmId: string): Promise<VMOperationResult>
  /**
   * Stops the guest's CPUs; its memory stays. The status becomes `suspended`.
   * @throws LifecycleError `VM_NOT_FOUND`, `INVALID_STATE` unless it is `running`, `QMP_ERROR` for
   * everything else
   */
  suspendVM(vmId: string): Promise<VMOperationResult>
  /**
   * Lets the guest's CPUs run again; one that sleeps (S3) is woken, one that an error of its disk has
   * stopped tries the write again. The status becomes `running`.
   * @throws LifecycleError `VM_NOT_FOUND`, `INVALID_STATE` unless it is `suspended` or `paused`, or
   * `error` while QEMU says `io-error` or `paused`, or while it cannot be found out how far an interrupted
   * `commitSnapshot` has come; `QMP_ERROR` for everything else
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

  /**
   * All machines of the embedded store, oldest first.
   * @throws LifecycleError `INVALID_STATE` when machines are kept in a database of yours: list them
   * there; PrismaAdapterError
   */
  listVMs(): Promise<VMSummary[]>
  /** One machine of the embedded store, or null. @throws as `listVMs` does */
  getVM(vmId: string): Promise<VMDetails | null>
  /**
   * Destroys the VM (see `destroyVM`), forgets it, and removes its disks and UEFI variables when asked
   * to. Disks on the network stay.
   * @throws LifecycleError `INVALID_STATE` when machines are kept in a database of yours: destroy the VM
   * and delete its row; `VM_NOT_FOUND`, `STOP_FAILED`, `CLEANUP_FAILED`, `DISK_ERROR` (a disk could not be
   * removed; the machine is still known)
   */
  deleteVM(vmId: string, options?: VMDeleteOptions): Promise<VMOperationResult>
  /**
   * Replaces the VM's own rules; if it runs, in one atomic step. A rule that makes no sense is
   * `INVALID_CONFIG`, and the old rules stay.
   * @throws LifecycleError `INVALID_STATE` when machines are kept in a database of yours: write the
   * rules there, and load them with `getNftablesService().applyRules`; `VM_NOT_FOUND`, `INVALID_CONFIG`;
   * NftablesError; NetworkError when the bridge cannot be read; PrismaAdapterError
   */
  setFirewallRules(vmId: string, rules: FirewallRuleInput[]): Promise<VMOperationResult>
  /**
   * Replaces the addresses the VM may use (see `addresses` of {@link VMCreateConfig}), whichever database it is in; if it
   * runs, in one atomic step, with the rules that the database has for it. When that fails, those it had are kept. They
   * are kept on this host, beside its MAC address.
   * @throws LifecycleError `VM_NOT_FOUND`; `INVALID_CONFIG`; `INVALID_STATE` when the VM was neither created nor started
   * on this host; NftablesError; NetworkError when the bridge cannot be read; PrismaAdapterError
   */
  setAddresses(vmId: string, addresses: string[]): Promise<VMOperationResult>

  /**
   * Makes a snapshot of all disks of a VM that runs or is off, all at the same moment, or of none: inside
   * each image, or with `kind: 'external'` by an overlay (a new qcow2 file with the present one as its
   * backing file) that takes what comes after; see docs/snapshots.md. With `memory` the guest can go on from there. While its memory is written the guest stands still, and
   * QEMU answers nothing (`getVMStatus` says `unresponsive`); its status stays `running`.
   *
   * With `quiesce` the guest's agent freezes its file systems first and thaws them again in any case, even
   * in the next process should this one be killed; a snapshot whose guest cannot be thawed in three attempts of at
   * most 10 s fails and is deleted. So is one that is aborted. (An external one whose guest cannot be thawed fails, too, and stays.)
   * @throws StorageError `SNAPSHOT_ALREADY_EXISTS`, `INVALID_SNAPSHOT_NAME`, `INVALID_FORMAT` (a disk is
   * raw), `NETWORK_DISK`, `INSUFFICIENT_SPACE`, `IMAGE_IN_USE` (the VM is off and another process has a disk);
   * LifecycleError `VM_NOT_FOUND`, `INVALID_CONFIG`, `INVALID_STATE` (its status is not `running`,
   * `suspended`, `paused` or `off`; `memory` of a VM that is off; `quiesce` without a guest agent
   * channel or a running guest), `ABORTED`, `QMP_ERROR` (QEMU or, by its `cause`, the agent failed)
   */
  createSnapshot(vmId: string, options: VMSnapshotOptions): Promise<VMOperationResult>
  /**
   * The snapshots of a VM that runs or is off, oldest first; those made by others too. Does not wait for
   * other operations. Those of `kind: 'external'` are in `snapshotTree`.
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
   * before anything changes. Should QEMU fail at it all the same, the guest is left `suspended`. Dirty
   * bitmaps of incremental backups cannot follow: they are removed, and the next one compares. While a
   * disk has dirty bitmaps of others, that is `INVALID_STATE`.
   *
   * Back to an external snapshot means a new overlay on it: the tree branches, and everything in it stays.
   * What was written since the current snapshot becomes a snapshot too (`keep`) or is lost (`discard`);
   * one of them must be said. A running VM has to be restarted (`restart`).
   * @throws StorageError `SNAPSHOT_NOT_FOUND` (or not on every disk), `DATA_LOSS_REFUSED` (neither `keep` nor
   * `discard`), else as `createSnapshot`; LifecycleError `INVALID_STATE` also for a running VM without `restart` where it is needed and for
   * memory of another machine, `STOP_FAILED`, `START_FAILED` of the restart, else as `createSnapshot`
   */
  revertSnapshot(vmId: string, name: string, options?: VMSnapshotRevertOptions): Promise<VMOperationResult>
  /**
   * Deletes a snapshot from every disk that has it, whether the VM runs or is off. Fine when there is no
   * such snapshot. An external one that others build on, or the VM's disks as they are now, is refused
   * unless `children: 'rebase'` is said: then each of them takes what it needs of it, or it takes what its
   * only child holds, whichever is less to copy. What they hold stays the same.
   * @throws StorageError `SNAPSHOT_HAS_CHILDREN` (`context.children` names them; `(active)` are the disks as
   * they are now); else as `createSnapshot` and `commitSnapshot`
   */
  deleteSnapshot(vmId: string, name: string, options?: VMSnapshotDeleteOptions): Promise<VMOperationResult>
  /**
   * Merges an external snapshot into its parent: the parent then is what this one was and keeps its name,
   * and what was built on this one is built on the parent. Works while the VM runs.
   *
   * The disks as they are now stay the same at every moment, whatever fails. When it is aborted or fails
   * on the way, this snapshot stays as it was; the parent may have been written into by then, is no longer
   * `complete`, and committing again finishes it.
   * @throws StorageError `SNAPSHOT_NOT_FOUND`, `SNAPSHOT_HAS_CHILDREN` (others build on the parent),
   * `INSUFFICIENT_SPACE`, `IMAGE_IN_USE`; LifecycleError `INVALID_STATE` (it has no parent; a file has
   * internal snapshots that would be lost), `ABORTED`, else as `createSnapshot`
   */
  commitSnapshot(vmId: string, name: string, options?: Abortable): Promise<VMOperationResult>
  /**
   * The VM's external snapshots. Does not wait for other operations; what an interrupted one has begun is
   * not shown.
   * @throws LifecycleError `VM_NOT_FOUND`; StorageError `IMAGE_NOT_FOUND`; ProcessError `STATE_FILE`
   */
  snapshotTree(vmId: string): Promise<VMSnapshotTree>

  /**
   * Gives an encrypted disk another key, whether the VM runs or is off; of a VM that is off in all files of the disk's
   * external snapshots too, and in the encrypted ones below that a `destroyVM` has left. The new key is added and has
   * opened every file, then the embedded store is told (if it has a `secretsKey`), then the old one is erased: whatever
   * ends it, what the store says opens the disk, and the same call again finishes it (where no keys are stored, with the
   * old one as `encryptionKey`). Of a running VM QEMU writes the file (`x-blockdev-amend`, QEMU 5.1); the guest stands
   * still meanwhile for as long as a key takes to be made and tried, some seconds by default.
   * @param path the disk's present file
   * @throws StorageError `KEY_REQUIRED` (no `encryptionKey`, and none is known; or the disk has the new key already, and
   * another one that is not known opens it too), `AUTH_FAILED` (neither key opens the disk),
   * `INVALID_FORMAT` (it is not encrypted), `IMAGE_IN_USE`; LifecycleError `VM_NOT_FOUND`, `INVALID_CONFIG` (`path` is no
   * disk of the VM), `INVALID_STATE` (a backup copies its disks, a running VM's disk lies on external snapshots, or QEMU
   * cannot do it), `QMP_ERROR` for everything else
   */
  changeDiskKey(vmId: string, path: string, options: ChangeDiskKeyOptions): Promise<VMOperationResult>

  /**
   * Makes a directory a storage pool, whose volumes are its files `*.qcow2`, `*.raw` and `*.img`. What is in
   * it stays. Pools are kept in the state directory.
   * @param name 1 to 64 letters, digits, `-` and `_`, and no `-` in front
   * @throws StorageError `POOL_ALREADY_EXISTS` (the name, or another pool has the directory),
   * `PERMISSION_DENIED` (no directory, reached through a symbolic link, or outside `allowedPaths`),
   * `IMAGE_NOT_FOUND` (there is none); LifecycleError `INVALID_CONFIG`; ProcessError `STATE_FILE`
   */
  definePool(name: string, options: StoragePoolOptions): Promise<StoragePool>
  /** All pools, by name; one whose directory is not there is left out. @throws ProcessError `STATE_FILE` */
  listPools(): Promise<StoragePool[]>
  /** @throws StorageError `POOL_NOT_FOUND`, `IMAGE_NOT_FOUND` (its directory is gone), `PERMISSION_DENIED` */
  getPool(name: string): Promise<StoragePool>
  /** Forgets a pool; its directory and volumes stay. @throws StorageError `POOL_NOT_FOUND` */
  undefinePool(name: string): Promise<null>
  /** A pool's volumes as they are now, by name. Symbolic links are none. @throws as `getPool` */
  listVolumes(pool: string): Promise<StorageVolume[]>
  /**
   * Makes an empty volume; what fails or is aborted leaves nothing.
   * @throws StorageError `IMAGE_ALREADY_EXISTS`, `INVALID_SIZE`, `INVALID_FORMAT` (`metadata` of a raw
   * volume), `INSUFFICIENT_SPACE`, `ABORTED`, else as `getPool`; LifecycleError `INVALID_CONFIG`
   */
  createVolume(pool: string, options: StorageVolumeOptions): Promise<StorageVolume>
  /**
   * Copies a volume, also into the other format, or makes a thin overlay on it (`linked`). A machine's disk
   * is not linked to, since it changes; nor is a volume copied while a machine that runs writes to it.
   * @throws StorageError `IMAGE_NOT_FOUND`, `IMAGE_IN_USE`, `INVALID_FORMAT` (linked to or as raw), else as
   * `createVolume`
   */
  cloneVolume(pool: string, options: StorageVolumeCloneOptions): Promise<StorageVolume>
  /**
   * Copies all that a volume and its backing files hold into a new volume, in the format that its name says.
   * What fails or is aborted leaves nothing.
   * @throws StorageError `INVALID_FORMAT` (`compress` of a raw volume), else as `cloneVolume`
   */
  convertVolume(pool: string, options: StorageVolumeConvertOptions): Promise<StorageVolume>
  /**
   * Makes a volume of bytes from elsewhere, which are the file as it is to be: a whole qcow2, or a raw disk.
   * They go to a temporary file in the pool; when the last one is on the disk, they are looked at, and the
   * volume appears whole under its name, or never. Whatever goes wrong, and also `kill -9` (at the
   * next `initialize()`), leaves nothing. One piece at a time is in memory, and the source is not asked for the
   * next before the last is written; it is destroyed where reading ends early.
   * @param name as in {@link StorageVolumeOptions}
   * @throws StorageError `IMAGE_ALREADY_EXISTS`, `INVALID_FORMAT` (a qcow2 that is none, is encrypted or needs an
   * unknown feature; a raw disk that begins as a qcow2 does), `IMAGE_CORRUPT` (truncated, or its tables contradict
   * each other), `UNSAFE_BACKING_FILE` (it names a backing or data file), `INVALID_SIZE` (not `size` bytes, none
   * at all, or of a raw disk no multiple of 512), `CHECKSUM_MISMATCH`, `INSUFFICIENT_SPACE`, `ABORTED`, else as
   * `getPool`; LifecycleError `INVALID_CONFIG`; what the source or `onProgress` throws
   */
  uploadVolume(pool: string, name: string, source: VolumeSource, options?: VolumeUploadOptions): Promise<StorageVolume>
  /**
   * Opens a volume's file for reading, as it is. Resolves before the first byte is read. Until it has ended or is
   * destroyed nobody may write to the volume: a machine that would is refused with `IMAGE_IN_USE`, as are
   * `resizeVolume` and `deleteVolume`. `pipeline(volume, writable)` of `node:stream/promises` brings it elsewhere.
   * @throws StorageError `IMAGE_NOT_FOUND`, `IMAGE_IN_USE` (a machine that runs writes to it), `INVALID_FORMAT`
   * (it is an overlay, and no disk without its backing file: convert it), `ABORTED`, else as `getPool`;
   * LifecycleError `INVALID_CONFIG`
   */
  downloadVolume(pool: string, name: string, options?: VolumeDownloadOptions): Promise<VolumeDownload>
  /**
   * Changes a volume's size; one that is the disk of a running machine grows under it (`block_resize`). The
   * guest's partitions stay as they are.
   * @throws StorageError `DATA_LOSS_REFUSED` (smaller, without `shrink`), `IMAGE_IN_USE` (`context.overlays` lie
   * on it), `IMAGE_NOT_FOUND`, `INVALID_SIZE`; LifecycleError `INVALID_STATE` (a running machine has it, but
   * not as a disk), `QMP_ERROR`
   */
  resizeVolume(pool: string, name: string, options: StorageVolumeResizeOptions): Promise<StorageVolume>
  /**
   * Deletes a volume that nobody needs.
   * @throws StorageError `IMAGE_IN_USE` (`context.users` are the machines that have it, `context.overlays` the
   * images that lie on it, as far as this state directory, its pools and the rows' `diskPaths` know; or another
   * process has it open), `IMAGE_NOT_FOUND`, else as `getPool`; PrismaAdapterError (the rows cannot be read)
   */
  deleteVolume(pool: string, name: string): Promise<null>

  /**
   * Encrypts the secrets of the embedded store with another key, all or none; the next instance needs it as its `secretsKey`.
   * Also takes the first key of a store that had none. Resolves once it is on the disk, without a deadline; keep both keys
   * until an instance has opened with the new one.
   * @returns how many secrets there are
   * @throws InfinizationError `INVALID_KEY`; LifecycleError `INVALID_STATE` (the rows are in your own database);
   * PrismaAdapterError `SECRET_UNREADABLE` (one cannot be read with the key there is: nothing was changed)
   */
  rotateSecretsKey(newKey: string | Uint8Array): Promise<number>

  /** Emits what QEMU reports of the VMs. Always the same object. */
  getEventHandler(): EventHandler
  /** Emits crashes, and what the periodic checks find. Always the same object. */
  getHealthMonitor(): HealthMonitor
  /**
   * The VM's monitor, shared with the library; undefined unless it is connected. The same object for
   * as long as its QEMU runs.
   */
  getQMPClient(vmId: string): QMPClient | undefined
  /**
   * The machines' rows, by the 16 operations: a {@link PrismaAdapter} on `prismaClient`, your own
   * `databaseAdapter`, or the embedded store.
   */
  getPrismaAdapter(): InfinizationDatabase
  /** The firewall, with this instance's settings. */
  getNftablesService(): NftablesService
  /** Networks of this instance's own. Always the same object. */
  get networks(): VirtualNetworks
  /**
   * Every event of this instance in the order it happened, from now on; of one VM when `vmId` is
   * given. Ends at `shutdown()`. A reader that falls 4096 events behind gets one of type `lost`,
   * with the number of those it missed. Waiting for the next one does not keep the process alive.
   */
  events(options?: { vmId?: string }): InfinizationEventStream

  /**
   * What was done with the machines, by whom and why: the entries of one machine by their numbers, or
   * of all by time, oldest first; with `follow` also those that come, until `return()` or
   * `shutdown()`. It is read from files, so it also tells what happened before this process was
   * started, and of machines that are gone (the newest 256 of those are kept, and go on when their id
   * is used again). A reader that is slow misses nothing but what was rotated away meanwhile: a
   * machine's journal is two files of at most 1 MiB, `{stateDir}/journals/<vmId>.jsonl` and
   * `….jsonl.1`. Waiting for the next entry does not keep the process alive.
   *
   * Entries survive the end of this process at any moment; a power cut may cost the last half
   * minute's. `next()` rejects with what the options or the files are refused for.
   * @throws LifecycleError `INVALID_CONFIG`, `INVALID_STATE` before `initialize()`, `CLOSED`; ProcessError `STATE_FILE`
   */
  journal(options?: JournalOptions): AsyncIterableIterator<JournalEntry>
  /**
   * Which entries of a machine's journal there are: `firstSeq` tells what has been rotated away. Null
   * if there is none.
   * @throws LifecycleError `INVALID_CONFIG`; ProcessError `STATE_FILE`
   */
  getJournalRange(vmId: string): Promise<JournalRange | null>

  /**
   * Settles the machines in these statuses (default `starting`, `powering_off_update`, `rebuilding`)
   * by whether their QEMU is alive: then `running`, else cleaned up and `off` (`error` if it was
   * `rebuilding`). One that cannot be judged is skipped and left as it is. `initialize()` has done it
   * once. The health monitor emits `reconcile-complete`.
   * @throws PrismaAdapterError when the database cannot be read
   */
  reconcileStartupState(statuses?: string[]): Promise<ReconcileSummary>
  /**
   * Takes a running QEMU of this machine back; `initialize()` has done it for all. When it is attached
   * this only ends what `detachFromVM` began. It is found by its identity, and `qmpSocketPath` must be
   * its monitor's.
   * @throws LifecycleError `VM_NOT_FOUND`, `QMP_ERROR` when there is no such QEMU behind this socket
   */
  attachToRunningVM(vmId: string, qmpSocketPath: string): Promise<void>
  /**
   * Runs a program in the guest through its agent, without a shell, over a connection of its own (5 s
   * for it to answer). A program that outlives `timeout` is ended through the guest's own `kill` or
   * `taskkill`, and `AGENT_TIMEOUT` says in `context.ended` whether it was. `vmId` is only named in errors.
   * Resolves whatever the exit code is.
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

/** The iterator that `events()` returns. */
export interface InfinizationEventStream extends AsyncIterableIterator<InfinizationEvent> {
  /**
   * How many events it has missed in all: because this reader was too slow, or because the process was.
   * (What QEMU reported faster than the library could take it is `missedEvents` of `getVMStatus`.)
   */
  readonly lost: number
}

/** What `journal()` is asked. */
export interface JournalOptions {
  /** One machine's entries. Default: all machines', by time. */
  vmId?: string
  /** From this number (only with `vmId`) or moment on, itself included. */
  since?: number | Date
  /** Up to this number (only with `vmId`) or moment, itself included. */
  until?: number | Date
  /** Only entries of these kinds. */
  kinds?: JournalKind[]
  /** Only entries with one of these as their `step`. */
  steps?: string[]
  /** Waits for more at the end. Default false. */
  follow?: boolean
  /** Ends after so many entries. */
  limit?: number
}

/**
 * What an entry speaks of. `operation`: begun, done or failed. `step`: one of an operation's plan (as
 * `planVM` shows it). `undo`: what an unfinished operation made is taken back. `release`: what is no
 * longer needed is given back. `status`: the machine's status changed. `event`: what the guest, QEMU or
 * its monitor did. `condition`: what ails a living VM. `exit`: QEMU ended; `detail` is a
 * {@link VMExitCause}. `lost`: so many entries (`detail.count`) could not be written.
 */
export type JournalKind =
  'operation' | 'step' | 'undo' | 'release' | 'status' | 'event' | 'condition' | 'exit' | 'lost'

/** One entry of a machine's journal. */
export interface JournalEntry {
  vmId: string
  /** Counts this machine's entries from 0 without gaps, also over restarts of your process. */
  seq: number
  timestamp: Date
  /**
   * Who is behind it: a verb of this API, the guest, QEMU's monitor, the end of QEMU's process, the
   * library taking stock after its own restart, `reconcileStartupState`, the health monitor.
   */
  actor: 'api' | 'guest' | 'monitor' | 'process' | 'recovery' | 'reconcile' | 'health'
  /**
   * What was under way: `create`, `start`, `stop`, `restart`, `suspend`, `resume`, `reset`, `destroy`,
   * `delete`, `set firewall rules`, `set addresses`, `create snapshot`, `revert snapshot`, `delete snapshot`, `commit snapshot`, `resize disk`, `retryCleanup`,
   * `reloadFirewall`, `recover`, `reconcile`, `check`; `run` between them.
   */
  operation: string
  kind: JournalKind
  /** The name of the step, of what is given back, or of the event. */
  step?: string
  /** `begun` is written before anything is done; `undone` is what a step made and is gone again. */
  phase?: 'begun' | 'done' | 'failed' | 'undone'
  /** The status or condition before, if it is known. */
  from?: string
  /** The status or condition after. */
  to?: string
  /**
   * The facts: of a failure its `code`, `message` and `causes`; of an event QEMU's data; names, paths,
   * pids. At most 8 KiB, and never a secret.
   */
  detail?: Record<string, unknown>
}

/** Which entries a journal has. */
export interface JournalRange {
  vmId: string
  /** The oldest there is: the ones before it have been rotated away. */
  firstSeq: number
  /** The newest. */
  lastSeq: number
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

/** How the machine's screen is reached over the network. */
export type DisplayProtocol = 'spice' | 'vnc'
/** What happens to a packet that no rule speaks of. */
export type FirewallDefaultAction = 'accept' | 'drop'

/** A disk of a new machine: an image that `createVM` makes in `diskDir`. */
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
  /**
   * Absolute path of an image to make a thin clone of (qcow2 only). Nobody may write to it: an image that
   * another machine has as a disk or as a layer of a snapshot is `DISK_ERROR` (its `cause`: `IMAGE_IN_USE`).
   */
  backingFile?: string
  /**
   * Encrypts the disk (LUKS in qcow2): 1 to 512 bytes of UTF-8 text, without NUL. Not with a `backingFile`. It is kept
   * only in an embedded store with a `secretsKey`; otherwise every start needs it (`diskKeys`).
   */
  encryptionKey?: string | Uint8Array
}

/**
 * A disk that is on another host or behind another program. It is there already and stays there: it is neither
 * made nor removed, its content is always a raw disk, and its size is what the server says. A machine with
 * one has no snapshots (`NETWORK_DISK`). In `diskPaths` it is a text such as `nbd://host:10809/export`, by which
 * it is found again; such a text is never read as a location. `createVM` refuses one that another machine of this
 * `stateDir` has, even one that is off (`DISK_ERROR`, its `cause`: `IMAGE_IN_USE`): by server and export, or by pool,
 * namespace and image. Machines of other hosts and of other state directories are not seen, nor that one
 * server has two names; two clusters are not told apart.
 */
export interface NetworkDiskConfig {
  location: DiskLocation
  /** Only `raw`. */
  format?: 'raw'
  /** As in {@link DiskConfig}. */
  bus?: string
  /** As in {@link DiskConfig}. */
  cache?: string
  /** As in {@link DiskConfig}. */
  discard?: boolean
}

/** Where a disk is that this host only uses. */
export type DiskLocation = NbdLocation | RbdLocation

/**
 * An export of an NBD server, reached over TCP (`host`, `port`) or a socket of this host (`path`). It is asked
 * for before anything is made: nobody who listens, an unknown export and one that may not be
 * written to are `DISK_ERROR`.
 */
export interface NbdLocation {
  type: 'nbd'
  /** A host's name or address. */
  host?: string
  /** With `host`. Default 10809. */
  port?: number
  /** A Unix socket, instead of `host`; inside `allowedPaths`, if there are any. */
  path?: string
  /** Its name on the server. Default: the server's default export, which has the empty name. */
  export?: string
  tls?: NbdTls
  /**
   * Seconds for which requests wait after the connection was lost while QEMU connects again, 0 to 3600. Then,
   * and with 0, they fail. Default 0.
   */
  reconnectDelay?: number
}

/** X.509, as QEMU's `tls-creds-x509` has it. */
export interface NbdTls {
  /** A directory with `ca-cert.pem` and, where the server asks, `client-cert.pem` and `client-key.pem`. */
  credentials: string
  /** Whom the server's certificate must name. Default: `host`; required with `path`. */
  hostname?: string
}

/**
 * An image of a Ceph cluster. QEMU's `rbd` driver must be there (Debian: the package `qemu-block-extra`), else
 * it is `RESOURCE_UNAVAILABLE`. The user's key is what `conf` and its keyring say, never an option.
 */
export interface RbdLocation {
  type: 'rbd'
  pool: string
  image: string
  namespace?: string
  /** Without `client.`. Default: librados' own, `admin`. */
  user?: string
  /** The configuration file. Default: librados' own, `/etc/ceph/ceph.conf`; others as `allowedPaths` says. */
  conf?: string
  /** The cluster's monitors, instead of those in `conf`. Default port 6789. */
  monitors?: { host: string, port?: number }[]
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
  disks: (DiskConfig | NetworkDiskConfig)[]
  /** An existing bridge: 1 to 15 letters, digits, `.`, `_`, `-`. Required, unless there is a `network`. */
  bridge?: string
  /** A virtual network of this instance's, by its name: the machine is put on its bridge. Not beside `bridge`. */
  network?: string
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
   * to `127.0.0.1`.) A host name is resolved, to an address that others can reach if it has one, and
   * is refused with `INVALID_CONFIG` if it cannot be or means another host.
   */
  displayAddr?: string
  /** What happens to traffic that no rule speaks of. Default `drop`. */
  firewallDefaultAction?: FirewallDefaultAction
  /**
   * The VM's own rules, at most 20000; for the embedded store. A machine of your own database has its
   * rules there: then a list that is not empty is refused with `INVALID_STATE`.
   */
  firewallRules?: FirewallRuleInput[]
  /**
   * User that QEMU runs as: a login name, or `uid:gid`. Default: the environment's
   * `INFINIZATION_QEMU_USER`, else ours, with a warning of the process if that is root.
   */
  runAsUser?: string
  /** Run QEMU without its seccomp sandbox, for this run only: a later start has it. Default false. */
  disableSandbox?: boolean
  /** Default: the configuration's `accelerator`. */
  accelerator?: Accelerator
  /** Six hex pairs joined by `:`, unicast, no other machine's. Default: derived from `vmId`. */
  macAddress?: string
  /**
   * The only addresses the machine may use: what it sends from another one (IPv4, IPv6, ARP, neighbour discovery) is
   * dropped. IPv4 and IPv6, at most 32, each a single machine's. In a family of which none is named the machine is
   * free; `0.0.0.0` or `::` alone leaves it none. IPv6 link-local addresses are free unless one is named. Change them
   * with `setAddresses`. Default none: then rules that go by a neighbour's address hold only as far as the guests of its
   * bridge are honest, see docs/operations.md. A virtual network with `pinAddresses` adds the machine's leases.
   */
  addresses?: string[]
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
   * An installation without questions. Not part of this version: anything but undefined and null rejects with
   * `RESOURCE_UNAVAILABLE`, before anything is made. Give an installer that is prepared for it as `isoPath`.
   */
  unattendedInstall?: UnattendedInstallConfig | null
  /**
   * Host CPUs that are online, none twice: virtual CPU n runs on the n-th, starting over when the list
   * is shorter. Default: not pinned.
   */
  cpuPinning?: number[]
  /**
   * Virtual CPUs run, each on one host CPU, on a few NUMA nodes of the host that the machine fits on (one if it can be), and
   * its memory is bound to these nodes: to some where as much is free, else to some that have as much at all; with
   * `hugepages`, to some with as many free pages. With `cpuPinning` the CPUs are those, and the nodes theirs. Chosen
   * anew at every start. A host whose nodes cannot be read, or have not the memory, rejects with
   * `RESOURCE_UNAVAILABLE`. Default false.
   */
  enableNumaCtlPinning?: boolean
  /**
   * How `enableNumaCtlPinning` chooses among the CPUs of these nodes: `basic` in order, so that machines meet on the
   * first; `hybrid` shuffled, by `vmId`. Default `basic`.
   */
  cpuPinningStrategy?: 'basic' | 'hybrid'
  /**
   * Control socket of a TPM emulator (`swtpm`), which you start before every `createVM` and `startVM`:
   * it ends with its QEMU, with one that is killed only as `swtpm socket --terminate`.
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

/** A machine whose guest runs. */
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

/** What gives back what a step makes. */
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

/** How one run differs from what the machine was created with. */
export interface VMStartConfig {
  /**
   * The keys of encrypted disks, by the disks' paths. One that is given goes before the one the embedded store keeps,
   * and, with a `secretsKey`, is kept once the VM runs. A restart within this process needs none.
   */
  diskKeys?: Record<string, string | Uint8Array>
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

/** What `changeDiskKey` takes. */
export interface ChangeDiskKeyOptions {
  /** What opens the disk. Default: the key the VM was started with, else the one that is stored. */
  encryptionKey?: string | Uint8Array
  /** What will open it: 1 to 512 bytes of UTF-8 text, without NUL. */
  newKey: string | Uint8Array
  /**
   * How long this host is kept busy, in milliseconds, to make a passphrase of the new key, now and whenever the disk is
   * opened: what makes guessing slow. Default: QEMU's, 2000.
   */
  iterTime?: number
}

/** How patient a stop is. */
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

/** What goes with a machine. */
export interface VMDeleteOptions {
  /** Also remove the disks and the UEFI variables. Default false. */
  deleteDisks?: boolean
}

export interface VMSnapshotOptions extends Abortable {
  /** 1 to 64 letters, digits, `-` and `_`; no number, and no `-` in front. */
  name: string
  /**
   * `internal`: in each disk's image. `external`: the image is written no more and an overlay takes what
   * comes after; the disks' paths change. Default `internal`.
   */
  kind?: 'internal' | 'external'
  /** A line for people, at most 4096 bytes. Kept in the state directory, until `destroyVM`. */
  description?: string
  /** Also the guest's memory; it goes into the first disk's image; internal only. Default false. */
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
  /** External: what was written since the current snapshot becomes a snapshot of this name. */
  keep?: string
  /** External: what was written since the current snapshot is removed. Default false. */
  discard?: boolean
}

/** A pool that is made known. */
export interface StoragePoolOptions {
  /** The directory: absolute, and reached through no symbolic link. */
  path: string
  /** Make the directory (not its parents) if it is not there. Default false. */
  create?: boolean
}

/** A directory of volumes. */
export interface StoragePool {
  name: string
  path: string
  /** The size of the directory's file system, in bytes. */
  capacity: number
  /** What of that is taken, by whomever, in bytes. */
  allocation: number
  /** What of that may still be taken, in bytes. */
  available: number
}

/** A volume that is made empty. */
export interface StorageVolumeOptions extends Abortable {
  /** A file name of letters, digits, `-`, `_` and `.` whose ending says the format: `.qcow2`, `.raw` or `.img`. */
  name: string
  /** The disk's size in bytes, a multiple of 512. */
  capacity: number
  /** What is given its space at once: nothing, the tables (qcow2), or everything. Default `off`. */
  preallocation?: 'off' | 'metadata' | 'falloc' | 'full'
  /** Encrypts the volume (LUKS in qcow2). It is not kept. */
  encryptionKey?: string | Uint8Array
}

/** A volume that begins as another. */
export interface StorageVolumeCloneOptions extends Abortable {
  /** The volume that is cloned. */
  source: string
  /** The clone; as in {@link StorageVolumeOptions}. */
  name: string
  /** An overlay on the source instead of a copy; both qcow2. Default false. Not of an encrypted volume. */
  linked?: boolean
  /** The source's key, if it is encrypted. The copy is encrypted with it, whether or not the source is. */
  encryptionKey?: string | Uint8Array
  /** Writes the copy of an encrypted volume unencrypted. Default false. */
  decrypt?: boolean
  /** Told how far a copy is. An overlay is made at once. */
  onProgress?: (progress: VolumeProgress) => void
}

/** A volume that is made of another, in a format of its own. */
export interface StorageVolumeConvertOptions extends Abortable {
  /** The volume that is converted; it stays. */
  source: string
  /** The new volume, and by its ending its format; as in {@link StorageVolumeOptions}. */
  name: string
  /** Compress its clusters (qcow2). Default false. */
  compress?: boolean
  /** The source's key, if it is encrypted. The new volume is encrypted with it, whether or not the source is. */
  encryptionKey?: string | Uint8Array
  /** Writes what is made of an encrypted volume unencrypted. Default false. */
  decrypt?: boolean
  onProgress?: (progress: VolumeProgress) => void
}

/** How far a copy is. What `onProgress` throws ends the call with that. */
export interface VolumeProgress {
  /** What is done, in bytes: of the file in a transfer, of the disk in a clone or conversion. */
  bytes: number
  /** Of how many; null where it is not known beforehand. */
  total: number | null
  /** 0 to 100; null where `total` is. */
  percent: number | null
}

/** Bytes: a stream, anything that yields pieces, or all of them at once. */
export type VolumeSource = AsyncIterable<Uint8Array> | Iterable<Uint8Array> | Uint8Array

/** What the bytes that come must be. */
export interface VolumeUploadOptions extends Abortable {
  /** What the bytes are, to be sure; it must be what the name's ending says. */
  format?: 'qcow2' | 'raw'
  /** How many bytes there are. More or fewer are refused. */
  size?: number
  /** Their SHA-256 in hexadecimal. */
  sha256?: string
  onProgress?: (progress: VolumeProgress) => void
}

/** How a volume is read. */
export interface VolumeDownloadOptions extends Abortable {
  /** Told what was read, piece by piece. */
  onProgress?: (progress: VolumeProgress) => void
}

/** A volume's bytes. A signal that fires, or `destroy()`, lets go of the volume. */
export interface VolumeDownload extends Readable {
  readonly format: 'qcow2' | 'raw'
  /** The file's length in bytes: so many will come. */
  readonly size: number
}

/** A volume's new size. */
export interface StorageVolumeResizeOptions {
  /** The new size in bytes, a multiple of 512. */
  capacity: number
  /** What lies beyond it may be lost. Default false. */
  shrink?: boolean
  /** Of an encrypted volume that no running machine has. */
  encryptionKey?: string | Uint8Array
}

/** A disk image in a pool. */
export interface StorageVolume {
  name: string
  path: string
  format: 'qcow2' | 'raw'
  /** The disk's size as a guest sees it, in bytes. */
  capacity: number
  /** What its file takes on the host, in bytes. */
  allocation: number
  /** The file it is an overlay on; null for none. */
  backing: string | null
  /** Whether a key is needed to read it. */
  encrypted: boolean
  /** The machines that have it, as a disk or as a layer of a snapshot. */
  usedBy: string[]
  /** The images that lie on it, directly or through others. */
  overlays: string[]
}

export interface VMSnapshotDeleteOptions extends Abortable {
  /** What becomes of what builds on an external snapshot. Default `refuse`: the snapshot is not deleted. */
  children?: 'refuse' | 'rebase'
}

/** All external snapshots of a VM: a forest, as a VM may go on from none. */
export interface VMSnapshotTree {
  /** The snapshot the VM has gone on from; null if from none. */
  current: string | null
  /** What the VM writes into: one per disk. */
  active: VMSnapshotLayer[]
  /** Oldest first. */
  snapshots: VMExternalSnapshot[]
}

/** One external snapshot of a VM. */
export interface VMExternalSnapshot {
  name: string
  description?: string
  /** When it was made: ISO 8601, UTC. */
  date: string
  /** The snapshot it builds on; null for none. */
  parent: string | null
  /** The snapshots that build on it, oldest first. */
  children: string[]
  /** Whether the VM has gone on from it. */
  current: boolean
  /** Whether it can be reverted to: not after committing to it was cut short. */
  complete: boolean
  /** One per disk. */
  layers: VMSnapshotLayer[]
}

/** A file of a snapshot. */
export interface VMSnapshotLayer {
  path: string
  /** What it takes on the host, in bytes. */
  allocation: number
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

/** What came of a verb. */
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

/** A machine as its row has it and as it is. */
export interface VMStatusResult {
  vmId: string
  status: string
  /**
   * What QEMU says, or null when there is no QEMU, it does not answer or says what `QMPVMStatus` does
   * not have. `save-vm` and `debug` are told as `paused`, `internal-error` as `io-error`.
   */
  qmpStatus: QMPVMStatus | null
  pid: number | null
  /** Seconds since QEMU started. */
  uptime: number | null
  processAlive: boolean
  /** QEMU is there, but its monitor is not connected or did not answer within a second. */
  unresponsive: boolean
  /** What ails a VM that lives; null when nothing does. */
  condition: VMCondition | null
  /**
   * How many events of this QEMU were dropped because they came faster than they could be taken (a
   * flood); what they meant for the status was asked for instead.
   */
  missedEvents: number
  /**
   * Whether row and process agree: `running`, `suspended` and `paused` go with a QEMU, `off` and
   * `error` with none, any other status with both.
   */
  consistent: boolean
  tapDevice: string | null
  qmpSocketPath: string | null
  /** Why the last QEMU ended; also after a restart of your process. */
  lastExit?: VMExitCause
}

/**
 * What ails a VM that lives, and since when the library knows. It ends when the guest goes on, and
 * `getEventHandler()` emits every change as `vm:condition`.
 *
 * - `io-error`: a disk's request failed on the host and QEMU stopped the guest. `device` as in
 *   `queryBlockDevices`, if QEMU says which. Make space (or mend the disk), then `getQMPClient(id).cont()`:
 *   the guest's request is tried again.
 * - `guest-panicked`: the guest's kernel gave up. QEMU goes on; `info` is what the guest told of it.
 * - `watchdog`: the guest did not serve its watchdog device; `action` is what QEMU does about it.
 * - `internal-error`: QEMU stopped the guest because of a defect of QEMU or KVM.
 * - `network-lost`: the guest goes on, but its TAP is on no bridge. `bridge` is the one it left. `bridge-gone`: there
 *   is none of that name any more; the TAP joins it by itself as soon as there is one, whoever makes it.
 *   `taken-off`: somebody took the TAP off a bridge that is still there, and it is left so until somebody puts it
 *   on one (`TapDeviceManager.attachToBridge`). `tap-gone`: the TAP itself was deleted; `restartVM` makes a new one.
 * - `unresponsive`: QEMU's monitor does not answer (stopped, hanging in the kernel). A forced stop ends
 *   it all the same.
 *
 * Of several the worst is told: `unresponsive`, then what keeps the guest from going on, then `network-lost`.
 */
export type VMCondition =
  | { kind: 'io-error', reason: 'nospace' | 'other', device?: string, since: Date }
  | { kind: 'guest-panicked', info?: Record<string, unknown>, since: Date }
  | { kind: 'watchdog', action: string, since: Date }
  | { kind: 'internal-error', since: Date }
  | { kind: 'network-lost', reason: 'bridge-gone' | 'taken-off' | 'tap-gone', bridge: string, since: Date }
  | { kind: 'unresponsive', since: Date }

/** Payload of `vm:condition`. */
export interface VMConditionEvent {
  vmId: string
  /** Null when nothing ails it any more. */
  condition: VMCondition | null
  previous: VMCondition | null
  timestamp: Date
}

/** Why a QEMU ended. */
export interface VMExitCause {
  /**
   * QEMU's own reason, if it gave one (`guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`,
   * `host-signal`, …), or `oom-killed` (by the kernel, which ran out of memory; proven, see `evidence`),
   * `watchdog`, `signal`, `exit-code`, `host-kill` (killed by us), `host-reboot`, `unknown` (it was not
   * our child, or nobody watched).
   */
  reason: string
  /** When that was noticed. */
  endedAt?: Date
  /** What proves a reason that QEMU did not give itself: a counter of its cgroup, or the kernel's words. */
  evidence?: string
  /** What the guest told of its panic. */
  panic?: Record<string, unknown>
  /** The signal's number, with `signal` and `oom-killed`. */
  signal?: number
  /** With `exit-code`. */
  exitCode?: number
  /** QEMU's last words of a crash, at most 8 KiB. */
  stderr?: string
}

/** How a program in the guest is run. */
export interface GuestExecOptions {
  /** Milliseconds the program may run, at most a week. Default 30000. */
  timeout?: number
  /** Ignored: the guest agent has no such thing. */
  cwd?: string
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
/** Whether it is one of {@link DBVMStatus}. */
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

/** A rule as you write it. What makes no sense is refused with the path of each such member. */
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
  /** Absent: any state. At least one must be true. With any protocol: `icmp` has states too. */
  connectionState?: ConnectionStateConfig | null
  /** Takes the place of an equal rule of the department (protocol, direction, ports, addresses). */
  overridesDept?: boolean
}

/** The states of a connection that a rule is for (conntrack's words): those that are true. */
export interface ConnectionStateConfig {
  established?: boolean
  new?: boolean
  related?: boolean
  invalid?: boolean
}

/** What came of loading a machine's rules. */
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

/** What is, or would be, loaded for a machine. Each rule's comment is its name. */
export interface FirewallPlan extends FirewallApplyResult {
  vmId: string
  /** The port its frames pass. */
  tapName: string
  /** What happens to a packet no rule decides. */
  defaultAction: FirewallDefaultAction
  /**
   * The chains its packets pass: the hooks (`output` only tells DHCP answers of the host's side), `from_…` and `to_…` (anti-spoofing, and what every machine is
   * allowed), `dept_…` (the department's rules, which machines share), `vm_…` (its own rules).
   */
  chains: { name: string; hook?: 'prerouting' | 'postrouting' | 'output'; rules: string[] }[]
  /** The table with this machine alone in it, in nft's syntax: `nft -f` reads it. */
  text: string
  /** The transaction, as `nft -j -f` is given it (libnftables-json). */
  json: { nftables: object[] }
}

/** Whom a {@link FirewallPreset} is for. Addresses are IPv4 or IPv6, alone or as a network, `10.0.0.0/8`. */
export interface FirewallPresetOptions {
  /** Who connects. Absent: anybody. An empty list: nobody, which is no rule. */
  from?: string | string[]
  /** What is connected to. Absent: any address. */
  to?: string | string[]
  /** `IN`: the machine offers the service; `OUT`: it uses it elsewhere. Default `IN`. */
  direction?: 'IN' | 'OUT' | 'INOUT'
  /** Default `ACCEPT`. */
  action?: 'ACCEPT' | 'DROP' | 'REJECT'
  /** Lower comes first. Default 500. */
  priority?: number
  /** As in {@link FirewallRuleInput}. Default false. */
  overridesDept?: boolean
}

/** A service by its ports. */
export interface FirewallService {
  /** What the rules are called. */
  name: string
  /** At least one. `lastPort` makes it all ports from `port` on. */
  ports: { protocol: 'tcp' | 'udp'; port: number; lastPort?: number }[]
}

/**
 * Makes the rules for a service: one for each port, each `from` and each `to`. The same options make the
 * same rules, ids included.
 * @throws NftablesError `INVALID_IP_ADDRESS`, `INVALID_SUBNET_MASK`, `INVALID_PORT_RANGE`, `RULE_INVALID`;
 * LifecycleError `INVALID_CONFIG` for options of another shape
 */
export type FirewallPreset = (options?: FirewallPresetOptions) => FirewallRuleInput[]

/**
 * `ssh` 22/tcp, `http` 80/tcp, `https` 443/tcp, `rdp` 3389/tcp and udp, `vnc` 5900-5903/tcp.
 * @example setFirewallRules(id, [...firewallPresets.ssh({ from: '10.0.0.0/8' }), ...firewallPresets.https()])
 */
export const firewallPresets: Readonly<Record<'ssh' | 'http' | 'https' | 'rdp' | 'vnc', FirewallPreset>>

/**
 * A preset of one's own.
 * @example defineFirewallPreset({ name: 'PostgreSQL', ports: [{ protocol: 'tcp', port: 5432 }] })
 * @throws as a preset does
 */
export function defineFirewallPreset(service: FirewallService): FirewallPreset

/** A machine of the department whose rules are applied. */
export interface DepartmentMachine {
  vmId: string
  tapName: string
  /** The machine's own rules; default none. */
  vmRules?: FirewallRuleInput[]
  /** What happens to a packet no rule decides; default `drop`. */
  defaultAction?: FirewallDefaultAction
  /** As in `applyRules`. */
  addresses?: string[]
}

/** What became of one machine of a department: one of `result` and `error` is there. */
export interface DepartmentApplyResult {
  vmId: string
  /** What is in force now. */
  result?: FirewallApplyResult
  /** Why the old rules still are. `code` is an NftablesError's or a ProcessError's. */
  error?: { code: string; message: string }
}

/** What {@link NftablesService} is made with. */
export interface NftablesServiceConfig {
  /** As in {@link InfinizationConfig}. */
  bridgeConntrackMode?: 'fail' | 'degrade'
  /** As in {@link InfinizationConfig}. */
  hostServices?: HostService[]
  /**
   * `true`: what is loaded is kept in `persistenceDir`; `false`: it is not. Default: as the environment's
   * `INFINIZATION_FIREWALL_PERSISTENCE_DIR` says, which is not, where it is not set.
   */
  enablePersistence?: boolean
  /** Where. Default: the environment's directory, else {@link NFTABLES_PERSISTENCE_DIR}. */
  persistenceDir?: string
}

/**
 * The firewall of one machine at a time. The verbs do all of this by themselves.
 *
 * Everything a machine sends or receives is filtered, whatever it talks to; a TAP called `vnet-*`
 * without rules is closed. Changes are atomic: on an error the old rules are in force. Changes of one machine
 * take effect in the order of the calls, whichever instance they are made on; changes of several that are
 * asked for at once share a transaction. Failures are
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
  /**
   * Sends the port's frames through the machine's chains; without chains it is `COMMAND_FAILED`. Rules that
   * this process has loaded for the port are loaded again with it. Every port that leads there meets the same
   * rules, and may send from the machine's MAC address only.
   */
  attachJumpRules(vmId: string, tapName: string): Promise<void>
  /**
   * Closes the machine's ports; the chains and their rules stay for the day it is attached again. Never
   * rejects: what fails is a warning.
   */
  detachJumpRules(vmId: string): Promise<void>
  /**
   * Loads everything of the machine in one transaction: chains, rules, dispatch. A rule that makes no
   * sense is reported in the result and the others are in force.
   * @param departmentRules stand before the machine's own of the same priority. Machines with the same ones
   * share the chains they stand in (`dept_in_…`, `dept_out_…`), unless own rules come between
   * @param defaultAction what happens to a packet no rule decides; default `drop`
   * @param addresses the only ones the machine may use, as in {@link VMCreateConfig}: for one that no
   * {@link Infinization} has made. Default: those it was created with, or `setAddresses` has given it; a machine of an
   * instance has those again when that loads its rules the next time
   * @throws NftablesError `RULE_INVALID` (more than 20000 rules), `CONNTRACK_UNAVAILABLE`; NetworkError
   * when the bridge's addresses cannot be read
   */
  applyRules(
    vmId: string,
    tapName: string,
    departmentRules: FirewallRuleInput[],
    vmRules: FirewallRuleInput[],
    defaultAction?: FirewallDefaultAction,
    addresses?: string[]
  ): Promise<FirewallApplyResult>
  /**
   * As `applyRules`, unless this process has loaded exactly that and the kernel still holds it: then `changed` is
   * false, and there is no `result`. That costs no program if nobody else has changed the table since. What another
   * process has loaded is loaded again, as nothing tells what was made of it meanwhile; an open {@link Infinization}
   * of that process, too, loads its own again and tells `firewall-repaired`, unless it has read what these chains
   * said since it loaded them and they say the same.
   */
  applyRulesIfChanged(
    vmId: string,
    tapName: string,
    departmentRules: FirewallRuleInput[],
    vmRules: FirewallRuleInput[],
    defaultAction?: FirewallDefaultAction,
    addresses?: string[]
  ): Promise<{ changed: boolean; result?: FirewallApplyResult }>
  /**
   * `applyRules` for a department's machines, in one transaction. Where only the department's rules change,
   * that is a small one however many machines there are. If the kernel refuses it, it is done machine by
   * machine; what became of each is told in their order.
   * @throws as `applyRules`, before anything is changed
   */
  applyDepartmentRules(
    departmentRules: FirewallRuleInput[],
    machines: DepartmentMachine[]
  ): Promise<DepartmentApplyResult[]>
  /** What `applyRules` would load, with the same arguments and errors. Nothing is changed. */
  planRules(
    vmId: string,
    tapName: string,
    departmentRules: FirewallRuleInput[],
    vmRules: FirewallRuleInput[],
    defaultAction?: FirewallDefaultAction,
    addresses?: string[]
  ): Promise<FirewallPlan>
  /**
   * Removes the user's rules: the machine is closed then, but for what every one is allowed. Never rejects:
   * what fails is a warning.
   */
  flushVMRules(vmId: string): Promise<void>
  /**
   * Removes the machine's chains and what leads to them; fine if there are none. Never rejects: what fails
   * is a warning.
   */
  removeVMChain(vmId: string): Promise<void>
  /** The same, by the visible chain's name (`vm_…`). Other names are left alone, with a warning. */
  removeVMChainByName(chainName: string): Promise<void>
  /** The names of all chains of the table, helpers included; none if there is no table. */
  listChains(): Promise<string[]>
  /** Whether the table has a chain of this name. */
  chainExists(chainName: string): Promise<boolean>
  /**
   * The visible chains (`vm_…`) of no machine that this instance knows: what `removeVMChainByName` is for.
   * `initialize()` of {@link Infinization} tells them as the health monitor's `firewall-orphans`.
   * @throws LifecycleError `INVALID_STATE` without an instance: nobody knows the machines then
   */
  listOrphanedChains(): Promise<string[]>
  /**
   * Forgets that the machine's rules are in force: the next `applyRulesIfChanged` asks the kernel, and loads them
   * unless they are there as they were loaded.
   * @throws LifecycleError `INVALID_CONFIG` for what is no id
   */
  clearRulesCache(vmId: string): void
  /** The files of the firewall; of {@link NFTABLES_PERSISTENCE_DIR} where nothing is kept. */
  getPersistence(): NftablesPersistence
  /** Writes the table now. `success` is false where nothing is kept, or it failed. */
  forcePersist(): Promise<{ success: boolean; error?: string }>
}

/** What {@link NftablesPersistence} is made with. */
export interface PersistenceConfig {
  /** An absolute path. Default {@link NFTABLES_PERSISTENCE_DIR}. It is made when it is first written to. */
  persistenceDir?: string
  /** Keep the file before the last as `infinization.nft.bak`. Default true. */
  createBackup?: boolean
  /** Exclude other writers by a lock on `.lock`, which is waited for up to 10 s. Default true. */
  useLocking?: boolean
}

/** What became of a write. */
export interface PersistenceResult {
  success: boolean
  filePath: string
  timestamp: Date
  /** Why not. */
  error?: string
}

/** What became of a load. */
export interface RestoreResult {
  success: boolean
  /** How many rules the table has now. */
  rulesLoaded: number
  timestamp: Date
  /** Why not. */
  error?: string
}

/** What is kept, and what is in force. */
export interface PersistenceStatus {
  persistenceDir: string
  mainFileExists: boolean
  backupFileExists: boolean
  mainFileModified?: Date
  /** Whether the kernel has the table. */
  tableExists: boolean
}

/**
 * The firewall's table as a file that `nft -f` loads (`infinization.nft`, mode 0644), replaced as a
 * whole; beside it `default-deny.nft`, which closes every `vnet-*` port. Loading it any number of times gives the same: it takes the place of the table in one
 * transaction. None of the methods rejects; arguments that make no sense are an `error` too.
 */
export class NftablesPersistence {
  /** Touches nothing. */
  constructor(config?: PersistenceConfig)
  /** Writes what the kernel holds. Without a table, the file stays as it is and `success` is false. */
  exportToDisk(): Promise<PersistenceResult>
  /**
   * Loads the file. One that cannot be loaded changes nothing, and leaves every `vnet-*` port without rules
   * closed. An instance then sees to it that its running machines have their own rules.
   */
  restoreFromDisk(): Promise<RestoreResult>
  hasPersistenceFile(): Promise<boolean>
  /** Removes the file, not its backup; false if there was none. */
  removePersistenceFile(): Promise<boolean>
  /** Loads the backup; if that succeeds, it takes the file's place. */
  rollbackToBackup(): Promise<RestoreResult>
  getStatus(): Promise<PersistenceStatus>
}

/** What {@link installFirewallService} is given. */
export interface FirewallServiceOptions {
  /** Where the firewall is kept: as `firewallPersistenceDir`. Default {@link NFTABLES_PERSISTENCE_DIR}. */
  persistenceDir?: string
  /** Where systemd looks. Default `/etc/systemd/system`. */
  unitDir?: string
  /** Have it started at boot and with `nftables.service`, as `systemctl enable` does. Default true. */
  enable?: boolean
}

/** What was installed. */
export interface FirewallServiceFiles {
  /** `infinization-nftables.service`. */
  unitFile: string
  /** What the unit loads first: every `vnet-*` port without rules is closed. */
  defaultDenyFile: string
  /** What it loads then, if it is there. */
  mainFile: string
  /** The link that has it started at boot; none with `enable: false`. */
  enabledBy?: string
}

/**
 * Installs a systemd unit that loads the firewall when the host boots, before there is a network. It
 * needs no Node. If the file is missing it does nothing; if it cannot be loaded, every `vnet-*` port is closed
 * and the unit has failed. It does so again whenever `nftables.service` is started, restarted or reloaded, which
 * flushes everything; a reload it hears of only while it is active, which it is not before the first boot that finds the
 * file: start it once (`systemctl start infinization-nftables.service`) as soon as the file is there. Files that are there already are replaced. systemd finds the unit at the next boot,
 * or after `systemctl daemon-reload`.
 * @throws LifecycleError `INVALID_CONFIG`; ProcessError `HOST_FILE`
 */
export function installFirewallService(options?: FirewallServiceOptions): Promise<FirewallServiceFiles>

/**
 * The unit's text, for installing it by other means. What it loads is in `persistenceDir` as soon as the firewall was
 * written there once. @throws LifecycleError `INVALID_CONFIG`
 */
export function firewallServiceUnit(options?: Pick<FirewallServiceOptions, 'persistenceDir'>): string

/** `/etc/infinization/nftables` */
export const NFTABLES_PERSISTENCE_DIR: '/etc/infinization/nftables'

/** How a virtual network reaches further than its bridge. */
export type VirtualNetworkMode = 'nat' | 'routed' | 'isolated'

/** A machine that always gets the same address. */
export interface DhcpHost {
  /** Its MAC address. */
  mac: string
  /** Its address: in the subnet, and not the gateway's. It may be outside `start` to `end`. */
  ip: string
  /**
   * What it is called in the network's DNS, if it is: a host name of one label; no word of dnsmasq's (`ignore`,
   * `infinite`), no number and no time (`5m`).
   */
  name?: string
}

/** Addresses for machines. */
export interface DhcpConfig {
  /** The first address that is given away. Default: the first one that is free. */
  start?: string
  /** The last. Default: the subnet's last but the broadcast address. */
  end?: string
  /** Seconds, 120 to 31536000. Default 3600. */
  leaseTime?: number
  /** Machines with an address of their own. Each MAC address, each address and each name once. */
  hosts?: DhcpHost[]
}

/** Names for machines. */
export interface NetworkDnsConfig {
  /** Answer on the gateway's address: the names of the network's machines, and those others know. Default true. */
  enabled?: boolean
  /** Whom to ask for other names, in an order of dnsmasq's. Default: whom the host asks; nobody if isolated. */
  servers?: string[]
  /** The machines' domain (`vms.example`). Default: none. */
  domain?: string
}

/** What {@link VirtualNetworks.create} is given. */
export interface VirtualNetworkConfig {
  /** 1 to 32 letters, digits, `-` and `_`, beginning with a letter or digit. */
  name: string
  /** IPv4, `10.20.0.0/24`; 8 to 29 bits, no host bits, private or not. */
  subnet: string
  /** The bridge's name. Default: `infinet-` and 6 hex digits of the name's SHA-256. */
  bridge?: string
  /** The bridge's own address. Default: the subnet's first. */
  gateway?: string
  /**
   * `nat` (default): out under the host's address; nobody comes in. `routed`: out and in under the machines'
   * own addresses; whoever answers must know the way. `isolated`: only the network itself and the host; no router is
   * announced.
   */
  mode?: VirtualNetworkMode
  /** `false`: no DHCP. Default: `{}`. */
  dhcp?: DhcpConfig | false
  /** `false`: no DNS. Default: `{}`. */
  dns?: NetworkDnsConfig | false
  /** Have `initialize()` start it. Default true. */
  autostart?: boolean
  /**
   * Machines may only use the address the network gave them: a static one from the start, else with the lease. Until then,
   * and when the address was given to another, they may use none, but ask for one. Of IPv6, which the network has not,
   * they may only use link-local addresses. A machine that is configured otherwise needs `addresses` of
   * {@link VMCreateConfig}. For machines that are made by this instance, on the network's bridge. Default false.
   */
  pinAddresses?: boolean
}

/** Each may be left out, and then stays; `null` is what would have been chosen. */
type Changes<T> = { [Field in keyof T]?: T[Field] | null }

/**
 * What {@link VirtualNetworks.update} is given: a merge patch (RFC 7396) of {@link VirtualNetworkConfig}. `dhcp` and
 * `dns` are changed field by field, lists as a whole; `false` switches a part off, `{}` on again.
 */
export type VirtualNetworkChanges = Changes<Omit<VirtualNetworkConfig, 'name' | 'bridge' | 'dhcp' | 'dns'>> & {
  dhcp?: Changes<DhcpConfig> | false | null
  dns?: Changes<NetworkDnsConfig> | false | null
}

/**
 * How a network is. `failed`: `error` says why. dnsmasq that has ended is started again by itself; what else has
 * failed, by `start`.
 */
export type VirtualNetworkState = 'active' | 'inactive' | 'failed'

/** A network, with what was chosen for it. */
export interface VirtualNetwork {
  name: string
  state: VirtualNetworkState
  /** Why it is not active, though it is to be. */
  error?: string
  bridge: string
  subnet: string
  gateway: string
  mode: VirtualNetworkMode
  dhcp: Required<DhcpConfig> | false
  dns: Required<Omit<NetworkDnsConfig, 'domain'>> & { domain?: string } | false
  autostart: boolean
  pinAddresses: boolean
  /** dnsmasq's process, while there is one. */
  pid?: number
  /** How often dnsmasq has ended by itself since this process looks after it. */
  restarts: number
}

/** An address that was given away. */
export interface DhcpLease {
  mac: string
  ip: string
  /** What the machine calls itself, if it does. */
  hostname?: string
  /** When it ends, unless it is renewed. */
  expiresAt?: Date
}

/**
 * Networks of this instance's own: a bridge, its address, DHCP and DNS by a dnsmasq that is looked after,
 * NAT. Nothing of it runs unless it is asked for. Networks go on when your process ends or is killed; the next
 * `initialize()` with the same `stateDir` looks after them again.
 *
 * Calls on one network are served in order. Each rejects with LifecycleError `INVALID_STATE` or `CLOSED` when the
 * instance is not open, and `INVALID_CONFIG` for what is malformed.
 */
export interface VirtualNetworks {
  /**
   * Makes a network and starts it. If that fails, nothing of it is left, unless machines have joined its bridge
   * meanwhile, or something of it cannot be removed: then it stays listed, as the error's message says.
   * @throws NetworkError `NETWORK_ALREADY_EXISTS`, `SUBNET_OVERLAPS` (another network's, or one of the host's),
   * `BRIDGE_ALREADY_EXISTS` (a link of the name is there and not ours), `DHCP_START_FAILED` (`context.stderr`);
   * ProcessError `PROGRAM_NOT_FOUND` (no dnsmasq); NftablesError, as in {@link DepartmentNatService}
   */
  create(config: VirtualNetworkConfig): Promise<VirtualNetwork>
  /** All of them, by name. */
  list(): Promise<VirtualNetwork[]>
  /** @throws NetworkError `NETWORK_NOT_FOUND` */
  get(name: string): Promise<VirtualNetwork>
  /** Starts a network that is not active. @throws as `create`, and `NETWORK_NOT_FOUND` */
  start(name: string): Promise<VirtualNetwork>
  /**
   * Stops it: bridge, dnsmasq and NAT go, leases stay. Machines on it lose their network until it is started and
   * they are plugged in again. @throws NetworkError `NETWORK_NOT_FOUND`, `NETWORK_IN_USE` (its bridge has ports)
   */
  stop(name: string): Promise<VirtualNetwork>
  /**
   * Changes it, also while machines are on it: all that is asked for, or nothing. Guard, NAT and pinned addresses follow
   * at once. dnsmasq is replaced where it is told other things; it keeps its leases, and machines hear of new ones when
   * they renew. Another `subnet` or `gateway` needs a bridge without ports, and usually `gateway: null` and
   * `dhcp: { start: null, end: null }`, which were chosen for the old one. `name` and `bridge` stay: machines know the
   * network by them.
   * @throws NetworkError `NETWORK_NOT_FOUND`, `NETWORK_IN_USE` (another subnet or gateway, and its bridge has ports), else as
   * `create`; after any of them it is as it was
   */
  update(name: string, changes: VirtualNetworkChanges): Promise<VirtualNetwork>
  /** Stops it and forgets it; fine if there is none. @throws NetworkError `NETWORK_IN_USE` */
  remove(name: string): Promise<void>
  /** The leases that have not expired, by address. @throws NetworkError `NETWORK_NOT_FOUND` */
  leases(name: string): Promise<DhcpLease[]>
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

/**
 * Lets subnets out under the host's address. Table `ip infinibay_nat`, chain `postrouting`, one rule per
 * bridge: `ip saddr <subnet> oifname != <bridge> masquerade comment "dept-<bridge>"`; rules of others in
 * it are left alone. Before it stands `between-<bridge>`: what a subnet sends to another bridge that has such rules keeps
 * its address, so that a receiver's rules can tell its sender by it, if it came in by its own bridge (Linux 5.7). Every change is one transaction. What this process has set up is put back when
 * another program takes it away, as long as an {@link Infinization} is open; it does not outlive the
 * host. A bridge's name is as in {@link BridgeManager}; another one is `INVALID_CONFIG` ("Invalid bridge
 * name for NAT: …"). Failures are NftablesErrors: `PERMISSION_DENIED`, `COMMAND_FAILED`, `RULESET_MISMATCH`.
 */
export class DepartmentNatService {
  /** Touches nothing. */
  constructor()
  /**
   * Switches IPv4 forwarding on, for the whole host, and makes table and chain. Idempotent.
   * @throws NftablesError `FORWARDING_FAILED`: nothing would be routed; nothing was changed
   */
  initialize(): Promise<void>
  /**
   * Traffic from the subnet that leaves by any other interface than the bridge, or another that is masqueraded, takes
   * the host's address.
   * Takes the place of the bridge's rule for another subnet; the same again costs nothing. Does what
   * `initialize` does where that was not done.
   * @param subnetCidr `a.b.c.d/n` with n from 1 to 32; host bits are cut off. What is none is
   * `INVALID_CONFIG` ("Invalid IPv4 subnet for NAT: …")
   * @throws NftablesError `FORWARDING_FAILED`
   */
  addMasquerade(subnetCidr: string, bridge: string): Promise<void>
  /** Fine when there is none. */
  removeMasquerade(bridge: string): Promise<void>
  /** Whether the bridge has a rule. False when that cannot be told, with a warning. */
  hasMasquerade(bridge: string): Promise<boolean>
  /** The bridges that have one. */
  listMasqueradeRules(): Promise<string[]>
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
   * that no process made by `create` in the last minute (the link's alias says when it was made).
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

/** What the kernel says of a link (`operstate`). */
export type NetworkDeviceState = 'up' | 'down' | 'unknown'
export const NetworkDeviceState: {
  readonly UP: 'up'
  readonly DOWN: 'down'
  readonly UNKNOWN: 'unknown'
}

/** Families of nftables' tables. */
export type NftablesFamily = 'bridge' | 'inet' | 'ip' | 'ip6'
export const NftablesFamily: {
  readonly BRIDGE: 'bridge'
  readonly INET: 'inet'
  readonly IP: 'ip'
  readonly IP6: 'ip6'
}

/** nftables' hooks. */
export type NftablesHookType = 'prerouting' | 'input' | 'forward' | 'output' | 'postrouting'
export const NftablesHookType: {
  readonly PREROUTING: 'prerouting'
  readonly INPUT: 'input'
  readonly FORWARD: 'forward'
  readonly OUTPUT: 'output'
  readonly POSTROUTING: 'postrouting'
}

/** What a base chain does with a packet that none of its rules decides. */
export type NftablesChainPolicy = 'accept' | 'drop'
export const NftablesChainPolicy: { readonly ACCEPT: 'accept'; readonly DROP: 'drop' }

// ---------------------------------------------------------------------------------------------------
// Images
// ---------------------------------------------------------------------------------------------------

/** The formats that images are made in, read and converted to. */
export type ImageFormat = 'qcow2' | 'raw' | 'vmdk' | 'vdi' | 'vhdx'
/** All of {@link ImageFormat}. */
export const SUPPORTED_IMAGE_FORMATS: readonly ImageFormat[]
/** Whether it is one of {@link ImageFormat}. */
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
  /** Encrypts it (LUKS in qcow2): 1 to 512 bytes of UTF-8 text, without NUL. Not with a `backingFile`. */
  encryptionKey?: string | Uint8Array
}

export interface ConvertImageOptions {
  sourcePath: string
  /** Default `qcow2`. It is never guessed: a guest can write any header into its disk. */
  sourceFormat?: ImageFormat
  /** Nothing may be there. */
  destPath: string
  destFormat: ImageFormat
  /** Compress the copy (qcow2 only; not if it is encrypted). Default false. */
  compress?: boolean
  /** The source's key, if it is encrypted. The copy (qcow2) is encrypted with it, whether or not the source is. */
  encryptionKey?: string | Uint8Array
  /** Write the copy of an encrypted image unencrypted. Default false: without a qcow2 copy it is `PLAIN_TEXT_REFUSED`. */
  decrypt?: boolean
}

export interface ResizeImageOptions {
  /** Default `qcow2`. */
  format?: ImageFormat
  /** Consent to lose what lies beyond a smaller size. Default false. */
  shrink?: boolean
  /** Of an encrypted image. */
  encryptionKey?: string | Uint8Array
}

export interface ImageKeyOptions {
  /** Of an encrypted image. */
  encryptionKey?: string | Uint8Array
}

export interface ChangeImageKeyOptions {
  /** The key there is. */
  encryptionKey: string | Uint8Array
  /** The key there will be. */
  newKey: string | Uint8Array
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

/** A copy that is watched. */
export interface CopyOptions extends Abortable {
  /** Told how much of the source's disk is done. */
  onProgress?: (progress: VolumeProgress) => void
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
 * an image that a process has open is `IMAGE_IN_USE` before anything else is said about it. What would need the key of an
 * encrypted image is `KEY_REQUIRED` without it and `AUTH_FAILED` with another; info needs none.
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
  /** @throws StorageError as `createImage`; what `onProgress` throws */
  convertImage(options: ConvertImageOptions & CopyOptions): Promise<void>
  /** @throws StorageError `INVALID_FORMAT` for formats without tables (raw), `IMAGE_NOT_FOUND` */
  checkImage(path: string, format?: ImageFormat, options?: ImageKeyOptions & Abortable): Promise<ImageCheckResult>
  /**
   * Changes the key of an encrypted qcow2. The new one is added and has opened the image before the old one is erased,
   * so that at every moment one of the two does; after a crash the call may be repeated. Takes some seconds: LUKS makes
   * keys slow to guess.
   * @throws StorageError `AUTH_FAILED` (`encryptionKey` is none of it; neither is `newKey` after a crash),
   * `KEY_REQUIRED`, `INVALID_FORMAT` (it is not encrypted, or has no free place for a key), `IMAGE_IN_USE`,
   * `IMAGE_NOT_FOUND`; LifecycleError `INVALID_CONFIG`
   */
  changeKey(path: string, options: ChangeImageKeyOptions): Promise<void>
}

export interface SnapshotCreateOptions extends ImageKeyOptions {
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
 * `COMMAND_FAILED`; of an encrypted image `KEY_REQUIRED` without its `encryptionKey` and `AUTH_FAILED` with another.
 * Listing needs none.
 */
export class SnapshotManager {
  /** Touches nothing. */
  constructor()
  /** @throws StorageError also `SNAPSHOT_ALREADY_EXISTS` */
  createSnapshot(options: SnapshotCreateOptions): Promise<void>
  /** Oldest first. */
  listSnapshots(imagePath: string): Promise<SnapshotInfo[]>
  /** Puts the disk back; what was written since is lost. @throws StorageError also `SNAPSHOT_NOT_FOUND` */
  revertSnapshot(imagePath: string, name: string, options?: ImageKeyOptions): Promise<void>
  /**
   * A copy (qcow2) of the disk as it was; of an encrypted one encrypted with the same key.
   * @throws StorageError also `IMAGE_ALREADY_EXISTS`, `ABORTED`; what `onProgress` throws
   */
  materializeSnapshot(sourcePath: string, name: string, destPath: string, options?: ImageKeyOptions & CopyOptions): Promise<void>
  /** Fine when there is no such snapshot. */
  deleteSnapshot(imagePath: string, name: string, options?: ImageKeyOptions): Promise<void>
  /** False for an image that does not exist; any other trouble rejects. */
  snapshotExists(imagePath: string, name: string): Promise<boolean>
}

// ---------------------------------------------------------------------------------------------------
// Backups
// ---------------------------------------------------------------------------------------------------

/**
 * `FULL` needs no other backup. `INCREMENTAL` holds what differs from its parent: of a running machine what a dirty bitmap
 * says, if QEMU kept one since; of a stopped one what is found by comparing both, which takes as long as reading them, or
 * nothing if the times of change (ctime) of the disk's files are those that the parent, which was made of the stopped
 * machine too, has noted. These count within one boot of the host, and on ext4, XFS, Btrfs, F2FS, ZFS and overlayfs. `SNAPSHOT` is an internal snapshot in each disk: quick, and gone when the disk is.
 */
export type BackupType = 'FULL' | 'INCREMENTAL' | 'SNAPSHOT'
export const BackupType: {
  readonly FULL: 'FULL'
  readonly INCREMENTAL: 'INCREMENTAL'
  readonly SNAPSHOT: 'SNAPSHOT'
}
export function isValidBackupType(type: unknown): type is BackupType

/** `PENDING` is never in a manifest. */
export type BackupStatus = 'PENDING' | 'IN_PROGRESS' | 'COMPLETED' | 'FAILED' | 'CANCELLED'
export const BackupStatus: {
  readonly PENDING: 'PENDING'
  readonly IN_PROGRESS: 'IN_PROGRESS'
  readonly COMPLETED: 'COMPLETED'
  readonly FAILED: 'FAILED'
  readonly CANCELLED: 'CANCELLED'
}
export function isValidBackupStatus(status: unknown): status is BackupStatus

/**
 * `QCOW2` compresses each cluster with deflate, `ZSTD` with Zstandard (read by QEMU 5.1 and later), `GZIP`
 * the file as a whole: nothing can build on such a backup.
 */
export type BackupCompression = 'NONE' | 'QCOW2' | 'GZIP' | 'ZSTD'
export const BackupCompression: {
  readonly NONE: 'NONE'
  readonly QCOW2: 'QCOW2'
  readonly GZIP: 'GZIP'
  readonly ZSTD: 'ZSTD'
}

export const DEFAULT_BACKUP_DIR: '/var/lib/infinization/backups'
export const DEFAULT_BACKUP_TYPE: 'FULL'
export const DEFAULT_BACKUP_COMPRESSION: 'NONE'
/** How many complete backups a schedule keeps. */
export const DEFAULT_RETENTION_COUNT: 5
/** How many backups are made at a time in this process; the others wait for their turn. */
export const MAX_CONCURRENT_BACKUPS: 2
export const BACKUP_MANIFEST_FILENAME: 'backup.json'

/** Whether a machine runs; null, or no answer in 30 s, when that is not known, which is refused as if it did. */
export type IsVmRunningProbe = (vmId: string) => Promise<boolean | null> | boolean | null

/** What freezes and thaws a guest's file systems: a `GuestAgentClient`, for example. */
export interface GuestQuiesce {
  /** How many file systems were frozen. */
  fsFreeze(): Promise<number>
  fsThaw(): Promise<number>
  isConnected?(): boolean
  /** Called first where `isConnected()` says false. */
  connect?(): Promise<void>
  /** Called after the thaw. */
  disconnect?(): Promise<void>
}
export type GuestAgentFactory = (vmId: string) => Promise<GuestQuiesce | null> | GuestQuiesce | null

export interface BackupServiceOptions {
  /** Default {@link DEFAULT_BACKUP_DIR}. */
  backupRootDir?: string
  /** Without one a disk counts as free unless a process has it open. */
  isVmRunning?: IsVmRunningProbe
  /** Without one, or when it gives null, a running machine is copied as after a power cut. */
  guestAgentFactory?: GuestAgentFactory
  /**
   * Whose monitors are used for running machines, and whose external snapshots are kept whole: a frozen layer is neither
   * copied nor replaced (`INVALID_CONFIG`, with its `diskPath`). It must be initialized. Default: every instance of this
   * process.
   */
  infinization?: Infinization
}

export interface BackupConfig {
  vmId: string
  /** Absolute, at least one; their order is the disks' order. */
  diskPaths: string[]
  /**
   * One for each of `diskPaths`; never guessed. Default: all `qcow2`. Refused (`INVALID_CONFIG`) where a running machine's
   * QEMU has another.
   */
  diskFormats?: Array<'qcow2' | 'raw'>
  /** Where the folder `<backupId>` is made. Usually `<backupRootDir>/<vmId>`; no symbolic link. */
  destinationDir: string
  type: BackupType
  /** Default `NONE`. Encrypted disks are never compressed: what is encrypted does not get smaller. */
  compression?: BackupCompression
  description?: string
  /** What an `INCREMENTAL` one builds on: complete, not `GZIP`, with as many disks. */
  parentBackupId?: string
  tags?: string[]
  /**
   * The keys of encrypted disks, by their paths. Of others the `infinization` is asked: it has the keys of machines that it
   * started, and those that its embedded store keeps. Their files are encrypted with them, and nobody keeps the keys: without
   * them a backup is lost.
   */
  diskKeys?: Record<string, string | Uint8Array>
}

export interface BackupDiskInfo {
  sourcePath: string
  /** Of a `SNAPSHOT` the snapshot's name. */
  backupPath: string
  /** The disk's size as the guest sees it, in bytes. */
  originalSize: number
  /** The file's length in bytes. */
  backupSize: number
  /** The file's format, before gzip. */
  format: string
  /** What the disk was, and is again when it is restored. */
  sourceFormat: string
  /** The parent's file. */
  backingFile?: string
  /** The file is encrypted (LUKS in qcow2): the key opens it that the disk had. */
  encrypted?: boolean
  /** The file's SHA-256, of backups that an older release made. */
  sha256?: string
  /** The file's BLAKE3, as `b3sum` says it. None of a `SNAPSHOT`. */
  blake3?: string
}

/** Times are ISO 8601, UTC. */
export interface BackupMetadata {
  id: string
  vmId: string
  type: BackupType
  status: BackupStatus
  /** Counts the machine's backups, from 1: what is newer, whatever the clock said. */
  sequence?: number
  createdAt: string
  completedAt?: string
  durationMs?: number
  disks: BackupDiskInfo[]
  /** Of all files, in bytes. */
  totalSize: number
  /** Of all disks as the guest sees them, in bytes. */
  totalOriginalSize: number
  compression: BackupCompression
  description?: string
  tags?: string[]
  parentBackupId?: string
  errorMessage?: string
  runningAtBackup?: boolean
  /** It ran, and its file systems were not frozen. */
  crashConsistent?: boolean
}

export interface BackupResult {
  success: boolean
  backupId: string
  vmId: string
  type: BackupType
  disks: BackupDiskInfo[]
  totalSize: number
  durationMs: number
  /** Never set: a failure rejects. */
  error?: string
}

export interface BackupRestoreOptions {
  backupId: string
  vmId: string
  /** Where the disks go, in the backup's order. */
  diskPaths: string[]
  /** Replaces what is there. Default false. */
  overwriteExisting?: boolean
  /** Accepted, without effect: a machine is stopped and started by whoever runs it. */
  autoStopStart?: boolean
  /** Lets a `SNAPSHOT` be restored by reverting the disks it is in. Needs `overwriteExisting`, too. */
  allowInPlaceSnapshotRevert?: boolean
  /**
   * What opens the backup of encrypted disks, by the paths they go to (one of `diskPaths`): the keys they had when it was made.
   * They are encrypted with them again. Of others the `infinization` is asked, as in `createBackup`.
   */
  diskKeys?: Record<string, string | Uint8Array>
}

export interface BackupRestoreResult {
  success: boolean
  backupId: string
  vmId: string
  restoredDiskPaths: string[]
  durationMs: number
  /** Never set: a failure rejects. */
  error?: string
}

/**
 * How far a backup, a restore or a look at a backup is, told with every half percent, and with every second that brought
 * anything. Each disk's work is a series of steps (copying, comparing, packing, summing; summing, unpacking, writing),
 * which have fixed shares; within a step it is bytes that count. Neither figure ever goes back. `overallProgress` is 100
 * once, the last time: when the backup is complete on disk, the restored disks are in place, or every file was found to
 * be what was written.
 */
export interface BackupProgress {
  backupId: string
  vmId: string
  /** The disk that is worked on, from 0; of several that are copied at once the first that is not done. */
  currentDisk: number
  totalDisks: number
  /** Of that disk's own work, 0 to 100. */
  diskProgress: number
  /** 0 to 100, of all disks by their size. Below 100 until all is done. */
  overallProgress: number
  /** In milliseconds; a guess from the time so far. */
  estimatedTimeRemainingMs?: number
}

/** How a backup is looked at. */
export interface VerifyBackupOptions extends Abortable {
  /**
   * Told how far it is; `progress` is not emitted. Where there is damage it ends below 100. What it throws ends the call
   * with that.
   */
  onProgress?: (progress: BackupProgress) => void
}

/** Whether every file a backup needs is what was written. */
export interface BackupVerification {
  valid: boolean
  /** How many backups it needs, itself included; 0 when that could not be found out. */
  links: number
  problems: string[]
}

export interface BackupServiceEvents {
  /** Of a backup or a restore, not of `verifyBackup`. */
  progress: [BackupProgress]
  /** A backup is complete, has failed or was cancelled. */
  completed: [BackupMetadata]
  restored: [BackupRestoreResult]
}

/**
 * Backups of machines' disks, each in a folder of its own with a manifest of checksums.
 *
 * A stopped machine's disks are copied by `qemu-img`, all as they were at one moment: until the last is copied
 * the machine cannot be started. An incremental backup stores what differs from its parent, found by
 * comparing. A running machine's are copied by its own QEMU, all at one moment, with
 * its file systems frozen if its guest can; for that an {@link Infinization} of this process must have
 * its monitor, else it is `VM_RUNNING`. Incremental ones then copy what a dirty bitmap has marked
 * since the parent; where there is no such bitmap, everything is copied and compared.
 *
 * A failure, a cancellation or the end of this process at any moment leaves every complete backup whole.
 * What such an end leaves is cleared by the next verb on the machine's backups. What QEMU goes on copying, or a
 * guest that is still frozen, is seen to by the next {@link Infinization} that has the machine: it ends the copies, and
 * thaws the guest through the machine's guest agent socket. Failures are {@link BackupError}s.
 *
 * One verb at a time changes a machine's backups. Others of this process wait; while another process
 * is at it, they fail with `OPERATION_FAILED`. Keep a machine's backups below one root: live ones below a second wait
 * as well, but each has the other's next `INCREMENTAL` one copy everything and compare.
 */
export class BackupService extends EventEmitter<BackupServiceEvents> {
  /** Touches nothing. */
  constructor(options?: BackupServiceOptions)
  /** How many backups are being made by this instance, those that wait included. */
  get activeBackupCount(): number
  /**
   * @throws BackupError `VM_RUNNING`, `DISK_NOT_FOUND`, `INVALID_CONFIG`, `INVALID_DESTINATION`,
   * `PARENT_NOT_FOUND`, `CORRUPT_BACKUP` (the parent), `INSUFFICIENT_SPACE`, `CANCELLED`, `OPERATION_FAILED`,
   * `KEY_REQUIRED` (nobody has an encrypted disk's key; a `SNAPSHOT` of one), `AUTH_FAILED` (it is another),
   * `PLAIN_TEXT_REFUSED` (an encrypted disk that `diskFormats` calls raw). With `context.needsFull` an `INVALID_CONFIG` says
   * that a disk has been given another key since the parent.
   */
  createBackup(config: BackupConfig & Abortable): Promise<BackupResult>
  /**
   * All disks or none, also where this process is killed: then the next verb on the machine's backups, or its next start,
   * finishes or undoes it, unless the disks were used since. While that cannot be done, as a disk is not there now, say,
   * backups of these disks and restores to them are refused (`OPERATION_FAILED`, with `context.journal`). The machine must
   * be known to be stopped.
   * @throws BackupError `VM_RUNNING`, `BACKUP_NOT_FOUND`, `CORRUPT_BACKUP`, `PARENT_NOT_FOUND`,
   * `TARGET_EXISTS`, `INVALID_CONFIG`, `INSUFFICIENT_SPACE`, `CANCELLED`, `OPERATION_FAILED`, `KEY_REQUIRED` and
   * `AUTH_FAILED` (of an encrypted backup; nothing was begun)
   */
  restoreBackup(options: BackupRestoreOptions & Abortable): Promise<BackupRestoreResult>
  /**
   * Newest first. A manifest that cannot be read is left out, with a warning in the log. One whose process is gone is
   * `FAILED`; files that QEMU still has open stay until the next verb after that has ended.
   */
  listBackups(vmId: string): Promise<BackupMetadata[]>
  /**
   * Of a `SNAPSHOT` the snapshots go first, in the disks that are still there; a disk that a running machine has
   * under an external snapshot is `VM_RUNNING`, and then the backup stays.
   * @throws BackupError `BACKUP_NOT_FOUND`, `DEPENDENCY` (others build on it), `VM_RUNNING` (a `SNAPSHOT`)
   */
  deleteBackup(backupId: string, vmId: string): Promise<void>
  /**
   * @param vmIdHint whose it is; without it every machine's are looked through
   * @throws BackupError `BACKUP_NOT_FOUND`, `CORRUPT_BACKUP` (the manifest)
   */
  getBackupMetadata(backupId: string, vmIdHint?: string): Promise<BackupMetadata>
  /**
   * Reads every file and compares checksums: needs no key, and does not say whether one opens it.
   * @throws BackupError `BACKUP_NOT_FOUND`, `CANCELLED`, `INVALID_CONFIG`; what `onProgress` throws
   */
  verifyBackup(backupId: string, vmId: string, options?: VerifyBackupOptions): Promise<BackupVerification>
}

export interface BackupSchedule {
  id: string
  vmId: string
  /** Default: what the `diskPathResolver` says. */
  diskPaths?: string[]
  /**
   * An `INCREMENTAL` schedule makes every seventh backup, and the first, a `FULL` one; also, with a process
   * warning, one whose parent is damaged or gone.
   */
  type: BackupType
  /** Whatever the adapter takes; five fields where none is given. */
  cronExpression: string
  /**
   * How many complete backups of this schedule stay; 0 keeps all. One that another which stays builds on
   * stays as well. Its backups are those whose `tags` are `['scheduled', id]`; it deletes no others.
   * One that cannot be deleted is a process warning, and is tried again after the next run.
   */
  retentionCount: number
  destinationDir: string
  compression?: BackupCompression
  enabled: boolean
  label?: string
  /** When its last run began. */
  lastRunAt?: string
  /** When its next run is due; while one is under way, when that was. */
  nextRunAt?: string
}

export interface ScheduledJob {
  stop(): void
  getNextRunDate(): string | undefined
}

/** Runs `callback` whenever `cronExpression` says; throws if it makes no sense. */
export interface ScheduleAdapter {
  schedule(cronExpression: string, callback: () => void): ScheduledJob
}

/** The disks of a machine. A run that has no answer in 60 s fails. */
export type DiskPathResolver = (vmId: string) => Promise<string[]> | string[]

export interface BackupSchedulerOptions {
  backupRootDir?: string
  diskPathResolver?: DiskPathResolver
}

export interface BackupSchedulerEvents {
  'schedule:started': [BackupSchedule]
  'schedule:completed': [BackupSchedule, BackupMetadata]
  'schedule:failed': [BackupSchedule, Error]
}

/**
 * Makes backups when schedules say so. A tick is skipped while the schedule's previous run is under way.
 * Every run ends in `schedule:completed` or `schedule:failed`. Schedules are not kept: see
 * {@link BackupScheduleService}.
 */
export class BackupScheduler extends EventEmitter<BackupSchedulerEvents> {
  /**
   * @param adapter default: timers of this process that do not keep it alive, by the host's local time
   * @param options a string is `backupRootDir`
   */
  constructor(backupService: BackupService, adapter?: ScheduleAdapter | null, options?: string | BackupSchedulerOptions)
  get activeJobCount(): number
  /**
   * @throws BackupError `BACKUP_EXISTS`, `INVALID_CONFIG` (also a bad cron expression; after `stopAll()` that is
   * found out by `startAll()`)
   */
  addSchedule(schedule: BackupSchedule): void
  /** Fine when there is none of this id. */
  removeSchedule(id: string): void
  /** @throws BackupError `BACKUP_NOT_FOUND`, `INVALID_CONFIG`; the old one stays then */
  updateSchedule(schedule: BackupSchedule): void
  getAllSchedules(): BackupSchedule[]
  getSchedule(id: string): BackupSchedule | undefined
  /** Undoes `stopAll()`. A schedule that the adapter refuses is told by `schedule:failed`; the others start. */
  startAll(): void
  /** No schedule ticks from now on, new ones included. What runs goes on to its end. */
  stopAll(): void
  /** Makes a schedule's backup now, unless one is being made. Never rejects. */
  runNow(id: string): Promise<void>
}

export interface BackupScheduleServiceOptions extends BackupSchedulerOptions {}

export interface CreateScheduleInput {
  vmId: string
  diskPaths?: string[]
  type: BackupType
  cronExpression: string
  /** Default {@link DEFAULT_RETENTION_COUNT}. */
  retentionCount?: number
  /** Default `<backupRootDir>/<vmId>`. */
  destinationDir?: string
  /** Default `NONE`. */
  compression?: BackupCompression
  /** Default true. */
  enabled?: boolean
  label?: string
}

export type UpdateScheduleInput = Partial<Omit<CreateScheduleInput, 'vmId' | 'diskPaths'>>

export interface BackupScheduleServiceEvents extends BackupSchedulerEvents {
  'schedule:created': [BackupSchedule]
  'schedule:updated': [BackupSchedule]
  'schedule:enabled': [BackupSchedule]
  'schedule:disabled': [BackupSchedule]
  'schedule:deleted': [string]
  loaded: [number]
  persisted: [number]
}

/**
 * Schedules that are kept in `<backupRootDir>/schedules.json`. It is read once, and nobody else may write it
 * meanwhile. Failures are {@link BackupError}s: an unknown id is `BACKUP_NOT_FOUND`, bad input `INVALID_CONFIG`.
 */
export class BackupScheduleService extends EventEmitter<BackupScheduleServiceEvents> {
  /** Touches nothing. */
  constructor(backupService: BackupService, adapter?: ScheduleAdapter | null, options?: BackupScheduleServiceOptions)
  get scheduleCount(): number
  get activeJobCount(): number
  createSchedule(input: CreateScheduleInput): Promise<BackupSchedule>
  updateSchedule(id: string, input: UpdateScheduleInput): Promise<BackupSchedule>
  enableSchedule(id: string): Promise<BackupSchedule>
  disableSchedule(id: string): Promise<BackupSchedule>
  /** Its backups stay. */
  deleteSchedule(id: string): Promise<void>
  listSchedules(vmId?: string): Promise<BackupSchedule[]>
  getSchedule(id: string): Promise<BackupSchedule | undefined>
  /**
   * Loads what is kept, and begins. A schedule that missed runs while nobody was there, or whose run the end of
   * the process cut short, makes one at once. One that the adapter refuses is told by `schedule:failed`; the
   * others start.
   * @throws BackupError `OPERATION_FAILED`: the file made no sense, and was put aside as `.corrupt`
   */
  start(): Promise<void>
  /** What runs goes on to its end. */
  stop(): Promise<void>
}

// ---------------------------------------------------------------------------------------------------
// Events
// ---------------------------------------------------------------------------------------------------

/** QEMU's events that `vm:event` tells of. */
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

/** Payload of the `vm:*` events that come from QEMU. */
export interface VMEventData {
  vmId: string
  event: QMPEventType
  previousStatus: string
  newStatus: string
  timestamp: Date
  qmpData?: unknown
  /** Why QEMU ended: with the events that tell that it has. */
  cause?: VMExitCause
}

/**
 * For one event of QEMU: its own name, then the resulting status if it is another, then `vm:event`. Of the
 * library's machines STOP, RESUME, SUSPEND and WAKEUP are emitted only if they change the status, and
 * `vm:shutdown` comes when QEMU has ended and is cleaned up after, also after a stop.
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
  /** What ails a living VM has changed. */
  'vm:condition': [data: VMConditionEvent]
  /** The monitor could not be reached again, though QEMU lives. */
  'vm:stale': [data: { vmId: string; reason: string }]
  /**
   * A status was not written: `event` is that status (or the operation, for a write of the configuration),
   * `error` why. The host is as it should be, the row is not: until the database is back
   * (`database-restored`), or, where the database refused it for good, until somebody writes it. Never
   * thrown: without a listener it is a process warning.
   */
  error: [data: { vmId: string; event: string; error: string }]
}

/** How an {@link EventHandler} of your own works. */
export interface EventHandlerConfig {
  /** Write each event to the log. Default true. */
  enableLogging: boolean
  /** Emit the `vm:*` events. Default true; `error` is always emitted. */
  emitCustomEvents: boolean
}

/** Another name of {@link EventHandlerConfig}, kept for compatibility. */
export type ConfigEventHandlerConfig = EventHandlerConfig

/**
 * `vmLock` is the lock per VM that your own code uses, so that the end of a machine waits for what you do
 * with it. Give an EventHandler and a HealthMonitor the same one. Default: one of its own.
 */
export type EventHandlerOptions = Partial<EventHandlerConfig> & { vmLock?: KeyedMutex }

/**
 * Keeps the rows of machines in step with what their QEMUs report: what `getEventHandler()` returns for the
 * machines of the library, or one of your own over your database and your QMPClients.
 *
 * The new status is stored before an event is emitted. What is derived from an event is never written over
 * `error` or a claim of yours (`backing_up`, `rebuilding`, …). STOP and RESUME do not say why, so
 * `query-status` is asked; POWERDOWN is only the button. On SHUTDOWN the row becomes `off`, and once QEMU
 * has exited (30 s at most; it is never killed) its TAP is taken off the bridge, its port in the firewall
 * closed, and pid and socket cleared in the row; after `quit` (reason `host-qmp-quit`) only the row is
 * written. One of your own tells every event, also those that change nothing, and follows a QEMU until it
 * ends, its client is closed or given up, or the VM is detached or attached anew: late events of an earlier
 * QEMU are nobody's.
 */
export class EventHandler extends EventEmitter<EventHandlerEvents> {
  /** Touches nothing: what is wrong with its arguments, the methods tell. */
  constructor(db: DatabaseAdapter, config?: EventHandlerOptions)
  /**
   * Follows the VM's QEMU, and no earlier one; resolves when its state of now is written. The client must be
   * a {@link QMPClient}, connected or reconnecting. With `getEventHandler()`: tells the events of a
   * detached VM again; the client is the one of `getQMPClient()`.
   * @throws LifecycleError `INVALID_CONFIG` (no QMPClient), `INVALID_STATE` (`getEventHandler()` attaches
   * no clients of yours); QMPError `QMP_DISCONNECTED`
   */
  attachToVM(vmId: string, client: QMPClient): Promise<void>
  /**
   * Follows the VM no more, and with `disconnectClient` (default false) closes its client. Once it resolves,
   * nothing is written or told of the VM, except by an end of the machine that had begun. With
   * `getEventHandler()`: the VM's `vm:*` events are not emitted until it is attached again or started
   * anew; the library goes on watching it, over its own connection.
   */
  detachFromVM(vmId: string, disconnectClient?: boolean): Promise<void>
  /** Detaches all VMs and closes their clients. */
  detachAll(): Promise<void>
  /** The VMs whose monitor is connected, or is being connected again. */
  getAttachedVMs(): string[]
  isAttached(vmId: string): boolean
  /** The client the VM is attached by; of `getEventHandler()`: as {@link Infinization.getQMPClient}. */
  getQMPClient(vmId: string): QMPClient | undefined
  /**
   * From now on a SHUTDOWN of this VM is a step of its installation: it is emitted with the status
   * unchanged; the row stays, nothing is given back, and no health monitor of this process looks. With
   * `getEventHandler()` it also holds for the next process, for a day at most, until the machine is destroyed.
   * @throws LifecycleError `INVALID_CONFIG`; of `getEventHandler()` also `INVALID_STATE`, `CLOSED`
   */
  markInstallInProgress(vmId: string): void
  /**
   * A SHUTDOWN is the VM's end again. With `getEventHandler()`: a VM that has shut down meanwhile becomes
   * `off` now, which is emitted; so it does when a verb (`startVM`) comes first.
   */
  clearInstallInProgress(vmId: string): void
  isInstallInProgress(vmId: string): boolean
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
  /** What of the run was given back, thing by thing. Absent where clean-ups are turned off. */
  cleanupResult?: CleanupResult
  cause: VMExitCause
}

/** A living QEMU that a pidfile in `pidfileDir` names and no machine owns, or whose machine's row was deleted. */
export interface OrphanEvent {
  /** The machine's id; the internal name where no machine is known. */
  vmId: string
  pid: number
  /** Null when there is no row. */
  dbStatus: string | null
  /** Empty where the machine is not known to have one. */
  pidfilePath: string
  detectedAt: Date
  /**
   * It was ended. That is done only to a QEMU that no machine owns, when there is no row or the row says `off`;
   * all others are told and left alone. See {@link HealthMonitor.checkOrphanProcesses}.
   */
  killed: boolean
  /** What it had on the host was released. */
  cleanupPerformed: boolean
  /** Thing by thing, where a row says what there was. */
  cleanupResult?: CleanupResult
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
export const CleanupResourceType: { readonly [K in CleanupResourceType]: K }

/** How far a clean-up is; one that is told is over: `SUCCESS` or `FAILED`. */
export type CleanupStatus = 'PENDING' | 'SUCCESS' | 'FAILED' | 'RETRYING'
export const CleanupStatus: { readonly [K in CleanupStatus]: K }

/** One thing that was to be given back. What failed stays on the machine's list and is tried again. */
export interface CleanupResourceState {
  type: CleanupResourceType
  /** The device, the path, or the machine's id. */
  identifier: string
  status: CleanupStatus
  /** At most 3. */
  attempts: number
  /** Why it failed. */
  lastError?: string
  lastAttemptAt?: Date
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

/** Payload of `cleanup-alert`: things that could not be given back. */
export interface CleanupAlertEvent {
  vmId: string
  failedResources: CleanupResourceState[]
  timestamp: Date
  /** `error` from three failures on. */
  severity: 'warning' | 'error'
}

/** Something of the firewall that another program took away or changed. */
export interface FirewallDamage {
  /** The machine it is about; null for what all share, and for machines of other instances. */
  vmId: string | null
  /**
   * `table`: all of it. `hook`: a base chain has gone or says something else. `chain`, `rules`: a
   * machine's chain or one that machines share, or what is in it. `dispatch`: what leads from the hooks to a
   * machine's chains. `masquerade`: a bridge's, set up by a {@link DepartmentNatService} of this process. `guard`: the
   * table that keeps virtual networks apart.
   */
  part: 'table' | 'hook' | 'chain' | 'rules' | 'dispatch' | 'masquerade' | 'guard'
  /** The table, chain, port or bridge. */
  name: string
}

/**
 * Another program changed the firewall (`nft flush ruleset`, a table or rule deleted), and what was
 * missing was put back: the rules that were in force, in one transaction. A machine that an earlier process
 * started is closed in that transaction, as only the database knows its rules, and told by an event of its own
 * when they are loaded; so is a bridge's masquerading.
 */
export interface FirewallRepairedEvent {
  missing: FirewallDamage[]
  /**
   * Machines that are closed for now, as their rules could not be loaded, or not yet: told once. It is tried
   * until it succeeds, and then `missing` names their parts again, with nothing in `failed`.
   */
  failed: { vmId: string | null; error: string }[]
  timestamp: Date
}

/** What a cycle found of one machine. */
export interface HealthCheckResult {
  vmId: string
  pid: number | null
  isAlive: boolean
  status: string
  timestamp: Date
}

/** What one cycle of the health monitor found. */
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

/** What a {@link HealthMonitor} emits; the machines' own events are {@link EventHandlerEvents}. */
export interface HealthMonitorEvents {
  crash: [event: CrashEvent]
  'orphan-detected': [event: OrphanEvent]
  'cleanup-alert': [event: CleanupAlertEvent]
  'check-complete': [summary: HealthCheckSummary]
  /** By `reconcileStartupState()`, and by `initialize()`. */
  'reconcile-complete': [summary: ReconcileCompleteEvent]
  /**
   * The database cannot be reached, or does not take everything. Machines go on, and so do stops, crashes
   * and their clean-ups: what they would write is kept, and so rows may be old. What needs an answer
   * (create, start, suspend) is refused with `DB_CONNECTION_ERROR` among its causes.
   */
  'database-outage': [event: DatabaseOutageEvent]
  /** It is back, and what was kept has been written, machine by machine in the order of what happened. */
  'database-restored': [event: DatabaseRestoredEvent]
  /** At once, whether it monitors or not. */
  'firewall-repaired': [event: FirewallRepairedEvent]
  /** By `initialize()`: chains of no machine this instance knows, which are left alone. */
  'firewall-orphans': [event: { chains: string[]; timestamp: Date }]
  /**
   * A virtual network's dnsmasq has ended, or something of a network that stays up could not be set up; it is
   * tried again.
   */
  'network-failed': [event: { network: string; error: string; timestamp: Date }]
  /** It is whole again, with the leases there were. `pid` is its dnsmasq's, if it has one. */
  'network-restarted': [event: { network: string; restarts: number; pid?: number; timestamp: Date }]
  /**
   * A cycle, the look at one machine, or a repair failed; it is tried again. Never thrown: without a listener
   * it is a process warning.
   */
  error: [event: { message: string; timestamp: Date }]
}

/** What showed that the database is away. */
export interface DatabaseOutageEvent {
  /** As the `PrismaAdapterError` that a caller would have got. */
  error: { code: string; message: string }
  timestamp: Date
}

/** The end of an outage. */
export interface DatabaseRestoredEvent {
  /** When the outage began. */
  startedAt: Date
  /** How many writes were made late. */
  delivered: number
  /** How many the database refused for good. Each was told by an `error` of `getEventHandler()`. */
  lost: number
  timestamp: Date
}

/** How a {@link HealthMonitor} of your own works. */
export interface HealthMonitorConfig {
  /** Milliseconds between two cycles, 100 to a week. Default 30000. */
  checkIntervalMs: number
  /** Give back what a QEMU that is gone held on the host. Default true. */
  enableCleanup: boolean
  /** Where the pidfiles `<internalName>.pid` are. Default {@link DEFAULT_PIDFILE_DIR}. */
  pidfileDir?: string
  /** Called before `crash` is emitted, never awaited. What it throws is a warning. */
  onCrashDetected?(vmId: string): Promise<void> | void
  /** Called before `cleanup-alert` is emitted, never awaited. What it throws is a warning. */
  onCleanupAlert?(event: CleanupAlertEvent): Promise<void> | void
}

/** Another name of {@link HealthMonitorConfig}, kept for compatibility. */
export type ConfigHealthMonitorConfig = HealthMonitorConfig

/** For `vmLock` see {@link EventHandlerOptions}. */
export type HealthMonitorOptions = Partial<HealthMonitorConfig> & { vmLock?: KeyedMutex }

/**
 * Finds what nobody watches: rows that claim a QEMU that is gone, and QEMUs that no machine owns. What
 * `getHealthMonitor()` returns for the machines of the library, where a crash is noticed at once, whether it
 * monitors or not, and where after `shutdown()` the asynchronous methods reject with LifecycleError
 * `CLOSED`; or one of your own over your database.
 *
 * One of your own knows a machine's process by the pid in the row, and proves it by QEMU's arguments:
 * `-name` (the internal name), `-pidfile` or `-qmp` of exactly that machine. A pid that another
 * process has is a crash; one that cannot be judged is taken for alive. After a crash the row becomes `off`
 * (never over `error` or a claim of yours), then the host is cleaned up, each thing tried three times, then
 * it is told. A machine whose `vmLock` is taken is left to whoever has it.
 */
export class HealthMonitor extends EventEmitter<HealthMonitorEvents> {
  /** Touches nothing: what is wrong with its arguments, the methods tell. */
  constructor(db: DatabaseAdapter, config?: HealthMonitorOptions)
  /**
   * Runs one cycle before it resolves, then one every interval. Nothing happens when it monitors already. A
   * cycle that fails is told by `error`. It keeps no process alive.
   */
  start(): Promise<void>
  /** Runs no further cycle. The library still notices crashes of its own machines. */
  stop(): Promise<void>
  /** Whether cycles are run. */
  isMonitoring(): boolean
  /**
   * One cycle now: machines and pidfiles. Emits `orphan-detected` for each orphan, then
   * `check-complete`.
   * @throws PrismaAdapterError when the database cannot be read
   */
  checkAllVMs(): Promise<HealthCheckSummary>
  /**
   * Looks at the pidfiles now; resolves with the orphans. Files of dead processes are removed. A QEMU is
   * ended when there is no row of its name, or when the row says `off` in two scans on end; every other is
   * told and left alone, and so is what a database that fails cannot tell. (The library's own monitor asks
   * for two scans in both cases.)
   * @throws PrismaAdapterError when the library's database cannot be read
   */
  checkOrphanProcesses(): Promise<OrphanEvent[]>
  /**
   * Settles rows between two states (default `starting`, `powering_off_update`, `rebuilding`), each
   * when nobody has its lock: with a living QEMU that is proven theirs they become `running`, without one
   * `off` (`rebuilding`: `error`) after a clean-up; those that cannot be judged are skipped. Of the
   * library: as {@link Infinization.reconcileStartupState}.
   */
  reconcileTransientStates(statuses?: string[]): Promise<ReconcileSummary>
  /** Whether a process with this number runs that is a QEMU, or may be one. Not whose it is. */
  checkVM(vmId: string, pid: number): boolean
  /** Whether a process with this number runs, whosever it is. A zombie does not. */
  isProcessAlive(pid: number): boolean
  /**
   * Gives back what earlier clean-ups of a machine could not (`cleanup-alert`): each thing is tried three
   * times, 1 s and 2 s apart. Resolves with what was tried; nothing is left when `failedCleanups` is 0.
   *
   * Of the library: what is left is what the machine's own list in `stateDir` says; the record is only a
   * hint and decides nothing, so no other machine is ever touched. Of a machine that runs, and of one that
   * nothing is left of, nothing is tried. One of your own gives back what `configuration` says of a run
   * that is over, and clears the row when nothing is left.
   * @throws LifecycleError `INVALID_CONFIG` (the id, or a record that is no object); `INVALID_STATE` of one
   *   of your own while the QEMU that the record names is there or cannot be judged; of the library
   *   `CLEANUP_FAILED` when nothing could be tried: its `cause` is `IDENTITY_UNKNOWN` where it cannot be told
   *   whether the machine has a QEMU
   */
  retryCleanup(
    vmId: string,
    configuration?: Partial<MachineConfigurationRecord> | null
  ): Promise<CleanupResult>
}

/** One row brought in step, or why not. */
export interface SyncResult {
  success: boolean
  vmId: string
  /** `unknown` when the row could not be read. */
  previousStatus: string
  newStatus: string
  timestamp: Date
  /** A {@link SyncErrorCode}, a colon, and words. */
  error?: string
}

/** What a synchronisation may fail with. */
export interface SyncError {
  code: SyncErrorCode
  message: string
  vmId: string
  timestamp: Date
}

/** A run state of QEMU's, and what it means for the status column. */
export interface StatusMapping {
  qmpStatus: QMPVMStatus
  dbStatus: DBVMStatus
  timestamp: Date
}

/** Questions to a database of yours about one machine. */
export class StateSync {
  /** Does not touch `db`. */
  constructor(db: DatabaseAdapter)
  /** What a run state of QEMU's means for the status column. Pure; an unknown one is `error`. */
  mapQMPStatusToDBStatus(qmpStatus: QMPVMStatus): DBVMStatus
  /**
   * Asks QEMU its state (5 s at most) and writes what it means, unless the row says `error` or has a claim
   * of yours. What goes wrong is in the result, and so is what is wrong with the arguments: `VM_NOT_FOUND`
   * for a vmId that cannot be one, `DB_ERROR` for no database. The client must be a {@link QMPClient}.
   */
  syncState(vmId: string, client: QMPClient): Promise<SyncResult>
  /** Writes the status as it is given. No row is no error. */
  updateVMStatus(vmId: string, status: string): Promise<void>
  /** @throws LifecycleError `VM_NOT_FOUND` */
  getVMStatus(vmId: string): Promise<string>
  /** Null when there is no row, or no pid in it. */
  getVMPid(vmId: string): Promise<number | null>
  /** Null when there is no row. `hasCpuPinning` is always false. */
  getVMInfo(vmId: string): Promise<{ tapDeviceName: string | null; hasCpuPinning: boolean } | null>
  /** Clears pid and QMP socket in the row. */
  clearVolatileMachineConfiguration(vmId: string): Promise<void>
  /**
   * Writes the status as it is given, unless the row has it. What goes wrong is in the result, as with
   * `syncState`; `INVALID_STATUS` is one that is none of the library's.
   */
  updateStatusDirect(vmId: string, status: DBVMStatus): Promise<SyncResult>
}

/**
 * The verbs on machines and nothing around them: the engine of {@link Infinization}, over a database of yours, told
 * to an {@link EventHandler} of yours. There is nothing to initialize: the first verb opens the engine, as
 * `initialize()` would, and what that rejects with, the verb does. It has the state directory for itself until
 * `shutdown()` or the end of the process (`STATE_DIR_LOCKED` where another engine has it), and takes back the
 * machines that an earlier process of it left there. Other rows of your database are other engines': none of them is
 * settled, ended or cleaned up after; a verb that you call on one is a verb of yours.
 *
 * Each machine's verbs are done in order, and a forced stop interrupts a graceful one; no lock of yours is needed.
 * `eventHandler` emits what happens to its machines, after the row was written (`vm:*` not where its
 * `emitCustomEvents` is false), and knows them as attached: its `getQMPClient()` has their monitors. It need not
 * attach them, its database is not asked, and its `vmLock` not taken. A {@link HealthMonitor} of yours may look after
 * the same rows.
 *
 * What fails otherwise than by a {@link LifecycleError} is one of the verb's code, with the failure as its `cause`.
 */
export class VMLifecycle {
  /** Touches nothing: what is wrong with its arguments, the verbs tell (`INVALID_CONFIG`). */
  constructor(
    db: InfinizationDatabase,
    eventHandler: EventHandler,
    eventManager?: EventManagerLike,
    options?: VMLifecycleOptions
  )
  /** As {@link Infinization.createVM}; `CREATE_FAILED` for what is no LifecycleError. */
  create(config: VMCreateConfig, options?: Abortable): Promise<VMCreateResult>
  /** As {@link Infinization.startVM}; `START_FAILED` for what is no LifecycleError. */
  start(vmId: string, config?: VMStartConfig): Promise<VMOperationResult>
  /** As {@link Infinization.stopVM}; `STOP_FAILED` for what is no LifecycleError. */
  stop(vmId: string, config?: VMStopConfig): Promise<VMOperationResult>
  /** As {@link Infinization.destroyVM}; `STOP_FAILED` for what is no LifecycleError. */
  destroyResources(vmId: string): Promise<VMOperationResult>
  /** As {@link Infinization.restartVM}; `STOP_FAILED` for what is no LifecycleError. */
  restart(vmId: string): Promise<VMOperationResult>
  /** As {@link Infinization.suspendVM}; `QMP_ERROR` for what is no LifecycleError. */
  suspend(vmId: string): Promise<VMOperationResult>
  /** As {@link Infinization.resumeVM}; `QMP_ERROR` for what is no LifecycleError. */
  resume(vmId: string): Promise<VMOperationResult>
  /** As {@link Infinization.resetVM}; `QMP_ERROR` for what is no LifecycleError. */
  reset(vmId: string): Promise<VMOperationResult>
  /** As {@link Infinization.getVMStatus}; `DATABASE_ERROR` for what is no LifecycleError. */
  getStatus(vmId: string): Promise<VMStatusResult>
  /**
   * Ends what is under way, forgets the machines, which go on, and gives the state directory free. Afterwards every
   * verb rejects with `CLOSED`. Safe at any time, and twice.
   */
  shutdown(): Promise<void>
}

// ---------------------------------------------------------------------------------------------------
// QMP
// ---------------------------------------------------------------------------------------------------

/** When QEMU sent an event, since 1970. */
export interface QMPTimestamp {
  seconds: number
  microseconds: number
}

/** An event as QEMU sends it. */
export interface QMPEvent<T = unknown> {
  event: string
  data?: T
  timestamp: QMPTimestamp
}

/** QEMU's version. */
export interface QMPVersion {
  qemu: { major: number; minor: number; micro: number }
  package: string
}

/** The first that QEMU says on a connection. */
export interface QMPGreeting {
  QMP: {
    version: QMPVersion
    capabilities: string[]
  }
}

/** How a {@link QMPClient} connects. Times are milliseconds, at most a week. */
export interface QMPClientOptions {
  /** For connecting and the handshake together. Default 5000. */
  connectTimeout?: number
  /** For each command. Default 30000. */
  commandTimeout?: number
  /** Make a connection that breaks again. Default false. */
  reconnect?: boolean
  /** Before each attempt. Default 1000. */
  reconnectDelay?: number
  /** How many attempts, 0 to a million. Default 3. */
  maxReconnectAttempts?: number
}

/** A monitor's socket, and how it is connected to. */
export interface QMPSocketOptions {
  path: string
  connectTimeout?: number
  commandTimeout?: number
}

/** One line to a monitor. */
export interface QMPMessage {
  execute: string
  arguments?: Record<string, unknown>
  id?: string
}

/** What a monitor answers instead of a result. */
export interface QMPErrorInfo {
  class: string
  desc: string
}

/** One answer of a monitor. */
export interface QMPResponse<T = unknown> {
  return?: T
  error?: QMPErrorInfo
  id?: string
}

/** What a SHUTDOWN event says. */
export interface QMPShutdownEventData {
  /** The guest asked for it. */
  guest: boolean
  reason: QMPShutdownReason
}

/** Why QEMU ended, or reset the guest (QEMU's `ShutdownCause`). */
export type QMPShutdownReason =
  | 'host-error'
  | 'host-qmp-quit'
  | 'host-qmp-system-reset'
  | 'host-signal'
  | 'host-ui'
  | 'guest-shutdown'
  | 'guest-reset'
  | 'guest-panic'
  | 'subsystem-reset'
  | 'snapshot-load'

/** What a DEVICE_DELETED event says. */
export interface QMPDeviceDeletedEventData {
  device?: string
  path: string
}

/** What a BLOCK_JOB_COMPLETED event says. */
export interface QMPBlockJobCompletedEventData {
  type: string
  device: string
  len: number
  offset: number
  speed: number
  error?: string
}

/**
 * A QEMU's monitor: one of your own by the path of its socket, or, from `getQMPClient()`, the one of a
 * VM of the library for as long as one QEMU runs. QEMU serves one connection per monitor socket: a second
 * one waits without a greeting.
 *
 * Every event of QEMU is emitted under its own name with `(data, timestamp)`, and as `event` with the
 * whole; `disconnect`, `reconnect` and `reconnect_failed` have no payload, and `lost` has `{ count }`. Listeners may be added before
 * `connect()`: they miss nothing. A listener that throws is warned about. Neither a connection nor a
 * pending reconnect keeps the process alive; a call under way does.
 *
 * Calls reject with a QMPError: `QMP_DISCONNECTED` (not connected, or lost before the answer: it may
 * still take effect), `QMP_TIMEOUT`, `QMP_COMMAND_FAILED` (QEMU refused; its class and words are in
 * `context`), `QMP_ARGUMENTS`, `QMP_PROTOCOL`.
 */
export class QMPClient extends EventEmitter {
  /** Touches nothing: what is wrong with the path (absolute) or an option, the methods tell. */
  constructor(socketPath: string, options?: QMPClientOptions)
  /**
   * Connects, waits for the greeting and leaves negotiation mode. Nothing happens when there is a
   * connection; one that is being made again is waited for; one that was lost may be made anew. The
   * library's own connections are its business: with those it only tells whether there is one.
   * @throws LifecycleError `INVALID_CONFIG`; QMPError `QMP_CONNECT_FAILED` (`context.errno`),
   * `QMP_TIMEOUT`, `QMP_PROTOCOL`, `QMP_DISCONNECTED` (it ended in the handshake), and `QMP_DISCONNECTED`
   * for ever after `disconnect()`
   */
  connect(): Promise<void>
  /**
   * Ends the connection for good: calls under way reject at once, no reconnect revives it.
   * @throws LifecycleError `INVALID_STATE` for a connection of the library, which only the library closes
   */
  disconnect(): Promise<void>
  /**
   * How many events this client has missed in all: more than 64 waited for its listeners, the oldest of which
   * go then, or one had more than 64 KiB. Each time a `lost` event tells `{ count }`.
   */
  get lost(): number
  /** Whether commands can be sent now. */
  isConnected(): boolean
  /** The connection broke and is being made again: one's own as its options say, the library's for as long as QEMU lives. */
  isReconnecting(): boolean
  /** What QEMU said of itself at the last `connect()`. */
  getGreeting(): QMPGreeting | null
  /** Any command; its answer is QEMU's own JSON. Arguments without a member are left out. */
  execute<T = unknown>(command: string, args?: Record<string, unknown>): Promise<T>
  /** `query-status`. */
  queryStatus(): Promise<QMPStatusInfo>
  /** `query-cpus-fast`. */
  queryCpus(): Promise<QMPCpuInfo[]>
  /** `query-block`. */
  queryBlock(): Promise<QMPBlockInfo[]>
  /** `query-balloon`; a machine without `memoryBalloon` is `QMP_COMMAND_FAILED`. */
  queryBalloon(): Promise<QMPBalloonInfo>
  /** Presses the power button; resolves before the guest reacts. */
  powerdown(): Promise<void>
  /** `system_reset`: presses the reset button. */
  reset(): Promise<void>
  /** Stops the guest's CPUs. */
  stop(): Promise<void>
  /** Lets the guest's CPUs run. */
  cont(): Promise<void>
  /** Asks the guest to give or take memory until it has `bytes`. */
  balloon(bytes: number): Promise<void>
  /**
   * By the name of a drive, and of a VM of the library also by the `device` of `queryBlockDevices`. `force`
   * (default false): even if the guest has locked it.
   */
  eject(device: string, force?: boolean): Promise<void>
  /**
   * Ends QEMU at once, without asking the guest. That the connection ends with it is no failure;
   * `ignoreErrors` (default false): nothing else is one either.
   */
  quit(options?: { ignoreErrors?: boolean }): Promise<void>
}

/** QEMU's run states (`RunState`) that the contract knows. */
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

/** The answer to `query-status`. */
export interface QMPStatusInfo {
  running: boolean
  singlestep: boolean
  status: QMPVMStatus
}

/** A member of the answer to `query-cpus-fast`. */
export interface QMPCpuInfo {
  'cpu-index': number
  'qom-path': string
  'thread-id': number
  props?: { 'core-id'?: number; 'thread-id'?: number; 'socket-id'?: number; 'node-id'?: number }
  target?: string
}

/** The answer to `query-balloon`. */
export interface QMPBalloonInfo {
  /** Bytes the guest has. */
  actual: number
}

/** Who is connected by VNC. */
export interface QMPVncClientInfo {
  host: string
  service: string
  family: 'ipv4' | 'ipv6' | 'unix'
  websocket: boolean
  x509_dname?: string
  sasl_username?: string
}

/** The answer to `query-vnc`. */
export interface QMPVncInfo {
  enabled: boolean
  host?: string
  family?: string
  service?: string
  auth?: string
  clients?: QMPVncClientInfo[]
}

/** A channel of who is connected by SPICE. */
export interface QMPSpiceChannel {
  host: string
  family: string
  port: string
  'connection-id': number
  'channel-type': number
  'channel-id': number
  tls: boolean
}

/** The answer to `query-spice`. */
export interface QMPSpiceInfo {
  enabled: boolean
  migrated?: boolean
  host?: string
  port?: number
  'tls-port'?: number
  auth?: string
  'compiled-version'?: string
  'mouse-mode'?: 'client' | 'server'
  channels?: QMPSpiceChannel[]
}

/** The answer to `query-memory-size-summary`, in bytes. */
export interface QMPMemorySizeInfo {
  'base-memory': number
  'plugged-memory'?: number
}

/** The image that a drive has open. Sizes are in bytes. */
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

/** The medium of a drive. */
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

/** A member of the answer to `query-block`. */
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
// The guest agent
// ---------------------------------------------------------------------------------------------------

/** How a {@link GuestAgentClient} connects. Times are milliseconds, at most a week. */
export interface GuestAgentClientOptions {
  /** For connecting and the agent's first answer together. Default 5000. */
  connectTimeout?: number
  /** For each command. Default 30000. */
  commandTimeout?: number
}

/** What a program in the guest left behind. */
export interface GuestExecOutput {
  /** UTF-8 where it is valid UTF-8; else each byte is one character (Latin-1). */
  stdout: string
  stderr: string
  /** -1 when a signal ended it. */
  exitCode: number
}

/** What a program in the guest left behind, byte for byte. */
export interface GuestExecRawOutput {
  stdout: Buffer
  stderr: Buffer
  /** -1 when a signal ended it. */
  exitCode: number
}

/** What `guest-exec` answers. */
export interface GuestExecResult {
  pid: number | null
  executed: boolean
}

/** What `guest-exec-status` answers; the output is base64. */
export interface GuestExecStatusResult {
  exitcode: number | null
  exited: boolean
  'out-data': string
  'err-data': string
  emsg?: string
}

/**
 * The agent inside a guest (`qemu-ga`), by the path of its channel's socket. One command at a time: others
 * wait for their turn. A connection that is lost is made again by the next command, and each begins in
 * step with the agent (`guest-sync-delimited`), so that no answer of an earlier session is taken for
 * another's.
 *
 * Calls reject with a QMPError: `AGENT_CONNECT_FAILED`, `AGENT_TIMEOUT` (also: no agent runs in the
 * guest), `AGENT_DISCONNECTED` (not connected, or lost before the answer), `AGENT_PROTOCOL`,
 * `AGENT_COMMAND_FAILED` (the agent refused; `context` has its class and words); or with LifecycleError
 * `INVALID_CONFIG`.
 */
export class GuestAgentClient {
  /** Touches nothing: what is wrong with the path (absolute) or an option, the methods tell. */
  constructor(socketPath: string, options?: GuestAgentClientOptions)
  /** Connects and waits for the agent to answer. Nothing happens when it is connected. */
  connect(): Promise<void>
  /** Within 3 s. A command under way rejects at once, and a freeze under way is thawed. */
  disconnect(): Promise<void>
  /** As far as is known: a loss shows with the next command. */
  isConnected(): boolean
  /** Any command; its answer is the agent's own JSON. */
  execute<T = unknown>(command: string, args?: Record<string, unknown>): Promise<T>
  /**
   * Runs a program in the guest, without a shell. `timeout` (default 30000 ms): a program that runs longer
   * is ended through the guest's own `kill` or `taskkill`, and `AGENT_TIMEOUT` says in `context.ended`
   * whether it was. `cwd` has no effect: the agent has no such argument.
   */
  guestExec(command: string, args?: string[], options?: { timeout?: number; cwd?: string }): Promise<GuestExecOutput>
  /** As `guestExec`, byte for byte. */
  guestExecRaw(command: string, args?: string[], options?: { timeout?: number }): Promise<GuestExecRawOutput>
  /**
   * Flushes and freezes the guest's file systems, for at most a minute; how many were frozen. One that fails
   * is thawed.
   */
  fsFreeze(): Promise<number>
  /** How many file systems were thawed. */
  fsThaw(): Promise<number>
}

// ---------------------------------------------------------------------------------------------------
// Databases of your own
// ---------------------------------------------------------------------------------------------------

/** What is called of a Prisma client: these, each as a method of its owner, and nothing else. */
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

/** The two columns of a machine's row that most calls need. */
export interface MachineRecord {
  id: string
  status: string
}

/** What a row's configuration says of the run. */
export interface MachineConfigurationRecord {
  qemuPid: number | null
  tapDeviceName: string | null
  qmpSocketPath: string | null
  guestAgentSocketPath: string | null
  infiniServiceSocketPath: string | null
}

/** A machine's row as lists have it. */
export interface RunningVMRecord {
  id: string
  status: string
  internalName: string
  /** The capital M is part of the contract. */
  MachineConfiguration: MachineConfigurationRecord | null
}

/** All of a row's configuration. Null where the row says nothing. */
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

/** Columns that are written: an absent one stays, null empties it. */
export type MachineConfigUpdate = {
  [K in keyof ExtendedMachineConfigurationRecord]?: ExtendedMachineConfigurationRecord[K] | null
}

/** A rule's row: {@link FirewallRuleInput} with every member there. */
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

/** A set of rules, which a machine or a department has. */
export interface FirewallRuleSetRecord {
  id: string
  name: string
  internalName: string
  priority: number
  /** Decides nothing: the rules of a set that is not active apply too, with a warning. */
  isActive: boolean
  rules: FirewallRuleRecord[]
}

/** A machine's department. */
export interface DepartmentRecord {
  id: string
  name: string
  firewallRuleSet: FirewallRuleSetRecord | null
}

/** All that a start reads of a machine's row. */
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

/**
 * What the scans need of a database. Failures reject; null means that there is no such row. What each operation
 * does, the method of the same name of {@link PrismaAdapter} says.
 */
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

/** The 16 operations the library needs of a database, as {@link PrismaAdapter} does them. */
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

/** How long the adapter waits. */
export interface PrismaAdapterOptions {
  /** Milliseconds that one answer may take. Default 20000. */
  timeout?: number
}

/**
 * The 16 operations on the rows behind a Prisma client. It works without an {@link Infinization}, does
 * nothing when it is made, and is cheap: make one per request if you like.
 *
 * Every failure is a {@link PrismaAdapterError}, with `vmId` where it is about a machine:
 * - `MACHINE_NOT_FOUND`: no such row (reads answer null instead, but for rules), also Prisma's P2025;
 * - `VERSION_CONFLICT`: the row has another version than `transitionVMStatus` was told;
 * - `UPDATE_FAILED`: a write failed; `details.currentStatus` when `transitionVMStatus` found another
 *   status, `details.prismaCode` when Prisma says why. P2034 is tried three times first;
 * - `QUERY_FAILED`: a read failed, or the row makes no sense (`diskPaths` that is no list of texts);
 * - `CONSTRAINT_VIOLATION`: Prisma's P2002;
 * - `DB_CONNECTION_ERROR`: the database cannot be reached, or does not answer in time;
 * - `SCHEMA_MISMATCH`: the client lacks a model, column or call; `details.missing` lists it;
 * - `INVALID_INPUT`: an argument is no id, no text, no column.
 */
export class PrismaAdapter implements InfinizationDatabase {
  /**
   * Lists of machines hold those of `nodeId` (the column of this name), or all when it is left out.
   * @throws PrismaAdapterError `INVALID_INPUT` when `nodeId` is blank or `timeout` is no positive number
   */
  constructor(prisma: PrismaClientLike, nodeId?: string | null, options?: PrismaAdapterOptions)
  /** A machine, of whichever node. */
  findMachine(id: string): Promise<MachineRecord | null>
  /** A machine of this node; null only means that there is none. */
  findMachineByInternalName(internalName: string): Promise<RunningVMRecord | null>
  /** All that a start reads: the row, its configuration, the department and the rules. */
  findMachineWithConfig(id: string): Promise<VMConfigRecord | null>
  /** This node's machines with status `running`. */
  findRunningVMs(): Promise<RunningVMRecord[]>
  /** This node's machines with one of these statuses. */
  findMachinesByStatuses(statuses: string[]): Promise<RunningVMRecord[]>
  /** Writes the status unless the row has one of `onlyIfNotIn`. No row is no error. */
  updateMachineStatus(id: string, status: string, options?: { onlyIfNotIn?: string[] }): Promise<void>
  /**
   * Makes or changes the configuration row; absent columns stay as they are. `diskPaths` and `cpuPinning`
   * are columns of JSON: null makes them empty (`[]`, `{ cores: [] }`) where they hold something.
   */
  updateMachineConfiguration(id: string, update: MachineConfigUpdate): Promise<void>
  /** One conditional write, which counts the version up, and a read, in one `$transaction`. */
  transitionVMStatus(
    id: string,
    expectedStatus: string,
    newStatus: string,
    expectedVersion: number
  ): Promise<{ success: boolean; newVersion: number; vmConfig: VMConfigRecord }>
  /** Clears pid, TAP name and QMP socket. */
  clearMachineConfiguration(id: string): Promise<void>
  /** Clears pid and QMP socket. */
  clearVolatileMachineConfiguration(id: string): Promise<void>
  /** The column `internalName`. */
  getMachineInternalName(id: string): Promise<string | null>
  /** `/var/lib/infinization/disks/<internalName>.qcow2`, whatever `diskDir` is. */
  getMachineDiskPath(id: string): Promise<string | null>
  /** The department's and the machine's rules, lowest priority first. */
  getFirewallRules(vmId: string): Promise<FirewallRuleRecord[]>
  /** The same, told apart. */
  getFirewallRulesSplit(
    vmId: string
  ): Promise<{ departmentRules: FirewallRuleRecord[]; vmRules: FirewallRuleRecord[] }>
  /** `ALLOW_ALL`, `BLOCK_ALL`, or null without a department. */
  getDepartmentFirewallPolicy(vmId: string): Promise<string | null>
  /** The machine's own set; null without one. */
  getFirewallRuleSetId(vmId: string): Promise<string | null>
}

// ---------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------

/**
 * The codes of a {@link LifecycleError}; docs/errors.md says what each means. The last two are
 * kept for compatibility and never thrown.
 */
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

/** A value that was refused. */
export interface ConfigIssue {
  /** `disks[0].sizeGB`; the argument's name when it is refused as a whole. */
  path: string
  /** Follows the path in a sentence: `must be at least 1`. */
  message: string
}

/** `error instanceof LifecycleError`. */
export function isLifecycleError(error: unknown): error is LifecycleError
/** The same as `new LifecycleError(…)`. */
export function createLifecycleError(
  code: LifecycleErrorCode,
  message: string,
  vmId?: string,
  context?: Record<string, unknown>
): LifecycleError

/** The codes of a {@link PrismaAdapterError}; docs/errors.md says what each means. */
export type PrismaAdapterErrorCode =
  | 'MACHINE_NOT_FOUND'
  | 'DB_CONNECTION_ERROR'
  | 'UPDATE_FAILED'
  | 'QUERY_FAILED'
  | 'INVALID_INPUT'
  | 'CONSTRAINT_VIOLATION'
  | 'VERSION_CONFLICT'
  | 'SECRET_UNREADABLE'
  | 'SCHEMA_MISMATCH'
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

/** `error instanceof PrismaAdapterError`. */
export function isPrismaAdapterError(error: unknown): error is PrismaAdapterError

/** The codes of a {@link StorageError}; docs/errors.md says what each means. */
export type StorageErrorCode =
  | 'POOL_NOT_FOUND'
  | 'POOL_ALREADY_EXISTS'
  | 'IMAGE_NOT_FOUND'
  | 'IMAGE_ALREADY_EXISTS'
  | 'SNAPSHOT_NOT_FOUND'
  | 'SNAPSHOT_ALREADY_EXISTS'
  | 'SNAPSHOT_HAS_CHILDREN'
  | 'INVALID_SNAPSHOT_NAME'
  | 'INVALID_FORMAT'
  | 'INVALID_SIZE'
  | 'DATA_LOSS_REFUSED'
  | 'IMAGE_IN_USE'
  | 'KEY_REQUIRED'
  | 'AUTH_FAILED'
  | 'PLAIN_TEXT_REFUSED'
  | 'IMAGE_CORRUPT'
  | 'CHECKSUM_MISMATCH'
  | 'NETWORK_DISK'
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

export type BackupErrorCode =
  | 'VM_NOT_FOUND'
  | 'BACKUP_NOT_FOUND'
  | 'INVALID_DESTINATION'
  | 'DISK_NOT_FOUND'
  | 'VM_RUNNING'
  | 'INSUFFICIENT_SPACE'
  | 'PARENT_NOT_FOUND'
  | 'BACKUP_EXISTS'
  | 'TARGET_EXISTS'
  | 'OPERATION_FAILED'
  | 'CANCELLED'
  | 'INVALID_CONFIG'
  | 'CORRUPT_BACKUP'
  | 'PLAIN_TEXT_REFUSED'
  | 'KEY_REQUIRED'
  | 'AUTH_FAILED'
  | 'DEPENDENCY'
export const BackupErrorCode: { readonly [K in BackupErrorCode]: K }

export interface BackupErrorDetails {
  backupId?: string
  vmId?: string
  /** The file or directory it is about. */
  diskPath?: string
  command?: string
}

export interface BackupErrorInfo extends BackupErrorDetails {
  code: BackupErrorCode
  message: string
}

/** A backup could not be made, restored or deleted. */
export class BackupError extends Error {
  constructor(code: BackupErrorCode, message: string, details?: BackupErrorDetails)
  readonly code: BackupErrorCode
  readonly backupId?: string
  readonly vmId?: string
  readonly diskPath?: string
  readonly command?: string
  readonly context?: Record<string, unknown>
  toInfo(): BackupErrorInfo
}

export function isBackupError(error: unknown): error is BackupError

/** The codes of an {@link NftablesError}; docs/errors.md says what each means. */
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
  | 'FORWARDING_FAILED'
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

/** The codes of a {@link NetworkError}; docs/errors.md says what each means. */
export type NetworkErrorCode =
  | 'DEVICE_NOT_FOUND'
  | 'DEVICE_ALREADY_EXISTS'
  | 'BRIDGE_NOT_FOUND'
  | 'BRIDGE_ALREADY_EXISTS'
  | 'BRIDGE_FULL'
  | 'INVALID_MAC_ADDRESS'
  | 'NETWORK_NOT_FOUND'
  | 'NETWORK_ALREADY_EXISTS'
  | 'NETWORK_IN_USE'
  | 'SUBNET_OVERLAPS'
  | 'DHCP_START_FAILED'
  | 'COMMAND_FAILED'
  | 'TIMEOUT'
  | 'PERMISSION_DENIED'
export const NetworkErrorCode: { readonly [K in NetworkErrorCode]: K }

/** A TAP, bridge or virtual network could not be made or changed; `context.errno` is the kernel's answer. */
export class NetworkError extends Error {
  constructor(code: NetworkErrorCode, message: string, context?: Record<string, unknown>, vmId?: string)
  readonly code: NetworkErrorCode
  readonly context?: Record<string, unknown>
  readonly vmId?: string
}

/** The codes of a {@link DisplayError}. */
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

/** The codes of a {@link QMPError}; docs/errors.md says what each means. */
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

/** The codes of a {@link ProcessError}; docs/errors.md says what each means. */
export type ProcessErrorCode =
  | 'PROGRAM_NOT_FOUND'
  | 'SPAWN_FAILED'
  | 'COMMAND_FAILED'
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

/** The codes of an {@link InfinizationError}; docs/errors.md says what each means. */
export type InfinizationErrorCode =
  | 'INVALID_KEY'
  | 'SECRET_UNREADABLE'
  | 'STATE_DIR_LOCKED'
  | 'INTERNAL'
export const InfinizationErrorCode: { readonly [K in InfinizationErrorCode]: K }

/** The state directory is another process', a key is none or the wrong one, or (`INTERNAL`) the library has a defect. */
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
/** Milliseconds a guest's agent may take to answer with `waitForBoot`. */
export const DEFAULT_BOOT_TIMEOUT: 60000
/** The systems that `OS_INSTALLATION_TIMEOUTS` knows. */
export type OSType = 'windows10' | 'windows11' | 'ubuntu' | 'fedora'
/** Whether it is one of {@link OSType}. */
export function isValidOSType(os: unknown): os is OSType
/** Milliseconds that an unattended installation may take: 45 minutes (`ubuntu`), 60, 90, 120 (`windows11`). */
export const OS_INSTALLATION_TIMEOUTS: Readonly<Record<OSType, number>>
/** Milliseconds, for a system that is not an `OSType`. */
export const DEFAULT_INSTALLATION_TIMEOUT: 3600000
/** Milliseconds that an unattended installation of this system may take. Never throws. */
export function getInstallationTimeout(os: string): number
/** Milliseconds for connecting to a monitor and the handshake together. */
export const DEFAULT_QMP_CONNECT_TIMEOUT: 5000
/** Where the monitors' sockets are, unless `stateDir` or `qmpSocketDir` says otherwise. */
export const DEFAULT_QMP_SOCKET_DIR: '/var/run/infinization'
/** Where disks are made, unless `stateDir` or `diskDir` says otherwise. */
export const DEFAULT_DISK_DIR: '/var/lib/infinization/disks'
/** Where pidfiles are, unless `stateDir` or `pidfileDir` says otherwise. */
export const DEFAULT_PIDFILE_DIR: '/var/run/infinization/pids'
/** Of a machine whose `os` says nothing else. */
export const DEFAULT_NETWORK_MODEL: 'virtio-net-pci'
/** Of a machine whose `os` says nothing else. */
export const DEFAULT_DISK_BUS: 'virtio'
/** Of a machine whose `os` says nothing else. */
export const DEFAULT_DISK_CACHE: 'writeback'
/** Of a new disk. */
export const DEFAULT_DISK_FORMAT: 'qcow2'
/** Of the files of new disks. */
export const DEFAULT_DISK_EXTENSION: '.qcow2'
/** `getMachineDiskPath` answers with a path below it, whatever `diskDir` says. */
export const DEFAULT_DISK_PATH_PREFIX: '/var/lib/infinization/disks'
/** The same as {@link DEFAULT_QMP_SOCKET_DIR}. */
export const DEFAULT_QMP_SOCKET_PATH_PREFIX: '/var/run/infinization'
/** Milliseconds between two cycles of the health monitor. */
export const DEFAULT_HEALTH_CHECK_INTERVAL: 30000
/** Kept for compatibility, in milliseconds; a status has its own deadlines. */
export const DEFAULT_SYNC_TIMEOUT: 5000
/** Kept for compatibility. */
export const MAX_SYNC_RETRIES: 3
/** How often a clean-up tries to give one thing back. */
export const MAX_CLEANUP_RETRIES: 3
/** Milliseconds from the first try to the second; then twice as long. */
export const CLEANUP_RETRY_BASE_DELAY_MS: 1000
/** Milliseconds between two tries at the most; with three tries it is never so long. */
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
/** That table's family. */
export const INFINIZATION_TABLE_FAMILY: 'bridge'
/** Of the table's hooks. */
export const DEFAULT_CHAIN_PRIORITY: 0
/** What the comments of the library's own rules begin with. */
export const NFTABLES_COMMENT_PREFIX: 'infinization'
/** Of a chain's name, in bytes. */
export const MAX_CHAIN_NAME_LENGTH: 31
/** The visible chains of machines are called so, then 24 hex digits. */
export const VM_CHAIN_PREFIX: 'vm_'
/** What a rule's `protocol` may be. */
export const SUPPORTED_PROTOCOLS: readonly string[]
/** The members of {@link ConnectionStateConfig}. */
export const CONNECTION_STATES: readonly string[]
/** QEMU's, in bytes. */
export const DEFAULT_CLUSTER_SIZE: 65536
/** Of a snapshot's name. */
export const MAX_SNAPSHOT_NAME_LENGTH: 64

/** The form of a PCI address, `[dddd:]bb:ss.f`. `validatePciAddress` looks at the numbers, too. */
export const PCI_ADDRESS_REGEX: RegExp

/** Whether a text is a PCI address. */
export interface PciAddressValidationResult {
  valid: boolean
  /** What is wrong, in a sentence. */
  error?: string
}

/** Whether `createVM` takes `address` as one; not whether there is such a device. */
export function validatePciAddress(address: string): PciAddressValidationResult
/** In lower case, with its domain. @throws LifecycleError `INVALID_CONFIG` */
export function normalizePciAddress(address: string): string

// ---------------------------------------------------------------------------------------------------
// Command lines of your own
// ---------------------------------------------------------------------------------------------------

export type MachineType = 'q35' | 'pc'
export type DiskBus = 'virtio' | 'sata' | 'scsi' | 'ide'
export type CacheMode = 'none' | 'writeback' | 'writethrough' | 'directsync' | 'unsafe'
export type DisplayType = 'spice' | 'vnc' | 'none'
export type VgaType = 'std' | 'qxl' | 'virtio' | 'cirrus' | 'none'
/** Hard disk, CD, network. */
export type BootDevice = 'c' | 'd' | 'n'

export interface MachineOptions {
  accel?: string
  kernelIrqchip?: string
}

/** A disk of {@link QemuCommandBuilder.addDisks}. */
export interface DiskOptions {
  path: string
  format: 'qcow2' | 'raw'
  /** Becomes `if=`: QEMU 7.2 refuses `sata`, and `scsi` on both machines. `createVM` makes these otherwise. */
  bus: DiskBus
  cache: CacheMode
  /** Default false. */
  discard?: boolean
}

/** The card of {@link QemuCommandBuilder.addNetwork}. */
export interface NetworkOptions {
  /** A TAP that is there. */
  tapName: string
  mac: string
  model: 'virtio-net-pci' | 'e1000'
  /** More than one only with virtio, on a TAP that was made for it, and with `/dev/vhost-net`. Default 1. */
  queues?: number
}

/** The part of {@link SpiceConfigOptions} that is enough. */
export interface SpiceOptions {
  port: number
  addr: string
  password?: string
  disableTicketing?: boolean
  enableAgent?: boolean
}

/** {@link VncConfigOptions} with an address. */
export interface VncOptions {
  display: number
  addr: string
  password?: boolean
}

/** How a QEMU of your own runs. `vmId` and `qmpSocket` say nothing to QEMU. */
export interface QemuProcessOptions {
  vmId: string
  name: string
  uuid?: string
  daemonize?: boolean
  pidfile?: string
  qmpSocket?: QMPSocketOptions
}

/** For compatibility: nothing takes it. */
export interface GpuPassthroughOptions {
  pciBus: string
  romfile?: string
  multifunction?: boolean
  audioFunction?: string
}

export interface QemuCommand {
  command: string
  args: string[]
}

/** With a wrapper, run `wrapperCommand` with `[...wrapperArgs, command, ...args]`. */
export interface QemuCommandWithPinning extends QemuCommand {
  wrapperCommand: string | null
  wrapperArgs: string[]
  pinningApplied: boolean
  pinnedCores: number[]
  numaNodes: number[]
}

/**
 * Writes a QEMU command line, option by option, in the order of the calls. It runs nothing and looks at nothing; the
 * engine writes its own (`planVM` shows it), in forms that QEMU takes.
 *
 * A value that would have to be escaped (`,`, `=`, control characters; `=` may be in paths), or is none of the words there are,
 * throws an `Error` whose `name` is `QemuArgValidationError`; a display that makes no sense a {@link DisplayError}.
 */
export class QemuCommandBuilder {
  /** Default `qemu-system-x86_64`. */
  setBinary(binary: string): this
  getBinary(): string
  /** `-enable-kvm` */
  enableKvm(): this
  /** `-machine` */
  setMachine(type: MachineType, options?: MachineOptions): this
  /** `-cpu`, and `-smp` with what is given. */
  setCpu(model: string, cores?: number, threads?: number, sockets?: number): this
  /** `-m`, in GiB; fractions are passed on. */
  setMemory(gb: number): this
  /** `-sandbox`, denying all it can. QEMU refuses it together with `-daemonize` and `-runas`. */
  enableSeccompSandbox(): this
  /** `-runas` */
  setRunAs(user: string): this
  /** A `-drive` each, numbered from 0 over all calls. */
  addDisks(disks: DiskOptions[]): this
  /** `-netdev tap` and its `-device`. */
  addNetwork(options: NetworkOptions): this
  /** `-spice`, the card, and the agent's channel. Another `qxlMemoryMB` than 16 makes the card a device. */
  addSpice(spice: SpiceConfig | SpiceOptions, qxlMemoryMB?: number): this
  /** `-vnc` and the card. */
  addVnc(vnc: VncConfig | VncOptions): this
  /** `-qmp` on a socket that QEMU makes. */
  addQmp(path: string): this
  /** `-cdrom` */
  addCdrom(path: string): this
  /** An `ide-cd`, as often as called: `cdrom1`, `cdrom2` … */
  addSecondCdrom(path: string): this
  /** `-device vfio-pci`; the ROM must be inside `/var/lib/infinization/roms`, as for the next two. */
  addGpuPassthrough(address: string, romfile?: string): this
  /** And the card's second function, which must be another. */
  addGpuWithAudio(gpu: string, audio: string, romfile?: string): this
  addPciPassthrough(address: string, romfile?: string): this
  addMemoryBalloon(): this
  /** `-mem-prealloc -mem-path /dev/hugepages` */
  enableHugepages(): this
  /** The code, read-only. */
  setFirmware(path: string): this
  /** The variables. */
  setUefiVars(path: string): this
  /** `-boot` */
  setBootOrder(devices: BootDevice[], options?: { once?: BootDevice }): this
  /** A TPM behind a socket of `swtpm`. */
  addTPM(path: string): this
  /** A named serial channel behind a socket that QEMU makes. */
  addVirtioChannel(channelName: string, socketPath: string, chardevId: string): this
  addGuestAgentChannel(path: string): this
  addInfiniServiceChannel(path: string): this
  /** Sound over SPICE: with VNC QEMU does not start. */
  addAudioDevice(): this
  addUsbTablet(): this
  addUsbKeyboard(): this
  /** `-name`, `-uuid`, `-daemonize`, `-pidfile`. */
  setProcessOptions(options: QemuProcessOptions): this
  /** Whatever it is, unchecked. */
  addRawArg(arg: string): this
  /** For {@link buildCommandWithPinning}; no argument of QEMU's. */
  enableCpuPinning(strategy: PinningStrategy, vcpus: number): this
  isCpuPinningEnabled(): boolean
  getCpuPinningStrategy(): PinningStrategy | null
  isDaemonizeEnabled(): boolean
  getPidfilePath(): string | null
  buildCommand(): QemuCommand
  /** The arguments alone, a copy. */
  build(): string[]
  /** Never rejects: what cannot be pinned is not, with a process warning and `pinningApplied: false`. */
  buildCommandWithPinning(): Promise<QemuCommandWithPinning>
}

/**
 * A QEMU with a command line of your own, which no machine of `createVM` owns. It runs in a session of its own and
 * outlives this process; nobody is told of its end but who asks. Signals go through its pidfd: never to a number that
 * another process may have got.
 *
 * `-daemonize` of the builder is left out: the process is detached all the same, under its sandbox too, and is known
 * from its first moment. What else the builder says is QEMU's to take or to refuse.
 */
export class QemuProcess {
  /**
   * Touches nothing: what is wrong with its arguments, the methods tell (LifecycleError `INVALID_CONFIG`).
   * @param vmId what its errors are about
   */
  constructor(vmId: string, builder: QemuCommandBuilder)
  /** Where its monitor listens (the builder's `addQmp`): `start()` waits for its greeting there. */
  setQmpSocketPath(path: string): void
  /** Where QEMU writes its number. Default: the builder's `pidfile`. */
  setPidFilePath(path: string): void
  /**
   * What proves that a process is this QEMU: exactly the value of its `-name` (or `guest=` there), of its `-pidfile`,
   * or the path of its `-qmp unix:`, of a program whose file name begins with `qemu`. With it and a pidfile, `stop()` and `forceKill()` also find a QEMU that an
   * earlier program has started.
   */
  setIdentityToken(token: string): void
  /**
   * Resolves when the monitor greets (the socket within 5 s, the greeting within 30 s); without a path for it, when
   * QEMU has lived for a second. After a failure nothing of it is left. A pidfile and a socket that a dead QEMU has
   * left are removed first.
   * @throws LifecycleError `INVALID_STATE` (it runs already, here or by its pidfile), `TIMEOUT`; ProcessError
   *   `ADDRESS_IN_USE` (another process listens at the socket, or QEMU finds an address taken), `IDENTITY_UNKNOWN`
   *   (the token is not on the command line, or its program is not called `qemu…`), `PROGRAM_NOT_FOUND`, `SPAWN_FAILED`, `QEMU_START_FAILED` with QEMU's
   *   words, from which what looks like a password is taken out, `HOST_FILE`; QMPError
   */
  start(): Promise<void>
  /**
   * SIGTERM: QEMU writes what its disks hold and ends; the guest is not asked (`system_powerdown` of a {@link
   * QMPClient} does that). After `timeoutMs` (default 30000) SIGKILL. Resolves when it is gone, with its pidfile and
   * socket; at once when none runs.
   * @throws ProcessError `IDENTITY_UNKNOWN` (nothing was sent), `SIGNAL_FAILED`, `STILL_ALIVE` 5 s after SIGKILL
   */
  stop(timeoutMs?: number): Promise<void>
  /**
   * SIGKILL, for a QEMU that the identity token proves. Resolves when it is gone; at once when none runs. It
   * does not wait for a start or stop that is under way: it ends them.
   * @throws ProcessError `IDENTITY_UNKNOWN` (no token was set, or the process does not have it; nothing was sent),
   *   `SIGNAL_FAILED`, `STILL_ALIVE` after 5 s; `getPid()` has it then as before
   */
  forceKill(): Promise<void>
  /** Whether it runs. */
  isAlive(): boolean
  /** Null while none runs. */
  getPid(): number | null
  /** Whether the last start ran it under `numactl` (the builder's `enableCpuPinning`). */
  isCpuPinningApplied(): boolean
  /** The CPUs it was put on, ascending. */
  getPinnedCores(): number[]
  /** The nodes its memory is on, ascending. */
  getNumaNodes(): number[]
}

/** How a display is, in QEMU's words. */
export interface DisplayCommandArgs {
  args: string[]
  vgaType: VgaType
}

export interface ValidationError {
  code: DisplayErrorCode
  message: string
}

export interface DisplayValidationResult {
  valid: boolean
  errors: string[]
  validationErrors: ValidationError[]
}

export interface SpiceConfigOptions {
  /** 5900 to 65535. */
  port: number
  /** An IP address or a host name. Default 127.0.0.1. */
  addr?: string
  /** Not part of the arguments: tell QEMU by its monitor (`set_password`). */
  password?: string
  /** Whoever connects may. Default false. */
  disableTicketing?: boolean
  /** Default true. */
  enableAgent?: boolean
  /** Default `auto_glz`. */
  imageCompression?: 'auto_glz' | 'auto_lz' | 'quic' | 'glz' | 'lz' | 'off'
  /** Default `auto`. */
  jpegWanCompression?: 'auto' | 'never' | 'always'
  /** Default `auto`. */
  zlibGlzWanCompression?: 'auto' | 'never' | 'always'
  /** Default `filter`. */
  streamingVideo?: 'off' | 'all' | 'filter'
  /** Default `on`. */
  playbackCompression?: 'on' | 'off'
  /** Default false. */
  gl?: boolean
  /** A device that is there; needs `gl`. */
  rendernode?: string
  /** Default false. */
  disableCopyPaste?: boolean
  /** Default false. */
  disableAgentFileXfer?: boolean
  /** Default false. */
  seamlessMigration?: boolean
}

/** A SPICE display as arguments of QEMU. @throws DisplayError the first thing that is wrong; `context` has all */
export class SpiceConfig {
  constructor(options: SpiceConfigOptions)
  validate(): DisplayValidationResult
  /** `-spice`; card and agent are {@link QemuCommandBuilder.addSpice}'s. */
  generateArgs(): DisplayCommandArgs
  getPort(): number
  getAddr(): string
  hasPassword(): boolean
  isAgentEnabled(): boolean
}

export interface VncConfigOptions {
  /** 0 to 99: port 5900 and on. */
  display: number
  /** An IP address or a host name. Default 127.0.0.1. */
  addr?: string
  /** One will be told by the monitor. Default false. */
  password?: boolean
}

/** A VNC display as arguments of QEMU. @throws DisplayError the first thing that is wrong; `context` has all */
export class VncConfig {
  constructor(options: VncConfigOptions)
  validate(): DisplayValidationResult
  /** `-vnc` */
  generateArgs(): DisplayCommandArgs
  getDisplay(): number
  getPort(): number
  getAddr(): string
  hasPassword(): boolean
  static displayToPort(display: number): number
  static portToDisplay(port: number): number
  /** 8. */
  static getMaxPasswordLength(): number
}

/** The port of VNC's display 0. */
export const VNC_BASE_PORT: 5900
/** In bytes. */
export const VNC_MAX_PASSWORD_LENGTH: 8
/** Of {@link SpiceConfigOptions}. */
export const SPICE_MIN_PORT: 5900
/** Of {@link SpiceConfigOptions}. */
export const SPICE_MAX_PORT: 65535
/** This host alone. */
export const DEFAULT_SPICE_ADDR: '127.0.0.1'
/** This host alone. */
export const DEFAULT_VNC_ADDR: '127.0.0.1'

/** `basic`: from each node its share, in order. `hybrid`: shuffled. */
export type PinningStrategy = 'basic' | 'hybrid' | 'none'

/** The CPUs that are online and this process may use. */
export interface NumaTopology {
  /** By the kernel's numbers; nodes without CPUs are left out. */
  nodes: Map<number, number[]>
  totalCpus: number
  isNumaSystem: boolean
}

/** With a wrapper, run `wrapperCommand` with `[...wrapperArgs, originalCommand, ...originalArgs]`. */
export interface CpuPinningResult {
  wrapperCommand: string | null
  wrapperArgs: string[]
  originalCommand: string
  originalArgs: string[]
  pinningApplied: boolean
  pinnedCores: number[]
  numaNodes: number[]
  /** What `hybrid` shuffled by: the same seed shuffles the same way. */
  hybridSeed?: number
}

/**
 * Keeps a program of your own on CPUs of the host, and its memory beside them, by `numactl`. Machines of `createVM` need
 * none: see `enableNumaCtlPinning`. What the host is, is asked once per process.
 */
export class CpuPinningAdapter {
  /**
   * Never rejects: what cannot be pinned (no `numactl`, no CPUs) is not, with a process warning.
   * @param options `seed`, a whole number below 2^32, for `hybrid`; default a random one
   */
  generatePinningCommand(
    vcpus: number,
    strategy: PinningStrategy,
    command: string,
    args: string[],
    options?: { seed?: number }
  ): Promise<CpuPinningResult>
  /** `--physcpubind=…` and `--membind=…` */
  generateNumactlArgs(cores: number[], nodes: number[]): string[]
  /** A copy. */
  getNumaTopology(): Promise<NumaTopology>
  /** Whether it is in `PATH`. */
  isNumactlAvailable(): Promise<boolean>
  /** Rejects with an `Error` that names those that are offline, or not for this process. */
  validateCores(cores: number[]): Promise<void>
  /** The host is asked anew. */
  clearCache(): void
}

/** Where a {@link CgroupsManager} finds the host; absolute paths. */
export interface CgroupsManagerOptions {
  /** The cgroup v2 tree. Default `/sys/fs/cgroup`. */
  cgroupsV2Base?: string
  /** Where the scopes are made. Default `infinization.slice` in that tree. */
  infinizationSlice?: string
  /** The kernel's list of the CPUs that are online. Default `/sys/devices/system/cpu/online`. */
  onlineCpusPath?: string
  /** The NUMA nodes. Default `/sys/devices/system/node`. */
  nodeSysfsBase?: string
}

/**
 * Keeps processes of your own on CPUs of the host, by the cpuset of a cgroup v2. Machines of `createVM` have a cgroup
 * and pin each virtual CPU by themselves (`cpuPinning`).
 */
export class CgroupsManager {
  /** Touches nothing: what is wrong with the options, the methods tell. */
  constructor(options?: CgroupsManagerOptions)
  /**
   * Moves a process with all its threads into `qemu-<pid>.scope`, which has these CPUs and the memory of their nodes
   * (node 0 where the host does not tell). Never rejects: `applied` is false, with the `reason` and a process
   * warning, where a CPU is not online, is kept from the slice, or there is no such controller or process; then the
   * process is where it was and no scope was left behind.
   */
  applyCpuPinning(pid: number, cores: number[]): Promise<{ applied: boolean; reason?: string }>
  /** Removes scopes in the slice without a process; how many there were. Never rejects. */
  cleanupEmptyScopes(): Promise<number>
  /**
   * How many CPUs are online. Their numbers may have gaps.
   * @throws LifecycleError `RESOURCE_UNAVAILABLE` where the list cannot be read
   */
  getHostCpuCount(): Promise<number>
  /**
   * Rejects where some of these are not online; none at all are fine.
   * @throws LifecycleError `RESOURCE_UNAVAILABLE`, which names them; `INVALID_CONFIG` for what are no whole numbers
   */
  validateCores(cores: number[]): Promise<void>
}

/** How a {@link CommandExecutor} runs a command. */
export interface CommandOptions extends Abortable {
  /**
   * Written to its standard input, which is then closed. Default: nothing. May be a secret: it is in no error and no
   * log line.
   */
  stdin?: string
  /**
   * Milliseconds after which it is ended, at most a week; 0 for never. Default 600000. One that has ended by then has not run out
   * of time, also where a process that it has left behind is still listened to.
   */
  timeoutMs?: number
  /** It is ended when it prints more bytes than this on one stream, at most 256 MiB. Default 64 MiB. */
  maxBuffer?: number
  /** Milliseconds between SIGTERM and SIGKILL when it is ended. Default 5000. */
  killGraceMs?: number
  /** A failure is no process warning, but a line of the log (`DEBUG`), as one by `signal` always is. Default false. */
  expectNonZeroExit?: boolean
}

/**
 * A command did not end with exit code 0. The class is not exported: `name` is `CommandExecutionError`. The message
 * has its last 8 KiB of standard error (else of standard output) and none of its arguments. In `stdout`, `stderr` and
 * the message, values of `password=`, `passwd=`, `passphrase=`, `secret=` and of `data=` in QEMU's `secret,…` are `***`, those
 * without quotes up to where something else begins (`,`, `;`, `&`, a colon and a blank, `--name`, `name=`), else to the end of
 * the line. So is, wherever it stands, what `stdin` was, if that is one line, and what the arguments have as a value of
 * these names or behind one (`--password …`), if it has four bytes or more.
 */
export interface CommandExecutionError extends Error {
  /** Its exit code; null when a signal ended it, or it could not be started. */
  code: number | null
  /** Such as `SIGTERM`. */
  signal: string | null
  /** What it had printed, at most the last 16 MiB in whole lines. Bytes that are not UTF-8 are U+FFFD. */
  stdout: string
  stderr: string
  /** It was ended by `timeoutMs`. */
  timedOut: boolean
  /** ProcessError `PROGRAM_NOT_FOUND`, `SPAWN_FAILED`, `COMMAND_FAILED` (also too much output); LifecycleError `TIMEOUT`. */
  cause: ProcessError | LifecycleError
}

/**
 * Runs programs to their end: no shell, a deadline, bounded output. Whatever happens, the program is gone when the
 * promise settles. A process that it has left behind goes on; what that prints is read for a second at most.
 */
export class CommandExecutor {
  constructor()
  /**
   * Resolves with its standard output as text. The program is a path, or a name that is looked up in `PATH`; it has
   * the environment of this process with `LC_ALL=C` and `LANG=C`.
   * @throws {@link CommandExecutionError}; LifecycleError `INVALID_CONFIG`, `ABORTED` (`signal`)
   */
  execute(command: string, args: string[], options?: CommandOptions): Promise<string>
}

/**
 * Log lines of your own, on standard error: `error` and `warn` always, the rest where `DEBUG` names `infinization:<module>`
 * or `infinization:<module>:<level>`, with `*` for anything. Values that {@link CommandExecutionError} tells as `***` are
 * `***` here as well, those of a context by their names.
 */
export class Debugger {
  constructor(module: string)
  /** A level first, if you like (default `debug`), then words, then what belongs to them. */
  log(...parts: (string | Record<string, unknown>)[]): void
  error(message: string, context?: unknown): void
  warn(message: string, context?: unknown): void
  info(message: string, context?: unknown): void
  debug(message: string, context?: unknown): void
}

// ---------------------------------------------------------------------------------------------------
// Machines as data: kept for compatibility, no method of the library takes or gives them
// ---------------------------------------------------------------------------------------------------

/** Another name of {@link DBVMStatus}. */
export type VMStatus = DBVMStatus

export interface VMResourceConfig {
  cpuCores: number
  ramGB: number
  diskSizeGB: number
}

export interface VMNetworkInfo {
  bridge: string
  macAddress?: string
  tapDevice?: string
}

export interface VMDisplayInfo {
  protocol: DisplayProtocol
  port: number
  address?: string
  hasPassword?: boolean
}

export interface VMHardwareConfig {
  gpuPciAddress?: string
  gpuRomfile?: string
  iommuGroup?: number
}

export interface VMInfo {
  id: string
  name: string
  internalName: string
  os: string
  resources: VMResourceConfig
  status: VMStatus
  network?: VMNetworkInfo
  display?: VMDisplayInfo
  hardware?: VMHardwareConfig
  pid?: number | null
  qmpSocketPath?: string | null
  createdAt?: Date
  updatedAt?: Date
}

export type VMOperation = 'CREATE' | 'START' | 'STOP' | 'RESTART' | 'SUSPEND' | 'RESUME' | 'RESET' | 'DELETE'
export const VMOperation: { readonly [K in VMOperation]: K }
export type VMOperationStatus = 'PENDING' | 'IN_PROGRESS' | 'SUCCESS' | 'FAILED' | 'TIMEOUT'
export const VMOperationStatus: { readonly [K in VMOperationStatus]: K }

export interface VMOperationHistory {
  id: string
  vmId: string
  operation: VMOperation
  status: VMOperationStatus
  startedAt: Date
  completedAt?: Date | null
  message?: string
  error?: string
  forced?: boolean
  context?: Record<string, unknown>
}

/** The same as {@link isValidDBStatus}. */
export function isValidVMStatus(status: unknown): status is VMStatus
/** Whether it is one of {@link VMOperation}. */
export function isValidVMOperation(operation: unknown): operation is VMOperation
/** Whether names, status and resources are there. */
export function isValidVMInfo(info: unknown): info is VMInfo

/** What programs may suggest; `createVM` has no defaults of the kind. */
export const DEFAULT_VM_CPU_CORES: 2
/** As {@link DEFAULT_VM_CPU_CORES}, in GiB. */
export const DEFAULT_VM_RAM_GB: 4
/** As {@link DEFAULT_VM_CPU_CORES}, in GiB. */
export const DEFAULT_VM_DISK_SIZE_GB: 20
/** What programs may hold their users to; `createVM` has limits of its own. */
export const MIN_VM_CPU_CORES: 1
/** As {@link MIN_VM_CPU_CORES}. */
export const MAX_VM_CPU_CORES: 64
/** As {@link MIN_VM_CPU_CORES}, in GiB. */
export const MIN_VM_RAM_GB: 1
/** As {@link MIN_VM_CPU_CORES}, in GiB. */
export const MAX_VM_RAM_GB: 512
/** As {@link MIN_VM_CPU_CORES}, in GiB. */
export const MIN_VM_DISK_SIZE_GB: 10
/** As {@link MIN_VM_CPU_CORES}, in GiB. */
export const MAX_VM_DISK_SIZE_GB: 2048

export type VMDisplayType = 'spice' | 'vnc'
export type NetworkModel = 'virtio-net-pci' | 'e1000'
export type StorageFormat = 'qcow2' | 'raw'

export interface DisplayConfig {
  type: VMDisplayType
  port: number
  address?: string
  password?: string
  passwordEnabled?: boolean
  disableTicketing?: boolean
  enableAgent?: boolean
}

export interface FirewallConfig {
  enabled: boolean
  departmentRules?: FirewallRuleInput[]
  vmRules?: FirewallRuleInput[]
}

export interface NetworkConfig {
  bridge: string
  macAddress?: string
  tapDevice?: string
  model?: NetworkModel
  queues?: number
  firewall?: FirewallConfig
}

export interface StorageConfig {
  path: string
  format?: StorageFormat
  sizeGB: number
  bus?: DiskBus
  cache?: CacheMode
  discard?: boolean
  preallocation?: 'off' | 'metadata' | 'falloc' | 'full'
  backingFile?: string
}

export interface QemuMachineConfig {
  type?: MachineType
  accel?: string
  kernelIrqchip?: string
}

export interface QemuCpuConfig {
  model?: string
  cores: number
  sockets?: number
  threads?: number
}

export interface QemuMemoryConfig {
  sizeGB: number
}

export interface QemuBootConfig {
  order?: BootDevice
  menu?: boolean
  isoPath?: string
}

export interface QemuProcessConfig {
  daemonize?: boolean
  pidfile?: string
  qmpSocket?: string
  uuid?: string
}

export interface QemuConfig {
  machine?: QemuMachineConfig
  cpu?: QemuCpuConfig
  memory?: QemuMemoryConfig
  boot?: QemuBootConfig
  process?: QemuProcessConfig
}

export interface VMIdentityConfig {
  id: string
  name: string
  internalName: string
  os?: string
}

export interface VMResourcesConfig {
  cpuCores: number
  ramGB: number
  diskSizeGB: number
}

export interface USBDeviceConfig {
  vendorId: string
  productId: string
}

export interface PCIDeviceConfig {
  address: string
  romfile?: string
}

export interface VMHardwarePassthroughConfig {
  gpuPciAddress?: string
  gpuAudioPciAddress?: string
  gpuRomfile?: string
  usbDevices?: USBDeviceConfig[]
  pciDevices?: PCIDeviceConfig[]
}

export interface VMCompleteConfig {
  vm: VMIdentityConfig
  resources?: VMResourcesConfig
  display?: DisplayConfig
  network?: NetworkConfig
  storage?: StorageConfig
  qemu?: QemuConfig
  hardware?: VMHardwarePassthroughConfig
}

export interface ConfigValidationError {
  field: string
  code: string
  message: string
}

export interface ConfigValidationWarning {
  field: string
  code: string
  message: string
}

export interface ConfigValidationResult {
  valid: boolean
  errors: ConfigValidationError[]
  warnings: ConfigValidationWarning[]
}

/** What programs may suggest. Nothing of the library reads it: its own displays listen on loopback. */
export const ConfigDefaults: Readonly<{
  display: Readonly<{ spicePort: number; vncDisplay: number; address: string; enableAgent: boolean }>
  network: Readonly<{ bridge: string; model: NetworkModel }>
  storage: Readonly<{ format: StorageFormat; bus: DiskBus; cache: CacheMode; sizeGB: number }>
  qemu: Readonly<{ machineType: MachineType; cpuModel: string; cpuCores: number; ramGB: number }>
  limits: Readonly<{
    minCpuCores: number
    maxCpuCores: number
    minRamGB: number
    maxRamGB: number
    minDiskSizeGB: number
    maxDiskSizeGB: number
    minSpicePort: number
    maxSpicePort: number
    maxVncDisplay: number
  }>
}>

/** Whether the type is one, and the port above 0. */
export function isValidDisplayConfig(config: unknown): config is DisplayConfig
/** Whether a bridge is named. */
export function isValidNetworkConfig(config: unknown): config is NetworkConfig
/** Whether a path is named, and the size above 0. */
export function isValidStorageConfig(config: unknown): config is StorageConfig
/** Whether `vm` has its names. */
export function isValidVMCompleteConfig(config: unknown): config is VMCompleteConfig
/** Whether the addresses given are PCI addresses, and two; and a ROM inside `/var/lib/infinization/roms`. */
export function isValidGpuPassthroughConfig(config: unknown): config is VMHardwarePassthroughConfig

/** A machine's part that an instance holds. */
export interface ActiveVMResources {
  tapDevice?: string
  createdAt: Date
  internalName: string
}

/** A TAP to be made. */
export interface TapDeviceConfig {
  name: string
  vmId: string
  bridge?: string
  mac?: string
}

export interface TapDeviceInfo {
  name: string
  exists: boolean
  bridge?: string
  state: NetworkDeviceState
}

export interface BridgeConfig {
  name: string
  interfaces?: string[]
}

export interface BridgeInfo {
  name: string
  exists: boolean
  state: NetworkDeviceState
  interfaces: string[]
}

/** What is thrown is a {@link NetworkError}. */
export interface NetworkDeviceError {
  code: NetworkErrorCode
  message: string
  device?: string
  command?: string
}

export interface NftablesTableConfig {
  name: string
  family: NftablesFamily
}

export interface NftablesChainConfig {
  name: string
  table: string
  family: NftablesFamily
  hook?: NftablesHookType
  priority?: number
  policy?: NftablesChainPolicy
}

export interface NftablesRuleConfig {
  chain: string
  table: string
  family: NftablesFamily
  expression: string
}

export type NftablesRuleTokens = string[]

export interface FirewallRuleTranslation {
  expression: string
  priority: number
  ruleName: string
  success: boolean
  error?: string
}

export interface VMFirewallConfig {
  vmId: string
  tapDeviceName: string
  departmentRules: FirewallRuleInput[]
  vmRules: FirewallRuleInput[]
}

export interface ChainListResult {
  chains: string[]
  tableExists: boolean
}

// Second names, each of the type behind it.
export type VMDisplayProtocol = DisplayProtocol
export type VMMachineOptions = MachineOptions
export type VMCreateConfigFromHub = VMCreateConfig
export type VMCreateResultFromHub = VMCreateResult
export type VMStartConfigFromHub = VMStartConfig
export type VMStopConfigFromHub = VMStopConfig
export type VMOperationResultFromHub = VMOperationResult
export type VMStatusResultFromHub = VMStatusResult
export type ConfigMachineType = MachineType
export type ConfigDiskBus = DiskBus
export type ConfigCacheMode = CacheMode
export type ConfigDisplayType = DisplayType
export type ConfigVgaType = VgaType
export type ConfigBootDevice = BootDevice
export type ConfigMachineOptions = MachineOptions
export type ConfigDiskOptions = DiskOptions
export type ConfigNetworkOptions = NetworkOptions
export type ConfigSpiceOptions = SpiceOptions
export type ConfigVncOptions = VncOptions
export type ConfigQemuProcessOptions = QemuProcessOptions
export type ConfigSpiceConfigOptions = SpiceConfigOptions
export type ConfigVncConfigOptions = VncConfigOptions
export type ConfigTapDeviceConfig = TapDeviceConfig
export type ConfigBridgeConfig = BridgeConfig
export type ConfigCreateImageOptions = CreateImageOptions
export type ConfigConvertImageOptions = ConvertImageOptions
export type ConfigSnapshotCreateOptions = SnapshotCreateOptions
export type ConfigVMFirewallConfig = VMFirewallConfig
export type ConfigFirewallRuleInput = FirewallRuleInput
export type ConfigInfinizationConfig = InfinizationConfig

// ---------------------------------------------------------------------------------------------------
// Unattended installs: types for a later version
// ---------------------------------------------------------------------------------------------------

/** By system, or a list of commands. */
export type InstallCommandType = Record<string, string> | string[]
export type ScriptShell = 'POWERSHELL' | 'CMD' | 'BASH' | 'SH'

export interface UnattendedApplication {
  id: string
  name: string
  description?: string | null
  version?: string | null
  url?: string | null
  icon?: string | null
  os: string[]
  installCommand: InstallCommandType
  parameters: Record<string, unknown>
}

export interface UnattendedScript {
  id: string
  name: string
  fileName: string
  shell: ScriptShell
  description?: string | null
  category?: string | null
  tags?: string[]
}

export interface ScriptExecutionConfig {
  script: UnattendedScript
  inputValues: Record<string, unknown>
  executionId: string
}

/** What {@link VMCreateConfig.unattendedInstall} will take. */
export interface UnattendedInstallConfig {
  vmId: string
  /** An {@link OSType}. */
  os: string
  username: string
  password: string
  productKey?: string
  applications?: UnattendedApplication[]
  scripts?: ScriptExecutionConfig[]
  locale?: string
  timezone?: string
  hostname?: string
}

// ---------------------------------------------------------------------------------------------------
// Secrets at rest
// ---------------------------------------------------------------------------------------------------

/**
 * Encrypts a text with AES-256-GCM: `iv:tag:data`, each part in base64, with a random IV of 12 bytes; the same text is
 * encrypted differently each time.
 * @param key 32 bytes, or 64 hexadecimal digits or base64 of as many
 * @throws InfinizationError `INVALID_KEY` (`context.field` is `key`); LifecycleError `INVALID_CONFIG` (`plain` is no text)
 */
export function encryptSecret(plain: string, key: string | Uint8Array): string
/**
 * What {@link encryptSecret} was given. An IV may also have 16 bytes, as some programs make it.
 * @throws InfinizationError `INVALID_KEY`, `SECRET_UNREADABLE` (another key, or the text was changed: nothing more is
 * told); LifecycleError `INVALID_CONFIG` (`text` is no text)
 */
export function decryptSecret(text: string, key: string | Uint8Array): string
