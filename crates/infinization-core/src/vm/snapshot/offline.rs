//! Snapshots of a VM that is off, through `qemu-img`, disk by disk.
//!
//! With several disks a failure in the middle is undone, and before the first change a note says how
//! ([`Unfinished`]), so that whoever comes after a killed process can do it too. A disk that is put
//! back gets a snapshot of what it is now first, or there would be nothing to undo with. Encrypted disks
//! need stored keys, since whoever comes after a killed process has no others.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::context::VmContext;
use super::disks::{self, Disk, Listed};
use crate::error::Failure;
use crate::host::blocking::{blocking, file_call};
use crate::host::qemu_img::{
    ImageError, Sharing, SnapshotName, create_snapshot_with_key, delete_snapshot_with_key, layer,
    list_snapshots, revert_snapshot_with_key, snapshot_exists,
};
use crate::host::state_file::{self, Durability, StateFileError};
use crate::types::{DiskKey, HostPath};

/// The note's file name in the VM's state directory.
const FILE: &str = "snapshot-unfinished.json";

/// What is to be done to the disks if nobody goes on with the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unfinished {
    /// The disks put back to this snapshot, where they have it.
    #[serde(default)]
    revert: Option<String>,
    /// This snapshot deleted, where it is.
    delete: String,
    disks: Vec<HostPath>,
}

/// The snapshots of every disk; raw ones have none.
pub(super) async fn list(disks: &[Disk]) -> Result<Vec<Listed>, ImageError> {
    let mut listed = Vec::new();
    for disk in disks {
        let snapshots = match disk.format {
            crate::config::DiskFormat::Qcow2 => list_snapshots(&disk.path, Sharing::Refuse).await?,
            crate::config::DiskFormat::Raw => Vec::new(),
        };
        let disk = disk.clone();
        listed.push(Listed { disk, snapshots });
    }
    Ok(listed)
}

/// The same without running a program where there are none.
pub(super) async fn list_quick(disks: &[Disk]) -> Result<Vec<Listed>, ImageError> {
    let mut none = true;
    for disk in disks {
        let qcow2 = disk.format == crate::config::DiskFormat::Qcow2;
        none &= !qcow2 || layer(&disk.path).await?.snapshots == 0;
    }
    if none {
        Ok(Vec::new())
    } else {
        list(disks).await
    }
}

/// Makes the snapshot on all disks, or on none.
pub(super) async fn create(
    context: &VmContext,
    disks: &[Disk],
    name: &SnapshotName,
) -> Result<(), Failure> {
    disks::refuse_raw(disks)?;
    disks::refuse_taken(&list(disks).await?, name)?;
    let undo = Unfinished {
        revert: None,
        delete: name.as_str().to_owned(),
        disks: paths(disks),
    };
    undo.note(context).await?;
    let made = on_each(disks, name, create_snapshot_with_key).await;
    conclude(context, made, &undo).await
}

/// Puts all disks back, or none. Answers whether the snapshot has memory, which stays unused.
pub(super) async fn revert(
    context: &VmContext,
    disks: &[Disk],
    name: &SnapshotName,
) -> Result<bool, Failure> {
    disks::refuse_raw(disks)?;
    let listed = list(disks).await?;
    disks::require(&listed, name)?;
    let mut found = listed.iter().filter_map(|listed| listed.find(name));
    let has_memory = found.any(|found| found.vm_state_size.as_bytes() > 0);
    if let [only] = disks {
        revert_snapshot_with_key(&only.path, name, only.key.as_ref()).await?;
        return Ok(has_memory);
    }
    let before = before_name()?;
    let undo = Unfinished {
        revert: Some(before.as_str().to_owned()),
        delete: before.as_str().to_owned(),
        disks: paths(disks),
    };
    undo.note(context).await?;
    let reverted = async {
        on_each(disks, &before, create_snapshot_with_key).await?;
        on_each(disks, name, revert_snapshot_with_key).await
    };
    conclude(context, reverted.await, &undo).await?;
    // All disks are back: from here on only the way back is to be removed.
    let rest = Unfinished {
        revert: None,
        ..undo
    };
    rest.note(context).await?;
    rest.settle(context).await?;
    Ok(has_memory)
}

