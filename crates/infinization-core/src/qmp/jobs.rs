//! QEMU's background jobs, run to their end (QEMU 6.0).
//!
//! A job says what became of it only in `query-jobs`, and stays there until it is dismissed. Its end
//! is an event. A connection that breaks meanwhile changes nothing: the job goes on in QEMU, and is
//! asked for when the connection is back.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::client::QmpClient;
use super::commands::decode;
use super::error::QmpError;
use super::event_stream::{EventReceiver, MonitorEvent};
use super::events::QmpEvent;
use super::layers::BACKUP_PREFIX;

/// Marks the jobs of this library among those of others.
const PREFIX: &str = "infinization-";
const CONCLUDED: &str = "concluded";
/// For a command that only starts or ends a job: QEMU may have to drain its disks first.
const START: Duration = Duration::from_secs(60);

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

/// A job that was started. Dropping it leaves it to QEMU.
#[derive(Debug)]
pub struct Job {
    qmp: QmpClient,
    command: String,
    id: String,
    events: EventReceiver,
    /// An event of it may have gone unheard.
    look_first: bool,
}

impl QmpClient {
    /// Starts the job `command` and returns when it has succeeded and is dismissed. Its failure is
    /// [`QmpError::Command`].
    ///
    /// After `deadline`, or when the future is dropped, the job goes on without us.
    pub async fn run_job(
        &self,
        command: &str,
        arguments: Map<String, Value>,
        deadline: Duration,
    ) -> Result<(), QmpError> {
        let work = async {
            // QEMU's main loop may do all of the job before it sends the answer.
            let mut job = self.start_job_within(command, arguments, deadline).await?;
            job.concluded().await
        };
        timeout(deadline, work).await.unwrap_or_else(|_elapsed| {
            Err(QmpError::Timeout {
                what: command.to_owned(),
                deadline,
            })
        })
    }

    /// Starts the job `command`.
    pub async fn start_job(
        &self,
        command: &str,
        arguments: Map<String, Value>,
    ) -> Result<Job, QmpError> {
        self.start_job_within(command, arguments, START).await
    }

    async fn start_job_within(
        &self,
        command: &str,
        mut arguments: Map<String, Value>,
        deadline: Duration,
    ) -> Result<Job, QmpError> {
        let id = format!("{PREFIX}{}", Uuid::new_v4().simple());
        arguments.insert("job-id".to_owned(), id.as_str().into());
        let job = Job {
            qmp: self.clone(),
            command: command.to_owned(),
            id,
            // Before it starts, so that no event is missed.
            events: self.subscribe(),
            look_first: false,
        };
        self.execute_with(command, arguments, deadline).await?;
        Ok(job)
    }

    /// Dismisses what an earlier process of ours started and never saw the end of.
    pub async fn dismiss_old_jobs(&self) -> Result<(), QmpError> {
        self.dismiss_ended_jobs(PREFIX).await.map(drop)
    }

    /// Whether there was one.
    async fn dismiss_ended_jobs(&self, prefix: &str) -> Result<bool, QmpError> {
        let mut jobs = self.query_jobs().await?;
        jobs.retain(|job| job.id.starts_with(prefix) && job.status == CONCLUDED);
        self.dismiss(jobs).await
    }

    /// Whether there was one.
    async fn dismiss(&self, ended: Vec<JobInfo>) -> Result<bool, QmpError> {
        let any = !ended.is_empty();
        for job in ended {
            self.execute("job-dismiss", json!({ "id": job.id })).await?;
        }
        Ok(any)
    }

    /// Ends what an earlier process of ours has left running.
    pub async fn cancel_old_jobs(&self) -> Result<(), QmpError> {
        self.end_jobs(PREFIX).await.map(drop)
    }

    /// Ends every job whose id begins so. Whether there was one.
    pub(super) async fn end_jobs(&self, prefix: &str) -> Result<bool, QmpError> {
        let mut any = false;
        loop {
            // Before they are looked at, so that no event is missed.
            let events = self.subscribe();
            let mut jobs = self.query_jobs().await?;
            jobs.retain(|job| job.id.starts_with(prefix));
            let under_way = jobs.iter().find(|job| job.status != CONCLUDED);
            let Some(id) = under_way.map(|job| job.id.clone()) else {
                return Ok(self.dismiss(jobs).await? || any);
            };
            let mut job = Job {
                qmp: self.clone(),
                command: "block job".to_owned(),
                id,
                events,
                look_first: false,
            };
            job.cancel().await?;
            any = true;
        }
    }

    /// Whether a backup copies disks.
    pub async fn is_backed_up(&self) -> Result<bool, QmpError> {
        let copies = |job: &JobInfo| job.id.starts_with(BACKUP_PREFIX) && job.status != CONCLUDED;
        Ok(self.query_jobs().await?.iter().any(copies))
    }

