//! Restoring and verifying.

mod snapshot;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::digest::{gunzip, measure};
use super::folder::{Kept, Library, refuse_full};
use super::kinds::{BackupType, Compression};
use super::machine::{refuse_frozen, require_stopped};
use super::manifest::{Checksum, DiskRecord, Manifest};
use super::names::BackupId;
use super::pass::Pass;
use super::pieces::sum;
use super::progress::{Course, Reporter, Step, Work};
use super::request::RestoreBackup;
use super::service::{Audience, Terms, Told, millis};
use super::stage::{Stage, directory_of};
use super::turn::Turn;
use super::{BackupError, keys, off_thread, pending, sweep};
use crate::host::qemu_img::{Encryption, Job, ensure_unused_now, flatten};
use crate::types::{HostPath, VmId};
use snapshot::restore_snapshot;

/// One restore.
pub(super) struct Restoration {
    library: Library,
    request: RestoreBackup,
    terms: Terms,
}

impl Restoration {
    pub(super) fn new(library: Library, request: RestoreBackup, terms: Terms) -> Self {
        Self {
            library,
            request,
            terms,
        }
    }

    /// The terms of what qemu-img does as this step, which begins.
    fn job(&self, step: &Step) -> Job {
        Job {
            cancel: self.terms.cancel.clone(),
            deadline: None,
            progress: Some(step.teller()),
        }
    }

    fn reporter(&self, tip: &Manifest, works: impl Fn(usize) -> Vec<Work>) -> Reporter {
        reporter(Arc::clone(&self.terms.audience), tip, works)
    }
}

/// Tells of what is done to each disk of a backup, told by its number.
fn reporter(audience: Audience, tip: &Manifest, works: impl Fn(usize) -> Vec<Work>) -> Reporter {
    let disks = tip.disks.iter().enumerate();
    let courses = disks.map(|(n, disk)| Course {
        size: disk.original_size,
        works: works(n),
    });
    let (id, vm_id) = (tip.id.clone(), tip.vm_id.clone());
    Reporter::new(audience, id, vm_id, courses.collect())
}

/// Restores: a `BackupRestoreResult`.
pub(super) async fn restore(restoration: Restoration) -> Result<Value, BackupError> {
    let began = Instant::now();
    let Restoration {
        library,
        request,
        terms,
    } = &restoration;
    let vm_id = &request.vm_id;
    let _turn = Turn::take(library, vm_id, &terms.cancel).await?;
    let pending = sweep::sweep(library, vm_id, &*terms.machine).await?;
    pending::refuse(pending, &request.targets).await?;
    let kept = find_complete(library, vm_id, &request.id).await?;
    require_stopped(&*terms.machine, vm_id).await?;
    check_targets(&kept, request).await?;
    refuse_frozen(&*terms.machine, &request.targets).await?;
    let encryption = keys::of_backup(&kept, request, &*terms.machine).await?;
    if kept.manifest.kind == BackupType::Snapshot {
        restore_snapshot(&restoration, &kept).await?;
    } else {
        restore_files(&restoration, kept, &encryption).await?;
    }
    let result = json!({
        "success": true,
        "backupId": request.id,
        "vmId": vm_id,
        "restoredDiskPaths": request.targets,
        "durationMs": millis(began.elapsed()),
    });
    (terms.audience)(Told::Restored(result.clone()));
    Ok(result)
}

/// The chain of a backup, nearest first, every file of which is what was written. `audience` hears how far it is.
pub(super) async fn verify(
    library: &Library,
    vm_id: &VmId,
    id: &BackupId,
    cancel: &CancellationToken,
    audience: Audience,
) -> Result<Vec<Kept>, BackupError> {
    let kept = find_complete(library, vm_id, id).await?;
    let reporter = reporter(audience, &kept.manifest, |_| vec![Work::Check]);
    let links = verified(library, kept, checking(&reporter, cancel)).await?;
    reporter.all_done();
    Ok(links)
}

/// The pass that checks each disk.
fn checking(
    reporter: &Reporter,
    cancel: &CancellationToken,
) -> impl Fn(usize, u64) -> Pass + Send + 'static {
    let (reporter, cancel) = (reporter.clone(), cancel.clone());
    move |n, length| Pass::told(reporter.step(n, Work::Check), length, &cancel)
}

