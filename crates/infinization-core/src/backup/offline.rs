//! Copying the disks of a stopped machine, as they all were at one moment.

use super::create::{Creation, Prepared, parent_of, seal};
use super::draft::Draft;
use super::kinds::BackupType;
use super::manifest::DiskRecord;
use super::progress::{Course, Reporter, Work};
use super::request::SourceDisk;
use super::{BackupError, off_thread};
use crate::host::qemu_img::{
    Held, ImageError, ImageFormat, Parent, SnapshotName, Source, Unchanged, delete_snapshot,
    difference, export, hold_all, keep_unchanged_now,
};

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
        })
        .collect()
}

/// Copies every disk into the draft's folder.
pub(super) async fn copy(
    creation: &Creation,
    prepared: &Prepared,
    draft: &Draft,
) -> Result<Vec<DiskRecord>, BackupError> {
    if creation.request.kind == BackupType::Snapshot {
        return snapshot_all(creation, prepared).await;
    }
    let copied = copied(creation);
    let disks = prepared.sizes.iter().zip(&prepared.encryption);
    let courses = disks.map(|(size, key)| creation.course(*size, &[copied], key.is_some()));
    let reporter = creation.reporter(courses.collect());
    let unchanged = keep_unchanged(&creation.request.disks).await?;
    let mut disks = Vec::new();
    for (n, unchanged) in unchanged.into_iter().enumerate() {
        let parent = copy_one(creation, prepared, draft, n, &reporter).await?;
        drop(unchanged);
        let size = (n, prepared.sizes[n]);
        let disk = seal(
            creation,
            prepared,
            draft,
            size,
            parent.as_ref(),
            None,
            &reporter,
        )
        .await?;
        reporter.done(n);
        disks.push(disk);
    }
    Ok(disks)
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

/// Writes disk `n` into the draft: what it holds, or what it holds other than the parent, which is told.
async fn copy_one(
    creation: &Creation,
    prepared: &Prepared,
    draft: &Draft,
    n: usize,
    reporter: &Reporter,
) -> Result<Option<Parent>, BackupError> {
    let disk = &creation.request.disks[n];
    let source = Source {
        path: disk.path.clone(),
        format: disk.format,
        encryption: prepared.encryption[n].clone(),
    };
    let image = draft.image(n)?;
    let step = reporter.step(n, copied(creation));
    if creation.request.kind == BackupType::Full {
        step.follow(async |progress| {
            let job = creation.job(progress);
            export(&source, &image, creation.clusters(), &job).await
        })
        .await?;
        return Ok(None);
    }
    let parent = parent_of(prepared, n, &draft.folder).await?;
    let scratch = draft.scratch(n, "delta")?;
    step.follow(async |progress| {
        let job = creation.job(progress);
        difference(
            &source,
            &parent,
            &image,
            &scratch,
            creation.clusters(),
            &job,
        )
        .await
    })
    .await?;
    Ok(Some(parent))
}

/// Makes the snapshot in every disk, or in none.
async fn snapshot_all(
    creation: &Creation,
    prepared: &Prepared,
) -> Result<Vec<DiskRecord>, BackupError> {
    let disks = planned(creation, prepared);
    let courses = prepared.sizes.iter().map(|size| Course {
        size: *size,
        works: vec![Work::Settle],
    });
    let reporter = creation.reporter(courses.collect());
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
    Ok(disks)
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
