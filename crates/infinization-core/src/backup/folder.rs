//! The tree of backups under one root: where each is, and its manifest. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::manifest::Manifest;
use super::names::{BackupId, MANIFEST, is_data};
use super::{BackupError, chain};
use crate::host::qemu_img::{ImageError, ensure_unused_now};
use crate::types::{HostPath, VmId};

/// A manifest has a few hundred bytes per disk.
const LONGEST_MANIFEST: u64 = 4 << 20;
/// We alone list and change the directories; a QEMU that runs as somebody else may go through them
/// to the one file it is given.
const TRAVERSABLE: u32 = 0o711;
const PLACE: &str = ".place";
/// A manifest that is not whole yet. Only the holder of the machine's turn writes one.
const NEW_MANIFEST: &str = ".backup.json.new";

/// All backups below one directory.
#[derive(Debug, Clone)]
pub(super) struct Library {
    root: HostPath,
}

/// One backup: its folder and what its manifest says.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) folder: HostPath,
    pub(super) manifest: Manifest,
}

impl Kept {
    /// The file of disk `n`.
    pub(super) fn file(&self, n: usize) -> Result<HostPath, BackupError> {
        inside(&self.folder, &self.manifest.disks[n].backup_path)
    }
}

impl Library {
    pub(super) fn new(root: HostPath) -> Self {
        Self { root }
    }

    /// Where a machine's backups usually are, and always its lock.
    pub(super) fn machine(&self, vm_id: &VmId) -> Result<HostPath, BackupError> {
        inside(&self.root, vm_id.as_str())
    }

    /// Every folder of the machine, whatever is in it.
    pub(super) fn folders(&self, vm_id: &VmId) -> Result<Vec<(BackupId, HostPath)>, BackupError> {
        let machine = self.machine(vm_id)?;
        let mut folders = Vec::new();
        for name in names_in(&machine)? {
            if let Some(id) = name.strip_suffix(PLACE).and_then(id_of) {
                if let Some(folder) = self.noted(&machine, &id)? {
                    folders.push((id, folder));
                }
            } else if let Some(id) = id_of(&name) {
                folders.push((id, inside(&machine, &name)?));
            }
        }
        folders.retain(|(_, folder)| is_directory(folder));
        Ok(folders)
    }

    /// Every backup of the machine, newest first. A manifest that cannot be read is told and left out.
    pub(super) fn all(&self, vm_id: &VmId) -> Result<Vec<Kept>, BackupError> {
        let mut all = Vec::new();
        for (id, folder) in self.folders(vm_id)? {
            match read(&folder, &id) {
                Ok(Some(manifest)) if manifest.vm_id == *vm_id => {
                    all.push(Kept { folder, manifest });
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%id, %error, "a backup was left out"),
            }
        }
        all.sort_by(|a, b| b.manifest.order().cmp(&a.manifest.order()));
        Ok(all)
    }

    /// One backup of the machine.
    pub(super) fn find(&self, vm_id: &VmId, id: &BackupId) -> Result<Kept, BackupError> {
        let machine = self.machine(vm_id)?;
        let usual = inside(&machine, id.as_str())?;
        let folder = match self.noted(&machine, id)? {
            Some(noted) => noted,
            None => usual,
        };
        let manifest = is_directory(&folder)
            .then(|| read(&folder, id))
            .transpose()?
            .flatten();
        match manifest {
            Some(manifest) if manifest.vm_id == *vm_id => Ok(Kept { folder, manifest }),
            _ => Err(BackupError::NotFound {
                vm_id: vm_id.clone(),
                id: id.clone(),
            }),
        }
    }

    /// One backup of whatever machine.
    pub(super) fn search(&self, id: &BackupId) -> Result<Kept, BackupError> {
        for name in names_in(&self.root)? {
            let Ok(vm_id) = VmId::parse(name) else {
                continue;
            };
            match self.find(&vm_id, id) {
                Err(BackupError::NotFound { .. }) => {}
                found => return found,
            }
        }
        Err(BackupError::Unknown { id: id.clone() })
    }

    /// `tip` and everything it builds on, nearest first.
    pub(super) fn chain(&self, tip: &Kept) -> Result<Vec<Kept>, BackupError> {
        let all = self.all(&tip.manifest.vm_id)?;
        let find = |id: &BackupId| all.iter().find(|kept| kept.manifest.id == *id);
        let links = chain::links(tip.manifest.clone(), |id| {
            find(id).map(|kept| kept.manifest.clone())
        })?;
        let above = links.iter().skip(1).filter_map(|link| find(&link.id));
        Ok(std::iter::once(tip).chain(above).cloned().collect())
    }

