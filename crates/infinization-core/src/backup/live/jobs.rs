//! QEMU's copying jobs: waiting for them, cancelling them, and clearing what nobody waits for.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::BackupError;
use super::super::names::NODE_PREFIX;
use crate::qmp::{EventReceiver, MonitorEvent, QmpClient};

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

/// QEMU tells the target's errno by the C library's words.
fn failed(why: &str) -> BackupError {
    if ["No space left on device", "Disk quota exceeded"].contains(&why) {
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

/// Ends every job of ours, and closes every file of ours: after a backup, and before one what a process
/// that died left running. Only whoever has the machine's turn may.
pub(super) async fn clear_leftovers(monitor: &QmpClient) -> Result<(), BackupError> {
    let mut events = monitor.subscribe();
    loop {
        let jobs = ours(monitor).await?;
        if jobs.is_empty() {
            break;
        }
        for job in &jobs {
            let verb = if job.is_concluded() {
                "job-dismiss"
            } else {
                "job-cancel"
            };
            let asked = monitor.execute(verb, json!({ "id": job.id })).await;
            // It may have gone on by itself in the meantime; the next look tells.
            if let Err(error) = asked {
                tracing::debug!(%error, "a job changed while it was ended");
            }
        }
        if jobs.iter().all(Job::is_concluded) {
            continue;
        }
        tokio::select! {
            () = concluded_one(&mut events) => {}
            () = tokio::time::sleep(PROGRESS) => {}
        }
    }
    let nodes: Vec<Value> = query(monitor, "query-named-block-nodes").await?;
    for node in nodes.iter().filter_map(|node| node["node-name"].as_str()) {
        if node.starts_with(NODE_PREFIX) {
            monitor
                .execute("blockdev-del", json!({ "node-name": node }))
                .await?;
        }
    }
    // A key that QEMU was given for such a file.
    for object in monitor.objects().await? {
        if object.starts_with(NODE_PREFIX) {
            monitor.object_del(&object).await?;
        }
    }
    Ok(())
}

async fn ours(monitor: &QmpClient) -> Result<Vec<Job>, BackupError> {
    let mut jobs: Vec<Job> = query(monitor, "query-jobs").await?;
    jobs.retain(|job| job.id.starts_with(NODE_PREFIX));
    Ok(jobs)
}

async fn query<T: DeserializeOwned>(monitor: &QmpClient, what: &str) -> Result<T, BackupError> {
    let answer = monitor.execute(what, ()).await?;
    serde_json::from_str(answer.get()).map_err(|error| BackupError::Job {
        why: format!("{what} answers strangely: {error}"),
    })
}
