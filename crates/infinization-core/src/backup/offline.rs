//! Copying the disks of a stopped machine, as they all were at one moment.

use super::create::{Contents, Creation};
use super::draft::{Circumstances, Draft};
use super::kinds::BackupType;
use super::manifest::DiskRecord;
use super::prepare::{Prepared, parent_of};
use super::progress::{Reporter, Work};
use super::request::SourceDisk;
use super::seal::{Copied, Seal};
use super::{BackupError, off_thread};
use crate::host::qemu_img::{
    DiskState, Held, ImageError, ImageFormat, Parent, SnapshotName, Source, Unchanged,
    delete_snapshot, difference, export, hold_all, keep_unchanged_now, make_target,
};
use crate::types::ByteSize;

/// What a SNAPSHOT will leave in the disks; nothing for the other types.
pub(super) fn planned(creation: &Creation, prepared: &Prepared) -> Vec<DiskRecord> {
    if creation.request.kind != BackupType::Snapshot {
        return Vec::new();
    }
    let disks = creation.request.disks.iter().zip(&prepared.sizes);
    disks
        .map(|(disk, size)| DiskRecord {
            source_path: disk.path.clone(),
            source_format: disk.format,
            backup_path: creation.id.snapshot(),
            original_size: *size,
            backup_size: 0,
            image_size: None,
            format: ImageFormat::Qcow2,
            backing_file: None,
            encrypted: false,
            sha256: None,
            blake3: None,
            source_state: None,
        })
        .collect()
}

/// Copies every disk into the draft's folder.
pub(super) async fn copy(
    creation: &Creation,
    prepared: &Prepared,
    draft: &Draft,
) -> Result<Contents, BackupError> {
    if creation.request.kind == BackupType::Snapshot {
        return snapshot_all(creation, prepared).await;
    }
    let copied = copied(creation);
    let disks = prepared.sizes.iter().zip(&prepared.encryption);
    let courses = disks.map(|(size, key)| creation.course(*size, &[copied], key.is_some()));
    let reporter = creation.reporter(courses.collect());
    let seal = Seal {
        creation,
        prepared,
        draft,
        reporter: &reporter,
    };
    let unchanged = keep_unchanged(&creation.request.disks).await?;
    let mut disks = Vec::new();
    for (n, unchanged) in unchanged.into_iter().enumerate() {
        let state = state_of(&creation.request.disks[n]).await?;
        let parent = copy_one(creation, prepared, draft, n, state.as_ref(), &reporter).await?;
        let after = state_of(&creation.request.disks[n]).await?;
        drop(unchanged);
        let copied = Copied {
            n,
            size: prepared.sizes[n],
            parent,
            followed: None,
            state: state.filter(|state| after.as_ref() == Some(state)),
        };
        let disk = seal.disk(copied).await?;
        reporter.done(n);
        disks.push(disk);
    }
    Ok(contents(disks, reporter))
}

/// Of a machine that stood still.
fn contents(disks: Vec<DiskRecord>, reporter: Reporter) -> Contents {
    Contents {
        disks,
        circumstances: Circumstances {
            running: false,
            crash_consistent: false,
        },
        reporter,
    }
}

/// How a disk is copied.
fn copied(creation: &Creation) -> Work {
    match creation.request.kind {
        BackupType::Full => Work::Copy,
        _ => Work::Compare,
    }
}

/// Holds every disk until it is copied, from before the first is: a machine that ran in between would
/// have changed those that come later.
async fn keep_unchanged(disks: &[SourceDisk]) -> Result<Vec<Unchanged>, BackupError> {
    let disks = disks.to_vec();
    off_thread(move || {
        let held = disks.iter().map(|disk| keep_unchanged_now(&disk.path));
        Ok(held.collect::<Result<_, _>>()?)
    })
    .await
}

async fn state_of(disk: &SourceDisk) -> Result<Option<DiskState>, BackupError> {
    let path = disk.path.clone();
    let format = disk.format;
    off_thread(move || Ok(DiskState::of(&path, format))).await
}

/// Writes disk `n` into the draft: what it holds, or what it holds other than the parent, which is told.
async fn copy_one(
    creation: &Creation,
    prepared: &Prepared,
    draft: &Draft,
    n: usize,
    state: Option<&DiskState>,
    reporter: &Reporter,
) -> Result<Option<Parent>, BackupError> {
    let disk = &creation.request.disks[n];
    let source = Source {
        path: disk.path.clone(),
        format: disk.format,
        encryption: prepared.encryption[n].clone(),
    };
    let image = draft.image(n)?;
    let (clusters, job) = (
        creation.clusters(),
        creation.job(&reporter.step(n, copied(creation))),
    );
    if creation.request.kind == BackupType::Full {
        export(&source, &image, clusters, &job).await?;
        return Ok(None);
    }
    let parent = parent_of(prepared, n, &draft.folder).await?;
    let (held, size) = (&prepared.parents[0].manifest.disks[n], prepared.sizes[n]);
    if held.is_of(disk, size, state) {
        let encryption = source.encryption.as_ref();
        let size = ByteSize::bytes(size);
        make_target(&image, size, clusters, Some(&parent), encryption).await?;
        return Ok(Some(parent));
    }
    let scratch = draft.scratch(n, "delta")?;
    difference(&source, &parent, &image, &scratch, clusters, &job).await?;
    Ok(Some(parent))
}

/// Makes the snapshot in every disk, or in none.
async fn snapshot_all(creation: &Creation, prepared: &Prepared) -> Result<Contents, BackupError> {
    let disks = planned(creation, prepared);
    let reporter = creation.snapshot_reporter(prepared.sizes.iter().copied());
    let name = SnapshotName::parse(creation.id.snapshot())?;
    let sources: Vec<_> = disks.iter().map(|disk| disk.source_path.clone()).collect();
    let held = hold_all(&sources).await?;
    for (n, disk) in held.iter().enumerate() {
        let made = if creation.terms.cancel.is_cancelled() {
            Err(BackupError::Cancelled)
        } else {
            let made = disk.create_snapshot(&name, None).await;
            made.map_err(BackupError::from)
        };
        if let Err(error) = made {
            drop_held(&held[..n], &name).await?;
            return Err(error);
        }
        reporter.done(n);
    }
    Ok(contents(disks, reporter))
}

/// Deletes the snapshot from disks that are held.
pub(super) async fn drop_held(held: &[Held], name: &SnapshotName) -> Result<(), BackupError> {
    for disk in held {
        disk.delete_snapshot(name, None).await?;
    }
    Ok(())
}

/// Deletes the snapshot from disks that nobody has open. A disk that is gone took it along.
pub(super) async fn drop_snapshots(
    disks: &[DiskRecord],
    name: &SnapshotName,
) -> Result<(), BackupError> {
    for disk in disks {
        match delete_snapshot(&disk.source_path, name).await {
            Err(ImageError::NotFound { .. }) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}
