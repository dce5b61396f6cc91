//! One writer at a time, and a file that is replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::host::file_lock::lock_by;

const LOCK_FILE: &str = ".lock";
/// How long another writer is waited for: it reads the table, which takes 10,000 rules half a second.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Excludes other writers until it is dropped, or this process ends.
///
/// It is a `flock`, so that a writer that was killed leaves none behind. The file stays, since removing
/// a lock file lets two writers lock two files of one name.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Waits for it; `WouldBlock` if that takes too long. Blocks.
    pub(super) fn acquire(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join(LOCK_FILE))?;
        lock_by(&file, Instant::now() + LOCK_PATIENCE, || true)?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a program just being started in another thread has a copy of the
        // descriptor until it runs.
        let _unlocked = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Makes the directory, readable by everybody, if it is not there.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// Makes this the file's content, unless it is. What it was is linked as `backup` first. The caller holds
/// the lock, so the temporary files are nobody else's. Blocks.
pub(super) fn replace(path: &Path, backup: Option<&Path>, content: &[u8]) -> io::Result<()> {
    // What a writer that was killed has left.
    for left in std::iter::once(path).chain(backup) {
        remove_if_there(&temporary_of(left))?;
    }
    match fs::read(path) {
        Ok(before) if before == content => return Ok(()),
        Ok(_) => keep(path, backup)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let temporary = temporary_of(path);
    let written = write_new(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _absent = fs::remove_file(&temporary);
    }
    written?;
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// The file keeps its name meanwhile: there is always one to load.
fn keep(path: &Path, backup: Option<&Path>) -> io::Result<()> {
    let Some(backup) = backup else { return Ok(()) };
    let temporary = temporary_of(backup);
    fs::hard_link(path, &temporary)?;
    fs::rename(&temporary, backup)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(content)?;
    file.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn temporary_of(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    // The same for every writer, so that what the killed have left does not pile up.
    name.push(".tmp");
    name.into()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn p3_the_file_is_replaced_and_the_one_before_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, backup) = (dir.path().join("f"), dir.path().join("f.bak"));
        for content in ["one", "two", "two", "three"] {
            replace(&path, Some(&backup), content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_to_string(&backup).unwrap(), "two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn p3_only_one_holds_the_lock_and_it_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path()).unwrap();
        let second = File::open(dir.path().join(LOCK_FILE)).unwrap();
        let taken = || flock(&second, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(taken(), Err(Errno::WOULDBLOCK));
        drop(first);
        assert_eq!(taken(), Ok(()));
    }
}