    async fn query_jobs(&self) -> Result<Vec<JobInfo>, QmpError> {
        decode("query-jobs", &self.execute("query-jobs", ()).await?)
    }
}

impl Job {
    /// Waits until it has succeeded, and dismisses it. When `cancel` fires it is ended first, which is a
    /// failure unless it was faster.
    pub async fn finish(
        mut self,
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), QmpError> {
        let what = self.command.clone();
        let ended = timeout(deadline, async {
            tokio::select! {
                ended = self.concluded() => return ended,
                () = cancel.cancelled() => {}
            }
            self.ask_to_end().await?;
            self.concluded().await
        });
        let late = QmpError::Timeout { what, deadline };
        ended.await.unwrap_or(Err(late))
    }

    /// Waits until both its sides hold the same. One that fails is dismissed.
    pub async fn ready(&mut self, cancel: &CancellationToken) -> Result<(), QmpError> {
        tokio::select! {
            job = self.reaches(&["ready", CONCLUDED]) => match job? {
                job if job.status == CONCLUDED => self.dismiss(job).await,
                _ready => Ok(()),
            },
            () = cancel.cancelled() => {
                self.cancel().await?;
                let command = self.command.clone();
                let (class, desc) = ("GenericError".to_owned(), "Operation canceled".to_owned());
                Err(QmpError::Command { command, class, desc })
            }
        }
    }

    /// Has one that is ready come to its end.
    pub async fn complete(mut self) -> Result<(), QmpError> {
        let ask = json!({ "id": self.id });
        match self.qmp.execute("job-complete", ask).await {
            // It has ended by itself, and says why.
            Err(QmpError::Command { .. }) => self.look_first = true,
            asked => drop(asked?),
        }
        timeout(START, self.concluded())
            .await
            .unwrap_or(Err(QmpError::Timeout {
                what: "job-complete".to_owned(),
                deadline: START,
            }))
    }

    /// Ends it without its effect, and dismisses it.
    pub async fn cancel(&mut self) -> Result<(), QmpError> {
        self.ask_to_end().await?;
        // How it ended does not matter.
        match self.concluded().await {
            Err(QmpError::Command { .. }) => Ok(()),
            ended => ended,
        }
    }

    async fn ask_to_end(&mut self) -> Result<(), QmpError> {
        // Whoever waited before may have taken the event without acting on it.
        self.look_first = true;
        // One that is ready would otherwise end well, as far as QEMU is concerned.
        let ask = json!({ "device": self.id, "force": true });
        match self.qmp.execute("block-job-cancel", ask).await {
            // It has ended by itself.
            Err(QmpError::Command { .. }) => Ok(()),
            asked => asked.map(drop),
        }
    }

    async fn concluded(&mut self) -> Result<(), QmpError> {
        let job = self.reaches(&[CONCLUDED]).await?;
        self.dismiss(job).await
    }

    /// Waits until it has one of these statuses. Nothing is asked before an event says so: QEMU may be
    /// too busy with the job to answer.
    async fn reaches(&mut self, statuses: &[&str]) -> Result<JobInfo, QmpError> {
        loop {
            if self.look_first
                && let Some(job) = self.look(statuses).await?
            {
                return Ok(job);
            }
            self.look_first = match self.events.next().await {
                Some(MonitorEvent::Event(event)) => says(&event, &self.id, statuses),
                Some(MonitorEvent::Missed { .. } | MonitorEvent::Reconnected { .. }) => true,
                Some(MonitorEvent::Disconnected { .. }) => false,
                Some(MonitorEvent::GaveUp) | None => {
                    let what = self.command.clone();
                    return Err(QmpError::Disconnected { what });
                }
            };
        }
    }

    async fn look(&self, statuses: &[&str]) -> Result<Option<JobInfo>, QmpError> {
        let jobs = self.qmp.query_jobs().await?;
        if let Some(job) = jobs.into_iter().find(|job| job.id == self.id) {
            return Ok(statuses.contains(&job.status.as_str()).then_some(job));
        }
        let why = format!("the job of {} is gone", self.command);
        Err(QmpError::Protocol { why })
    }

    async fn dismiss(&self, job: JobInfo) -> Result<(), QmpError> {
        let ask = json!({ "id": job.id });
        self.qmp.execute("job-dismiss", ask).await?;
        match job.error {
            None => Ok(()),
            Some(desc) => Err(QmpError::Command {
                command: self.command.clone(),
                class: "GenericError".to_owned(),
                desc,
            }),
        }
    }
}

/// Whether QEMU says that the disk or the quota it writes to is full: jobs tell an errno by the C library's words.
pub fn says_full(words: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].contains(&words)
}

fn says(event: &QmpEvent, id: &str, statuses: &[&str]) -> bool {
    if event.event != "JOB_STATUS_CHANGE" {
        return false;
    }
    let change: JobStatusChange = serde_json::from_str(event.data.get()).unwrap_or_default();
    change.id == id && statuses.contains(&change.status.as_str())
}