    /// The folder of a backup, whatever its manifest says.
    pub(super) fn folder_of(&self, vm_id: &VmId, id: &BackupId) -> Result<HostPath, BackupError> {
        let folders = self.folders(vm_id)?;
        let found = folders.into_iter().find(|(other, _)| other == id);
        found
            .map(|(_, folder)| folder)
            .ok_or_else(|| BackupError::NotFound {
                vm_id: vm_id.clone(),
                id: id.clone(),
            })
    }

    /// Makes the new backup's folder, and notes where it is if that is not the usual place.
    pub(super) fn make_folder(
        &self,
        vm_id: &VmId,
        id: &BackupId,
        destination: &HostPath,
    ) -> Result<HostPath, BackupError> {
        let machine = self.machine(vm_id)?;
        let destination = prepared(destination)?;
        if destination != real(&machine)? {
            let place = match destination
                .as_path()
                .strip_prefix(real(&self.root)?.as_path())
            {
                Ok(below) => below.display().to_string(),
                Err(_elsewhere) => destination.to_string(),
            };
            write_new(&inside(&machine, &id.place())?, place.as_bytes())?;
        }
        let folder = inside(&destination, id.as_str())?;
        make_directory(&folder)?;
        sync_directory(&destination)?;
        Ok(folder)
    }

    /// Where the folder of `id` is, if that is noted.
    fn noted(&self, machine: &HostPath, id: &BackupId) -> Result<Option<HostPath>, BackupError> {
        let note = inside(machine, &id.place())?;
        let Some(text) = read_small(&note)? else {
            return Ok(None);
        };
        let place = String::from_utf8_lossy(&text);
        let root = self.root.as_str();
        let directory = match place.as_ref() {
            "" => self.root.to_string(),
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            below => format!("{root}/{below}"),
        };
        let folder = HostPath::parse(format!("{directory}/{id}"))
            .map_err(|why| BackupError::corrupt(id, format!("its place {why}")))?;
        Ok(Some(folder))
    }

    /// Removes a folder's manifest, then its data, then the folder. What is not ours stays, and the
    /// folder with it.
    pub(super) fn remove(
        &self,
        vm_id: &VmId,
        id: &BackupId,
        folder: &HostPath,
    ) -> Result<(), BackupError> {
        // From here on it is no backup; a crash leaves a folder without manifest, which is swept.
        remove_file(&inside(folder, MANIFEST)?)?;
        sync_directory(folder)?;
        remove_data(folder)?;
        if let Err(error) = fs::remove_dir(folder.as_path())
            && error.kind() != io::ErrorKind::DirectoryNotEmpty
        {
            return Err(BackupError::io(folder, error));
        }
        remove_file(&inside(&self.machine(vm_id)?, &id.place())?)
    }
}

/// Removes a folder's data, and a manifest that never became one.
fn remove_data(folder: &HostPath) -> Result<(), BackupError> {
    remove_data_if(folder, |_| true)
}

/// The same but for what a QEMU, or a qemu-img that outlived us, still has open: without a name it would go
/// on taking space, and nobody would see where. The next sweep comes by again.
pub(super) fn remove_idle_data(folder: &HostPath) -> Result<(), BackupError> {
    remove_data_if(folder, |file| {
        !matches!(ensure_unused_now(file), Err(ImageError::InUse { .. }))
    })
}

fn remove_data_if(
    folder: &HostPath,
    unwanted: impl Fn(&HostPath) -> bool,
) -> Result<(), BackupError> {
    for name in names_in(folder)? {
        let file = inside(folder, &name)?;
        if name == NEW_MANIFEST || (is_data(&name) && unwanted(&file)) {
            remove_file(&file)?;
        }
    }
    Ok(())
}

/// Replaces a folder's manifest. It is on disk when this returns, and never half.
pub(super) fn write(folder: &HostPath, manifest: &Manifest) -> Result<(), BackupError> {
    let new = inside(folder, NEW_MANIFEST)?;
    let failed = |error| BackupError::io(folder, error);
    let mut text = serde_json::to_vec_pretty(manifest).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    remove_file(&new)?;
    let written = write_new(&new, &text).and_then(|()| {
        fs::rename(new.as_path(), inside(folder, MANIFEST)?.as_path()).map_err(failed)
    });
    if written.is_err() {
        // The disk is full, most likely: what is half must not stay.
        let _gone = fs::remove_file(new.as_path());
    }
    written?;
    sync_directory(folder)
}

