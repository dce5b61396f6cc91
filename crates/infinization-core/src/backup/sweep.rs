//! Clearing what a process that died left unfinished. Whoever sweeps has the machine's turn, so
//! nothing that is found unfinished has a living maker.

use super::folder::{Kept, Library, read, remove_idle_data, write};
use super::kinds::{BackupStatus, BackupType};
use super::machine::Machine;
use super::offline::drop_snapshots;
use super::pending::Pending;
use super::turn::Turn;
use super::{BackupError, now, off_thread, reverting, stage};
use crate::host::qemu_img::SnapshotName;
use crate::types::VmId;

/// Fails what says it is being made, removes what has no manifest, ends what a restore had begun. Answers which
/// restores cannot be ended now.
pub(super) async fn sweep(
    library: &Library,
    vm_id: &VmId,
    machine: &dyn Machine,
) -> Result<Vec<Pending>, BackupError> {
    let staged = stage::recover(library, vm_id, machine).await?;
    let reverted = reverting::recover(library, vm_id, machine).await?;
    end_unfinished(library, vm_id).await?;
    Ok(staged.into_iter().chain(reverted).collect())
}

async fn end_unfinished(library: &Library, vm_id: &VmId) -> Result<(), BackupError> {
    let (library, whose) = (library.clone(), vm_id.clone());
    let unfinished = off_thread(move || {
        let mut unfinished = Vec::new();
        for (id, folder) in library.folders(&whose)? {
            match read(&folder, &id) {
                // Its disk may be in trouble, which is no reason to make no backup elsewhere.
                Ok(None) => library
                    .remove(&whose, &id, &folder)
                    .unwrap_or_else(|left| tracing::warn!(%folder, %left, "it stays for now")),
                Ok(Some(manifest)) if manifest.status == BackupStatus::InProgress => {
                    unfinished.push(Kept { folder, manifest });
                }
                // A qemu-img that outlived its killed parent may have made a file since, and what a QEMU had
                // open was left.
                Ok(Some(manifest)) if !manifest.is_complete() => remove_idle_data(&folder)?,
                // What is damaged is told by whoever reads it.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        Ok(unfinished)
    });
    for kept in unfinished.await? {
        fail(kept).await?;
    }
    Ok(())
}

/// [`sweep`] for a reader, who waits for nobody: only where something is unfinished, and nobody is at
/// work on it. A restore is left to whoever may change the machine's disks.
pub(super) async fn if_idle(library: &Library, vm_id: &VmId) -> Result<(), BackupError> {
    let (all, whose) = (library.clone(), vm_id.clone());
    let all = off_thread(move || all.all(&whose)).await?;
    let unfinished = |kept: &Kept| kept.manifest.status == BackupStatus::InProgress;
    if !all.iter().any(unfinished) {
        return Ok(());
    }
    match Turn::try_take(library, vm_id).await? {
        Some(_turn) => end_unfinished(library, vm_id).await,
        None => Ok(()),
    }
}

async fn fail(mut kept: Kept) -> Result<(), BackupError> {
    let manifest = &mut kept.manifest;
    let mut message = "it was interrupted: the process that made it ended".to_owned();
    if manifest.kind == BackupType::Snapshot {
        let name = SnapshotName::parse(manifest.id.snapshot())?;
        if let Err(error) = drop_snapshots(&manifest.disks, &name).await {
            message = format!("{message}; its snapshot may be left in a disk ({error})");
        }
    } else {
        manifest.with_disks(Vec::new());
    }
    manifest.status = BackupStatus::Failed;
    manifest.error_message = Some(message);
    manifest.completed_at = Some(now());
    off_thread(move || {
        remove_idle_data(&kept.folder)?;
        write(&kept.folder, &kept.manifest)
    })
    .await
}
