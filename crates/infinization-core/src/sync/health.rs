//! `HealthMonitor`: rows against processes, on a timer. Pidfiles are in [`super::orphans`].

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::json;

use super::cleanup::{CleanupResult, Host, held_by};
use super::handler::Watching;
use super::processes::{identity, pid_file, pid_of};
use super::reaction::guard_beside;
use crate::config::HealthMonitorOptions;
use crate::db::{MachineConfiguration, RunningVm};
use crate::error::{ErrorCode, Failure};
use crate::events::{Source, now_ms};
use crate::host::pid_file::pid_in;
use crate::host::process::{Identity, ProcessId};
use crate::monitor::{HealthCheckResult, HealthCheckSummary, OrphanEvent, Watched};
use crate::types::VmId;
use crate::vm::status::UNTOUCHABLE;
use crate::vm::{
    EndCause, ReconcileAction, ReconcileResult, ReconcileSummary, is_installed_by_anybody,
};

/// Rows that claim a QEMU.
const CLAIMING: [&str; 3] = ["running", "suspended", "paused"];

/// Looks at the rows of a database and the processes of this host. Clones share it.
#[derive(Debug, Clone)]
pub struct HealthMonitor {
    health: Arc<Health>,
    timer: crate::monitor::HealthMonitor,
}

/// What the scans share.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) watching: Watching,
    pub(super) options: HealthMonitorOptions,
    pub(super) host: Host,
    /// The processes that the last scan of the pidfiles found without an owner.
    pub(super) strays: Mutex<HashSet<ProcessId>>,
    /// Held by a scan of the pidfiles.
    pub(super) looking: tokio::sync::Mutex<()>,
}

impl HealthMonitor {
    /// Not running yet.
    pub fn new(watching: Watching, options: HealthMonitorOptions) -> Self {
        let (events, every) = (watching.events.clone(), options.check_interval);
        let health = Arc::new(Health {
            watching,
            options,
            host: Host::new(),
            strays: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        });
        let watched: Arc<dyn Watched> = Arc::<Health>::clone(&health);
        let timer = crate::monitor::HealthMonitor::new(Arc::downgrade(&watched), every, events);
        Self { health, timer }
    }

    /// The timer, and what it runs.
    pub fn timer(&self) -> &crate::monitor::HealthMonitor {
        &self.timer
    }

    /// Settles the rows with one of `statuses`, each in its machine's turn.
    pub async fn reconcile(&self, statuses: &[String]) -> Result<ReconcileSummary, Failure> {
        let words: Vec<&str> = statuses.iter().map(String::as_str).collect();
        let database = &self.health.watching.database;
        let rows = database.find_machines_by_statuses(&words).await?;
        let mut results = Vec::with_capacity(rows.len());
        for row in rows {
            let settled = Box::pin(self.health.settle(&row)).await;
            results.push(settled.unwrap_or_else(|failure| {
                ReconcileResult::skipped(&row.id, &row.status, failure.to_string())
            }));
        }
        let summary = ReconcileSummary::of(results);
        let events = &self.health.watching.events;
        events.publish(
            Source::HealthMonitor,
            "reconcile-complete",
            None,
            summary.told(),
        );
        Ok(summary)
    }

    /// Gives back what `configuration` says of a run that is over. Refused while its QEMU lives.
    pub async fn retry_cleanup(
        &self,
        vm_id: &VmId,
        configuration: &MachineConfiguration,
    ) -> Result<CleanupResult, Failure> {
        self.health.retry(vm_id, configuration).await
    }
}

#[async_trait]
impl Watched for Health {
    async fn check_machines(&self) -> Result<HealthCheckSummary, Failure> {
        let database = &self.watching.database;
        let mut rows = database.find_machines_by_statuses(&CLAIMING).await?;
        rows.retain(|row| !is_installing(row));
        let mut summary = HealthCheckSummary {
            total_checked: rows.len(),
            ..Default::default()
        };
        for row in rows {
            match self.check_row(&row).await {
                Ok(is_alive) => summary.count(&row, is_alive),
                Err(failure) => {
                    summary.errors += 1;
                    self.tell_failure(&row.id, &failure);
                }
            }
        }
        Ok(summary)
    }

    async fn check_orphans(&self) -> Result<(Vec<OrphanEvent>, usize), Failure> {
        Ok(self.look_for_orphans().await)
    }
}

