//! What the health monitor looks at: rows against processes, and pidfiles against rows.
//!
//! A QEMU that a pidfile names and no machine owns is ended only when nobody can want it: no row has
//! its name, or the row says `off`, and it was there a whole interval before too. One that a row
//! claimed while it was a stray is never ended: whoever wrote `off` then took it for dead. Every other
//! is told, and so is a machine of ours that lives without a row: it is never ended. Where only one node's rows are seen, a row that is not found may be another node's.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use super::Open;
use crate::db::RunningVm;
use crate::error::{ErrorCode, Failure};
use crate::events::{Source, now_ms};
use crate::host::blocking::{blocking, file_call};
use crate::host::process::{ProcessHandle, ProcessId, find_by_names, is_alive};
use crate::monitor::{HealthCheckResult, HealthCheckSummary, OrphanEvent, Watched};
use crate::qemu::name_argument;
use crate::qmp::StatusInfo;
use crate::types::{InternalName, VmId};
use crate::vm::status::Status;
use crate::vm::{LiveView, Release, VmHandle, found_status};

/// What an unwanted QEMU has to write what it has to, and end.
const GRACE: Duration = Duration::from_secs(5);
/// Rows that claim a QEMU.
const CLAIMING: [&str; 3] = ["running", "suspended", "paused"];
/// Rows whose QEMU comes or goes.
const BETWEEN: [&str; 4] = [
    "starting",
    "powering_off_update",
    "rebuilding",
    "updating_hardware",
];

#[async_trait]
impl Watched for Open {
    async fn check_machines(&self) -> Result<HealthCheckSummary, Failure> {
        let database = &self.services.database;
        let mut rows = database.find_machines_by_statuses(&CLAIMING).await?;
        self.correct_rows(&rows).await;
        self.settle_late_claims().await?;
        rows.retain(|row| !self.is_installing(row));
        let mut summary = HealthCheckSummary {
            total_checked: rows.len(),
            ..Default::default()
        };
        // At once: one that hangs delays no other.
        let checked = join_all(rows.iter().map(|row| self.check_row(row))).await;
        for (row, checked) in rows.iter().zip(checked) {
            match checked {
                Ok(pid) => {
                    let counter = match pid {
                        Some(_) => &mut summary.alive,
                        None => &mut summary.crashed,
                    };
                    *counter += 1;
                    summary.results.push(result(row, pid));
                }
                Err(error) => {
                    let message = format!("VM {} could not be checked: {error}", row.id);
                    self.tell_scan_failure(&message);
                    summary.errors += 1;
                }
            }
        }
        Ok(summary)
    }

    async fn check_orphans(&self) -> Result<(Vec<OrphanEvent>, usize), Failure> {
        let _one_at_a_time = self.looking.lock().await;
        let found = self.look_at_pid_files().await?;
        if self.services.closing.is_cancelled() {
            // What the tasks had is nobody's now.
            return Ok((Vec::new(), 0));
        }
        let mut cleaned = 0;
        for file in found.stale {
            cleaned += usize::from(removed_stale(file).await);
        }
        let mut orphans = Vec::new();
        let mut seen = HashMap::new();
        for stray in found.strays {
            let id = stray.process.id().clone();
            match self.judge(&stray).await {
                Ok((sighting, orphan)) => {
                    seen.insert(id, sighting);
                    cleaned += usize::from(orphan.as_ref().is_some_and(|orphan| orphan.killed));
                    orphans.extend(orphan);
                }
                // What could not be judged was not seen unwanted.
                Err(error) => {
                    let name = &stray.name;
                    let message = format!("the QEMU of {name} could not be judged: {error}");
                    self.tell_scan_failure(&message);
                }
            }
        }
        *self.strays() = seen;
        orphans.extend(self.without_row().await);
        Ok((orphans, cleaned))
    }
}

/// A living QEMU that a pidfile names and no VM of ours has.
struct Stray {
    path: PathBuf,
    name: InternalName,
    process: ProcessHandle,
}