/// The manifest in a folder, `None` if there is none.
pub(super) fn read(folder: &HostPath, id: &BackupId) -> Result<Option<Manifest>, BackupError> {
    let text = read_small(&inside(folder, MANIFEST)?)?;
    text.map(|text| Manifest::read(id, &text)).transpose()
}

/// Creates a directory that may be there already, and those above it; for us alone.
pub(super) fn make_directories(path: &HostPath) -> Result<(), BackupError> {
    let failed = |error| BackupError::io(path, error);
    let above = path.as_path().ancestors();
    let missing: Vec<&Path> = above.take_while(|dir| !dir.exists()).collect();
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(TRAVERSABLE);
    builder.create(path.as_path()).map_err(failed)?;
    // A new directory is on disk when the one above it is, and so is what will be in it.
    for above in missing.iter().filter_map(|made| made.parent()) {
        let directory = File::open(above).map_err(failed)?;
        directory.sync_all().map_err(failed)?;
    }
    Ok(())
}

/// Flushes a directory's entries.
pub(super) fn sync_directory(path: &HostPath) -> Result<(), BackupError> {
    File::open(path.as_path())
        .and_then(|directory| directory.sync_all())
        .map_err(|error| BackupError::io(path, error))
}

/// Refuses where the file system of `place` has not room for so many bytes more.
pub(super) fn refuse_full(place: HostPath, needed: u64) -> Result<(), BackupError> {
    let told = rustix::fs::statvfs(place.as_path())
        .map_err(|errno| BackupError::io(&place, errno.into()))?;
    // What an unprivileged writer may still put there.
    let free = told.f_bavail.saturating_mul(told.f_frsize);
    if needed > free {
        return Err(BackupError::NoSpace {
            path: place,
            needed,
            free,
        });
    }
    Ok(())
}

/// `name` in `directory`, as a checked path.
pub(super) fn inside(directory: &HostPath, name: &str) -> Result<HostPath, BackupError> {
    directory
        .join(name)
        .map_err(|why| BackupError::Destination {
            path: format!("{directory}/{name}"),
            why: why.to_string(),
        })
}

/// Removes a file; one that is not there is removed already.
pub(super) fn remove_file(path: &HostPath) -> Result<(), BackupError> {
    match fs::remove_file(path.as_path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BackupError::io(path, error)),
        _ => Ok(()),
    }
}

/// Writes a file that is not there yet, and flushes it.
pub(super) fn write_new(path: &HostPath, bytes: &[u8]) -> Result<(), BackupError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path.as_path())
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|error| BackupError::io(path, error))
}

/// Reads a file of ours; a symbolic link is none.
pub(super) fn read_small(path: &HostPath) -> Result<Option<Vec<u8>>, BackupError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW);
    let file = match options.open(path.as_path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(BackupError::io(path, error)),
        Ok(file) => file,
    };
    let mut bytes = Vec::new();
    file.take(LONGEST_MANIFEST)
        .read_to_end(&mut bytes)
        .map_err(|error| BackupError::io(path, error))?;
    Ok(Some(bytes))
}

/// A destination that exists, by its real name.
fn prepared(destination: &HostPath) -> Result<HostPath, BackupError> {
    let refuse = |why: &str| {
        Err(BackupError::Destination {
            path: destination.to_string(),
            why: why.to_owned(),
        })
    };
    match fs::symlink_metadata(destination.as_path()) {
        Ok(found) if found.is_symlink() => return refuse("is a symbolic link"),
        Ok(found) if !found.is_dir() => return refuse("is not a directory"),
        _ => make_directories(destination)?,
    }
    real(destination)
}

/// The path without symbolic links.
fn real(path: &HostPath) -> Result<HostPath, BackupError> {
    let real = fs::canonicalize(path.as_path()).map_err(|error| BackupError::io(path, error))?;
    HostPath::parse(real.display().to_string()).map_err(|why| BackupError::Destination {
        path: real.display().to_string(),
        why: why.to_string(),
    })
}

fn make_directory(path: &HostPath) -> Result<(), BackupError> {
    DirBuilder::new()
        .mode(TRAVERSABLE)
        .create(path.as_path())
        .map_err(|error| BackupError::io(path, error))
}

fn is_directory(path: &HostPath) -> bool {
    fs::symlink_metadata(path.as_path()).is_ok_and(|found| found.is_dir())
}

fn id_of(name: &str) -> Option<BackupId> {
    BackupId::parse(name).ok()
}

/// The names in a directory; one that does not exist has none.
fn names_in(directory: &HostPath) -> Result<Vec<String>, BackupError> {
    let failed = |error| BackupError::io(directory, error);
    let entries = match fs::read_dir(Path::new(directory.as_str())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}
