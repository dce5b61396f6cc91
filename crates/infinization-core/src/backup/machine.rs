//! What this layer may know of the machine whose disks it copies.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use async_trait::async_trait;

use super::{BackupError, off_thread};
use crate::config::DiskKeys;
use crate::qmp::QmpClient;
use crate::types::{HostPath, VmId};

/// A machine as its owner shows it. Its answers are asked for when they count, not before.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Whether it runs; `None` when that is not known.
    async fn is_running(&self) -> Option<bool>;

    /// Its monitor, while QEMU runs and is connected.
    fn monitor(&self) -> Option<QmpClient>;

    /// Notes, before it is asked to freeze, that the guest may be frozen: whoever comes after this process was
    /// killed is to thaw it. Without the note it is not frozen. Somebody who could not follow it up notes nothing.
    async fn note_freeze(&self) -> Result<(), String> {
        Ok(())
    }

    /// The guest was thawed, or certainly not frozen: undoes [`Machine::note_freeze`].
    async fn forget_freeze(&self) {}

    /// Has the guest flush and freeze its file systems: how many, or `None` if nobody in it can. May
    /// take effect even if it fails or is dropped.
    async fn freeze(&self) -> Result<Option<u64>, String>;

    /// Undoes [`Machine::freeze`], whatever came of it.
    async fn thaw(&self) -> Result<(), String>;

    /// The files that disks lie on because of external snapshots, of this machine and of all others that
    /// are known: none of them may change, and none is what a disk holds now. Without an answer no disk is
    /// copied or replaced. A machine nobody keeps snapshots of has none.
    async fn frozen_layers(&self) -> Result<Vec<HostPath>, String> {
        Ok(Vec::new())
    }

    /// The keys of its encrypted disks, as far as its owner has them. Asked for where none is given.
    async fn disk_keys(&self) -> Result<DiskKeys, String> {
        Ok(DiskKeys::new())
    }
}

/// What may be done with the machine's disks.
pub(super) enum Access {
    /// Nobody writes to them.
    Offline,
    /// Its QEMU does, and is asked to copy.
    Live(QmpClient),
}

/// Finds out how the machine may be backed up. A monitor that answers is believed before the probe.
pub(super) async fn access(machine: &dyn Machine, vm_id: &VmId) -> Result<Access, BackupError> {
    if let Some(monitor) = machine.monitor() {
        return Ok(Access::Live(monitor));
    }
    match machine.is_running().await {
        Some(false) => Ok(Access::Offline),
        Some(true) => Err(running(
            vm_id,
            "runs, and this process does not have its monitor: a disk that is written to cannot be copied",
        )),
        None => Err(running(vm_id, "may be running: nobody could say")),
    }
}

/// Refuses a machine that is not known to be stopped.
pub(super) async fn require_stopped(
    machine: &dyn Machine,
    vm_id: &VmId,
) -> Result<(), BackupError> {
    if machine.monitor().is_some() {
        return Err(running(vm_id, "runs"));
    }
    match machine.is_running().await {
        Some(false) => Ok(()),
        Some(true) => Err(running(vm_id, "runs")),
        None => Err(running(vm_id, "may be running: nobody could say")),
    }
}

/// The machines' frozen layers.
pub(super) async fn frozen_layers(machine: &dyn Machine) -> Result<Vec<HostPath>, BackupError> {
    let told = machine.frozen_layers().await;
    told.map_err(|why| BackupError::LayersUnknown { why })
}

/// Refuses files of which one is a frozen layer, by whatever name.
pub(super) async fn refuse_frozen(
    machine: &dyn Machine,
    files: impl IntoIterator<Item = &HostPath>,
) -> Result<(), BackupError> {
    let frozen = frozen_layers(machine).await?;
    refuse_layers(files.into_iter().cloned().collect(), frozen).await
}

/// [`refuse_frozen`] for whoever has been told the layers.
pub(super) async fn refuse_layers(
    files: Vec<HostPath>,
    frozen: Vec<HostPath>,
) -> Result<(), BackupError> {
    off_thread(move || {
        files
            .iter()
            .try_for_each(|file| refuse_frozen_now(file, &frozen))
    })
    .await
}

/// [`refuse_frozen`] for one file. Blocks.
pub(super) fn refuse_frozen_now(file: &HostPath, frozen: &[HostPath]) -> Result<(), BackupError> {
    let Some(wanted) = identity(file)? else {
        return Ok(());
    };
    for layer in frozen {
        if identity(layer)? == Some(wanted) {
            return Err(BackupError::Frozen { path: file.clone() });
        }
    }
    Ok(())
}

/// Device and inode; nothing for a file that is not there.
fn identity(path: &HostPath) -> Result<Option<(u64, u64)>, BackupError> {
    match fs::metadata(path.as_path()) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BackupError::io(path, error)),
    }
}

fn running(vm_id: &VmId, why: &'static str) -> BackupError {
    BackupError::Running {
        vm_id: vm_id.clone(),
        why,
    }
}
