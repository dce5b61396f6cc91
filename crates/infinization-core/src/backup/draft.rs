//! A backup in the making: its folder says `IN_PROGRESS` from the first moment, and something final
//! from the last.

use std::time::Instant;

use super::folder::{Kept, Library, inside, remove_idle_data, write};
use super::kinds::BackupStatus;
use super::manifest::{DiskRecord, Manifest};
use super::names::{BackupId, image_file};
use super::request::CreateBackup;
use super::service::millis;
use super::{BackupError, now, off_thread};
use crate::error::{Coded as _, ErrorCode};
use crate::types::HostPath;

/// What was found out about the machine while it was copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    pub(super) running: bool,
    pub(super) crash_consistent: bool,
}

/// The folder and manifest of a backup that is being made.
#[derive(Debug)]
pub(super) struct Draft {
    began: Instant,
    pub(super) folder: HostPath,
    pub(super) manifest: Manifest,
}

impl Draft {
    /// Makes the folder of the machine's backup number `sequence`. `planned` is what a sweep may have to
    /// undo in the disks themselves.
    pub(super) async fn begin(
        library: &Library,
        id: &BackupId,
        request: &CreateBackup,
        sequence: u64,
        planned: Vec<DiskRecord>,
    ) -> Result<Self, BackupError> {
        let mut manifest = Manifest::begun(id.clone(), request, sequence, now());
        manifest.with_disks(planned);
        let (library, destination) = (library.clone(), request.destination.clone());
        off_thread(move || {
            let folder = library.make_folder(&manifest.vm_id, &manifest.id, &destination)?;
            if let Err(error) = write(&folder, &manifest) {
                // Where neither can be done, the next sweep comes by.
                let removed = library.remove(&manifest.vm_id, &manifest.id, &folder);
                removed.unwrap_or_else(|left| tracing::warn!(%folder, %left, "it stays for now"));
                return Err(error);
            }
            Ok(Self {
                began: Instant::now(),
                folder,
                manifest,
            })
        })
        .await
    }

    /// The file that disk `n` is written into.
    pub(super) fn image(&self, n: usize) -> Result<HostPath, BackupError> {
        inside(&self.folder, &image_file(n))
    }

    /// A file for in between.
    pub(super) fn scratch(&self, n: usize, what: &str) -> Result<HostPath, BackupError> {
        inside(&self.folder, &format!("disk-{n}.{what}.qcow2"))
    }

    /// Declares it whole. Every file is on disk by now. On failure it is to be abandoned.
    pub(super) async fn complete(
        mut self,
        disks: Vec<DiskRecord>,
        circumstances: Circumstances,
    ) -> Result<Kept, (BackupError, Self)> {
        self.manifest.with_disks(disks);
        self.manifest.running_at_backup = Some(circumstances.running);
        self.manifest.crash_consistent = Some(circumstances.crash_consistent);
        self.finish(BackupStatus::Completed);
        match self.write().await {
            Ok(()) => Ok(self.kept()),
            Err(error) => Err((error, self)),
        }
    }

    /// Removes the files that were made, and says why. Gives the reason back. `left` are the disks that its
    /// snapshot may still be in.
    pub(super) async fn abandon(
        mut self,
        error: BackupError,
        left: Vec<DiskRecord>,
    ) -> (BackupError, Kept) {
        let folder = self.folder.clone();
        if let Err(error) = off_thread(move || remove_idle_data(&folder)).await {
            tracing::warn!(folder = %self.folder, %error, "a failed backup's files are left");
        }
        let cancelled = error.code() == ErrorCode::BackupCancelled;
        self.manifest.error_message = Some(if left.is_empty() {
            error.to_string()
        } else {
            format!("{error}; its snapshot may be left in a disk until it is deleted")
        });
        self.manifest.with_disks(left);
        self.finish(if cancelled {
            BackupStatus::Cancelled
        } else {
            BackupStatus::Failed
        });
        if let Err(error) = self.write().await {
            // It still says IN_PROGRESS, which the next sweep sets right.
            tracing::warn!(folder = %self.folder, %error, "a failed backup is not marked");
        }
        (error, self.kept())
    }

    fn finish(&mut self, status: BackupStatus) {
        self.manifest.status = status;
        self.manifest.completed_at = Some(now());
        self.manifest.duration_ms = Some(millis(self.began.elapsed()));
    }

    async fn write(&self) -> Result<(), BackupError> {
        let (folder, manifest) = (self.folder.clone(), self.manifest.clone());
        off_thread(move || write(&folder, &manifest)).await
    }

    fn kept(self) -> Kept {
        Kept {
            folder: self.folder,
            manifest: self.manifest,
        }
    }
}
