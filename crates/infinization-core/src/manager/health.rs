//! What the health monitor looks at: rows against processes, and pidfiles against rows.
//!
//! A QEMU that a pidfile names and no machine owns is ended only when nobody can want it: no row has
//! its name, or the row says `off`, and it was there a whole interval before too. Every other is
//! told. Where only one node's rows are seen, a row that is not found may be another node's.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Open;
use crate::db::RunningVm;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::host::blocking::{blocking, file_call};
use crate::host::process::{ProcessHandle, ProcessId, find_by_names, is_alive};
use crate::monitor::{HealthCheckResult, HealthCheckSummary, OrphanEvent, Watched};
use crate::qemu::name_argument;
use crate::types::{InternalName, VmId};

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
                    tracing::warn!(vm = row.id, %error, "could not be checked");
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
        for path in found.stale {
            cleaned += usize::from(removed(&path).await);
        }
        let mut orphans = Vec::new();
        let mut seen = HashMap::new();
        for stray in found.strays {
            let id = stray.process.id().clone();
            let first = self.strays().get(&id).copied();
            match self.judge(&stray).await {
                Ok(orphan) => {
                    seen.insert(id, first.unwrap_or_else(Instant::now));
                    orphans.extend(orphan);
                }
                // What could not be judged was not seen unwanted.
                Err(error) => tracing::warn!(name = %stray.name, %error, "not judged"),
            }
        }
        *self.strays() = seen;
        Ok((orphans, cleaned))
    }
}

/// A living QEMU that a pidfile names and no VM of ours has.
struct Stray {
    path: PathBuf,
    name: InternalName,
    process: ProcessHandle,
}

/// The pidfiles that belong to no VM of ours.
struct PidFiles {
    strays: Vec<Stray>,
    /// Of processes that are gone, or of none.
    stale: Vec<PathBuf>,
}

impl Open {
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
                handle.context().ask_run_state(&live).await;
                Ok(Some(live.process.pid()))
            }
            None => handle.check().await,
        };
        self.drop_if_empty(&handle);
        checked
    }

    /// Settles rows of `ours` that claim a QEMU and have none.
    pub(super) async fn check_claims(&self, ours: &[VmId]) -> Result<(), Failure> {
        let database = &self.services.database;
        let rows = database.find_machines_by_statuses(&CLAIMING).await?;
        let is_ours = |row: &&RunningVm| ours.iter().any(|vm_id| vm_id.as_str() == row.id);
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
            stale: stale.into_iter().map(|file| file.path).collect(),
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

    /// Tells a stray, or ends it; `None` if it is only on its way to a machine or from one.
    async fn judge(&self, stray: &Stray) -> Result<Option<OrphanEvent>, Failure> {
        let database = &self.services.database;
        let row = database.find_machine_by_internal_name(&stray.name).await?;
        let status = row.as_ref().map(|row| row.status.clone());
        if status
            .as_deref()
            .is_some_and(|status| BETWEEN.contains(&status))
        {
            return Ok(None);
        }
        let unwanted = match status.as_deref() {
            None => self.services.sees_every_row,
            Some(status) => status == "off",
        };
        // Somebody may have taken it back meanwhile.
        if self.owns(stray.process.pid()) {
            return Ok(None);
        }
        let first = self.strays().get(stray.process.id()).copied();
        let grace = self.services.config.health_monitor_interval;
        let stays = first.is_some_and(|first| first.elapsed() >= grace);
        let killed = unwanted && stays && stray.process.kill_now().await.is_ok();
        Ok(Some(OrphanEvent {
            vm_id: row.map_or_else(|| stray.name.to_string(), |row| row.id),
            pid: stray.process.pid(),
            db_status: status,
            pidfile_path: stray.path.display().to_string(),
            detected_at: now_ms(),
            killed,
            cleanup_performed: killed && removed(&stray.path).await,
            cleanup_result: None,
        }))
    }

    fn owns(&self, pid: i32) -> bool {
        let vms = self.vms();
        let mut live = vms.values().filter_map(|handle| handle.view().live);
        live.any(|live| live.process.pid() == pid)
    }

    fn strays(&self) -> std::sync::MutexGuard<'_, HashMap<ProcessId, Instant>> {
        let lock = self.strays.lock();
        lock.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How a QEMU of that name calls itself: one of ours, and one of others'.
fn names_of(name: &InternalName) -> [String; 2] {
    [name_argument(name), name.to_string()]
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

fn pid_files(directory: &Path) -> Vec<PidFile> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
        .filter_map(|path| {
            let name = InternalName::parse(path.file_stem()?.to_str()?).ok()?;
            let pid = std::fs::read_to_string(&path).ok()?.trim().parse().ok();
            let pid = pid.filter(|pid| *pid > 0);
            Some(PidFile { path, name, pid })
        })
        .collect()
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
