//! Deleting a backup.

use tokio_util::sync::CancellationToken;

use super::chain::children;
use super::folder::{Library, read};
use super::kinds::BackupType;
use super::machine::Machine;
use super::manifest::Manifest;
use super::names::BackupId;
use super::offline::drop_snapshots;
use super::turn::Turn;
use super::{BackupError, live, off_thread, pending, sweep};
use crate::host::qemu_img::SnapshotName;
use crate::types::VmId;

/// Deletes a backup, complete or not; even one whose manifest is damaged. What others build on is
/// refused. A SNAPSHOT's snapshots go first: where one cannot be deleted, the backup stays.
pub(super) async fn remove(
    library: &Library,
    vm_id: &VmId,
    id: &BackupId,
    machine: &dyn Machine,
    cancel: &CancellationToken,
) -> Result<(), BackupError> {
    if !is_there(library, vm_id, id).await? {
        return Err(not_found(vm_id, id));
    }
    let _turn = Turn::take(library, vm_id, cancel).await?;
    let pending = sweep::sweep(library, vm_id, machine).await?;
    let (all, whose, which) = (library.clone(), vm_id.clone(), id.clone());
    let (folder, snapshot) = off_thread(move || {
        let folder = all.folder_of(&whose, &which)?;
        let manifests: Vec<_> = all
            .all(&whose)?
            .into_iter()
            .map(|kept| kept.manifest)
            .collect();
        let children = children(&which, &manifests);
        if !children.is_empty() {
            return Err(BackupError::Dependency {
                id: which,
                children,
            });
        }
        let manifest = read(&folder, &which).ok().flatten();
        let snapshot = manifest.filter(|manifest| manifest.kind == BackupType::Snapshot);
        Ok((folder, snapshot))
    })
    .await?;
    if let Some(manifest) = snapshot {
        let disks = manifest.disks.iter().map(|disk| &disk.source_path);
        pending::refuse(pending, disks).await?;
        delete_snapshots(&manifest, machine).await?;
    }
    let (library, vm_id, id) = (library.clone(), vm_id.clone(), id.clone());
    off_thread(move || library.remove(&vm_id, &id, &folder)).await
}

/// Asked before the machine's directory would be made for a backup that never was.
async fn is_there(library: &Library, vm_id: &VmId, id: &BackupId) -> Result<bool, BackupError> {
    let (library, vm_id, id) = (library.clone(), vm_id.clone(), id.clone());
    off_thread(move || Ok(library.folder_of(&vm_id, &id).is_ok())).await
}

/// Deletes a SNAPSHOT's snapshots from the disks it names, by whoever has them open.
pub(super) async fn delete_snapshots(
    manifest: &Manifest,
    machine: &dyn Machine,
) -> Result<(), BackupError> {
    if let Some(monitor) = machine.monitor() {
        return live::delete_snapshots(&monitor, manifest).await;
    }
    let name = SnapshotName::parse(manifest.id.snapshot())?;
    drop_snapshots(&manifest.disks, &name).await
}

fn not_found(vm_id: &VmId, id: &BackupId) -> BackupError {
    BackupError::NotFound {
        vm_id: vm_id.clone(),
        id: id.clone(),
    }
}
