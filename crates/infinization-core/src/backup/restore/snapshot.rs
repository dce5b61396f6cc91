//! Restoring a SNAPSHOT: the disks it is in go back to it, or it is copied out of them.

use super::super::BackupError;
use super::super::folder::Kept;
use super::super::machine::refuse_frozen;
use super::super::manifest::Manifest;
use super::super::names::BackupId;
use super::super::offline::drop_held;
use super::super::stage::Stage;
use super::{Restoration, put_in_place};
use crate::host::qemu_img::{
    ConvertImage, ImageFormat, Sharing, SnapshotName, convert, hold_all, snapshot_exists,
};
use crate::types::HostPath;

/// A SNAPSHOT is reverted to where it is, or copied out of there.
pub(super) async fn restore_snapshot(
    restoration: &Restoration,
    kept: &Kept,
) -> Result<(), BackupError> {
    let request = &restoration.request;
    let disks = &kept.manifest.disks;
    let sources: Vec<_> = disks.iter().map(|disk| disk.source_path.clone()).collect();
    let name = SnapshotName::parse(kept.manifest.id.snapshot())?;
    let in_place = request.targets.iter().zip(&sources).filter(|(a, b)| a == b);
    if in_place.count() == 0 {
        return materialise(restoration, kept, &name).await;
    }
    if sources != request.targets || !request.in_place_revert || !request.overwrite {
        let why = "are the disks the snapshot is in: reverting them needs allowInPlaceSnapshotRevert \
                   and overwriteExisting, for all of them";
        return Err(BackupError::config("diskPaths", why));
    }
    for source in &sources {
        require_snapshot(source, &name, &kept.manifest.id).await?;
    }
    refuse_frozen(&*restoration.terms.machine, &sources).await?;
    revert_all(&sources, &name, &kept.manifest.id).await
}

/// Reverts every disk, or none: what they are now is kept in a snapshot until all have gone back.
async fn revert_all(
    disks: &[HostPath],
    name: &SnapshotName,
    id: &BackupId,
) -> Result<(), BackupError> {
    let undo = SnapshotName::parse(format!("undo-{id}"))?;
    let held = hold_all(disks).await?;
    // One is there if a process died in the middle of this.
    drop_held(&held, &undo).await?;
    let mut outcome = Ok(());
    for disk in &held {
        outcome = outcome.and(disk.create_snapshot(&undo, None).await);
    }
    for (n, disk) in held.iter().enumerate() {
        if outcome.is_err() {
            break;
        }
        outcome = disk.revert_snapshot(name, None).await;
        if outcome.is_err() {
            for done in &held[..n] {
                done.revert_snapshot(&undo, None).await?;
            }
        }
    }
    drop_held(&held, &undo).await?;
    Ok(outcome?)
}

async fn require_snapshot(
    source: &HostPath,
    name: &SnapshotName,
    id: &BackupId,
) -> Result<(), BackupError> {
    if snapshot_exists(source, name, Sharing::Refuse).await? {
        Ok(())
    } else {
        Err(BackupError::corrupt(
            id,
            format!("{source} has lost its snapshot"),
        ))
    }
}

async fn materialise(
    restoration: &Restoration,
    kept: &Kept,
    name: &SnapshotName,
) -> Result<(), BackupError> {
    let Restoration {
        library, request, ..
    } = restoration;
    let stage = Stage::begin(library, &request.vm_id, &request.targets, request.overwrite).await?;
    let staged = copy_snapshots(restoration, &kept.manifest, name, &stage).await;
    put_in_place(restoration, stage, staged).await
}

async fn copy_snapshots(
    restoration: &Restoration,
    tip: &Manifest,
    name: &SnapshotName,
    stage: &Stage,
) -> Result<(), BackupError> {
    let reporter = restoration.reporter(tip);
    for (n, disk) in tip.disks.iter().enumerate() {
        let source = (disk.source_path.clone(), ImageFormat::Qcow2);
        let mut copy = ConvertImage::new(source, (stage.file(n).clone(), ImageFormat::Qcow2));
        copy.snapshot = Some(name.clone());
        reporter
            .follow(n, 1.0, async |progress| {
                convert(&copy, &restoration.job(progress)).await
            })
            .await?;
        reporter.tell(n, 1.0);
    }
    Ok(())
}
