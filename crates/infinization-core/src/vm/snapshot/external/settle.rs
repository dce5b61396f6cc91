//! What a killed process left half done is finished or undone, before anything else is done to the disks.

use tokio_util::sync::CancellationToken;

use super::layers::{Layers, are_whole};
use super::record::Pending;
use crate::error::Failure;

impl Layers<'_> {
    /// Of a VM that is off: afterwards nothing is pending, and spec and row say what the record says.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
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
            Some(Pending::Merge { merge, .. }) => {
                self.refuse_unknown()?;
                self.reclaim(&merge).await;
                self.finish_or_give_up().await?;
            }
        }
        self.agree().await
    }

    /// A disk that is full now must not keep the VM from starting, as long as its own layers are whole.
    async fn finish_or_give_up(&mut self) -> Result<(), Failure> {
        let never = CancellationToken::new();
        let Err(failure) = self.go_on_merging(&never).await else {
            return Ok(());
        };
        if !self.try_to_give_up().await {
            return Err(failure);
        }
        tracing::warn!(vm = %self.context.vm_id, %failure, "a merge of snapshots was given up");
        Ok(())
    }

    /// Of a VM that runs. Merging takes its time, so it waits for the next verb on snapshots (`all`).
    pub(super) async fn settle_live(&mut self, all: bool) -> Result<(), Failure> {
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
                    self.finish_or_give_up().await
                } else {
                    Ok(())
                }
            }
        }
    }
}
