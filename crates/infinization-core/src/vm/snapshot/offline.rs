//! Snapshots of a VM that is off, through `qemu-img`, disk by disk.
//!
//! All disks are held meanwhile, so that no other process can start on some of them, or change one that
//! comes later. With several disks a failure in the middle is undone, and before the first change a note says how
//! ([`Unfinished`]), so that whoever comes after a killed process can do it too. A disk that is put
//! back gets a snapshot of what it is now first, or there would be nothing to undo with. Encrypted disks
//! need stored keys, since whoever comes after a killed process has no others.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::context::VmContext;
use super::disks::{self, Disk, Listed};
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::{blocking, file_call};
use crate::host::file_systems::FileSystems;
use crate::host::qemu_img::{
    Held, ImageError, Sharing, SnapshotName, hold_all, layer, list_snapshots,
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
    /// Where the disks are: one that is not there may be another time.
    #[serde(default)]
    file_systems: FileSystems,
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
    let held = HeldDisks::all(disks).await?;
    // While they are held: one that another made in between would be undone as ours.
    held.refuse_taken(name).await?;
    let undo = Unfinished::new(disks, None, name).await?;
    undo.note(context).await?;
    let made = held.each(Change::Create(name)).await;
    conclude(context, &held, made, &undo).await
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
    let held = HeldDisks::all(disks).await?;
    if disks.len() == 1 {
        held.each(Change::Revert(name)).await?;
        return Ok(has_memory);
    }
    let before = before_name()?;
    let undo = Unfinished::new(disks, Some(&before), &before).await?;
    undo.note(context).await?;
    let reverted = async {
        held.each(Change::Create(&before)).await?;
        held.each(Change::Revert(name)).await
    };
    conclude(context, &held, reverted.await, &undo).await?;
    // All disks are back: from here on only the way back is to be removed.
    let rest = Unfinished {
        revert: None,
        ..undo
    };
    rest.note(context).await?;
    rest.settle(context, &held).await?;
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
    let held = HeldDisks::all(disks).await?;
    let rest = Unfinished::new(disks, None, name).await?;
    if let Err(error) = rest.note(context).await {
        // Deleting may be what makes room for it.
        tracing::warn!(vm = %context.vm_id, %error, "a snapshot is deleted without a note");
    }
    let deleted = held.each(Change::Delete(name)).await;
    Unfinished::forget(context).await?;
    Ok(deleted?)
}

/// Undoes what a killed process has left half done. While a disk may be elsewhere, none is touched.
pub(super) async fn settle(context: &VmContext) -> Result<(), Failure> {
    let Some(unfinished) = Unfinished::read(context).await? else {
        return Ok(());
    };
    let keys = context.stored_keys(&unfinished.disks).await?;
    let there = unfinished.there().await?.into_iter();
    let disks = there.map(|path| {
        let key = keys.get(&path).cloned();
        (path, key)
    });
    let held = HeldDisks::of(disks.collect()).await?;
    unfinished.settle(context, &held).await
}

/// Ends a change that `undo` was noted for. A revert that succeeded has more to do.
async fn conclude(
    context: &VmContext,
    held: &HeldDisks,
    done: Result<(), ImageError>,
    undo: &Unfinished,
) -> Result<(), Failure> {
    match done {
        Ok(()) if undo.revert.is_some() => Ok(()),
        Ok(()) => Unfinished::forget(context).await,
        Err(error) => {
            undo.settle(context, held).await.map_err(|failure| {
                tracing::error!(vm = %context.vm_id, %failure, "a failed snapshot was not undone");
                failure
            })?;
            Err(error.into())
        }
    }
}

/// A VM's disks, which nobody else can open, with the keys of those that are encrypted.
struct HeldDisks(Vec<(Held, Option<DiskKey>)>);

impl HeldDisks {
    async fn all(disks: &[Disk]) -> Result<Self, ImageError> {
        let disks = disks.iter();
        let disks = disks.map(|disk| (disk.path.clone(), disk.key.clone()));
        Self::of(disks.collect()).await
    }

