//! QEMUs nobody has a row for: those that a pidfile names and no machine owns, and machines of ours that
//! live without a row.
//!
//! A QEMU that a pidfile names and no machine owns is ended only when nobody can want it: no row has
//! its name, or the row says `off`, and it was there a whole interval before too. One that a row
//! claimed while it was a stray is never ended: whoever wrote `off` then took it for dead. Every other
//! is told, and so is a machine of ours that lives without a row: it is never ended. Where only one
//! node's rows are seen, a row that is not found may be another node's.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::CLAIMING;
use crate::error::Failure;
use crate::events::now_ms;
use crate::host::blocking::blocking;
use crate::host::pid_file::{self, PidFile};
use crate::host::process::{ProcessHandle, ProcessId, find_by_names, is_alive};
use crate::manager::Open;
use crate::monitor::OrphanEvent;
use crate::qemu::name_argument;
use crate::types::{InternalName, VmId};
use crate::vm::{Release, VmHandle};

/// What an unwanted QEMU has to write what it has to, and end.
const GRACE: Duration = Duration::from_secs(5);
/// Rows whose QEMU comes or goes.
const BETWEEN: [&str; 4] = [
    "starting",
    "powering_off_update",
    "rebuilding",
    "updating_hardware",
];

/// A living QEMU that a pidfile names and no VM of ours has.
pub(super) struct Stray {
    path: PathBuf,
    pub(super) name: InternalName,
    pub(super) process: ProcessHandle,
}

/// What scans have seen of a stray so far.
#[derive(Debug, Clone, Copy)]
pub(in crate::manager) struct Sighting {
    first: Instant,
    /// Whether a row has claimed it in one of them.
    claimed: bool,
}

/// The pidfiles that belong to no VM of ours.
pub(super) struct PidFiles {
    pub(super) strays: Vec<Stray>,
    /// Of processes that are gone, or of none.
    pub(super) stale: Vec<PidFile>,
}

impl Open {
    /// One look at the directory and, if need be, one at `/proc`.
    pub(super) async fn look_at_pid_files(&self) -> Result<PidFiles, Failure> {
        let owned: HashSet<i32> = self
            .vms()
            .values()
            .filter_map(|handle| Some(handle.view().live?.process.pid()))
            .collect();
        let directory = self.services.config.pid_dir.as_path().to_owned();
        let files = blocking(move || PidFile::all_in(&directory)).await;
        let files = files.unwrap_or_default().into_iter();
        let (alive, stale): (Vec<PidFile>, Vec<PidFile>) = files
            .filter(|file| file.pid.is_none_or(|pid| !owned.contains(&pid)))
            .partition(|file| file.pid.is_some_and(is_alive));
        let mut found = PidFiles {
            strays: Vec::new(),
            stale,
        };
        if alive.is_empty() {
            return Ok(found);
        }
        let names = alive.iter().flat_map(|file| names_of(&file.name));
        let processes = find_by_names(names.collect()).await?;
        let mut processes: HashMap<i32, ProcessHandle> = processes
            .into_iter()
            .map(|process| (process.pid(), process))
            .collect();
        for PidFile { path, name, pid } in alive {
            // Any other process with that number: whose file it is cannot be told.
            if let Some(process) = pid.and_then(|pid| processes.remove(&pid)) {
                found.strays.push(Stray {
                    path,
                    name,
                    process,
                });
            }
        }
        Ok(found)
    }

