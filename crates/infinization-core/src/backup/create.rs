//! Making a backup: what must hold first, and the order of the steps.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::chain::{LONGEST_CHAIN, may_be_parent};
use super::draft::{Circumstances, Draft};
use super::folder::{Kept, Library, inside, refuse_full, remove_file};
use super::kinds::{BackupType, Compression};
use super::live::Live;
use super::machine::{Access, access, refuse_frozen};
use super::manifest::DiskRecord;
use super::names::{BackupId, disk_file};
use super::pass::Pass;
use super::pieces::{self, Followed};
use super::progress::{Course, Reporter, Work};
use super::remove::delete_snapshots;
use super::request::{CreateBackup, SourceDisk};
use super::service::{Terms, Told, millis};
use super::turn::{Turn, slot};
use super::{BackupError, digest, keys, off_thread, offline, pending, sweep};
use crate::host::qemu_img::{
    Clusters, Encryption, ImageError, ImageFormat, Inspection, Job, Parent, Sharing,
    ensure_unwritten_now, inspect_closed, inspect_with_key_now,
};
use crate::types::{ByteSize, HostPath};

/// One backup to make.
pub(super) struct Creation {
    pub(super) library: Library,
    pub(super) id: BackupId,
    pub(super) request: CreateBackup,
    pub(super) terms: Terms,
}

/// What is known once nothing more can refuse.
pub(super) struct Prepared {
    /// The disks' sizes as the guest sees them.
    pub(super) sizes: Vec<u64>,
    /// What opens the disks that are encrypted, and will open their backup.
    pub(super) encryption: Vec<Option<Encryption>>,
    /// The parent and what it builds on, nearest first; empty for a full backup.
    pub(super) parents: Vec<Kept>,
    /// Every backup of the machine.
    pub(super) all: Vec<Kept>,
}

impl Prepared {
    fn next_sequence(&self) -> u64 {
        let all = self.all.iter().map(|kept| kept.manifest.sequence);
        all.max().unwrap_or_default() + 1
    }
}

impl Creation {
    pub(super) fn new(library: Library, id: BackupId, request: CreateBackup, terms: Terms) -> Self {
        Self {
            library,
            id,
            request,
            terms,
        }
    }

    pub(super) fn clusters(&self) -> Clusters {
        match self.request.compression {
            Compression::None | Compression::Gzip => Clusters::Plain,
            Compression::Qcow2 => Clusters::Deflate,
            Compression::Zstd => Clusters::Zstd,
        }
    }

    /// How the file of a disk is compressed, whatever its clusters are.
    fn compression(&self, encrypted: bool) -> Compression {
        if encrypted {
            Compression::None
        } else {
            self.request.compression
        }
    }

    /// What is done to a disk of `size` bytes that is copied so, from the first to the seal.
    pub(super) fn course(&self, size: u64, copied: &[Work], encrypted: bool) -> Course {
        let mut works = copied.to_vec();
        if self.compression(encrypted) == Compression::Gzip {
            works.push(Work::Pack);
        }
        works.extend([Work::Sum, Work::Settle]);
        Course { size, works }
    }

    pub(super) fn reporter(&self, courses: Vec<Course>) -> Reporter {
        let (id, vm_id) = (self.id.clone(), self.request.vm_id.clone());
        Reporter::new(Arc::clone(&self.terms.audience), id, vm_id, courses)
    }

    /// The terms of one run of qemu-img.
    pub(super) fn job(&self, progress: watch::Sender<f64>) -> Job {
        Job {
            cancel: self.terms.cancel.clone(),
            deadline: None,
            progress: Some(progress),
        }
    }
}

/// Makes the backup: a `BackupResult`.
pub(super) async fn create(creation: Creation) -> Result<Value, BackupError> {
    let (cancel, vm_id) = (&creation.terms.cancel, &creation.request.vm_id);
    let _turn = Turn::take(&creation.library, vm_id, cancel).await?;
    let _slot = slot(cancel).await?;
    let machine = &*creation.terms.machine;
    let pending = sweep::sweep(&creation.library, vm_id, machine).await?;
    let access = access(machine, vm_id).await?;
    let paths = || creation.request.disks.iter().map(|disk| &disk.path);
    if matches!(access, Access::Offline) {
        pending::refuse(pending, paths()).await?;
    }
    refuse_frozen(machine, paths()).await?;
    let prepared = prepare(&creation, &access).await?;
    let live = match access {
        Access::Offline => None,
        Access::Live(monitor) => Some(Live::begin(&creation, &prepared, monitor).await?),
    };
    if let Some(live) = &live {
        live.refuse_unfit().await?;
    }
    let planned = offline::planned(&creation, &prepared);
    let request = &creation.request;
    let (library, sequence) = (&creation.library, prepared.next_sequence());
    let draft = Draft::begin(library, &creation.id, request, sequence, planned).await?;
    let began = Instant::now();
    let made = match live {
        None => make_offline(&creation, &prepared, draft).await,
        Some(live) => live.make(draft).await,
    };
    let (outcome, kept) = match made {
        Ok(kept) => (Ok(()), kept),
        Err((error, kept)) => (Err(error), kept),
    };
    let shown = kept.manifest.shown(&kept.folder);
    (creation.terms.audience)(Told::Completed(shown.clone()));
    outcome?;
    Ok(json!({
        "success": true,
        "backupId": creation.id,
        "vmId": creation.request.vm_id,
        "type": creation.request.kind,
        "disks": shown["disks"],
        "totalSize": kept.manifest.total_size,
        "durationMs": millis(began.elapsed()),
    }))
}

