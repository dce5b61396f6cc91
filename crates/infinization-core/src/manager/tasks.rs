//! The VMs' tasks: started when one is asked, let go when it holds nothing, asked to settle rows.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Open, REST_DEADLINE, not_found};
use crate::db::RunningVm;
use crate::error::{ErrorCode, Failure};
use crate::events::Source;
use crate::types::VmId;
use crate::vm::{ReconcileResult, ReconcileSummary, VmHandle};

impl Open {
    pub(super) fn vms(&self) -> MutexGuard<'_, HashMap<VmId, VmHandle>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM's task, started if need be.
    pub(super) fn handle(&self, vm_id: &VmId) -> Result<VmHandle, Failure> {
        if let Some(handle) = self.vms().get(vm_id) {
            return Ok(handle.clone());
        }
        let closed = || Failure::new(ErrorCode::Closed, "the instance was shut down").of_vm(vm_id);
        // Reads a file: not while others wait for the map.
        let context = self.services.context_of(vm_id)?;
        let mut vms = self.vms();
        // A task that was let go may still be at work: no second one of its VM.
        if self.services.closing.is_cancelled() {
            return Err(closed());
        }
        // Somebody may have been faster; his task has read the same ledger and may have changed it.
        let handle = vms.entry(vm_id.clone());
        Ok(handle.or_insert_with(|| VmHandle::spawn(context)).clone())
    }

    /// The task of a VM that has one or has a row. Asking for others starts none.
    pub(super) async fn known(&self, vm_id: &VmId) -> Result<VmHandle, Failure> {
        if let Some(handle) = self.vms().get(vm_id) {
            return Ok(handle.clone());
        }
        let row = self
            .services
            .database
            .find_machine(vm_id)
            .await
            .map_err(|error| {
                Failure::caused_by(
                    ErrorCode::DatabaseError,
                    "the machine could not be read",
                    error,
                )
            })?;
        row.ok_or_else(|| not_found(vm_id))?;
        self.handle(vm_id)
    }

    /// Lets the task of a VM that holds nothing end, unless another request waits for it: a second
    /// task of the same VM would know nothing of what the first one does.
    pub(super) fn drop_if_empty(&self, handle: &VmHandle) {
        let context = handle.context();
        let mut vms = self.vms();
        let empty = handle.view().live.is_none() && context.ledger.contents().entries.is_empty();
        // The other handle is the one in the map.
        if empty && handle.is_last_beside(1) {
            vms.remove(&context.vm_id);
        }
    }

    /// Lets a VM's task end, once it has done what it was asked to. A backup of it is ended: nobody could
    /// follow its copies any more.
    pub(super) async fn let_go(handle: &VmHandle) {
        let backups = async {
            if let Some(live) = handle.view().live {
                live.qmp.end_copying().await;
            }
        };
        let both = async { tokio::join!(handle.rest(), backups) };
        if timeout(REST_DEADLINE, both).await.is_err() {
            let vm = &handle.context().vm_id;
            tracing::warn!(%vm, "an operation was still under way at shutdown");
        }
        if let Some(live) = handle.view().live {
            live.qmp.close().await;
        }
    }

    pub(super) async fn reconcile(&self, statuses: &[&str]) -> Result<ReconcileSummary, Failure> {
        let rows = self
            .services
            .database
            .find_machines_by_statuses(statuses)
            .await?;
        Ok(self.reconcile_rows(&rows).await)
    }

    /// Whether a row between two states is for us to settle, of machines that have `left` something here or of others.
    pub(super) fn settles(&self, row: &RunningVm, left: &[VmId]) -> bool {
        !self.services.shares_rows || left.iter().any(|vm_id| vm_id.as_str() == row.id)
    }

    pub(super) async fn reconcile_rows(&self, rows: &[RunningVm]) -> ReconcileSummary {
        let settled = join_all(rows.iter().map(|row| self.reconcile_row(row))).await;
        let summary = ReconcileSummary::of(settled);
        self.services.events.publish(
            Source::HealthMonitor,
            "reconcile-complete",
            None,
            summary.told(),
        );
        summary
    }

    pub(super) async fn reconcile_row(&self, row: &RunningVm) -> ReconcileResult {
        let settled = async {
            let vm_id = VmId::parse(row.id.as_str())
                .map_err(|error| Failure::new(ErrorCode::InvalidInput, format!("id {error}")))?;
            self.handle(&vm_id)?.reconcile(&row.status).await
        };
        settled.await.unwrap_or_else(|error| {
            tracing::warn!(vm = row.id, %error, "not reconciled");
            ReconcileResult::skipped(&row.id, &row.status, error.to_string())
        })
    }
}
