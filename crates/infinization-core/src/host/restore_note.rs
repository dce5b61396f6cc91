//! The note beside a disk that a restore is about to replace, or to put back: where that restore's journal is.
//!
//! Backups are kept wherever their owner likes, and whoever starts a machine knows nothing of them: what it
//! knows is its disks. The note is there, on disk, from before the first of a restore's disks is changed until all
//! are in place, or are back. Everything here blocks.
//!
//! Neighbours: `backup` writes and removes it, `vm` looks for it before a disk is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::types::HostPath;

/// Notes that `journal` may be replacing `disk`, or putting it back. A note of another restore that is not over is not replaced.
pub fn write(disk: &HostPath, journal: &HostPath) -> io::Result<()> {
    if let Some(other) = find(disk)?
        && other != *journal
        && other.as_path().exists()
    {
        let why = format!("another restore of it was cut short, whose journal is {other}");
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    let (note, new) = (note_of(disk.as_path()), new_of(disk, journal));
    absent_is_fine(fs::remove_file(&new))?;
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(journal.as_str().as_bytes())?;
    file.sync_all()?;
    fs::rename(new, &note)?;
    File::open(directory_of(&note))?.sync_all()
}

/// The journal of the restore that may be replacing the disk, by whatever name it is called.
pub fn find(disk: &HostPath) -> io::Result<Option<HostPath>> {
    let disk = match fs::canonicalize(disk.as_path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.as_path().to_owned(),
        found => found?,
    };
    let note = note_of(&disk);
    let found = match fs::symlink_metadata(&note) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    // Who follows it renames files: it must be from somebody who may do that.
    if !found.is_file() || found.uid() != nix::unistd::geteuid().as_raw() {
        let why = format!("{} is not a note of ours", note.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let text = fs::read_to_string(&note)?;
    let journal = HostPath::parse(text);
    journal.map(Some).map_err(|why| {
        let why = format!("{}, a path, {why}", note.display());
        io::Error::new(io::ErrorKind::InvalidData, why)
    })
}

/// The restore that keeps this journal is over. A note that is not there is removed already, and one of another
/// restore stays.
pub fn remove(disk: &HostPath, journal: &HostPath) -> io::Result<()> {
    absent_is_fine(fs::remove_file(new_of(disk, journal)))?;
    if find(disk)?.as_ref() == Some(journal) {
        absent_is_fine(fs::remove_file(note_of(disk.as_path())))?;
    }
    Ok(())
}

/// A short name, however long the disk's is.
fn note_of(disk: &Path) -> PathBuf {
    let name = disk.file_name().unwrap_or_default().as_encoded_bytes();
    directory_of(disk).join(format!(".{}.restore", short(name)))
}

/// What the note is called while it is written: two restores do not write the same.
fn new_of(disk: &HostPath, journal: &HostPath) -> PathBuf {
    note_of(disk.as_path()).with_extension(short(journal.as_str().as_bytes()))
}

fn short(bytes: &[u8]) -> String {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(bytes)[..8]);
    format!("{:016x}", u64::from_be_bytes(first))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_note_is_found_by_any_name_of_its_disk_and_belongs_to_one_restore() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| HostPath::parse(dir.path().join(name).to_str().unwrap()).unwrap();
        let (disk, link) = (path(&"d".repeat(255)), path("link"));
        fs::write(disk.as_path(), []).unwrap();
        symlink(disk.as_path(), link.as_path()).unwrap();
        assert_eq!(find(&link).unwrap(), None);
        let (journal, other) = (path("a.json"), path("b.json"));
        write(&disk, &journal).unwrap();
        assert_eq!(find(&link).unwrap(), Some(journal.clone()));
        assert_eq!(find(&path("e")).unwrap(), None);

        // Its journal is gone: it is nobody's.
        write(&disk, &other).unwrap();
        fs::write(other.as_path(), []).unwrap();
        let refused = write(&disk, &journal).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(find(&disk).unwrap(), Some(other.clone()));
        remove(&disk, &journal).unwrap();
        assert_eq!(find(&disk).unwrap(), Some(other.clone()));
        for _again in 0..2 {
            remove(&disk, &other).unwrap();
        }
        assert_eq!(find(&disk).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_is_no_note_of_ours_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = HostPath::parse(dir.path().join("d").to_str().unwrap()).unwrap();
        let note = note_of(disk.as_path());
        symlink("/etc/passwd", &note).unwrap();
        assert_eq!(
            find(&disk).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
        fs::remove_file(&note).unwrap();
        fs::write(&note, "not/absolute").unwrap();
        assert_eq!(find(&disk).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