async fn make_offline(
    creation: &Creation,
    prepared: &Prepared,
    draft: Draft,
) -> Result<Kept, (BackupError, Kept)> {
    let stopped = Circumstances {
        running: false,
        crash_consistent: false,
    };
    let made = match offline::copy(creation, prepared, &draft).await {
        Ok(disks) => draft.complete(disks, stopped).await,
        Err(error) => Err((error, draft)),
    };
    match made {
        Ok(kept) => Ok(kept),
        Err((error, draft)) => Err(fail(creation, draft, error).await),
    }
}

/// Takes back what was made. A snapshot that cannot be deleted now is kept in mind: it goes with the backup.
pub(super) async fn fail(
    creation: &Creation,
    draft: Draft,
    error: BackupError,
) -> (BackupError, Kept) {
    let left = if creation.request.kind == BackupType::Snapshot {
        let machine = &*creation.terms.machine;
        match delete_snapshots(&draft.manifest, machine).await {
            Ok(()) => Vec::new(),
            Err(left) => {
                tracing::warn!(folder = %draft.folder, %left, "a failed backup's snapshot is left");
                draft.manifest.disks.clone()
            }
        }
    } else {
        Vec::new()
    };
    draft.abandon(error, left).await
}

/// Everything that can refuse before anything is made.
async fn prepare(creation: &Creation, access: &Access) -> Result<Prepared, BackupError> {
    let (offline, sharing) = match access {
        Access::Offline => (true, Sharing::Refuse),
        Access::Live(_) => (false, Sharing::Force),
    };
    refuse_written(creation, offline).await?;
    let machine = &*creation.terms.machine;
    let encryption = keys::of_disks(&creation.request, machine, sharing).await?;
    let prepared = look(creation, offline, encryption).await?;
    if let Some(parent) = prepared.parents.first() {
        keys::fit_parent(parent, &prepared.encryption).await?;
    }
    Ok(prepared)
}

/// A disk that somebody writes to although its machine is off is told of before its key is tried.
async fn refuse_written(creation: &Creation, offline: bool) -> Result<(), BackupError> {
    if !offline {
        return Ok(());
    }
    let disks = creation.request.disks.clone();
    off_thread(move || {
        let mut there = disks.iter().filter(|disk| disk.path.as_path().exists());
        Ok(there.try_for_each(|disk| ensure_unwritten_now(&disk.path))?)
    })
    .await
}

async fn look(
    creation: &Creation,
    offline: bool,
    encryption: Vec<Option<Encryption>>,
) -> Result<Prepared, BackupError> {
    let (library, request) = (creation.library.clone(), creation.request.clone());
    off_thread(move || {
        let disks = request.disks.iter().zip(&encryption);
        let sizes = disks.map(|(disk, key)| size_of(disk, key.as_ref(), offline));
        let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
        let parents = match &request.parent {
            Some(parent) => parents(&library, &request, parent)?,
            None => Vec::new(),
        };
        if request.kind == BackupType::Full {
            require_space(&request, &sizes, &encryption)?;
        }
        let all = library.all(&request.vm_id)?;
        Ok(Prepared {
            sizes,
            encryption,
            parents,
            all,
        })
    })
    .await
}

fn size_of(disk: &SourceDisk, key: Option<&Encryption>, offline: bool) -> Result<u64, BackupError> {
    if !offline {
        // A disk that is written to is asked about through its QEMU.
        return Ok(0);
    }
    let found = inspected(disk, key)?;
    Ok(found.virtual_size.map_or(0, ByteSize::as_bytes))
}

fn inspected(disk: &SourceDisk, key: Option<&Encryption>) -> Result<Inspection, ImageError> {
    let key = key.map(|encryption| &encryption.key);
    inspect_with_key_now(&disk.path, disk.format, &[], key)
}

/// The parent's chain, if an incremental backup can build on it.
fn parents(
    library: &Library,
    request: &CreateBackup,
    id: &BackupId,
) -> Result<Vec<Kept>, BackupError> {
    let parent = match library.find(&request.vm_id, id) {
        Err(BackupError::NotFound { .. }) => {
            return Err(BackupError::Parent {
                id: id.clone(),
                why: "does not exist",
            });
        }
        found => found?,
    };
    may_be_parent(&parent.manifest, &request.vm_id, request.disks.len())?;
    let links = library.chain(&parent)?;
    if links.len() >= LONGEST_CHAIN {
        let why = "has too long a chain: make a FULL backup";
        return Err(BackupError::unfit(id, why));
    }
    for link in &links {
        for (n, disk) in link.manifest.disks.iter().enumerate() {
            let length = fs::metadata(link.file(n)?.as_path()).map(|file| file.len());
            if length.ok() != Some(disk.backup_size) {
                let why = format!("{} is missing or has another length", disk.backup_path);
                return Err(BackupError::corrupt(&link.manifest.id, why));
            }
        }
    }
    Ok(links)
}

