//! What the health monitor looks at: rows against processes, and processes against rows.
//!
//! Rows that claim a QEMU are held against what lives here; what no row knows is the matter of [`strays`].

mod strays;

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::json;
pub(super) use strays::Sighting;

use super::Open;
use crate::db::RunningVm;
use crate::error::{ErrorCode, Failure};
use crate::events::{Source, now_ms};
use crate::monitor::{HealthCheckResult, HealthCheckSummary, OrphanEvent, Watched};
use crate::qmp::StatusInfo;
use crate::types::VmId;
use crate::vm::status::Status;
use crate::vm::{LiveView, VmHandle, found_status};

/// Rows that claim a QEMU.
const CLAIMING: [&str; 3] = ["running", "suspended", "paused"];

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
            cleaned += usize::from(file.removed_as_read().await);
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