    /// Machines that live and whose row somebody has deleted. They are told and never ended: only a
    /// destroy says that nobody wants the guest any more.
    pub(super) async fn without_row(&self) -> Vec<OrphanEvent> {
        let mut orphans = Vec::new();
        if self.resting_but(&[]).is_empty() {
            return orphans;
        }
        let database = &self.services.database;
        let known = match database.find_machines_by_statuses(&CLAIMING).await {
            Ok(known) => known,
            Err(error) => {
                self.tell_scan_failure(&format!("rows could not be looked for: {error}"));
                return orphans;
            }
        };
        for handle in self.resting_but(&known) {
            let context = handle.context();
            match database.find_machine(&context.vm_id).await {
                Ok(None) => orphans.extend(rowless(&handle)),
                Ok(Some(_)) => {}
                Err(error) => {
                    let vm_id = &context.vm_id;
                    let message = format!("the row of VM {vm_id} could not be looked for: {error}");
                    self.tell_scan_failure(&message);
                }
            }
        }
        orphans
    }

    /// Tells a stray, or ends it; no event if it is only on its way to a machine or from one.
    pub(super) async fn judge(
        &self,
        stray: &Stray,
    ) -> Result<(Sighting, Option<OrphanEvent>), Failure> {
        let database = &self.services.database;
        let row = database.find_machine_by_internal_name(&stray.name).await?;
        let status = row.as_ref().map(|row| row.status.clone());
        let sighting = self.sighting(stray, status.as_deref());
        let between = |status: &str| BETWEEN.contains(&status);
        // Somebody may have taken it back meanwhile.
        if status.as_deref().is_some_and(between) || self.owns(stray.process.pid()) {
            return Ok((sighting, None));
        }
        let unwanted = match status.as_deref() {
            None => self.services.sees_every_row,
            Some(status) => status == "off",
        };
        let grace = self.services.config.health_monitor_interval;
        let stays = sighting.first.elapsed() >= grace;
        let ends = unwanted && stays && !sighting.claimed;
        let killed = ends && stray.process.terminate(GRACE).await.is_ok();
        let told = OrphanEvent {
            machine: row
                .as_ref()
                .and_then(|row| VmId::parse(row.id.as_str()).ok()),
            vm_id: row.map_or_else(|| stray.name.to_string(), |row| row.id),
            pid: stray.process.pid(),
            db_status: status,
            pidfile_path: stray.path.display().to_string(),
            detected_at: now_ms(),
            killed,
            cleanup_performed: killed && pid_file::removed(&stray.path).await,
            cleanup_result: None,
        };
        Ok((sighting, Some(told)))
    }

    /// What was seen of the stray before, and what its row says now.
    fn sighting(&self, stray: &Stray, status: Option<&str>) -> Sighting {
        let before = self.strays().get(stray.process.id()).copied();
        let claimed = status.is_some_and(|status| CLAIMING.contains(&status));
        Sighting {
            first: before.map_or_else(Instant::now, |before| before.first),
            claimed: claimed || before.is_some_and(|before| before.claimed),
        }
    }

    fn owns(&self, pid: i32) -> bool {
        let vms = self.vms();
        let mut live = vms.values().filter_map(|handle| handle.view().live);
        live.any(|live| live.process.pid() == pid)
    }

    pub(super) fn strays(&self) -> std::sync::MutexGuard<'_, HashMap<ProcessId, Sighting>> {
        let lock = self.strays.lock();
        lock.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How a QEMU of that name calls itself: one of ours, and one of others'.
fn names_of(name: &InternalName) -> [String; 2] {
    [name_argument(name), name.to_string()]
}

/// What is told of a machine that lives without a row.
fn rowless(handle: &VmHandle) -> Option<OrphanEvent> {
    let context = handle.context();
    let held = context.ledger.contents().entries;
    let pid_file = held.into_iter().find_map(|entry| match entry.undo.release {
        Release::RemovePidFile { path } => Some(path.to_string()),
        _ => None,
    });
    Some(OrphanEvent {
        vm_id: context.vm_id.to_string(),
        machine: Some(context.vm_id.clone()),
        pid: handle.view().live?.process.pid(),
        db_status: None,
        pidfile_path: pid_file.unwrap_or_default(),
        detected_at: now_ms(),
        killed: false,
        cleanup_performed: false,
        cleanup_result: None,
    })
}
