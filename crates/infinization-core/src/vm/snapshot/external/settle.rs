//! What a killed process left half done is finished or undone, before anything else is done to the disks.

use tokio_util::sync::CancellationToken;

use super::layers::{Layers, are_whole};
use super::record::Pending;
use crate::error::{ErrorCode, Failure};

impl Layers<'_> {
    /// Of a VM that is off: afterwards spec and row say what the record says, and nothing is pending. Merging
    /// takes its time, so that waits for who needs the disks (`all`), and stays pending when `cancel` fires.
    pub(super) async fn settle(
        &mut self,
        all: bool,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        match self.record.pending.clone() {
            None => {}
            Some(Pending::Tidy { .. }) => self.tidy().await?,
            Some(Pending::Overlay {
                after,
                made,
                remove,
                live,
            }) => {
                // QEMU may have written into them, and if it has not they hold what lies below.
                if live && are_whole(&made).await {
                    self.turn(after, remove).await?;
                } else {
                    self.abandon(&made).await?;
                }
            }
            Some(Pending::Merge { .. }) if !all => {}
            Some(Pending::Merge { merge, .. }) => {
                self.refuse_unknown()?;
                let reclaimed = cancel.run_until_cancelled(self.reclaim(&merge));
                reclaimed.await.ok_or_else(super::aborted)?;
                self.finish_or_give_up(cancel).await?;
            }
        }
        self.agree().await
    }

    /// A disk that is full now must not keep the VM from starting, as long as its own layers are whole.
    async fn finish_or_give_up(&mut self, cancel: &CancellationToken) -> Result<(), Failure> {
        let Err(failure) = self.go_on_merging(cancel).await else {
            return Ok(());
        };
        if cancel.is_cancelled() {
            if self.live.is_some() {
                self.catch_up().await?;
            }
            let message = super::aborted().to_string();
            return Err(Failure::caused_by(ErrorCode::Aborted, message, failure));
        }
        if !self.try_to_give_up().await {
            return Err(failure);
        }
        tracing::warn!(vm = %self.context.vm_id, %failure, "a merge of snapshots was given up");
        Ok(())
    }

    /// The same of a VM that runs, whose record then also says which files QEMU is on.
    pub(super) async fn settle_live(
        &mut self,
        all: bool,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        match self.record.pending.clone() {
            None => Ok(()),
            Some(Pending::Tidy { .. }) => self.tidy().await,
            Some(Pending::Overlay {
                after,
                made,
                remove,
                ..
            }) => {
                if self.stands_on(&made).await? {
                    return self.turn(after, remove).await;
                }
                self.close_nodes(&made).await?;
                self.abandon(&made).await
            }
            Some(Pending::Merge { .. }) => {
                if all || self.may_have_moved() {
                    self.catch_up().await?;
                }
                if all {
                    self.finish_or_give_up(cancel).await
                } else {
                    Ok(())
                }
            }
        }
    }
}
