//! `retryCleanup`: gives back what earlier clean-ups could not.
//!
//! What is left is what the ledger says, and nothing of a QEMU that lives.

use serde_json::Value;

use super::bench::Bench;
use super::cleanup::Cleanup;
use super::machine::Machine;
use super::plan::{Lifetime, Operation};
use super::run::{Order, release_up_to};
use crate::error::Failure;

impl Machine {
    /// `CleanupResult` of what was left.
    pub(super) async fn retry_cleanup(&mut self) -> Result<Value, Failure> {
        let cleanup = match self.context.ledger.contents().operation {
            _ if self.live.is_some() || self.is_between_steps() => Cleanup::default(),
            Some(operation @ (Operation::Destroy | Operation::Delete | Operation::DeleteData)) => {
                let process = self.process_to_end().await?;
                self.raze(operation, process).await?
            }
            _ => {
                if let Some(undone) = self.undo_again().await? {
                    undone
                } else {
                    self.look_again().await?;
                    self.release_run().await
                }
            }
        };
        Ok(cleanup.to_json(&self.context.vm_id))
    }

    /// What a run held that is over.
    async fn release_run(&self) -> Cleanup {
        if self.live.is_some() {
            return Cleanup::default();
        }
        let context = &self.context;
        let bench = Bench::of_process(None);
        let released = release_up_to(context.desk(&bench), Lifetime::Run, Order::AtOnce);
        let cleanup = released.await;
        // A machine that holds nothing has no row to clear either.
        if cleanup.is_complete() && !cleanup.resources.is_empty() {
            context.clear_run().await;
        }
        self.alert(&cleanup);
        cleanup
    }
}
