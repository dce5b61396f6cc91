//! What is told and done when the database is away, and when it is back.
//!
//! The outbox keeps what happens meanwhile (`db/outbox`). Machines go on, and so do their clean-ups;
//! what needs an answer of the database is refused. When it is back, the kept writes have been
//! delivered, and what could not be judged without it is looked at again.

use std::sync::Weak;
use std::sync::atomic::Ordering::SeqCst;

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Open, TRANSIENT};
use crate::db::RunningVm;
use crate::db::outbox::Notice;
use crate::error::{Coded as _, Failure};
use crate::events::{EventBus, Source, now_ms};
use crate::types::VmId;

/// Follows the outbox for as long as it exists.
pub(super) async fn follow(
    open: Weak<Open>,
    events: EventBus,
    mut notices: UnboundedReceiver<Notice>,
) {
    let mut since = now_ms();
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::Away { error } => {
                since = now_ms();
                let error = json!({ "code": error.code().as_str(), "message": error.message });
                let data = json!({ "error": error, "timestamp": since });
                events.publish(Source::HealthMonitor, "database-outage", None, data);
            }
            Notice::Back { delivered, lost } => {
                let data = json!({
                    "startedAt": since,
                    "delivered": delivered,
                    "lost": lost,
                    "timestamp": now_ms(),
                });
                events.publish(Source::HealthMonitor, "database-restored", None, data);
                if let Some(open) = open.upgrade() {
                    tokio::spawn(async move { open.catch_up().await });
                }
            }
            Notice::Lost {
                vm_id,
                write,
                error,
            } => {
                let data = json!({ "vmId": vm_id, "event": write, "error": error.to_string() });
                events.publish(Source::EventHandler, "error", Some(&vm_id), data);
            }
        }
    }
}

impl Open {
    /// Looks again at what could not be judged while the database was away, and at nothing that
    /// goes on: neither at an installation nor at a row that the consumer holds.
    async fn catch_up(&self) {
        let closing = self.services.closing.clone();
        // One that waits sees all that this one would.
        if self.will_catch_up.swap(true, SeqCst) {
            return;
        }
        let work = async {
            let _one_at_a_time = self.restoring.lock().await;
            self.will_catch_up.store(false, SeqCst);
            if let Err(error) = self.find_out_again().await {
                tracing::warn!(%error, "not everything was looked at after the outage");
            }
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = work => {}
        }
    }

    async fn find_out_again(&self) -> Result<(), Failure> {
        let mut left = self.left_behind().await?;
        left.retain(|vm_id| self.is_at_rest(vm_id));
        join_all(left.iter().map(|vm_id| self.take_back(vm_id))).await;
        self.settle_rows(&left).await?;
        if !self.has_told_orphans.load(SeqCst) {
            self.tell_orphaned_chains().await;
        }
        self.check_claims(&left).await
    }

    fn is_at_rest(&self, vm_id: &VmId) -> bool {
        !self.services.marks.installing.contains(vm_id) && !self.is_busy(vm_id)
    }

    /// Whether somebody asks something of the machine: what he asks for looks at it anyway.
    pub(super) fn is_busy(&self, vm_id: &VmId) -> bool {
        let vms = self.vms();
        // The handle in the map is no asker.
        vms.get(vm_id).is_some_and(|vm| !vm.is_last_beside(0))
    }

    /// Settles starts of `ours` that the outage has cut off. The other statuses between two are the
    /// consumer's, who may be at work; they are settled at a start of this process, and when he asks. Where
    /// that start was without a database it is made up for.
    async fn settle_rows(&self, ours: &[VmId]) -> Result<(), Failure> {
        let database = &self.services.database;
        let mut rows = database.find_machines_by_statuses(&["starting"]).await?;
        rows.retain(|row| ours.iter().any(|vm_id| vm_id.as_str() == row.id));
        let makes_up = !self.has_settled.load(SeqCst);
        if makes_up {
            let older = self.rows_of_others().await?;
            let is_new = |row: &RunningVm| {
                rows.iter().all(|other| other.id != row.id) && self.settles(row, ours)
            };
            let older: Vec<_> = older.into_iter().filter(is_new).collect();
            rows.extend(older);
        }
        self.reconcile_rows(&rows).await;
        self.has_settled.fetch_or(makes_up, SeqCst);
        Ok(())
    }

    /// The rows between two states that were left by earlier processes: who writes one now may have found
    /// the database before this process has, so that only what was written before counts.
    async fn rows_of_others(&self) -> Result<Vec<RunningVm>, Failure> {
        let database = &self.services.database;
        let found = database.find_machines_unchanged_since(&TRANSIENT, self.since);
        let mut rows = found.await?;
        rows.retain(|row| VmId::parse(row.id.as_str()).is_ok_and(|vm_id| self.is_at_rest(&vm_id)));
        Ok(rows)
    }
}
