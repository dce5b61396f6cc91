//! Why a verb of this layer failed.

use std::io;

use serde_json::{Map, Value};

use super::names::BackupId;
use crate::error::{Coded, ErrorCode};
use crate::host::dir_lock::DirLockError;
use crate::host::qemu_img::ImageError;
use crate::qmp::QmpError;
use crate::types::{HostPath, VmId};

/// A verb that failed, and so changed nothing that was there before.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BackupError {
    #[error("machine {vm_id} has no backup {id}")]
    NotFound { vm_id: VmId, id: BackupId },
    #[error("there is no backup {id}")]
    Unknown { id: BackupId },
    #[error("{vm_id} {why}")]
    Running { vm_id: VmId, why: &'static str },
    #[error("{what} {why}")]
    Config { what: &'static str, why: String },
    #[error("{path} cannot hold backups: it {why}")]
    Destination { path: String, why: String },
    #[error("the disk {path} does not exist")]
    NoDisk { path: HostPath },
    #[error("{path} has room for {free} bytes, and {needed} are needed")]
    NoSpace {
        path: HostPath,
        needed: u64,
        free: u64,
    },
    #[error("the file system of {path} is full")]
    Full { path: HostPath },
    #[error("the backup {id}, which this one builds on, {why}")]
    Parent { id: BackupId, why: &'static str },
    #[error("{path} exists already and was left alone")]
    TargetExists { path: HostPath },
    #[error("the backup {id} is damaged: {why}")]
    Corrupt { id: BackupId, why: String },
    #[error("the backup {id} {why}")]
    Unfit { id: BackupId, why: String },
    #[error("nothing can be built on the backup {id} any more: it {why}, so make a FULL backup")]
    NeedsFull { id: BackupId, why: String },
    #[error("other backups build on {id}: {}", list(.children))]
    Dependency {
        id: BackupId,
        children: Vec<BackupId>,
    },
    #[error("it was cancelled")]
    Cancelled,
    #[error("it did not end before its deadline")]
    TimedOut,
    #[error("{path} could not be used")]
    Io { path: HostPath, source: io::Error },
    #[error("the file system of the backup is full")]
    TargetFull,
    #[error("the copy inside QEMU failed: {why}")]
    Job { why: String },
    #[error("the disk {path} is not one of the running machine's")]
    NotAttached { path: HostPath },
    #[error("the machine went on in another file than {path} as its backup began: make it again")]
    Moved { path: HostPath },
    #[error(
        "{path} is a frozen layer of external snapshots: other files lie on it, so it is not what a disk \
         holds now, and must not change"
    )]
    Frozen { path: HostPath },
    #[error("the keys of the disks could not be had: {why}")]
    KeysUnknown { why: String },
    #[error("which files are frozen layers of external snapshots could not be found out: {why}")]
    LayersUnknown { why: String },
    #[error(
        "a restore was cut short, and some of its disks were used since: some are restored, others are \
         not, and what was replaced lies beside them, or in a snapshot inside them (its journal was {journal})"
    )]
    Overtaken { journal: HostPath },
    #[error(
        "a restore of {path} was cut short, and could not be ended yet (its journal is {journal})"
    )]
    Pending {
        path: HostPath,
        journal: HostPath,
        source: Box<BackupError>,
    },
    #[error("another restore was cut short, and could not be ended yet (its journal is {journal})")]
    Unended { journal: HostPath },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Monitor(#[from] QmpError),
    #[error(transparent)]
    Locked(#[from] DirLockError),
    #[error("this host does not let it be done")]
    NotDone { source: io::Error },
}

fn list(ids: &[BackupId]) -> String {
    let ids: Vec<_> = ids.iter().map(BackupId::as_str).collect();
    ids.join(", ")
}

impl BackupError {
    pub(super) fn config(what: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::Config { what, why }
    }

    pub(super) fn corrupt(id: &BackupId, why: impl Into<String>) -> Self {
        let (id, why) = (id.clone(), why.into());
        Self::Corrupt { id, why }
    }

    pub(super) fn unfit(id: &BackupId, why: impl Into<String>) -> Self {
        let (id, why) = (id.clone(), why.into());
        Self::Unfit { id, why }
    }

    /// What the kernel's refusal means for `path`.
    pub(super) fn io(path: &HostPath, source: io::Error) -> Self {
        let path = path.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::Interrupted => Self::Cancelled,
            _ => Self::Io { path, source },
        }
    }

    fn path(&self) -> Option<&HostPath> {
        match self {
            Self::NoDisk { path }
            | Self::NoSpace { path, .. }
            | Self::Full { path }
            | Self::TargetExists { path }
            | Self::NotAttached { path }
            | Self::Moved { path }
            | Self::Frozen { path }
            | Self::Pending { path, .. }
            | Self::Io { path, .. } => Some(path),
            _ => None,
        }
    }
}

