//! One process per state directory.
//!
//! The lock is a `flock` on `<dir>/lock`: the kernel lets it go when its owner ends, however it ends.
//! It also excludes a second holder inside one process. The file itself stays, since removing a lock
//! file lets two processes lock two files of one name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::file_lock::lock_by;
use super::process::is_alive;
use super::state_file::is_temporary;
use crate::error::{Coded, ErrorCode};

/// A program that was being started when its parent was killed runs, or has failed to, by then.
const LAST_START: Duration = Duration::from_secs(2);

/// A state directory that is not ours to use.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DirLockError {
    #[error("{dir} is managed by {}", name(*.holder))]
    Held { dir: String, holder: Option<u32> },
    #[error("{dir} could not be locked")]
    Lock { dir: String, source: io::Error },
}

fn name(holder: Option<u32>) -> String {
    match holder {
        Some(pid) if pid == std::process::id() => "another instance in this process".to_owned(),
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

impl Coded for DirLockError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Held { .. } => ErrorCode::Busy,
            Self::Lock { .. } => ErrorCode::StateFile,
        }
    }

    fn context(&self) -> Map<String, Value> {
        let mut facts = Map::new();
        let (Self::Held { dir, .. } | Self::Lock { dir, .. }) = self;
        facts.insert("path".to_owned(), Value::from(dir.as_str()));
        match self {
            Self::Held { holder, .. } => facts.insert("holder".to_owned(), Value::from(*holder)),
            Self::Lock { source, .. } => {
                facts.insert("errno".to_owned(), Value::from(source.raw_os_error()))
            }
        };
        facts
    }
}

/// Holds a state directory until it is dropped, or until this process ends.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    file: File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing is not enough: a program just being started in another thread holds a copy of the
        // descriptor, and with it the lock, until its `execve`.
        let _unlocked = flock(&self.file, FlockOperation::Unlock);
    }
}

impl DirLock {
    /// Takes the lock of `dir`, which must exist, without waiting for it.
    pub fn acquire(dir: &Path) -> Result<Self, DirLockError> {
        let failed = |source| DirLockError::Lock {
            dir: dir.display().to_string(),
            source,
        };
        let mut file = open(&dir.join("lock")).map_err(failed)?;
        match lock(&file) {
            Err(Errno::WOULDBLOCK) => Err(DirLockError::Held {
                dir: dir.display().to_string(),
                holder: holder_of(&file),
            }),
            Err(error) => Err(failed(error.into())),
            Ok(()) => {
                // A full disk must not keep us from managing the VMs that run.
                let _unsigned = sign(&mut file);
                Ok(Self {
                    dir: dir.to_owned(),
                    file,
                })
            }
        }
    }

    /// The directory it holds.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the temporary files of writers that died, in `dir` (this directory or one below it)
    /// and the directories directly in it. Whoever holds the lock, before writing anything, knows
    /// that none has a living writer. Returns how many there were.
    pub fn sweep(&self, dir: &Path) -> io::Result<usize> {
        let mut swept = sweep_one(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                swept += sweep_one(&entry.path())?;
            }
        }
        Ok(swept)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// A program that a killed holder was just starting has the holder's descriptors until it runs, a
/// moment later. No other holder is waited for.
fn lock(file: &File) -> Result<(), Errno> {
    lock_by(file, Instant::now() + LAST_START, || holder_is_dead(file))
}

fn holder_is_dead(file: &File) -> bool {
    let pid = holder_of(file).and_then(|pid| i32::try_from(pid).ok());
    pid.is_some_and(|pid| !is_alive(pid))
}

/// Writes our pid for whoever comes second. It informs; the lock is what excludes.
fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn holder_of(mut file: &File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn sweep_one(dir: &Path) -> io::Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_file = entry.file_type()?.is_file();
        if is_file && is_temporary(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f36_a_second_instance_in_this_process_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(dir.path()).unwrap();
        let second = DirLock::acquire(dir.path()).unwrap_err();
        assert_eq!(second.code(), ErrorCode::Busy);
        assert_eq!(second.context()["holder"], std::process::id());
        assert!(
            second
                .to_string()
                .ends_with("another instance in this process")
        );
        drop(first);
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn sweeps_temporaries_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("vm-1");
        fs::create_dir(&vm).unwrap();
        let stale = vm.join(".spec.json.77-0.infinization-tmp");
        let kept = [
            vm.join("spec.json"),
            vm.join(".hidden"),
            dir.path().join("x.tmp"),
        ];
        for file in kept.iter().chain([&stale]) {
            fs::write(file, "x").unwrap();
        }
        let lock = DirLock::acquire(dir.path()).unwrap();
        assert_eq!(lock.sweep(lock.dir()).unwrap(), 1);
        assert!(!stale.exists() && kept.iter().all(|file| file.exists()));
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("none");
        let error = DirLock::acquire(&absent).unwrap_err();
        assert_eq!(error.code(), ErrorCode::StateFile);
        assert!(!absent.exists());
    }
}