/// Deletes the snapshot from every disk that has it. Cut short, it is finished by whoever comes after; where
/// a disk refuses, it is to be asked for again.
pub(super) async fn delete(
    context: &VmContext,
    disks: &[Disk],
    name: &SnapshotName,
) -> Result<(), Failure> {
    disks::refuse_raw(disks)?;
    let rest = Unfinished {
        revert: None,
        delete: name.as_str().to_owned(),
        disks: paths(disks),
    };
    if let Err(error) = rest.note(context).await {
        // Deleting may be what makes room for it.
        tracing::warn!(vm = %context.vm_id, %error, "a snapshot is deleted without a note");
    }
    let deleted = on_each(disks, name, delete_snapshot_with_key).await;
    Unfinished::forget(context).await?;
    Ok(deleted?)
}

/// Undoes what a killed process has left half done.
pub(super) async fn settle(context: &VmContext) -> Result<(), Failure> {
    match Unfinished::read(context).await? {
        Some(unfinished) => unfinished.settle(context).await,
        None => Ok(()),
    }
}

/// Ends a change that `undo` was noted for. A revert that succeeded has more to do.
async fn conclude(
    context: &VmContext,
    done: Result<(), ImageError>,
    undo: &Unfinished,
) -> Result<(), Failure> {
    match done {
        Ok(()) if undo.revert.is_some() => Ok(()),
        Ok(()) => Unfinished::forget(context).await,
        Err(error) => {
            undo.settle(context).await.map_err(|failure| {
                tracing::error!(vm = %context.vm_id, %failure, "a failed snapshot was not undone");
                failure
            })?;
            Err(error.into())
        }
    }
}

async fn on_each<'d, F>(
    disks: &'d [Disk],
    name: &'d SnapshotName,
    work: impl Fn(&'d HostPath, &'d SnapshotName, Option<&'d DiskKey>) -> F,
) -> Result<(), ImageError>
where
    F: Future<Output = Result<(), ImageError>>,
{
    for disk in disks {
        work(&disk.path, name, disk.key.as_ref()).await?;
    }
    Ok(())
}

fn paths(disks: &[Disk]) -> Vec<HostPath> {
    disks.iter().map(|disk| disk.path.clone()).collect()
}

/// A name that no user has given.
fn before_name() -> Result<SnapshotName, ImageError> {
    SnapshotName::parse(format!("before-revert-{}", Uuid::new_v4().simple()))
}

impl Unfinished {
    fn path(context: &VmContext) -> PathBuf {
        context.directory.join(FILE)
    }

    /// One disk is changed by one qemu-img, which needs no note.
    async fn note(&self, context: &VmContext) -> Result<(), Failure> {
        if self.disks.len() < 2 {
            return Ok(());
        }
        context.make_directory().await?;
        let (path, body) = (Self::path(context), serde_json::to_vec(self));
        let write = move || {
            let body = body.map_err(|error| StateFileError::Write {
                path: path.display().to_string(),
                source: error.into(),
            })?;
            state_file::write(&path, &body, Durability::HostCrash)
        };
        Ok(blocking(write).await??)
    }

    async fn read(context: &VmContext) -> Result<Option<Self>, Failure> {
        let path = Self::path(context);
        let torn = StateFileError::Torn {
            path: path.display().to_string(),
        };
        let Some(body) = blocking(move || state_file::read(&path)).await?? else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_slice(&body).map_err(|_words| torn)?))
    }

    async fn forget(context: &VmContext) -> Result<(), Failure> {
        let path = Self::path(context);
        let shown = path.display().to_string();
        match file_call(move || std::fs::remove_file(path)).await {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StateFileError::Write {
                    path: shown,
                    source,
                }
                .into())
            }
            _ => Ok(()),
        }
    }

    /// Doing it again changes nothing, so it may be cut short as well.
    async fn settle(&self, context: &VmContext) -> Result<(), Failure> {
        let keys = context.stored_keys(&self.disks).await?;
        if let Some(name) = &self.revert {
            let name = SnapshotName::parse(name.as_str())?;
            for path in &self.disks {
                if snapshot_exists(path, &name, Sharing::Refuse).await? {
                    revert_snapshot_with_key(path, &name, keys.get(path)).await?;
                }
            }
            // Were one of them deleted and this cut short, the others must not be put back again.
            let rest = Self {
                revert: None,
                ..self.clone()
            };
            rest.note(context).await?;
        }
        let name = SnapshotName::parse(self.delete.as_str())?;
        for path in &self.disks {
            if snapshot_exists(path, &name, Sharing::Refuse).await? {
                delete_snapshot_with_key(path, &name, keys.get(path)).await?;
            }
        }
        Self::forget(context).await
    }
}
