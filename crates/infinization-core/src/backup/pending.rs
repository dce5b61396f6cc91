//! Restores that a kill cut short, and that cannot be ended now: their journals stay, and only verbs on their disks are
//! refused.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::{BackupError, off_thread};
use crate::types::HostPath;

/// One of them, and why it is not ended.
#[derive(Debug)]
pub(super) struct Pending {
    journal: HostPath,
    disks: Vec<HostPath>,
    why: BackupError,
}

impl Pending {
    pub(super) fn new(journal: HostPath, disks: Vec<HostPath>, why: BackupError) -> Self {
        tracing::warn!(%journal, %why, "a restore that was cut short could not be ended yet");
        Self {
            journal,
            disks,
            why,
        }
    }

    fn concerns(&self, file: &HostPath) -> bool {
        let found = identity(file);
        let is_it = |disk| disk == file || (found.is_some() && identity(disk) == found);
        self.disks.iter().any(is_it)
    }
}

/// Refuses work on a disk of one of them, by whatever name it is called.
pub(super) async fn refuse<'a>(
    pending: Vec<Pending>,
    disks: impl IntoIterator<Item = &'a HostPath>,
) -> Result<(), BackupError> {
    if pending.is_empty() {
        return Ok(());
    }
    let disks: Vec<HostPath> = disks.into_iter().cloned().collect();
    off_thread(move || {
        for restore in pending {
            if let Some(path) = disks.iter().find(|disk| restore.concerns(disk)) {
                return Err(BackupError::Pending {
                    path: path.clone(),
                    journal: restore.journal,
                    source: Box::new(restore.why),
                });
            }
        }
        Ok(())
    })
    .await
}

/// Refuses to begin a restore whose journal would take another's place. Blocks.
pub(super) fn refuse_another_now(journal: &HostPath) -> Result<(), BackupError> {
    match journal.as_path().try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(BackupError::Unended {
            journal: journal.clone(),
        }),
        Err(error) => Err(BackupError::io(journal, error)),
    }
}

/// Device and inode; nothing for a file that cannot be looked at.
fn identity(path: &HostPath) -> Option<(u64, u64)> {
    let found = fs::metadata(path.as_path()).ok()?;
    Some((found.dev(), found.ino()))
}
