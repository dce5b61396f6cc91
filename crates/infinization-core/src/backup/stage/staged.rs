//! One disk of a restore: its names, whether it is in place, and the renames that put it there and back.
//!
//! The target has a file at any moment, the old one or the new one, and the old one keeps a name until the
//! stage is cleared. Neighbour: [`super`] decides over all disks, and keeps the journal.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backup::BackupError;
use crate::backup::folder::inside;
use crate::types::HostPath;

/// One disk of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Staged {
    /// Where it is made, and what it replaces is afterwards, or under [`old_name`].
    pub(super) aside: HostPath,
    pub(super) target: HostPath,
    /// The staged file, known once it is whole: tells whether the target is it already.
    pub(super) new: Option<Version>,
    /// What it replaces, as it was when it was last looked at before the renames. Without this nothing is
    /// replaced, whatever is there by now.
    pub(super) old: Option<Version>,
}

/// A file, and when it was last written to. No rename and no link changes either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Version {
    pub(super) fn of(file: &fs::Metadata) -> Self {
        Self {
            inode: file.ino(),
            seconds: file.mtime(),
            nanoseconds: file.mtime_nsec(),
        }
    }

    /// Of what has this name, if anything.
    pub(super) fn at(path: &HostPath) -> Option<Self> {
        let found = fs::symlink_metadata(path.as_path());
        found.map(|file| Self::of(&file)).ok()
    }
}

impl Staged {
    fn inode(&self) -> Option<u64> {
        self.new.map(|new| new.inode)
    }

    pub(super) fn is_done(&self) -> bool {
        inode_of(&self.target) == self.inode()
    }

    /// Whether what was staged is not the target, and what it was to replace has no other name alone.
    pub(super) fn is_aside(&self) -> bool {
        let (target, aside) = (inode_of(&self.target), inode_of(&self.aside));
        let old = inode_at(&self.aside.as_path().with_extension("old"));
        target != self.inode()
            && (aside.is_none() || aside == self.inode())
            && (old.is_none() || old == target)
    }

    /// Whether nobody has written to the target since the renames began, and it is renamed or can be.
    pub(super) fn is_untouched(&self) -> bool {
        let target = Version::at(&self.target);
        if self.is_done() {
            target == self.new
        } else {
            target == self.old && Version::at(&self.aside) == self.new
        }
    }
}

/// The owner and mode of the disk that is replaced: QEMU may run as somebody else.
pub(super) fn take_after(file: &File, old: &File) -> io::Result<()> {
    let (ours, old) = (file.metadata()?, old.metadata()?);
    if (ours.uid(), ours.gid()) != (old.uid(), old.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid()))?;
    }
    file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o777))
}

/// Gives what is staged the target's name; what it replaces, if anything, has the staged name then.
pub(super) fn exchange(disk: &Staged) -> io::Result<()> {
    let (staged, target) = (disk.aside.as_path(), disk.target.as_path());
    let replaces = disk.old.is_some();
    let flags = if replaces {
        RenameFlags::EXCHANGE
    } else {
        RenameFlags::NOREPLACE
    };
    match renameat_with(CWD, staged, CWD, target, flags) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if replaces => {
            replace_by_link(staged, target)
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => name_by_link(staged, target),
        outcome => Ok(outcome?),
    }
}

pub(super) fn not_named(disk: &Staged, error: io::Error) -> BackupError {
    let path = disk.target.clone();
    match error.kind() {
        io::ErrorKind::AlreadyExists if disk.old.is_none() => BackupError::TargetExists { path },
        _ => BackupError::io(&path, error),
    }
}

/// For file systems without such renames (NFS): what is replaced gets its [`old_name`] first. A process
/// that died in between has done that already.
pub(super) fn replace_by_link(staged: &Path, target: &Path) -> io::Result<()> {
    let old = staged.with_extension("old");
    if let Err(error) = fs::hard_link(target, &old)
        && inode_at(&old) != inode_at(target)
    {
        return Err(error);
    }
    fs::rename(staged, target)
}

/// Undoes [`replace_by_link`]. The target has a file at any moment.
pub(super) fn put_back_by_link(staged: &Path, target: &Path) -> io::Result<()> {
    fs::hard_link(target, staged)?;
    fs::rename(staged.with_extension("old"), target)
}

/// Where nothing is replaced: a plain rename would replace what came in between.
pub(super) fn name_by_link(staged: &Path, target: &Path) -> io::Result<()> {
    fs::hard_link(staged, target)?;
    fs::remove_file(staged)
}

/// Undoes [`exchange`].
pub(super) fn put_back(disk: &Staged) -> io::Result<()> {
    let (staged, target) = (disk.aside.as_path(), disk.target.as_path());
    match disk.old {
        Some(_) if staged.exists() => exchange(disk),
        Some(_) => put_back_by_link(staged, target),
        None => fs::rename(target, staged),
    }
}

fn inode_of(path: &HostPath) -> Option<u64> {
    inode_at(path.as_path())
}

fn inode_at(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).map(|file| file.ino()).ok()
}

pub(super) fn name_beside(target: &HostPath) -> Result<HostPath, BackupError> {
    let name = format!(".{}.restoring", Uuid::new_v4().simple());
    inside(&directory_of(target)?, &name)
}

/// What is replaced, on a file system that cannot exchange.
pub(super) fn old_name(staged: &HostPath) -> Result<HostPath, BackupError> {
    let name = staged.as_path().with_extension("old");
    inside(
        &directory_of(staged)?,
        &name.file_name().unwrap_or_default().to_string_lossy(),
    )
}

pub(super) fn unpacked_name(staged: &HostPath) -> Result<HostPath, BackupError> {
    let name = staged.as_path().file_name().unwrap_or_default();
    inside(
        &directory_of(staged)?,
        &format!("{}.qcow2", name.to_string_lossy()),
    )
}

pub(in crate::backup) fn directory_of(path: &HostPath) -> Result<HostPath, BackupError> {
    let above = path.as_path().parent().unwrap_or(Path::new("/"));
    HostPath::parse(above.display().to_string()).map_err(|why| BackupError::Destination {
        path: above.display().to_string(),
        why: why.to_string(),
    })
}