impl Coded for BackupError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } | Self::Unknown { .. } => ErrorCode::BackupNotFound,
            Self::Running { .. } => ErrorCode::BackupVmRunning,
            Self::Config { .. }
            | Self::NotAttached { .. }
            | Self::Unfit { .. }
            | Self::NeedsFull { .. }
            | Self::Frozen { .. } => ErrorCode::BackupInvalidConfig,
            Self::Destination { .. } => ErrorCode::InvalidDestination,
            Self::NoDisk { .. } => ErrorCode::DiskNotFound,
            Self::NoSpace { .. } | Self::Full { .. } | Self::TargetFull => ErrorCode::BackupNoSpace,
            Self::Parent { .. } => ErrorCode::ParentNotFound,
            Self::TargetExists { .. } => ErrorCode::TargetExists,
            Self::Corrupt { .. } => ErrorCode::CorruptBackup,
            Self::Dependency { .. } => ErrorCode::BackupDependency,
            Self::Cancelled => ErrorCode::BackupCancelled,
            Self::Image(error) => of_image(error),
            Self::TimedOut
            | Self::Io { .. }
            | Self::Job { .. }
            | Self::Moved { .. }
            | Self::Overtaken { .. }
            | Self::Pending { .. }
            | Self::Unended { .. }
            | Self::Monitor(_)
            | Self::Locked(_)
            | Self::LayersUnknown { .. }
            | Self::KeysUnknown { .. }
            | Self::NotDone { .. } => ErrorCode::BackupFailed,
        }
    }

    fn context(&self) -> Map<String, Value> {
        let mut facts = match self {
            Self::Image(error) => error.context(),
            Self::Monitor(error) => error.context(),
            Self::Locked(error) => error.context(),
            Self::Io { source, .. } => {
                Map::from_iter([("errno".to_owned(), Value::from(source.raw_os_error()))])
            }
            Self::Overtaken { journal }
            | Self::Pending { journal, .. }
            | Self::Unended { journal } => {
                Map::from_iter([("journal".to_owned(), Value::from(journal.as_str()))])
            }
            Self::NeedsFull { .. } => Map::from_iter([("needsFull".to_owned(), Value::from(true))]),
            _ => Map::new(),
        };
        let path = facts.remove("path");
        let path = path.or_else(|| self.path().map(|path| Value::from(path.as_str())));
        facts.extend(path.map(|path| ("diskPath".to_owned(), path)));
        facts
    }
}

/// An image's trouble in this layer's words.
fn of_image(error: &ImageError) -> ErrorCode {
    match error.code() {
        ErrorCode::ImageNotFound => ErrorCode::DiskNotFound,
        ErrorCode::ImageAlreadyExists => ErrorCode::TargetExists,
        ErrorCode::ImageInUse => ErrorCode::BackupVmRunning,
        ErrorCode::InsufficientSpace => ErrorCode::BackupNoSpace,
        ErrorCode::StorageAborted => ErrorCode::BackupCancelled,
        ErrorCode::PlainTextRefused => ErrorCode::BackupPlainTextRefused,
        ErrorCode::KeyRequired => ErrorCode::BackupKeyRequired,
        ErrorCode::AuthFailed => ErrorCode::BackupAuthFailed,
        ErrorCode::InvalidFormat | ErrorCode::UnsafeBackingFile => ErrorCode::BackupInvalidConfig,
        _ => ErrorCode::BackupFailed,
    }
}