/// What scans have seen of a stray so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    first: Instant,
    /// Whether a row has claimed it in one of them.
    claimed: bool,
}

/// The pidfiles that belong to no VM of ours.
struct PidFiles {
    strays: Vec<Stray>,
    /// Of processes that are gone, or of none.
    stale: Vec<PidFile>,
}

impl Open {
    /// One machine or process could not be looked at; the next scan will.
    fn tell_scan_failure(&self, message: &str) {
        tracing::warn!("{message}");
        let data = json!({ "message": message, "timestamp": now_ms() });
        let events = &self.services.events;
        events.publish(Source::HealthMonitor, "error", None, data);
    }

    /// A machine that is being installed may be without a QEMU for a while.
    fn is_installing(&self, row: &RunningVm) -> bool {
        let vm_id = VmId::parse(row.id.as_str());
        vm_id.is_ok_and(|vm_id| self.services.marks.installing.contains(&vm_id))
    }

    /// The pid of the QEMU the row claims, if it is there. A claim without one is settled by the
    /// VM's task, which tells the crash.
    async fn check_row(&self, row: &RunningVm) -> Result<Option<i32>, Failure> {
        let vm_id = VmId::parse(row.id.as_str())
            .map_err(|error| Failure::new(ErrorCode::InvalidInput, format!("id {error}")))?;
        let handle = self.handle(&vm_id)?;
        let live = handle.view().live;
        let alive = live.filter(|live| live.process.is_alive());
        let checked = match alive {
            Some(live) => {
                let state = handle.context().ask_run_state(&live).await;
                // The map has a handle, too. Whoever is at work on one writes its row himself.
                if is_disputed(row, &live, state.as_ref()) && handle.is_last_beside(1) {
                    handle.check().await
                } else {
                    Ok(Some(live.process.pid()))
                }
            }
            None => handle.check().await,
        };
        self.drop_if_empty(&handle);
        checked
    }

    /// VMs of ours that live and that none of the `claiming` rows knows: those that deny them are made
    /// true.
    async fn correct_rows(&self, claiming: &[RunningVm]) {
        let denied = self.resting_but(claiming);
        let checked = denied.iter().map(async |handle| {
            if let Err(error) = handle.check().await {
                let vm = &handle.context().vm_id;
                tracing::warn!(%vm, %error, "its row could not be checked");
            }
        });
        join_all(checked).await;
    }

    /// The living VMs without one of these rows; whoever is at work on one writes its row himself.
    fn resting_but(&self, rows: &[RunningVm]) -> Vec<VmHandle> {
        let known: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        let vms = self.vms();
        let unknown = vms
            .iter()
            .filter(|(vm_id, _)| !known.contains(vm_id.as_str()));
        let resting = unknown.filter(|(_, handle)| {
            let live = handle.view().live;
            live.is_some_and(|live| live.process.is_alive()) && handle.is_last_beside(0)
        });
        resting.map(|(_, handle)| handle.clone()).collect()
    }

    /// Rows that a claim of ours, whose answer was lost, has come to after all: nobody starts them.
    async fn settle_late_claims(&self) -> Result<(), Failure> {
        let claimed = &self.services.marks.claimed;
        if claimed.is_empty() {
            return Ok(());
        }
        let database = &self.services.database;
        for row in database.find_machines_by_statuses(&["starting"]).await? {
            let vm_id = VmId::parse(row.id.as_str()).ok();
            let late = vm_id.filter(|vm_id| claimed.contains(vm_id) && !self.is_busy(vm_id));
            if let Some(vm_id) = late {
                tracing::warn!(%vm_id, "a claim that was given up has come to its row late");
                self.reconcile_row(&row).await;
            }
        }
        Ok(())
    }

