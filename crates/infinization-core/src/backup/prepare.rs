//! What is found out before a backup is made, by when everything that can refuse has.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::chain::{LONGEST_CHAIN, may_be_parent};
use super::create::Creation;
use super::folder::{Kept, Library, refuse_full};
use super::kinds::{BackupType, Compression};
use super::machine::Access;
use super::names::BackupId;
use super::request::{CreateBackup, SourceDisk};
use super::{BackupError, keys, off_thread};
use crate::host::qemu_img::{
    Encryption, ImageError, ImageFormat, Inspection, Parent, Sharing, ensure_unwritten_now,
    inspect_closed, inspect_with_key_now,
};
use crate::types::{ByteSize, HostPath};

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
    pub(super) fn next_sequence(&self) -> u64 {
        let all = self.all.iter().map(|kept| kept.manifest.sequence);
        all.max().unwrap_or_default() + 1
    }
}

/// Everything that can refuse before anything is made.
pub(super) async fn prepare(creation: &Creation, access: &Access) -> Result<Prepared, BackupError> {
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
