//! Waiting for QEMU's copying jobs.

use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::super::BackupError;
use super::super::names::NODE_PREFIX;
use crate::qmp::{EventReceiver, MonitorEvent, QmpClient, says_full};

/// QEMU has no event for progress, so it is asked this often. Its events end the wait at once.
const PROGRESS: Duration = Duration::from_millis(500);

/// A job, as `query-jobs` tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Job {
    id: String,
    status: String,
    #[serde(default)]
    current_progress: u64,
    #[serde(default)]
    total_progress: u64,
    error: Option<String>,
}

impl Job {
    fn is_concluded(&self) -> bool {
        self.status == "concluded"
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a fraction needs no 53 bits of it"
    )]
    fn fraction(&self) -> f64 {
        match self.total_progress {
            0 => 0.0,
            total => self.current_progress as f64 / total as f64,
        }
    }
}

/// Waits until every job has concluded. The first that fails, and a cancelled caller, end all.
pub(super) async fn wait_for(
    monitor: &QmpClient,
    mut events: EventReceiver,
    ids: &[String],
    cancel: &CancellationToken,
    tell: impl Fn(&[f64]),
) -> Result<(), BackupError> {
    loop {
        if cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let jobs = ours(monitor).await?;
        let (mut concluded, mut parts) = (0, Vec::new());
        for id in ids {
            let lost = || BackupError::Job {
                why: "QEMU lost the job".to_owned(),
            };
            let job = jobs.iter().find(|job| job.id == *id).ok_or_else(lost)?;
            parts.push(job.fraction());
            concluded += usize::from(job.is_concluded());
            if let Some(why) = &job.error {
                return Err(failed(why));
            }
        }
        tell(&parts);
        if concluded == ids.len() {
            return Ok(());
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(BackupError::Cancelled),
            () = concluded_one(&mut events) => {}
            () = tokio::time::sleep(PROGRESS) => {}
        }
    }
}

fn failed(why: &str) -> BackupError {
    if says_full(why) {
        return BackupError::TargetFull;
    }
    let why = why.to_owned();
    BackupError::Job { why }
}

/// Waits for an event after which a job may have concluded.
async fn concluded_one(events: &mut EventReceiver) {
    loop {
        match events.next().await {
            Some(MonitorEvent::Event(event)) if event.event == "JOB_STATUS_CHANGE" => {
                if event.data.get().contains("concluded") {
                    return;
                }
            }
            Some(MonitorEvent::Event(_) | MonitorEvent::Reconnected { .. }) => {}
            Some(
                MonitorEvent::Missed { .. }
                | MonitorEvent::Disconnected { .. }
                | MonitorEvent::GaveUp,
            )
            | None => return std::future::pending().await,
        }
    }
}

async fn ours(monitor: &QmpClient) -> Result<Vec<Job>, BackupError> {
    let answer = monitor.execute("query-jobs", ()).await?;
    let jobs: Result<Vec<Job>, _> = serde_json::from_str(answer.get());
    let mut jobs = jobs.map_err(|error| BackupError::Job {
        why: format!("query-jobs answers strangely: {error}"),
    })?;
    jobs.retain(|job| job.id.starts_with(NODE_PREFIX));
    Ok(jobs)
}
