//! What this layer may know of the machine whose disks it copies.

use async_trait::async_trait;

use super::BackupError;
use crate::qmp::QmpClient;
use crate::types::VmId;

/// A machine as its owner shows it. Its answers are asked for when they count, not before.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Whether it runs; `None` when that is not known.
    async fn is_running(&self) -> Option<bool>;

    /// Its monitor, while QEMU runs and is connected.
    fn monitor(&self) -> Option<QmpClient>;

    /// Has the guest flush and freeze its file systems: how many, or `None` if nobody in it can. May
    /// take effect even if it fails or is dropped.
    async fn freeze(&self) -> Result<Option<u64>, String>;

    /// Undoes [`Machine::freeze`], whatever came of it.
    async fn thaw(&self) -> Result<(), String>;
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

fn running(vm_id: &VmId, why: &'static str) -> BackupError {
    BackupError::Running {
        vm_id: vm_id.clone(),
        why,
    }
}
