//! What the health monitor looks at: rows against processes, and pidfiles against rows.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::Open;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::host::process::find_by_name;
use crate::monitor::{HealthCheckResult, HealthCheckSummary, OrphanEvent, Watched};
use crate::qemu::name_argument;
use crate::types::{InternalName, VmId};
use crate::vm::Recovered;

/// Rows that claim a QEMU.
const CLAIMING: [&str; 3] = ["running", "suspended", "paused"];

#[async_trait]
impl Watched for Open {
    async fn check_machines(&self) -> Result<HealthCheckSummary, Failure> {
        let rows = self
            .services
            .database
            .find_machines_by_statuses(&CLAIMING)
            .await?;
        let mut summary = HealthCheckSummary {
            total_checked: rows.len(),
            ..Default::default()
        };
        for row in rows {
            let Ok(vm_id) = VmId::parse(row.id.as_str()) else {
                summary.errors += 1;
                continue;
            };
            let judged = self.judge(&vm_id).await;
            match judged {
                Ok(Some(pid)) => {
                    summary.alive += 1;
                    summary
                        .results
                        .push(result(&row.id, Some(pid), &row.status));
                }
                Ok(None) => {
                    summary.crashed += 1;
                    summary.results.push(result(&row.id, None, &row.status));
                }
                Err(error) => {
                    tracing::warn!(vm = %vm_id, %error, "could not be checked");
                    summary.errors += 1;
                }
            }
        }
        Ok(summary)
    }

    async fn check_orphans(&self) -> Result<(Vec<OrphanEvent>, usize), Failure> {
        let (mut orphans, mut cleaned) = (Vec::new(), 0);
        for (path, name) in pid_files(self.services.config.pid_dir.as_path()) {
            match self.judge_pid_file(&path, &name).await {
                Ok(PidFile::Owned) => {}
                Ok(PidFile::Stale) => {
                    cleaned += usize::from(tokio::fs::remove_file(&path).await.is_ok());
                }
                Ok(PidFile::Orphan(event)) => orphans.push(event),
                Err(error) => tracing::warn!(path = %path.display(), %error, "pidfile not judged"),
            }
        }
        Ok((orphans, cleaned))
    }
}

enum PidFile {
    Owned,
    Stale,
    Orphan(OrphanEvent),
}

impl Open {
    /// The pid of the machine's QEMU, if it is there. A claim without one is settled: its task
    /// cleans up and tells the crash.
    async fn judge(&self, vm_id: &VmId) -> Result<Option<i32>, Failure> {
        let handle = self.handle(vm_id)?;
        if let Some(live) = handle.view().live {
            return Ok(Some(live.process.pid()));
        }
        match handle.recover().await? {
            Recovered::Alive => Ok(handle.view().live.map(|live| live.process.pid())),
            Recovered::Skipped(why) => Err(Failure::new(ErrorCode::IdentityUnknown, why)),
            Recovered::Nothing => {
                let database = &self.services.database;
                database
                    .update_machine_status(vm_id, "off", &crate::vm::status::UNTOUCHABLE)
                    .await?;
                database.clear_volatile_machine_configuration(vm_id).await?;
                Ok(None)
            }
            Recovered::Off | Recovered::Undone => Ok(None),
        }
    }

    async fn judge_pid_file(&self, path: &Path, name: &InternalName) -> Result<PidFile, Failure> {
        let Some(process) = find_by_name(&name_argument(name)).await?.pop() else {
            return Ok(PidFile::Stale);
        };
        let ours = self.vms().values().any(|handle| {
            handle
                .view()
                .live
                .is_some_and(|live| live.process.pid() == process.pid())
        });
        if ours {
            return Ok(PidFile::Owned);
        }
        let row = self
            .services
            .database
            .find_machine_by_internal_name(name)
            .await?;
        // A machine between two states has a task that is busy with it.
        if row.as_ref().is_some_and(|row| row.status == "starting") {
            return Ok(PidFile::Owned);
        }
        Ok(PidFile::Orphan(OrphanEvent {
            vm_id: row
                .as_ref()
                .map_or_else(|| name.to_string(), |row| row.id.clone()),
            pid: process.pid(),
            db_status: row.map(|row| row.status),
            pidfile_path: path.display().to_string(),
            detected_at: now_ms(),
            killed: false,
            cleanup_performed: false,
        }))
    }
}

fn result(vm_id: &str, pid: Option<i32>, status: &str) -> HealthCheckResult {
    HealthCheckResult {
        vm_id: vm_id.to_owned(),
        is_alive: pid.is_some(),
        pid,
        status: status.to_owned(),
        timestamp: now_ms(),
    }
}

fn pid_files(directory: &Path) -> Vec<(PathBuf, InternalName)> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
        .filter_map(|path| {
            let name = InternalName::parse(path.file_stem()?.to_str()?).ok()?;
            Some((path, name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pidfiles_of_possible_names_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "vm-1.pid",
            "vm-2.pid",
            "vm-3.sock",
            "vm,4.pid",
            "pid",
            ".pid",
        ] {
            std::fs::write(directory.path().join(name), "1").unwrap();
        }
        let mut found: Vec<String> = pid_files(directory.path())
            .into_iter()
            .map(|(_, name)| name.to_string())
            .collect();
        found.sort();
        assert_eq!(found, ["vm-1", "vm-2"]);
        assert!(pid_files(&directory.path().join("absent")).is_empty());
    }
}
