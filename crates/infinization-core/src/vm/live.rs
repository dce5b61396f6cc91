//! A VM that has a QEMU now.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::condition::Health;
use crate::config::DiskKeys;
use crate::host::blocking::blocking;
use crate::host::display_port::ReservedPort;
use crate::host::oom::MemoryWatch;
use crate::host::process::ProcessHandle;
use crate::qmp::{EventReceiver, QmpClient};
use crate::types::{DiskKey, HostPath, LinkName};

/// The running QEMU and our connections to it. Dropping it ends nothing but the connections.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) view: Arc<LiveView>,
    /// Bound to this QEMU: a later one's events come through another receiver.
    pub(super) events: EventReceiver,
    /// Kept so that no other VM is given the port; `None` if it could not be claimed again.
    pub(super) _display_port: Option<ReservedPort>,
    /// Why QEMU is ending, as soon as its SHUTDOWN event has said so.
    pub(super) ending: Option<Ending>,
}

/// What a SHUTDOWN event said.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) reason: String,
    pub(super) data: serde_json::Value,
}

/// The part of a live VM that others may read and use at any time.
#[derive(Debug)]
pub struct LiveView {
    /// The process.
    pub process: ProcessHandle,
    /// Its monitor.
    pub qmp: QmpClient,
    /// The monitor's socket.
    pub qmp_socket: String,
    /// The TAP device.
    pub tap: LinkName,
    /// The bridge it was started on; none of a QEMU that was taken back without a spec.
    pub bridge: Option<LinkName>,
    /// The display's port.
    pub display_port: u16,
    /// What ails it.
    pub health: Health,
    /// Where its memory is counted, to know whether it ran out of it.
    pub memory: Option<MemoryWatch>,
    /// Its TAP leaves its bridge for good, before its QEMU ends.
    pub leaving: AtomicBool,
    /// How many events of its monitor were dropped because they came too fast.
    pub missed: AtomicU64,
    /// What opens its disks, by their paths, for starting it once more; none of a QEMU that was taken back.
    pub disk_keys: RunKeys,
}

/// The keys of a run's disks. They change with the disks' paths, and when a disk is given another.
#[derive(Debug, Default)]
pub struct RunKeys(Mutex<DiskKeys>);

impl RunKeys {
    pub(super) fn new(keys: DiskKeys) -> Self {
        Self(Mutex::new(keys))
    }

    /// The keys there are.
    pub fn get(&self) -> DiskKeys {
        self.lock().clone()
    }

    pub(super) fn put(&self, disk: HostPath, key: DiskKey) {
        self.lock().insert(disk, key);
    }

    fn lock(&self) -> MutexGuard<'_, DiskKeys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveView {
    /// Of a QEMU that nothing is known of yet.
    pub(super) async fn of(
        process: ProcessHandle,
        qmp: QmpClient,
        qmp_socket: &HostPath,
        (tap, bridge): (LinkName, Option<LinkName>),
        display_port: u16,
    ) -> Self {
        let memory = memory_of(&process).await;
        Self {
            process,
            qmp,
            qmp_socket: qmp_socket.to_string(),
            tap,
            bridge,
            display_port,
            health: Health::default(),
            memory,
            leaving: AtomicBool::default(),
            missed: AtomicU64::default(),
            disk_keys: RunKeys::default(),
        }
    }

    /// With what opens its disks.
    pub(super) fn with_keys(self, disk_keys: RunKeys) -> Self {
        Self { disk_keys, ..self }
    }
}

/// Looks where the memory of a process is counted.
async fn memory_of(process: &ProcessHandle) -> Option<MemoryWatch> {
    let pid = process.pid();
    blocking(move || MemoryWatch::of(pid)).await.ok().flatten()
}
