//! The one table of error codes, and the trait every module's error enum implements.
//!
//! Each module has a small enum of its own next to what fails. What leaves the core is a
//! [`Failure`]: a code out of [`ErrorCode`], a sentence, and the failures that caused it. A code's
//! wire string never changes; renaming one is a breaking change.

use std::error::Error;
use std::fmt;

use serde_json::{Map, Value};

use crate::types::VmId;

/// The JavaScript class an error reaches the user as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// `LifecycleError`: a verb on a VM failed.
    Lifecycle,
    /// `PrismaAdapterError`: a database refused or could not be reached.
    Database,
    /// `StorageError`: an image or snapshot operation failed.
    Storage,
    /// `BackupError`: a backup could not be made, restored or deleted.
    Backup,
    /// `NftablesError`: the firewall could not be read or changed.
    Nftables,
    /// `NetworkError`: a TAP or bridge could not be made or changed.
    Network,
    /// `QMPError`: the monitor refused, timed out or went away.
    Qmp,
    /// `ProcessError`: a program could not be started, or ended badly.
    Process,
    /// `InfinizationError`: the library's own fault or misuse.
    Library,
}

impl ErrorClass {
    /// The class' name in JavaScript.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lifecycle => "LifecycleError",
            Self::Database => "PrismaAdapterError",
            Self::Storage => "StorageError",
            Self::Backup => "BackupError",
            Self::Nftables => "NftablesError",
            Self::Network => "NetworkError",
            Self::Qmp => "QMPError",
            Self::Process => "ProcessError",
            Self::Library => "InfinizationError",
        }
    }
}

