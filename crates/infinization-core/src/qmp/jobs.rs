//! QEMU's background jobs, run to their end (QEMU 6.0).
//!
//! A job says what became of it only in `query-jobs`, and stays there until it is dismissed. Its end
//! is an event. A connection that breaks meanwhile changes nothing: the job goes on in QEMU, and is
//! asked for when the connection is back.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use uuid::Uuid;

use super::client::QmpClient;
use super::commands::decode;
use super::error::QmpError;
use super::event_stream::{EventReceiver, MonitorEvent};
use super::events::QmpEvent;

/// Marks the jobs of this library among those of others.
const PREFIX: &str = "infinization-";

/// A job as `query-jobs` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct JobInfo {
    id: String,
    status: String,
    /// Why it failed.
    error: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JobStatusChange {
    id: String,
    status: String,
}

impl QmpClient {
    /// Starts the job `command` and returns when it has succeeded and is dismissed. Its failure is
    /// [`QmpError::Command`].
    ///
    /// After `deadline`, or when the future is dropped, the job goes on without us.
    pub async fn run_job(
        &self,
        command: &str,
        mut arguments: Map<String, Value>,
        deadline: Duration,
    ) -> Result<(), QmpError> {
        let id = format!("{PREFIX}{}", Uuid::new_v4().simple());
        arguments.insert("job-id".to_owned(), id.as_str().into());
        // Before it starts, so that no event is missed.
        let mut events = self.subscribe();
        let work = async {
            // QEMU's main loop may do all of the job before it sends the answer.
            self.execute_with(command, arguments, deadline).await?;
            self.concluded(command, &id, &mut events).await
        };
        timeout(deadline, work).await.unwrap_or_else(|_elapsed| {
            Err(QmpError::Timeout {
                what: command.to_owned(),
                deadline,
            })
        })
    }

    /// Dismisses what an earlier process of ours started and never saw the end of.
    pub async fn dismiss_old_jobs(&self) -> Result<(), QmpError> {
        let ended = |job: &JobInfo| job.id.starts_with(PREFIX) && job.status == "concluded";
        for job in self.query_jobs().await?.into_iter().filter(ended) {
            self.execute("job-dismiss", json!({ "id": job.id })).await?;
        }
        Ok(())
    }

    async fn concluded(
        &self,
        command: &str,
        id: &str,
        events: &mut EventReceiver,
    ) -> Result<(), QmpError> {
        loop {
            let look = match events.next().await {
                Some(MonitorEvent::Event(event)) => ends(&event, id),
                Some(MonitorEvent::Missed { .. } | MonitorEvent::Reconnected { .. }) => true,
                Some(MonitorEvent::Disconnected { .. }) => false,
                Some(MonitorEvent::GaveUp) | None => {
                    let what = command.to_owned();
                    return Err(QmpError::Disconnected { what });
                }
            };
            if !look {
                continue;
            }
            let jobs = self.query_jobs().await?;
            match jobs.into_iter().find(|job| job.id == id) {
                Some(job) if job.status == "concluded" => return self.dismiss(command, job).await,
                Some(_under_way) => {}
                None => {
                    let why = format!("the job of {command} is gone");
                    return Err(QmpError::Protocol { why });
                }
            }
        }
    }

    async fn dismiss(&self, command: &str, job: JobInfo) -> Result<(), QmpError> {
        self.execute("job-dismiss", json!({ "id": job.id })).await?;
        match job.error {
            None => Ok(()),
            Some(desc) => Err(QmpError::Command {
                command: command.to_owned(),
                class: "GenericError".to_owned(),
                desc,
            }),
        }
    }

    async fn query_jobs(&self) -> Result<Vec<JobInfo>, QmpError> {
        decode("query-jobs", &self.execute("query-jobs", ()).await?)
    }
}

fn ends(event: &QmpEvent, id: &str) -> bool {
    if event.event != "JOB_STATUS_CHANGE" {
        return false;
    }
    let change: JobStatusChange = serde_json::from_str(event.data.get()).unwrap_or_default();
    change.id == id && change.status == "concluded"
}
