//! What opens the encrypted disks of a machine, and its backups of them.
//!
//! A key is given by the caller, or had of the machine's owner. Every key has opened its image before anything
//! is made: with a wrong one, or none, nothing is begun.

use super::BackupError;
use super::folder::Kept;
use super::kinds::BackupType;
use super::machine::Machine;
use super::names::BackupId;
use super::request::{CreateBackup, Keys, RestoreBackup};
use crate::config::DiskKeys;
use crate::host::qemu_img::{
    Encryption, ImageError, ImageFormat, Sharing, is_encrypted, key_opens,
};
use crate::types::{DiskKey, HostPath};

/// The keys somebody has, asked for once and only if one is needed.
struct Known<'a> {
    given: &'a Keys,
    machine: &'a dyn Machine,
    of_owner: Option<DiskKeys>,
}

impl<'a> Known<'a> {
    fn new(given: &'a Keys, machine: &'a dyn Machine) -> Self {
        Self {
            given,
            machine,
            of_owner: None,
        }
    }

    /// The key of the first of these paths that has one.
    async fn find(&mut self, paths: &[&HostPath]) -> Result<Option<DiskKey>, BackupError> {
        let of = |keys: &DiskKeys| paths.iter().find_map(|path| keys.get(*path)).cloned();
        if let Some(key) = of(&self.given.given) {
            return Ok(Some(key));
        }
        if self.of_owner.is_none() {
            let asked = self.machine.disk_keys().await;
            self.of_owner = Some(asked.map_err(|why| BackupError::KeysUnknown { why })?);
        }
        Ok(self.of_owner.as_ref().and_then(of))
    }

    /// The one that opens `image`, or a refusal; `paths` are what it may be known by.
    async fn opening(
        &mut self,
        image: &HostPath,
        paths: &[&HostPath],
        sharing: Sharing,
    ) -> Result<Encryption, BackupError> {
        let path = image.clone();
        let Some(key) = self.find(paths).await? else {
            return Err(ImageError::KeyRequired { path }.into());
        };
        if !key_opens(image, &key, sharing).await? {
            return Err(ImageError::AuthFailed { path }.into());
        }
        Ok(Encryption {
            key,
            iter_time: self.given.iter_time,
        })
    }

    /// Who gives a key takes the image for encrypted.
    fn refuse_needless(&self, image: &HostPath, path: &HostPath) -> Result<(), BackupError> {
        if !self.given.given.contains_key(path) {
            return Ok(());
        }
        let why = "is not encrypted, but has a key".to_owned();
        let path = image.clone();
        Err(ImageError::Format { path, why }.into())
    }
}

/// What opens the disks that are to be backed up, by their places; nothing for those that are not encrypted.
pub(super) async fn of_disks(
    request: &CreateBackup,
    machine: &dyn Machine,
    sharing: Sharing,
) -> Result<Vec<Option<Encryption>>, BackupError> {
    let mut known = Known::new(&request.keys, machine);
    let mut keys = Vec::new();
    for disk in &request.disks {
        let path = disk.path.clone();
        if !path.as_path().exists() {
            return Err(BackupError::NoDisk { path });
        }
        keys.push(if !is_encrypted(&path, disk.format).await? {
            known.refuse_needless(&path, &path)?;
            None
        } else if request.kind == BackupType::Snapshot {
            // It could not be deleted without the key, which nobody keeps with it.
            return Err(ImageError::KeyRequired { path }.into());
        } else {
            Some(known.opening(&path, &[&path], sharing).await?)
        });
    }
    Ok(keys)
}

/// What opens the backup, by its disks' places: what is given for where they go, else what the owner knows of
/// there, or of where they were.
pub(super) async fn of_backup(
    tip: &Kept,
    request: &RestoreBackup,
    machine: &dyn Machine,
) -> Result<Vec<Option<Encryption>>, BackupError> {
    let mut known = Known::new(&request.keys, machine);
    let mut keys = Vec::new();
    for (n, (disk, target)) in tip.manifest.disks.iter().zip(&request.targets).enumerate() {
        if tip.manifest.kind == BackupType::Snapshot || !disk.encrypted {
            known.refuse_needless(&tip.folder, target)?;
            keys.push(None);
            continue;
        }
        let file = tip.file(n)?;
        refuse_unencrypted(tip, &file).await?;
        let paths = [target, &disk.source_path];
        keys.push(Some(known.opening(&file, &paths, Sharing::Refuse).await?));
    }
    Ok(keys)
}

/// A manifest may have been changed together with the file it describes.
async fn refuse_unencrypted(tip: &Kept, file: &HostPath) -> Result<(), BackupError> {
    if is_encrypted(file, ImageFormat::Qcow2).await? {
        return Ok(());
    }
    let why = format!("{file} is not encrypted, and its manifest says it is");
    Err(BackupError::corrupt(&tip.manifest.id, why))
}

/// Refuses a parent on which disks with these keys cannot build: all links of a chain have one key.
pub(super) async fn fit_parent(
    parent: &Kept,
    keys: &[Option<Encryption>],
) -> Result<(), BackupError> {
    let id = &parent.manifest.id;
    for (n, key) in keys.iter().enumerate() {
        if parent.manifest.disks[n].encrypted != key.is_some() {
            let why = format!("has a disk {n} that is encrypted only now, or was only then");
            return Err(needs_full(id, why));
        }
        let Some(encryption) = key else { continue };
        if !key_opens(&parent.file(n)?, &encryption.key, Sharing::Refuse).await? {
            let why = format!("has another key than the disk {n} has now");
            return Err(needs_full(id, why));
        }
    }
    Ok(())
}

fn needs_full(id: &BackupId, why: String) -> BackupError {
    let id = id.clone();
    BackupError::NeedsFull { id, why }
}