macro_rules! error_codes {
    ($($variant:ident $class:ident $wire:literal $sentence:literal)*) => {
        /// A stable code for programs. [`ErrorCode::as_str`] is what JavaScript sees as `error.code`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $sentence] $variant,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code as JavaScript sees it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $wire,)* }
            }

            /// The class that carries this code.
            pub fn class(self) -> ErrorClass {
                match self { $(Self::$variant => ErrorClass::$class,)* }
            }

            /// One sentence for the documentation.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

error_codes! {
    VmNotFound Lifecycle "VM_NOT_FOUND" "No machine has this id."
    CreateFailed Lifecycle "CREATE_FAILED" "The machine could not be created; everything this attempt made was removed."
    StartFailed Lifecycle "START_FAILED" "The machine could not be started; everything this attempt made was removed."
    StopFailed Lifecycle "STOP_FAILED" "The machine could not be stopped; it is as it was."
    CleanupFailed Lifecycle "CLEANUP_FAILED" "Something of the machine could not be released."
    Timeout Lifecycle "TIMEOUT" "The deadline passed first."
    QmpError Lifecycle "QMP_ERROR" "The monitor did not do what the operation needs."
    DiskError Lifecycle "DISK_ERROR" "A disk is missing or cannot be used."
    NetworkError Lifecycle "NETWORK_ERROR" "The machine's network could not be set up."
    FirewallError Lifecycle "FIREWALL_ERROR" "The firewall could not be set up, so the machine was not."
    InvalidConfig Lifecycle "INVALID_CONFIG" "A given value is refused; `context.issues` names each field."
    ProcessError Lifecycle "PROCESS_ERROR" "The QEMU process could not be handled."
    DatabaseError Lifecycle "DATABASE_ERROR" "The database could not be read or written."
    InvalidState Lifecycle "INVALID_STATE" "The operation is not allowed now."
    ConcurrentModification Lifecycle "CONCURRENT_MODIFICATION" "Another writer changed the machine first."
    ResourceUnavailable Lifecycle "RESOURCE_UNAVAILABLE" "A requested resource does not exist on this host or is taken."
    Closed Lifecycle "CLOSED" "shutdown() was called."
    Aborted Lifecycle "ABORTED" "The caller's AbortSignal fired; everything this attempt made was removed."

    MachineNotFound Database "MACHINE_NOT_FOUND" "The database has no such machine."
    DbConnectionError Database "DB_CONNECTION_ERROR" "The database cannot be reached."
    UpdateFailed Database "UPDATE_FAILED" "The database refused a write."
    QueryFailed Database "QUERY_FAILED" "The database could not answer, or its answer makes no sense."
    InvalidInput Database "INVALID_INPUT" "The database was asked with a malformed argument."
    ConstraintViolation Database "CONSTRAINT_VIOLATION" "The row would break a constraint."
    VersionConflict Database "VERSION_CONFLICT" "The row's version is not the expected one."
    DbSecretUnreadable Database "SECRET_UNREADABLE" "A stored secret cannot be read: `secretsKey` is not given or another, or the store was changed."
    SchemaMismatch Database "SCHEMA_MISMATCH" "The database lacks a table, column or client method that is needed; `details.missing` lists them."

    PoolNotFound Storage "POOL_NOT_FOUND" "There is no storage pool of this name."
    PoolAlreadyExists Storage "POOL_ALREADY_EXISTS" "There is a storage pool of this name, or in this directory."
    ImageNotFound Storage "IMAGE_NOT_FOUND" "The image does not exist."
    ImageAlreadyExists Storage "IMAGE_ALREADY_EXISTS" "A file of this name exists; it was left alone."
    SnapshotNotFound Storage "SNAPSHOT_NOT_FOUND" "The image has no snapshot of this name."
    SnapshotAlreadyExists Storage "SNAPSHOT_ALREADY_EXISTS" "The image has a snapshot of this name."
    SnapshotHasChildren Storage "SNAPSHOT_HAS_CHILDREN" "Other snapshots, or the disks as they are now, build on this snapshot; `context.children` names them."
    InvalidSnapshotName Storage "INVALID_SNAPSHOT_NAME" "A snapshot name is 1 to 64 letters, digits, '-' and '_', and not a number."
    InvalidFormat Storage "INVALID_FORMAT" "The image's format does not fit the operation."
    InvalidSize Storage "INVALID_SIZE" "The size is not a positive number the format can hold."
    DataLossRefused Storage "DATA_LOSS_REFUSED" "Data would be lost (by shrinking, or by leaving what was written since the current snapshot), and consent was not given."
    ImageInUse Storage "IMAGE_IN_USE" "Another process has the image open; `context.holder` names it if known."
    KeyRequired Storage "KEY_REQUIRED" "The image is encrypted, and its key was not given."
    AuthFailed Storage "AUTH_FAILED" "The image's key is not the one that was given."
    PlainTextRefused Storage "PLAIN_TEXT_REFUSED" "What an encrypted image holds would be written unencrypted, and that was not agreed to."
    ImageCorrupt Storage "IMAGE_CORRUPT" "The image cannot be read as its format."
    ChecksumMismatch Storage "CHECKSUM_MISMATCH" "The bytes are not the ones whose checksum was given; they were removed."
    NetworkDisk Storage "NETWORK_DISK" "A disk is on another host (NBD, RBD), and the operation needs a file."
    UnsafeBackingFile Storage "UNSAFE_BACKING_FILE" "The image's backing file is not one that may be opened."
    StoragePermissionDenied Storage "PERMISSION_DENIED" "The image's file or directory may not be accessed."
    InsufficientSpace Storage "INSUFFICIENT_SPACE" "The file system is full."
    StorageAborted Storage "ABORTED" "The operation was cancelled; its temporary file was removed."
    StorageTimeout Storage "TIMEOUT" "qemu-img did not end before its deadline and was ended."
    CommandFailed Storage "COMMAND_FAILED" "qemu-img failed; `context.stderr` has its words."
    ParseError Storage "PARSE_ERROR" "qemu-img's answer could not be read."

    BackupVmNotFound Backup "VM_NOT_FOUND" "No machine has this id."
    BackupNotFound Backup "BACKUP_NOT_FOUND" "The machine has no backup of this id."
    InvalidDestination Backup "INVALID_DESTINATION" "Backups cannot be kept in this directory."
    DiskNotFound Backup "DISK_NOT_FOUND" "A disk that is to be backed up does not exist."
    BackupVmRunning Backup "VM_RUNNING" "The machine runs, or may run, and the operation is not safe then; nothing was touched."
    BackupNoSpace Backup "INSUFFICIENT_SPACE" "The file system has no room for it; what was there is unchanged."
    ParentNotFound Backup "PARENT_NOT_FOUND" "A backup that this one builds on does not exist or is not complete."
    BackupExists Backup "BACKUP_EXISTS" "A backup or schedule of this id exists."
    TargetExists Backup "TARGET_EXISTS" "A file is where a disk would be restored, and replacing it was not agreed to."
    BackupFailed Backup "OPERATION_FAILED" "The operation failed; what it made was removed."
    BackupCancelled Backup "CANCELLED" "The caller's AbortSignal fired; what was made was removed."
    BackupInvalidConfig Backup "INVALID_CONFIG" "A given value is refused."
    CorruptBackup Backup "CORRUPT_BACKUP" "The backup's files are not what was written; nothing was restored."
    BackupPlainTextRefused Backup "PLAIN_TEXT_REFUSED" "A disk is encrypted, and a backup of it would not be."
    BackupKeyRequired Backup "KEY_REQUIRED" "A disk or its backup is encrypted, and nobody has its key; nothing was begun."
    BackupAuthFailed Backup "AUTH_FAILED" "A disk or its backup is encrypted with another key than the one that was given; nothing was begun."
    BackupDependency Backup "DEPENDENCY" "Other backups build on this one, so it was not deleted."

    TableNotFound Nftables "TABLE_NOT_FOUND" "The nftables table does not exist."
    ChainNotFound Nftables "CHAIN_NOT_FOUND" "The nftables chain does not exist."
    RuleInvalid Nftables "RULE_INVALID" "A firewall rule makes no sense."
    InvalidIpAddress Nftables "INVALID_IP_ADDRESS" "A rule's address is not one."
    InvalidSubnetMask Nftables "INVALID_SUBNET_MASK" "A rule's mask is not one."
    InvalidPortRange Nftables "INVALID_PORT_RANGE" "A rule's ports are not 0 to 65535, or start after they end."
    UnsupportedProtocol Nftables "UNSUPPORTED_PROTOCOL" "A rule's protocol is not tcp, udp, icmp or all."
    NftPermissionDenied Nftables "PERMISSION_DENIED" "nftables may only be changed by root."
    NftCommandFailed Nftables "COMMAND_FAILED" "nft refused the transaction; the old rules are in force."
    ConntrackUnavailable Nftables "CONNTRACK_UNAVAILABLE" "The kernel has no connection tracking for bridges (module nf_conntrack_bridge)."
    RulesetMismatch Nftables "RULESET_MISMATCH" "The kernel does not hold the rules that were loaded."
    ForwardingFailed Nftables "FORWARDING_FAILED" "IPv4 forwarding could not be switched on, so nothing would be routed."

    DeviceNotFound Network "DEVICE_NOT_FOUND" "No interface has this name."
    DeviceAlreadyExists Network "DEVICE_ALREADY_EXISTS" "An interface of this name exists or is in use."
    BridgeNotFound Network "BRIDGE_NOT_FOUND" "No bridge has this name."
    BridgeAlreadyExists Network "BRIDGE_ALREADY_EXISTS" "A bridge of this name exists."
    BridgeFull Network "BRIDGE_FULL" "The bridge has its 1023 ports taken."
    InvalidMacAddress Network "INVALID_MAC_ADDRESS" "The address is not a unicast MAC address."
    NetworkNotFound Network "NETWORK_NOT_FOUND" "No virtual network has this name."
    NetworkAlreadyExists Network "NETWORK_ALREADY_EXISTS" "A virtual network of this name exists."
    NetworkInUse Network "NETWORK_IN_USE" "The network's bridge has ports; `context.ports` names them."
    SubnetOverlaps Network "SUBNET_OVERLAPS" "The subnet is in use, by another virtual network or by the host."
    DhcpStartFailed Network "DHCP_START_FAILED" "dnsmasq ended while starting; `context.stderr` has its words."
    NetlinkFailed Network "COMMAND_FAILED" "The kernel refused a netlink or TAP request; `context.errno` says why."
    NetTimeout Network "TIMEOUT" "The kernel did not answer, or a link did not change, before the deadline."
    NetPermissionDenied Network "PERMISSION_DENIED" "Links may only be changed by root (CAP_NET_ADMIN)."

    QmpConnectFailed Qmp "QMP_CONNECT_FAILED" "The monitor socket cannot be connected to."
    QmpTimeout Qmp "QMP_TIMEOUT" "The monitor did not answer before the deadline."
    QmpDisconnected Qmp "QMP_DISCONNECTED" "The monitor connection ended before the answer."
    QmpProtocol Qmp "QMP_PROTOCOL" "The monitor sent what is not QMP."
    QmpCommandFailed Qmp "QMP_COMMAND_FAILED" "QEMU answered with an error; `context` has its class and words."
    QmpArguments Qmp "QMP_ARGUMENTS" "A command's name or arguments are malformed; nothing was sent."
    AgentConnectFailed Qmp "AGENT_CONNECT_FAILED" "The guest agent's socket cannot be connected to."
    AgentTimeout Qmp "AGENT_TIMEOUT" "The guest agent did not answer before the deadline."
    AgentDisconnected Qmp "AGENT_DISCONNECTED" "The guest agent's connection ended before the answer."
    AgentProtocol Qmp "AGENT_PROTOCOL" "The guest agent sent what is not its protocol."
    AgentCommandFailed Qmp "AGENT_COMMAND_FAILED" "The guest agent answered with an error; `context` has its class and words."

    ProgramNotFound Process "PROGRAM_NOT_FOUND" "A program that is needed is not installed."
    SpawnFailed Process "SPAWN_FAILED" "A program could not be started."
    ProcessCommandFailed Process "COMMAND_FAILED" "A program that was asked for did not succeed; `context` has its exit code, signal and words."
    QemuStartFailed Process "QEMU_START_FAILED" "QEMU ended while starting; `context.stderr` has its last lines."
    AddressInUse Process "ADDRESS_IN_USE" "A display port or socket is taken."
    IdentityUnknown Process "IDENTITY_UNKNOWN" "The process cannot be proven to be this VM's, so it was not touched."
    SignalFailed Process "SIGNAL_FAILED" "The process could not be signalled."
    StillAlive Process "STILL_ALIVE" "The process did not end after SIGKILL."
    StateFile Process "STATE_FILE" "A file in the state directory could not be read or written."
    HostFile Process "HOST_FILE" "A file or directory on the host could not be used."

    InvalidKey Library "INVALID_KEY" "The key is not 32 bytes; `context.field` names the argument."
    SecretUnreadable Library "SECRET_UNREADABLE" "The text was not encrypted with this key, or was changed since."
    Busy Library "STATE_DIR_LOCKED" "Another process manages this state directory."
    Internal Library "INTERNAL" "A defect of the library; please report it."
}

/// What every module's error enum can say about itself.
pub trait Coded: Error + Send + Sync + 'static {
    /// The stable code.
    fn code(&self) -> ErrorCode;

    /// Facts for programs (`errno`, `path`, `stderr`), shown as `error.context`.
    fn context(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// An error as it leaves the core: what failed, for which VM, and why, outermost first.
#[derive(Debug)]
pub struct Failure {
    code: ErrorCode,
    message: String,
    vm_id: Option<VmId>,
    context: Map<String, Value>,
    source: Option<Box<Failure>>,
}

impl Failure {
    /// A failure that no other caused.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            vm_id: None,
            context: Map::new(),
            source: None,
        }
    }

    /// Puts `source` under a failure the public contract names.
    pub fn caused_by(
        code: ErrorCode,
        message: impl Into<String>,
        source: impl Into<Failure>,
    ) -> Self {
        Self {
            source: Some(Box::new(source.into())),
            ..Self::new(code, message)
        }
    }

    /// Says which VM it is about.
    #[must_use]
    pub fn of_vm(mut self, vm_id: &VmId) -> Self {
        self.vm_id.get_or_insert_with(|| vm_id.clone());
        self
    }

    /// Adds what came of it, beside what went wrong.
    #[must_use]
    pub fn noting(mut self, what: &str) -> Self {
        self.message.push_str("; ");
        self.message.push_str(what);
        self
    }

    /// Adds a fact to `context`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.context.insert(key.to_owned(), value.into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The VM it is about.
    pub fn vm_id(&self) -> Option<&VmId> {
        self.vm_id.as_ref()
    }

    /// The facts for programs.
    pub fn context(&self) -> &Map<String, Value> {
        &self.context
    }

    /// The failure that caused this one.
    pub fn inner(&self) -> Option<&Failure> {
        self.source.as_deref()
    }

    /// This failure and all that caused it, outermost first.
    pub fn chain(&self) -> impl Iterator<Item = &Failure> {
        std::iter::successors(Some(self), |failure| failure.inner())
    }

    /// Whether this failure or one of its causes has `code`.
    pub fn has(&self, code: ErrorCode) -> bool {
        self.chain().any(|failure| failure.code == code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl<E: Coded> From<E> for Failure {
    fn from(error: E) -> Self {
        // Plain sources (io::Error and the like) have no code of their own: their words join the
        // sentence, so that "why" is not lost on the way to JavaScript.
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self {
            code: error.code(),
            message,
            vm_id: None,
            context: error.context(),
            source: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_class_has_a_code_twice() {
        let mut seen = HashSet::new();
        for code in ErrorCode::ALL {
            assert!(
                seen.insert((code.class(), code.as_str())),
                "{} twice",
                code.as_str()
            );
        }
    }

    #[test]
    fn a_plain_source_joins_the_sentence() {
        #[derive(Debug, thiserror::Error)]
        #[error("the disk could not be opened")]
        struct Outer(#[source] std::io::Error);
        impl Coded for Outer {
            fn code(&self) -> ErrorCode {
                ErrorCode::HostFile
            }
        }
        let failure = Failure::from(Outer(std::io::ErrorKind::NotFound.into()));
        assert_eq!(
            failure.to_string(),
            "the disk could not be opened: entity not found"
        );
        let outer = Failure::caused_by(ErrorCode::CreateFailed, "no", failure);
        assert!(outer.has(ErrorCode::HostFile));
    }
}