    async fn of(disks: Vec<(HostPath, Option<DiskKey>)>) -> Result<Self, ImageError> {
        let (paths, keys): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
        let held = hold_all(&paths).await?;
        Ok(Self(held.into_iter().zip(keys).collect()))
    }

    async fn refuse_taken(&self, name: &SnapshotName) -> Result<(), ImageError> {
        for (disk, _) in &self.0 {
            if disk.has_snapshot(name).await? {
                return Err(ImageError::SnapshotAlreadyExists {
                    path: disk.path().clone(),
                    name: name.as_str().to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Does it to every disk, until one fails.
    async fn each(&self, change: Change<'_>) -> Result<(), ImageError> {
        for (disk, key) in &self.0 {
            let key = key.as_ref();
            match change {
                Change::Create(name) => disk.create_snapshot(name, key).await?,
                Change::Revert(name) => disk.revert_snapshot(name, key).await?,
                Change::RevertIfThere(name) => {
                    if disk.has_snapshot(name).await? {
                        disk.revert_snapshot(name, key).await?;
                    }
                }
                Change::Delete(name) => disk.delete_snapshot(name, key).await?,
            }
        }
        Ok(())
    }
}

/// What is done with a snapshot.
#[derive(Clone, Copy)]
enum Change<'n> {
    Create(&'n SnapshotName),
    Revert(&'n SnapshotName),
    RevertIfThere(&'n SnapshotName),
    Delete(&'n SnapshotName),
}

fn not_now(disk: &HostPath, error: &io::Error) -> Failure {
    let message =
        format!("a change of snapshots was cut short, and {disk} is needed to undo it: {error}");
    Failure::new(ErrorCode::InvalidState, message).with("path", disk.as_str())
}

/// A name that no user has given.
fn before_name() -> Result<SnapshotName, ImageError> {
    SnapshotName::parse(format!("before-revert-{}", Uuid::new_v4().simple()))
}

impl Unfinished {
    async fn new(
        disks: &[Disk],
        revert: Option<&SnapshotName>,
        delete: &SnapshotName,
    ) -> Result<Self, Failure> {
        let disks: Vec<_> = disks.iter().map(|disk| disk.path.clone()).collect();
        let files = disks.clone();
        let found = file_call(move || FileSystems::of(&files)).await;
        let file_systems = found.map_err(|error| {
            let message = format!("the directories of the disks cannot be looked at: {error}");
            Failure::new(ErrorCode::HostFile, message)
        })?;
        Ok(Self {
            revert: revert.map(|name| name.as_str().to_owned()),
            delete: delete.as_str().to_owned(),
            disks,
            file_systems,
        })
    }

    /// The disks without those that were removed: they need nothing.
    async fn there(&self) -> Result<Vec<HostPath>, Failure> {
        let mut there = Vec::new();
        for disk in &self.disks {
            let (file_systems, file) = (self.file_systems.clone(), disk.clone());
            let found = file_call(move || file_systems.have(&file)).await;
            if found.map_err(|error| not_now(disk, &error))? {
                there.push(disk.clone());
            }
        }
        Ok(there)
    }

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
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateFileError::Write {
                path: shown,
                source,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// Doing it again changes nothing, so it may be cut short as well.
    async fn settle(&self, context: &VmContext, held: &HeldDisks) -> Result<(), Failure> {
        if let Some(name) = &self.revert {
            let name = SnapshotName::parse(name.as_str())?;
            held.each(Change::RevertIfThere(&name)).await?;
            // Were one of them deleted and this cut short, the others must not be put back again.
            let rest = Self {
                revert: None,
                ..self.clone()
            };
            rest.note(context).await?;
        }
        let name = SnapshotName::parse(self.delete.as_str())?;
        held.each(Change::Delete(&name)).await?;
        Self::forget(context).await
    }
}