/// A machine that is being installed may be without a QEMU for a while.
fn is_installing(row: &RunningVm) -> bool {
    id_of(row).is_ok_and(|vm_id| is_installed_by_anybody(&vm_id))
}

impl HealthCheckSummary {
    fn count(&mut self, row: &RunningVm, is_alive: bool) {
        let counter = if is_alive {
            &mut self.alive
        } else {
            &mut self.crashed
        };
        *counter += 1;
        self.results.push(HealthCheckResult {
            vm_id: row.id.clone(),
            pid: pid_of(row.configuration.as_ref()),
            is_alive,
            status: row.status.clone(),
            timestamp: now_ms(),
        });
    }
}

impl Health {
    /// Whether the row's QEMU is there. Without a pid, or with a process that cannot be judged, it is
    /// taken to be. A machine whose turn somebody has is his business.
    async fn check_row(&self, row: &RunningVm) -> Result<bool, Failure> {
        let vm_id = id_of(row)?;
        let pid = pid_of(row.configuration.as_ref());
        if !self.is_dead(row).await {
            return Ok(true);
        }
        let Some(turn) = self.watching.turns.try_take(&vm_id).await else {
            return Ok(true);
        };
        let now = self
            .watching
            .database
            .find_machine_without_password(&vm_id)
            .await?;
        let unchanged = now.is_some_and(|now| {
            now.status == row.status && pid_of(now.configuration.as_ref()) == pid
        });
        if !unchanged {
            return Ok(true);
        }
        self.bury(&vm_id, row, pid).await?;
        turn.end().await;
        Ok(false)
    }

    /// The row first, then the clean-up, then the listeners.
    async fn bury(&self, vm_id: &VmId, row: &RunningVm, pid: Option<i32>) -> Result<(), Failure> {
        let (database, detected_at) = (&self.watching.database, now_ms());
        database
            .update_machine_status(vm_id, "off", &UNTOUCHABLE)
            .await?;
        let cleanup = self.clean_up(vm_id, row).await;
        let mut data = json!({
            "vmId": vm_id,
            "pid": pid,
            "lastKnownStatus": row.status,
            "detectedAt": detected_at,
            "cleanupPerformed": cleanup.as_ref().is_some_and(|it| it.failed_cleanups == 0),
            "cause": EndCause::of("unknown"),
        });
        if let Some(cleanup) = &cleanup {
            data["cleanupResult"] = json!(cleanup);
        }
        let events = &self.watching.events;
        events.publish(Source::HealthMonitor, "crash", Some(vm_id), data);
        self.alert(vm_id, cleanup.as_ref());
        Ok(())
    }

    /// `None` when clean-ups are turned off.
    pub(super) async fn clean_up(&self, vm_id: &VmId, row: &RunningVm) -> Option<CleanupResult> {
        if !self.options.enable_cleanup {
            return None;
        }
        let pid_file = self.pid_file(&row.internal_name);
        let held = held_by(vm_id, row.configuration.as_ref(), Some(pid_file));
        let database = self.watching.database.as_ref();
        Some(self.host.clean_up(database, vm_id, held).await)
    }

    /// Tells what a clean-up has left, if anything.
    pub(super) fn alert(&self, vm_id: &VmId, cleanup: Option<&CleanupResult>) {
        if let Some(alert) = cleanup.and_then(CleanupResult::alert) {
            let events = &self.watching.events;
            events.publish(Source::HealthMonitor, "cleanup-alert", Some(vm_id), alert);
        }
    }