async fn find_complete(
    library: &Library,
    vm_id: &VmId,
    id: &BackupId,
) -> Result<Kept, BackupError> {
    let (library, vm_id, id) = (library.clone(), vm_id.clone(), id.clone());
    off_thread(move || {
        let kept = library.find(&vm_id, &id)?;
        if kept.manifest.is_complete() {
            Ok(kept)
        } else {
            Err(BackupError::corrupt(&id, "it was never completed"))
        }
    })
    .await
}

/// Looks at the files disk by disk: `pass` is asked for each, and told how many bytes all its links have.
async fn verified(
    library: &Library,
    tip: Kept,
    pass: impl Fn(usize, u64) -> Pass + Send + 'static,
) -> Result<Vec<Kept>, BackupError> {
    let library = library.clone();
    off_thread(move || {
        let links = library.chain(&tip)?;
        if tip.manifest.kind == BackupType::Snapshot {
            return Ok(links);
        }
        for n in 0..tip.manifest.disks.len() {
            let length = links.iter().map(|link| link.manifest.disks[n].backup_size);
            let pass = pass(n, length.fold(0, u64::saturating_add));
            for link in &links {
                check_file(link, n, &pass)?;
            }
        }
        Ok(links)
    })
    .await
}

fn check_file(link: &Kept, n: usize, pass: &Pass) -> Result<(), BackupError> {
    let (id, disk) = (&link.manifest.id, &link.manifest.disks[n]);
    let file = link.file(n)?;
    let regular = fs::symlink_metadata(file.as_path()).is_ok_and(|file| file.is_file());
    if !regular {
        return Err(BackupError::corrupt(
            id,
            format!("{} is missing", disk.backup_path),
        ));
    }
    if !is_as_written(&file, disk, pass)? {
        let why = format!("{} is not what was written", disk.backup_path);
        return Err(BackupError::corrupt(id, why));
    }
    Ok(())
}

fn is_as_written(file: &HostPath, disk: &DiskRecord, pass: &Pass) -> Result<bool, BackupError> {
    let (found, expected) = match disk.checksum() {
        Some(Checksum::Blake3(expected)) => (sum(file, pass)?, expected),
        Some(Checksum::Sha256(expected)) => (measure(file, pass)?, expected),
        None => return Ok(false),
    };
    Ok((found.length, found.checksum.as_str()) == (disk.backup_size, expected))
}

/// Refuses targets that may not be replaced, before anything is read.
async fn check_targets(kept: &Kept, request: &RestoreBackup) -> Result<(), BackupError> {
    let (expected, given) = (kept.manifest.disks.len(), request.targets.len());
    if expected != given {
        let why = format!("has {given} paths, and the backup has {expected} disks");
        return Err(BackupError::config("diskPaths", why));
    }
    let (targets, overwrite) = (request.targets.clone(), request.overwrite);
    let folder = kept.folder.clone();
    off_thread(move || {
        let backups = folder.as_path().parent().map(std::path::Path::to_owned);
        for target in &targets {
            if backups
                .as_ref()
                .is_some_and(|dir| target.as_path().starts_with(dir))
            {
                return Err(BackupError::config(
                    "diskPaths",
                    "must not be among the backups",
                ));
            }
            check_target(target, overwrite)?;
        }
        Ok(())
    })
    .await
}

fn check_target(target: &HostPath, overwrite: bool) -> Result<(), BackupError> {
    match fs::symlink_metadata(target.as_path()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let above = target.as_path().parent();
            if above.is_some_and(std::path::Path::is_dir) {
                return Ok(());
            }
            let why = format!("names {target}, whose directory does not exist");
            Err(BackupError::config("diskPaths", why))
        }
        Err(error) => Err(BackupError::io(target, error)),
        Ok(_) if !overwrite => Err(BackupError::TargetExists {
            path: target.clone(),
        }),
        Ok(found) if !found.is_file() => {
            let why = format!("names {target}, which is not a plain file");
            Err(BackupError::config("diskPaths", why))
        }
        Ok(_) => Ok(ensure_unused_now(target)?),
    }
}

async fn restore_files(
    restoration: &Restoration,
    kept: Kept,
    encryption: &[Option<Encryption>],
) -> Result<(), BackupError> {
    let Restoration {
        library,
        request,
        terms,
    } = restoration;
    let reporter = reporter_of_files(restoration, &kept.manifest);
    let links = verified(library, kept, checking(&reporter, &terms.cancel)).await?;
    require_space(&links, &request.targets).await?;
    let stage = Stage::begin(library, &request.vm_id, &request.targets, request.overwrite).await?;
    let staged = stage_all(restoration, &links, encryption, &stage, &reporter).await;
    put_in_place(restoration, stage, staged).await?;
    reporter.all_done();
    Ok(())
}