/// Refuses a full backup whose plain copies cannot fit. A compressed one is given the chance; an encrypted disk
/// is never compressed.
fn require_space(
    request: &CreateBackup,
    sizes: &[u64],
    encryption: &[Option<Encryption>],
) -> Result<(), BackupError> {
    let all_plain = matches!(request.compression, Compression::None | Compression::Gzip);
    let disks = request.disks.iter().zip(sizes).zip(encryption);
    let plain = disks.filter(|(_, key)| all_plain || key.is_some());
    let needed = plain.map(|((disk, size), key)| held_by(disk, key.as_ref()).min(*size));
    let needed = needed.fold(0, u64::saturating_add);
    let above = request.destination.as_path().ancestors();
    let existing = above
        .filter(|path| path.exists())
        .find_map(|path| HostPath::parse(path.display().to_string()).ok());
    match existing {
        Some(place) if needed > 0 => refuse_full(place, needed),
        _ => Ok(()),
    }
}

/// What the disk and its backing files take on the host, in bytes.
fn held_by(disk: &SourceDisk, key: Option<&Encryption>) -> u64 {
    let backing = inspected(disk, key).map(|found| found.backing_chain);
    let files = backing.unwrap_or_default();
    std::iter::once(&disk.path)
        .chain(&files)
        .filter_map(|file| fs::metadata(file.as_path()).ok())
        .map(|file| file.blocks() * 512)
        .sum()
}

/// The parent's file of disk `n` as a new backup beside `folder` names it, once it is certain that
/// QEMU will open the chain that the manifests describe.
pub(super) async fn parent_of(
    prepared: &Prepared,
    n: usize,
    folder: &HostPath,
) -> Result<Parent, BackupError> {
    let files = prepared
        .parents
        .iter()
        .map(|link| link.file(n))
        .collect::<Result<Vec<_>, _>>()?;
    let path = files[0].clone();
    let found = inspect_closed(&path, ImageFormat::Qcow2, &[]).await?;
    let described = files[1..]
        .iter()
        .map(|file| fs::canonicalize(file.as_path()).ok());
    let opened = found
        .backing_chain
        .iter()
        .map(|file| Some(file.as_path().to_owned()));
    if !described.eq(opened) {
        let why = "its files name others than its manifest";
        return Err(BackupError::corrupt(&prepared.parents[0].manifest.id, why));
    }
    let beside = |path: &HostPath| path.as_path().parent().map(std::path::Path::to_owned);
    let link = &prepared.parents[0];
    let name = if beside(&link.folder) == beside(folder) {
        format!(
            "../{}/{}",
            link.manifest.id, link.manifest.disks[n].backup_path
        )
    } else {
        path.to_string()
    };
    Ok(Parent { path, name })
}

/// Finishes disk `n`, whose image is in the folder: compresses it if it is to be, flushes it, and sums what was not
/// summed yet.
pub(super) async fn seal(
    creation: &Creation,
    prepared: &Prepared,
    draft: &Draft,
    (n, size): (usize, u64),
    parent: Option<&Parent>,
    followed: Option<Followed>,
    reporter: &Reporter,
) -> Result<DiskRecord, BackupError> {
    let encrypted = prepared.encryption[n].is_some();
    let compression = creation.compression(encrypted);
    let steps = [Work::Pack, Work::Sum].map(|work| reporter.step(n, work));
    let disk = creation.request.disks[n].clone();
    let (image, cancel) = (draft.image(n)?, creation.terms.cancel.clone());
    let name = disk_file(n, compression);
    let file = inside(&draft.folder, &name)?;
    let backing_file = parent.map(|parent| parent.name.clone());
    off_thread(move || {
        let [packing, summing] = steps;
        let mut image_size = None;
        if compression == Compression::Gzip {
            let length = length_of(&image)?;
            image_size = Some(length);
            digest::gzip(&image, &file, &Pass::told(packing, length, &cancel))?;
            remove_file(&image)?;
        }
        let pass = Pass::told(summing, length_of(&file)?, &cancel);
        let measure = match followed {
            Some(followed) => followed.flush_and_sum(&file, &pass)?,
            None => pieces::flush_and_sum(&file, &pass)?,
        };
        Ok(DiskRecord {
            source_path: disk.path,
            source_format: disk.format,
            backup_path: name,
            original_size: size,
            backup_size: measure.length,
            image_size,
            format: ImageFormat::Qcow2,
            backing_file,
            encrypted,
            sha256: None,
            blake3: Some(measure.checksum),
        })
    })
    .await
}

fn length_of(file: &HostPath) -> Result<u64, BackupError> {
    let found = fs::metadata(file.as_path());
    let found = found.map_err(|error| BackupError::io(file, error))?;
    Ok(found.len())
}
