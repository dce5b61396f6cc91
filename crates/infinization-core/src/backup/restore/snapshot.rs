//! Restoring a SNAPSHOT: the disks it is in go back to it, or it is copied out of them.

use super::super::BackupError;
use super::super::folder::Kept;
use super::super::machine::refuse_frozen;
use super::super::manifest::Manifest;
use super::super::names::BackupId;
use super::super::progress::{Reporter, Work};
use super::super::reverting::revert_all;
use super::super::stage::Stage;
use super::{Restoration, put_in_place};
use crate::host::qemu_img::{
    ConvertImage, ImageFormat, Sharing, SnapshotName, convert, snapshot_exists,
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
    let reporter = restoration.reporter(&kept.manifest, |_| vec![Work::Settle]);
    let (library, vm_id) = (&restoration.library, &request.vm_id);
    revert_all(library, vm_id, sources, name, &reporter).await?;
    reporter.all_done();
    Ok(())
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
    let reporter = restoration.reporter(&kept.manifest, |_| vec![Work::Write, Work::Settle]);
    let staged = copy_snapshots(restoration, &kept.manifest, name, &stage, &reporter).await;
    put_in_place(restoration, stage, staged).await?;
    reporter.all_done();
    Ok(())
}

async fn copy_snapshots(
    restoration: &Restoration,
    tip: &Manifest,
    name: &SnapshotName,
    stage: &Stage,
    reporter: &Reporter,
) -> Result<(), BackupError> {
    for (n, disk) in tip.disks.iter().enumerate() {
        let source = (disk.source_path.clone(), ImageFormat::Qcow2);
        let mut copy = ConvertImage::new(source, (stage.file(n).clone(), ImageFormat::Qcow2));
        copy.snapshot = Some(name.clone());
        let step = reporter.step(n, Work::Write);
        convert(&copy, &restoration.job(&step)).await?;
        step.is_at(1.0);
    }
    Ok(())
}