fn reporter_of_files(restoration: &Restoration, tip: &Manifest) -> Reporter {
    restoration.reporter(tip, |n| match tip.compression_of(n) {
        Compression::Gzip => vec![Work::Check, Work::Unpack, Work::Write, Work::Settle],
        _ => vec![Work::Check, Work::Write, Work::Settle],
    })
}

/// Commits what is staged, unless staging failed, or the machine was started or snapshotted in the
/// meantime.
async fn put_in_place(
    restoration: &Restoration,
    stage: Stage,
    staged: Result<(), BackupError>,
) -> Result<(), BackupError> {
    let (machine, vm_id) = (&*restoration.terms.machine, &restoration.request.vm_id);
    let ready = async {
        staged?;
        require_stopped(machine, vm_id).await?;
        refuse_frozen(machine, &restoration.request.targets).await
    };
    let ready = ready.await;
    match ready {
        Ok(()) => stage.commit().await,
        Err(error) => {
            stage.abandon().await;
            Err(error)
        }
    }
}

/// Refuses what cannot fit: a restored disk takes at least what its files hold, or its own size. What is replaced
/// goes only after.
async fn require_space(links: &[Kept], targets: &[HostPath]) -> Result<(), BackupError> {
    let (links, targets) = (links.to_vec(), targets.to_vec());
    off_thread(move || {
        let mut needs = BTreeMap::new();
        for (n, target) in targets.iter().enumerate() {
            let place = directory_of(target)?;
            let found = fs::metadata(place.as_path());
            let found = found.map_err(|error| BackupError::io(&place, error))?;
            let of_file_system = needs.entry(found.dev()).or_insert((place, 0_u64));
            let held = links.iter().map(|link| link.manifest.disks[n].backup_size);
            let size = links[0].manifest.disks[n].original_size;
            of_file_system.1 = of_file_system.1.saturating_add(held.sum::<u64>().min(size));
        }
        let mut needs = needs.into_values();
        needs.try_for_each(|(place, needed)| refuse_full(place, needed))
    })
    .await
}

async fn stage_all(
    restoration: &Restoration,
    links: &[Kept],
    encryption: &[Option<Encryption>],
    stage: &Stage,
    reporter: &Reporter,
) -> Result<(), BackupError> {
    let tip = &links[0].manifest;
    for (n, disk) in tip.disks.iter().enumerate() {
        let unpacking = reporter.step(n, Work::Unpack);
        let unpacked = unpack(restoration, links, n, stage, unpacking).await?;
        let files = unpacked.links(links, n)?;
        let writing = reporter.step(n, Work::Write);
        let job = restoration.job(&writing);
        let (file, format) = (stage.file(n), disk.source_format);
        flatten(&files, file, format, encryption[n].as_ref(), &job).await?;
        unpacked.remove().await?;
        writing.is_at(1.0);
    }
    Ok(())
}

/// A gzipped disk's image, beside where the disk is staged.
struct Unpacked(Option<HostPath>);

impl Unpacked {
    fn links(&self, links: &[Kept], n: usize) -> Result<Vec<HostPath>, BackupError> {
        match &self.0 {
            Some(image) => Ok(vec![image.clone()]),
            None => links.iter().map(|link| link.file(n)).collect(),
        }
    }

    async fn remove(self) -> Result<(), BackupError> {
        let Some(image) = self.0 else {
            return Ok(());
        };
        off_thread(move || super::folder::remove_file(&image)).await
    }
}

async fn unpack(
    restoration: &Restoration,
    links: &[Kept],
    n: usize,
    stage: &Stage,
    step: Step,
) -> Result<Unpacked, BackupError> {
    let tip = &links[0];
    if tip.manifest.compression_of(n) != Compression::Gzip {
        return Ok(Unpacked(None));
    }
    let length = tip.manifest.disks[n].image_size.unwrap_or_default();
    let (packed, image) = (tip.file(n)?, stage.unpacked(n)?);
    let pass = Pass::told(step, length, &restoration.terms.cancel);
    let to = image.clone();
    off_thread(move || gunzip(&packed, &to, length, &pass)).await?;
    Ok(Unpacked(Some(image)))
}
