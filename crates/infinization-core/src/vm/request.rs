//! What can be asked of a VM's task, and on what terms.

use std::fmt;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::change_key::DiskKeyChange;
use super::outcome::{CreateResult, OperationResult};
use super::reconcile::ReconcileResult;
use super::recover::Recovered;
use crate::config::{
    DiskKeys, MachineAddresses, RevertOptions, SnapshotDeleteOptions, SnapshotOptions,
    StartOptions, StopOptions, VmConfig, Warning,
};
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::SnapshotName;
use crate::types::{ByteSize, FirewallRuleInput, HostPath};

pub(super) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What can be asked of a VM.
pub(super) enum Request {
    Create {
        config: Box<VmConfig>,
        warnings: Vec<Warning>,
        cancel: CancellationToken,
        reply: Reply<CreateResult>,
    },
    Verb {
        verb: Verb,
        reply: Reply<OperationResult>,
    },
    Recover {
        reply: Reply<Recovered>,
    },
    Reconcile {
        listed: String,
        reply: Reply<ReconcileResult>,
    },
    Check {
        reply: Reply<Option<i32>>,
    },
    RetryCleanup {
        reply: Reply<Value>,
    },
    ReloadFirewall {
        reply: Reply<()>,
    },
    Rest {
        reply: Reply<()>,
    },
}

/// A request on its way. Until it has been served it counts as a handle, so that a task with
/// work to do is never taken for an idle one.
#[derive(Debug)]
pub(super) struct Asked {
    /// Boxed: the channel keeps room for a number of these, for every machine.
    pub(super) request: Box<Request>,
    pub(super) asker: mpsc::Sender<Asked>,
}

/// The verbs that answer an [`OperationResult`].
#[derive(Debug)]
pub enum Verb {
    /// `startVM`.
    Start {
        /// As asked.
        options: StartOptions,
        /// Undoes the start.
        cancel: CancellationToken,
    },
    /// `stopVM`.
    Stop {
        /// As asked.
        options: StopOptions,
        /// Ends the wait for the guest; the VM goes on.
        cancel: CancellationToken,
    },
    /// `restartVM`.
    Restart,
    /// `suspendVM`.
    Suspend,
    /// `resumeVM`.
    Resume,
    /// `resetVM`.
    Reset,
    /// `destroyVM`.
    Destroy,
    /// `deleteVM`.
    Delete {
        /// Also the disks.
        with_data: bool,
    },
    /// `setFirewallRules`.
    SetFirewallRules(Vec<FirewallRuleInput>),
    /// `setAddresses`.
    SetAddresses(MachineAddresses),
    /// `createSnapshot`.
    CreateSnapshot {
        /// Its name.
        name: SnapshotName,
        /// As asked.
        options: Box<SnapshotOptions>,
        /// Deletes it again.
        cancel: CancellationToken,
    },
    /// `revertSnapshot`.
    RevertSnapshot {
        /// Its name.
        name: SnapshotName,
        /// As asked.
        options: RevertOptions,
    },
    /// `deleteSnapshot`.
    DeleteSnapshot {
        /// Its name.
        name: SnapshotName,
        /// As asked.
        options: SnapshotDeleteOptions,
        /// Ends the merging that an external one may need.
        cancel: CancellationToken,
    },
    /// `resizeVolume` of a disk that QEMU has.
    ResizeDisk {
        /// The active file.
        path: HostPath,
        /// The disk's new size.
        size: ByteSize,
        /// It may be less than before.
        shrink: bool,
    },
    /// `changeDiskKey`.
    ChangeDiskKey(Box<DiskKeyChange>),
    /// `commitSnapshot`.
    CommitSnapshot {
        /// Its name.
        name: SnapshotName,
        /// Ends it, and leaves the snapshot.
        cancel: CancellationToken,
    },
}

