//! Pidfiles against rows: files of processes that are gone, and QEMUs that nobody owns.
//!
//! A QEMU is ended only when its pidfile proves whose it is and nobody can want it; a database that
//! does not answer is no proof of that.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::json;

use super::cleanup::CleanupResult;
use super::health::{Health, id_of};
use super::processes::{identity, pid_of};
use super::reaction::{Orphan, of_pid_file};
use crate::db::RunningVm;
use crate::error::Failure;
use crate::events::now_ms;
use crate::host::blocking::blocking;
use crate::host::pid_file::{PidFile, removed};
use crate::host::process::{Identity, ProcessHandle, ProcessId, is_alive};
use crate::monitor::OrphanEvent;
use crate::types::{InternalName, VmId};

/// How long an orphan may take to write what it has to and end.
const GRACE: Duration = Duration::from_secs(5);

impl Health {
    /// The orphans, with what was done about them, and how many of them were ended and stale files removed.
    pub(super) async fn look_for_orphans(&self) -> (Vec<OrphanEvent>, usize) {
        let _one_at_a_time = self.looking.lock().await;
        let directory = self.options.pid_dir.as_path().to_owned();
        let files = blocking(move || PidFile::all_in(&directory))
            .await
            .unwrap_or_default();
        let (mut orphans, mut cleaned, mut seen) = (Vec::new(), 0, HashSet::new());
        for file in files {
            let Some(pid) = file.pid.filter(|pid| is_alive(*pid)) else {
                cleaned += usize::from(removed(&file.path).await);
                continue;
            };
            match self.judge(&file, pid, &mut seen).await {
                Ok(orphan) => {
                    cleaned += usize::from(orphan.as_ref().is_some_and(|orphan| orphan.killed));
                    orphans.extend(orphan);
                }
                Err(failure) => self.tell_failure(file.name.as_str(), &failure),
            }
        }
        *self.strays.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        (orphans, cleaned)
    }

    async fn judge(
        &self,
        file: &PidFile,
        pid: i32,
        seen: &mut HashSet<ProcessId>,
    ) -> Result<Option<OrphanEvent>, Failure> {
        let identity = identity(pid, file.name.as_str(), Some(&file.path), None).await;
        // Of any other process it cannot be told whose file this is.
        let Identity::Ours(process) = identity else {
            return Ok(None);
        };
        let row = self.row_of(&file.name).await?;
        let vm_id = match &row {
            Some(row) => id_of(row).ok(),
            None => VmId::parse(file.name.as_str()).ok(),
        };
        // Whoever has the machine's turn looks after it.
        let turn = match &vm_id {
            Some(vm_id) => self.watching.turns.try_take(vm_id).await,
            None => None,
        };
        let Some(turn) = turn else {
            return Ok(None);
        };
        let row = self.row_of(&file.name).await?;
        let before = self.was_seen(process.id());
        seen.insert(process.id().clone());
        let told = self.deal_with(file, &process, row.as_ref(), before).await;
        // The next look may be at once.
        turn.end().await;
        Ok(told)
    }

    async fn deal_with(
        &self,
        file: &PidFile,
        process: &ProcessHandle,
        row: Option<&RunningVm>,
        before: bool,
    ) -> Option<OrphanEvent> {
        let recorded = row.and_then(|row| pid_of(row.configuration.as_ref()));
        let status = row.map(|row| row.status.clone());
        let orphan = of_pid_file(status.as_deref(), recorded, process.pid(), before);
        if orphan == Orphan::No {
            return None;
        }
        let killed = orphan == Orphan::Unwanted && process.terminate(GRACE).await.is_ok();
        let mut event = OrphanEvent {
            vm_id: row.map_or_else(|| file.name.to_string(), |row| row.id.clone()),
            machine: row.and_then(|row| VmId::parse(row.id.as_str()).ok()),
            pid: process.pid(),
            db_status: status,
            pidfile_path: file.path.display().to_string(),
            detected_at: now_ms(),
            killed,
            cleanup_performed: false,
            cleanup_result: None,
        };
        if killed {
            let cleanup = self.clean_up_after(row).await;
            event.cleanup_performed = match &cleanup {
                Some(cleanup) => cleanup.failed_cleanups == 0,
                None => removed(&file.path).await,
            };
            event.cleanup_result = cleanup.map(|cleanup| json!(cleanup));
        }
        Some(event)
    }

    /// What an ended orphan held is given back as after a crash, if a row says what that was.
    async fn clean_up_after(&self, row: Option<&RunningVm>) -> Option<CleanupResult> {
        let row = row?;
        let vm_id = id_of(row).ok()?;
        let cleanup = self.clean_up(&vm_id, row).await?;
        self.alert(&vm_id, Some(&cleanup));
        Some(cleanup)
    }

    async fn row_of(&self, name: &InternalName) -> Result<Option<RunningVm>, Failure> {
        let found = self.watching.database.find_machine_by_internal_name(name);
        Ok(found.await?)
    }

    fn was_seen(&self, process: &ProcessId) -> bool {
        let strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        strays.contains(process)
    }
}
