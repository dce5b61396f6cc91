//! The health monitor: a backstop. Exits are noticed by the VMs' own tasks at once; this looks, now
//! and then, for what no task watches: rows that claim a QEMU nobody has, and pidfiles of processes
//! that nobody owns.
//!
//! A QEMU without an owner is told (`orphan-detected`); what is done about it, [`Watched`] decides.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::error::Failure;
use crate::events::{EventBus, Source, now_ms};
use crate::host::memory;
use crate::types::VmId;

/// How long after a check all that it brought about has been told, and nothing runs any more.
const REST: Duration = Duration::from_secs(1);

/// What one machine's check found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckResult {
    /// The machine.
    pub vm_id: String,
    /// Its QEMU's pid.
    pub pid: Option<i32>,
    /// Whether its QEMU is there.
    pub is_alive: bool,
    /// The row's status.
    pub status: String,
    /// When, in milliseconds since the Unix epoch.
    pub timestamp: u64,
}

/// A QEMU that no machine owns, or whose machine's row is gone.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OrphanEvent {
    /// The machine's id, or the name its pidfile has.
    pub vm_id: String,
    /// The machine, if it is known.
    #[serde(skip)]
    pub machine: Option<VmId>,
    /// The process.
    pub pid: i32,
    /// The status of the row of that name, if there is one.
    pub db_status: Option<String>,
    /// Where its pidfile is.
    pub pidfile_path: String,
    /// When, in milliseconds since the Unix epoch.
    pub detected_at: u64,
    /// Whether it was ended.
    pub killed: bool,
    /// Whether anything was cleaned up.
    pub cleanup_performed: bool,
    /// `CleanupResult`, where a row said what was to be cleaned up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleanup_result: Option<Value>,
}

/// What one cycle found.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckSummary {
    /// Machines looked at.
    pub total_checked: usize,
    /// Those whose QEMU is there.
    pub alive: usize,
    /// Those whose QEMU was found gone.
    pub crashed: usize,
    /// Those that could not be judged.
    pub errors: usize,
    /// Processes nobody owns.
    pub orphans_detected: usize,
    /// Stale pidfiles removed.
    pub orphans_cleaned: usize,
    /// When, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Machine by machine.
    pub results: Vec<HealthCheckResult>,
}

/// What the monitor looks at. The manager implements it.
#[async_trait]
pub trait Watched: Send + Sync {
    /// Checks every machine whose row claims a QEMU.
    async fn check_machines(&self) -> Result<HealthCheckSummary, Failure>;
    /// Looks at every pidfile; answers the orphans, with what was done about them, and how many stale
    /// files were removed.
    async fn check_orphans(&self) -> Result<(Vec<OrphanEvent>, usize), Failure>;
}

/// Runs the checks on a timer. Clones share it.
#[derive(Clone)]
pub struct HealthMonitor {
    watched: Weak<dyn Watched>,
    every: Duration,
    events: EventBus,
    running: Arc<Mutex<Option<CancellationToken>>>,
}

impl std::fmt::Debug for HealthMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HealthMonitor")
            .field("every", &self.every)
            .finish_non_exhaustive()
    }
}

impl HealthMonitor {
    /// A monitor that is not running yet.
    pub fn new(watched: Weak<dyn Watched>, every: Duration, events: EventBus) -> Self {
        Self {
            watched,
            every,
            events,
            running: Arc::default(),
        }
    }

    /// Runs one cycle, then one every interval. Nothing happens when it runs already.
    pub async fn start(&self) {
        let token = CancellationToken::new();
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if running.is_some() {
                return;
            }
            *running = Some(token.clone());
        }
        self.cycle().await;
        tokio::spawn(self.clone().go_on(token));
    }

    async fn go_on(self, token: CancellationToken) {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is immediate, and that cycle was run before.
        ticks.tick().await;
        loop {
            let idle = async {
                sleep(REST.min(self.every / 2)).await;
                memory::give_back().await;
                ticks.tick().await;
            };
            if token.run_until_cancelled(idle).await.is_none() || self.watched.strong_count() == 0 {
                return;
            }
            self.cycle().await;
        }
    }

    /// Runs no further cycle.
    pub fn stop(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = running.take() {
            token.cancel();
        }
    }

    /// Whether cycles are run.
    pub fn is_monitoring(&self) -> bool {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Checks all machines and pidfiles now.
    pub async fn check_all(&self) -> Result<HealthCheckSummary, Failure> {
        let checked = self.check().await;
        memory::give_back().await;
        checked
    }

    async fn check(&self) -> Result<HealthCheckSummary, Failure> {
        let Some(watched) = self.watched.upgrade() else {
            return Ok(HealthCheckSummary::default());
        };
        let mut summary = watched.check_machines().await?;
        let (orphans, cleaned) = self.look_for_orphans(&watched).await?;
        summary.orphans_detected = orphans.len();
        summary.orphans_cleaned = cleaned;
        summary.timestamp = now_ms();
        self.events.publish(
            Source::HealthMonitor,
            "check-complete",
            None,
            json!(summary),
        );
        Ok(summary)
    }

    /// Looks at the pidfiles now.
    pub async fn check_orphans(&self) -> Result<Vec<OrphanEvent>, Failure> {
        match self.watched.upgrade() {
            Some(watched) => Ok(self.look_for_orphans(&watched).await?.0),
            None => Ok(Vec::new()),
        }
    }

    async fn look_for_orphans(
        &self,
        watched: &Arc<dyn Watched>,
    ) -> Result<(Vec<OrphanEvent>, usize), Failure> {
        let (orphans, cleaned) = watched.check_orphans().await?;
        for orphan in &orphans {
            let (source, kind) = (Source::HealthMonitor, "orphan-detected");
            let vm_id = orphan.machine.as_ref();
            self.events.publish(source, kind, vm_id, json!(orphan));
        }
        Ok((orphans, cleaned))
    }

    /// What goes wrong in it, a defect too, is told and does not end the timer.
    async fn cycle(&self) {
        let checked = AssertUnwindSafe(self.check()).catch_unwind().await;
        let message = match checked {
            Ok(Ok(_summary)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_panic) => "a defect stopped the check; please report it".to_owned(),
        };
        let data = json!({ "message": message, "timestamp": now_ms() });
        self.events
            .publish(Source::HealthMonitor, "error", None, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its machines cannot be checked because of a defect.
    struct Defective;

    #[async_trait]
    impl Watched for Defective {
        async fn check_machines(&self) -> Result<HealthCheckSummary, Failure> {
            panic!("a defect")
        }

        async fn check_orphans(&self) -> Result<(Vec<OrphanEvent>, usize), Failure> {
            Ok((Vec::new(), 0))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_defect_is_told_and_the_timer_goes_on_until_nothing_is_watched() {
        let watched: Arc<dyn Watched> = Arc::new(Defective);
        let events = EventBus::default();
        let mut told = events.subscribe();
        let every = Duration::from_secs(1);
        HealthMonitor::new(Arc::downgrade(&watched), every, events)
            .start()
            .await;
        for _ in 0..3 {
            assert_eq!(told.recv().await.unwrap().kind, "error");
        }
        drop(watched);
        // The bus goes with the timer.
        assert!(told.recv().await.is_err());
    }
}
