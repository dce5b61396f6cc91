//! Restores of backups that were cut short: none of their disks is used before they are ended.
//!
//! Backups are none of a VM's business, so it is only told how to have one ended ([`Restores`]).

use std::fmt;

use async_trait::async_trait;

use super::context::VmContext;
use crate::config::VmConfig;
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::file_call;
use crate::host::restore_note;
use crate::types::HostPath;

/// Who can end a restore.
#[async_trait]
pub trait Restores: Send + Sync + fmt::Debug {
    /// Finishes or undoes the restore that keeps this journal. On failure its disks must not be used.
    async fn end(&self, journal: HostPath) -> Result<(), Failure>;
}

impl VmContext {
    /// Has every restore ended that was replacing one of the disks. `INVALID_STATE` where it cannot be.
    pub(super) async fn settle_restores(&self, config: &VmConfig) -> Result<(), Failure> {
        let disks = config.disks.iter().filter_map(|disk| disk.path());
        for disk in disks {
            if let Some(journal) = self.unfinished_restore(disk).await? {
                let ended = self.services.restores.end(journal.clone()).await;
                ended.map_err(|failure| {
                    self.half_restored(disk, failure)
                        .with("journal", journal.as_str())
                })?;
                tracing::warn!(vm = %self.vm_id, %disk, "a restore that was cut short was ended");
            }
        }
        Ok(())
    }

    async fn unfinished_restore(&self, disk: &HostPath) -> Result<Option<HostPath>, Failure> {
        let path = disk.clone();
        let found = file_call(move || restore_note::find(&path)).await;
        found.map_err(|error| {
            let failure = Failure::new(ErrorCode::HostFile, error.to_string());
            self.half_restored(disk, failure)
        })
    }

    fn half_restored(&self, disk: &HostPath, why: Failure) -> Failure {
        let message = format!("a restore of {disk} was cut short, and could not be ended: {why}");
        let refused = Failure::caused_by(ErrorCode::InvalidState, message, why);
        refused.of_vm(&self.vm_id).with("path", disk.as_str())
    }
}