    async fn settle(&self, row: &RunningVm) -> Result<ReconcileResult, Failure> {
        let vm_id = id_of(row)?;
        let turn = self.watching.turns.take(&vm_id).await;
        let turn = turn.map_err(|why| Failure::new(ErrorCode::Internal, why.to_string()))?;
        let database = &self.watching.database;
        let now = database.find_machine_without_password(&vm_id).await?;
        let Some(now) = now.filter(|now| now.status == row.status) else {
            return Ok(ReconcileResult::skipped(
                &row.id,
                &row.status,
                "its status changed",
            ));
        };
        let row = &RunningVm {
            internal_name: now.internal_name,
            configuration: now.configuration,
            ..row.clone()
        };
        let (pid, identity) = self.find_process(row).await;
        let (new, action) = match (&identity, row.status.as_str()) {
            (Some(Identity::Unknown(why)), _) => {
                return Ok(ReconcileResult::skipped(&row.id, &row.status, why.as_str()));
            }
            (Some(Identity::Ours(_)), _) => ("running", ReconcileAction::PromotedRunning),
            (_, "rebuilding") => ("error", ReconcileAction::ResetError),
            _ => ("off", ReconcileAction::ResetOff),
        };
        let is_alive = action == ReconcileAction::PromotedRunning;
        if !is_alive {
            let cleanup = self.clean_up(&vm_id, row).await;
            self.alert(&vm_id, cleanup.as_ref());
        }
        let guard = guard_beside(&row.status);
        database.update_machine_status(&vm_id, new, &guard).await?;
        turn.end().await;
        Ok(ReconcileResult {
            vm_id: row.id.clone(),
            previous_status: row.status.clone(),
            pid: pid.filter(|_| is_alive),
            pid_alive: is_alive,
            action,
            reason: None,
        })
    }

    async fn retry(
        &self,
        vm_id: &VmId,
        configuration: &MachineConfiguration,
    ) -> Result<CleanupResult, Failure> {
        let turn = self.watching.turns.take(vm_id).await;
        let turn = turn.map_err(|why| Failure::new(ErrorCode::Internal, why.to_string()))?;
        let row = self
            .watching
            .database
            .find_machine_without_password(vm_id)
            .await?;
        let name = row.map(|row| row.internal_name).unwrap_or_default();
        let row = RunningVm {
            id: vm_id.to_string(),
            status: String::new(),
            internal_name: name,
            configuration: Some(configuration.clone()),
        };
        if matches!(
            self.identity(&row).await,
            Some(Identity::Ours(_) | Identity::Unknown(_))
        ) {
            let message = format!("the QEMU of VM {vm_id} is still there, or cannot be judged");
            return Err(Failure::new(ErrorCode::InvalidState, message).of_vm(vm_id));
        }
        let named = !row.internal_name.is_empty();
        let pid_file = named.then(|| self.pid_file(&row.internal_name));
        let held = held_by(vm_id, Some(configuration), pid_file);
        let database = self.watching.database.as_ref();
        let result = self.host.clean_up(database, vm_id, held).await;
        self.alert(vm_id, Some(&result));
        turn.end().await;
        Ok(result)
    }

    async fn is_dead(&self, row: &RunningVm) -> bool {
        let identity = self.identity(row).await;
        matches!(identity, Some(Identity::Gone | Identity::NotOurs))
    }

    /// The process of the row's pid; where there is none, or another's, that of its pidfile: QEMU has
    /// written it before anybody could record the pid.
    async fn find_process(&self, row: &RunningVm) -> (Option<i32>, Option<Identity>) {
        let configuration = row.configuration.as_ref();
        let recorded = (pid_of(configuration), self.identity(row).await);
        if let (_, Some(Identity::Ours(_) | Identity::Unknown(_))) = recorded {
            return recorded;
        }
        let path = self.pid_file(&row.internal_name);
        match pid_in(path.clone()).await {
            None => recorded,
            Some(pid) => {
                let identity = identity(pid, &row.internal_name, Some(&path), configuration);
                (Some(pid), Some(identity.await))
            }
        }
    }

    /// `None` when the row names no process.
    async fn identity(&self, row: &RunningVm) -> Option<Identity> {
        let configuration = row.configuration.as_ref();
        let pid = pid_of(configuration)?;
        let pid_file = self.pid_file(&row.internal_name);
        Some(identity(pid, &row.internal_name, Some(&pid_file), configuration).await)
    }

    pub(super) fn pid_file(&self, internal_name: &str) -> PathBuf {
        pid_file(self.options.pid_dir.as_path(), internal_name)
    }

    pub(super) fn tell_failure(&self, vm_id: &str, failure: &Failure) {
        let message = format!("VM {vm_id} could not be checked: {failure}");
        let data = json!({ "message": message, "timestamp": now_ms() });
        let events = &self.watching.events;
        events.publish(Source::HealthMonitor, "error", None, data);
    }
}

pub(super) fn id_of(row: &RunningVm) -> Result<VmId, Failure> {
    VmId::parse(row.id.as_str())
        .map_err(|why| Failure::new(ErrorCode::InvalidInput, format!("id {why}")))
}