impl Request {
    /// Whether it ends QEMU whatever the guest does, and so ends waiting for the guest too.
    pub(super) fn is_forced_stop(&self) -> bool {
        match self {
            Self::Verb { verb, .. } => match verb {
                Verb::Stop { options, .. } => options.force && !options.graceful,
                Verb::Destroy | Verb::Delete { .. } => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// What the caller ends the wait for the guest with.
    pub(super) fn patience(&self) -> CancellationToken {
        match self {
            Self::Verb {
                verb: Verb::Stop { cancel, .. } | Verb::Start { cancel, .. },
                ..
            } => cancel.clone(),
            _ => CancellationToken::new(),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { .. } => f.write_str("Create"),
            Self::Verb { verb, .. } => verb.fmt(f),
            Self::Recover { .. } => f.write_str("Recover"),
            Self::Reconcile { .. } => f.write_str("Reconcile"),
            Self::Check { .. } => f.write_str("Check"),
            Self::RetryCleanup { .. } => f.write_str("RetryCleanup"),
            Self::ReloadFirewall { .. } => f.write_str("ReloadFirewall"),
            Self::Rest { .. } => f.write_str("Rest"),
        }
    }
}

impl Verb {
    /// What the journal calls it, and what was asked.
    pub(super) fn told(&self) -> (&'static str, Value) {
        match self {
            Self::Start { options, .. } => (
                "start",
                json!({ "waitForBoot": options.wait_for_boot, "disableSandbox": options.disable_sandbox }),
            ),
            Self::Stop { options, .. } => (
                "stop",
                json!({
                    "graceful": options.graceful,
                    "force": options.force,
                    "timeout": u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX),
                }),
            ),
            Self::Restart => ("restart", Value::Null),
            Self::Suspend => ("suspend", Value::Null),
            Self::Resume => ("resume", Value::Null),
            Self::Reset => ("reset", Value::Null),
            Self::Destroy => ("destroy", Value::Null),
            Self::Delete { with_data } => ("delete", json!({ "deleteDisks": with_data })),
            Self::SetFirewallRules(rules) => {
                ("set firewall rules", json!({ "rules": rules.len() }))
            }
            Self::SetAddresses(addresses) => ("set addresses", json!({ "addresses": addresses })),
            Self::CreateSnapshot { name, .. } => {
                ("create snapshot", json!({ "name": name.as_str() }))
            }
            Self::RevertSnapshot { name, .. } => {
                ("revert snapshot", json!({ "name": name.as_str() }))
            }
            Self::DeleteSnapshot { name, .. } => {
                ("delete snapshot", json!({ "name": name.as_str() }))
            }
            Self::ResizeDisk { path, size, .. } => (
                "resize disk",
                json!({ "path": path, "size": size.as_bytes() }),
            ),
            Self::ChangeDiskKey(change) => ("change disk key", json!({ "path": change.path })),
            Self::CommitSnapshot { name, .. } => {
                ("commit snapshot", json!({ "name": name.as_str() }))
            }
        }
    }

    /// The code a foreign failure of the verb gets, and how that is said.
    pub(super) fn failed(&self) -> (ErrorCode, &'static str) {
        match self {
            Self::Start { .. } => (ErrorCode::StartFailed, "the VM could not be started"),
            Self::Stop { .. } => (ErrorCode::StopFailed, "the VM could not be stopped"),
            Self::Restart => (ErrorCode::StopFailed, "the VM could not be restarted"),
            Self::Destroy => (ErrorCode::StopFailed, "the VM could not be destroyed"),
            Self::Delete { .. } => (ErrorCode::StopFailed, "the VM could not be deleted"),
            Self::Suspend => (ErrorCode::QmpError, "the VM could not be suspended"),
            Self::Resume => (ErrorCode::QmpError, "the VM could not be resumed"),
            Self::Reset => (ErrorCode::QmpError, "the VM could not be reset"),
            Self::SetFirewallRules(_) => (
                ErrorCode::FirewallError,
                "the firewall rules could not be set",
            ),
            Self::SetAddresses(_) => (ErrorCode::FirewallError, "the addresses could not be set"),
            Self::CreateSnapshot { .. } => (ErrorCode::QmpError, "the snapshot could not be made"),
            Self::RevertSnapshot { .. } => (
                ErrorCode::QmpError,
                "the VM could not be put back to the snapshot",
            ),
            Self::DeleteSnapshot { .. } => {
                (ErrorCode::QmpError, "the snapshot could not be deleted")
            }
            Self::ResizeDisk { .. } => (ErrorCode::QmpError, "the disk could not be resized"),
            Self::ChangeDiskKey(_) => (ErrorCode::QmpError, "the disk's key could not be changed"),
            Self::CommitSnapshot { .. } => {
                (ErrorCode::QmpError, "the snapshot could not be committed")
            }
        }
    }

    /// Whether the disks must be whole for it.
    pub(super) fn needs_disks(&self) -> bool {
        matches!(self, Self::Start { .. } | Self::Restart) || self.is_about_images()
    }

    /// The keys of disks that came with it.
    pub(super) fn disk_keys(&self) -> DiskKeys {
        match self {
            Self::Start { options, .. } => options.disk_keys.clone(),
            Self::ChangeDiskKey(change) => change.old_key(),
            _ => DiskKeys::new(),
        }
    }

    /// What the caller ends its work on disks with.
    pub(super) fn abort(&self) -> CancellationToken {
        match self {
            Self::Start { cancel, .. }
            | Self::CreateSnapshot { cancel, .. }
            | Self::DeleteSnapshot { cancel, .. }
            | Self::CommitSnapshot { cancel, .. } => cancel.clone(),
            _ => CancellationToken::new(),
        }
    }

    /// Whether it works on images: a `StorageError` is then told as it is.
    pub(super) fn is_about_images(&self) -> bool {
        matches!(
            self,
            Self::CreateSnapshot { .. }
                | Self::RevertSnapshot { .. }
                | Self::DeleteSnapshot { .. }
                | Self::CommitSnapshot { .. }
                | Self::ResizeDisk { .. }
                | Self::ChangeDiskKey(_)
        )
    }
}