    /// Settles rows of `ours` that claim a QEMU and have none.
    pub(super) async fn check_claims(&self, ours: &[VmId]) -> Result<(), Failure> {
        let database = &self.services.database;
        let rows = database.find_machines_by_statuses(&CLAIMING).await?;
        let is_ours = |row: &&RunningVm| {
            ours.iter().any(|vm_id| vm_id.as_str() == row.id) && !self.is_installing(row)
        };
        // At once: one that hangs delays no other.
        let checks = rows.iter().filter(is_ours).map(|row| async {
            if let Err(error) = self.check_row(row).await {
                tracing::warn!(vm = row.id, %error, "could not be checked");
            }
        });
        join_all(checks).await;
        Ok(())
    }

    /// One look at the directory and, if need be, one at `/proc`.
    async fn look_at_pid_files(&self) -> Result<PidFiles, Failure> {
        let owned: HashSet<i32> = self
            .vms()
            .values()
            .filter_map(|handle| Some(handle.view().live?.process.pid()))
            .collect();
        let directory = self.services.config.pid_dir.as_path().to_owned();
        let files = blocking(move || pid_files(&directory)).await;
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
    async fn without_row(&self) -> Vec<OrphanEvent> {
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
    async fn judge(&self, stray: &Stray) -> Result<(Sighting, Option<OrphanEvent>), Failure> {
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
            cleanup_performed: killed && removed(&stray.path).await,
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

    fn strays(&self) -> std::sync::MutexGuard<'_, HashMap<ProcessId, Sighting>> {
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

/// Whether a row says other than its living QEMU. Somebody else wrote it, or a write of ours that was
/// given up was made late, after a newer one.
fn is_disputed(row: &RunningVm, live: &LiveView, state: Option<&StatusInfo>) -> bool {
    let pid = row.configuration.as_ref().and_then(|it| it.qemu_pid);
    let said = Status::parse(&row.status);
    let is_wrong = |state| {
        let is = found_status(state);
        is.expects_process() && !is.means(&said)
    };
    pid != Some(i64::from(live.process.pid())) || state.is_some_and(is_wrong)
}

fn result(row: &RunningVm, pid: Option<i32>) -> HealthCheckResult {
    HealthCheckResult {
        vm_id: row.id.clone(),
        is_alive: pid.is_some(),
        pid,
        status: row.status.clone(),
        timestamp: now_ms(),
    }
}

#[derive(Debug, PartialEq)]
struct PidFile {
    path: PathBuf,
    name: InternalName,
    /// `None` if it holds no number.
    pid: Option<i32>,
}

async fn removed(path: &Path) -> bool {
    let path = path.to_owned();
    file_call(move || std::fs::remove_file(path)).await.is_ok()
}

/// Unless a start has written it meanwhile.
async fn removed_stale(file: PidFile) -> bool {
    let removed = file_call(move || {
        if pid_file(file.path.clone()).as_ref() == Some(&file) {
            std::fs::remove_file(&file.path)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    });
    removed.await.is_ok()
}

fn pid_files(directory: &Path) -> Vec<PidFile> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
        .filter_map(pid_file)
        .collect()
}

fn pid_file(path: PathBuf) -> Option<PidFile> {
    let name = InternalName::parse(path.file_stem()?.to_str()?).ok()?;
    let pid = std::fs::read_to_string(&path).ok()?.trim().parse().ok();
    let pid = pid.filter(|pid| *pid > 0);
    Some(PidFile { path, name, pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pidfiles_of_possible_names_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("vm-1.pid", "17\n"),
            ("vm-2.pid", "garbage"),
            ("vm-3.pid", "-1"),
            ("vm-4.sock", "1"),
            ("vm,5.pid", "1"),
            ("pid", "1"),
            (".pid", "1"),
        ] {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let mut found: Vec<(String, Option<i32>)> = pid_files(directory.path())
            .into_iter()
            .map(|file| (file.name.to_string(), file.pid))
            .collect();
        found.sort();
        let wanted = [("vm-1", Some(17)), ("vm-2", None), ("vm-3", None)];
        assert_eq!(found, wanted.map(|(name, pid)| (name.to_owned(), pid)));
        assert!(pid_files(&directory.path().join("absent")).is_empty());
    }
}
