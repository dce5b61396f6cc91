//! Whether another process has an image open, and which one.
//!
//! QEMU and qemu-img say what they do with a file by locking single bytes of it: byte 100 + n for
//! each permission they hold, 200 + n for each they do not share (`block/file-posix.c`). Asking the
//! kernel about those bytes needs no program and no words. qemu-img takes the same locks after us,
//! so a process that comes in between is still refused ([`super::command`]).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::ImageError;
use super::inspect::open;
use super::job::blocking;
use crate::types::HostPath;

/// The process that has an image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name, as `ps -o comm` shows it.
    pub name: String,
}

/// What we are about to do with the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The permissions of QEMU's block layer, as numbers of their lock bytes.
const CONSISTENT_READ: libc::off_t = 0;
const WRITE: libc::off_t = 1;
const RESIZE: libc::off_t = 3;
/// Ours alone, where QEMU looks at nothing: somebody is making this file.
const MAKING: libc::off_t = 90;
const HELD: libc::off_t = 100;
const NOT_SHARED: libc::off_t = 200;
/// What who writes, and lets nobody else, has locked.
const WRITER: [libc::off_t; 4] = [
    HELD + WRITE,
    NOT_SHARED + CONSISTENT_READ,
    NOT_SHARED + WRITE,
    NOT_SHARED + RESIZE,
];

const HOUR: u64 = 60 * 60;
/// Whoever makes a file writes to it more often than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * HOUR);

#[expect(
    clippy::cast_possible_truncation,
    reason = "0, 1 and 2, but libc calls them int"
)]
const EXCLUSIVE: libc::c_short = libc::F_WRLCK as libc::c_short;
#[expect(
    clippy::cast_possible_truncation,
    reason = "0, 1 and 2, but libc calls them int"
)]
const SHARED: libc::c_short = libc::F_RDLCK as libc::c_short;
#[expect(
    clippy::cast_possible_truncation,
    reason = "0, 1 and 2, but libc calls them int"
)]
const NONE: libc::c_short = libc::F_UNLCK as libc::c_short;
#[expect(
    clippy::cast_possible_truncation,
    reason = "0, 1 and 2, but libc calls them int"
)]
const FROM_START: libc::c_short = libc::SEEK_SET as libc::c_short;

impl Access {
    /// The bytes whose lock, held by anybody, forbids this access.
    fn conflicts(self) -> &'static [libc::off_t] {
        match self {
            Self::Read => &[HELD + WRITE, HELD + RESIZE, NOT_SHARED + CONSISTENT_READ],
            Self::Write => &[
                HELD + WRITE,
                HELD + RESIZE,
                NOT_SHARED + CONSISTENT_READ,
                NOT_SHARED + WRITE,
                NOT_SHARED + RESIZE,
            ],
        }
    }
}

/// Says whether a machine may take the image as its writable disk: `IMAGE_IN_USE`, naming the holder
/// if it can be found, when another process has it open. QEMU takes the locks itself when it
/// starts; asking first costs nothing and gives the better answer.
pub async fn ensure_unused(path: &HostPath) -> Result<(), ImageError> {
    refuse(path, Access::Write).await
}

/// [`ensure_unused`] for whoever is on a thread that may block. Seven system calls unless the image
/// is in use.
pub fn ensure_unused_now(path: &HostPath) -> Result<(), ImageError> {
    refuse_now(path, Access::Write)
}

/// Says whether a machine may stand on the image as a backing file: any number of machines may, but
/// not while somebody writes to it. Blocks.
pub fn ensure_unwritten_now(path: &HostPath) -> Result<(), ImageError> {
    refuse_now(path, Access::Read)
}

/// `IMAGE_IN_USE`, naming the holder if it can be found, when another process forbids `access`.
pub(super) async fn refuse(path: &HostPath, access: Access) -> Result<(), ImageError> {
    let image = path.clone();
    blocking(path, move || refuse_now(&image, access)).await
}

/// [`refuse`] for whoever is on a thread that may block.
pub(super) fn refuse_now(path: &HostPath, access: Access) -> Result<(), ImageError> {
    let (file, _) = open(path)?;
    if is_locked(&file, access).map_err(|source| ImageError::io(path, source))? {
        return Err(ImageError::InUse {
            holder: holder_of(&file),
            path: path.clone(),
        });
    }
    Ok(())
}

/// An open image with locks of ours. Dropping it gives them back by name: a program of ours that is between
/// its clone and its `execve` has a copy of every descriptor, and closing alone would leave the image locked
/// for that long, to whoever comes next.
#[derive(Debug)]
pub(super) struct Locked {
    file: File,
    /// How many programs may have them, too.
    lent: AtomicUsize,
}

impl Locked {
    fn new(file: File) -> Self {
        let lent = AtomicUsize::new(0);
        Self { file, lent }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if *self.lent.get_mut() > 0 {
            return;
        }
        let all = libc::flock {
            l_len: 0,
            ..lock_of(NONE, 0)
        };
        if let Err(error) = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&all)) {
            tracing::debug!(%error, "the locks of an image end with its descriptor");
        }
    }
}

/// Keeps every machine, and every program of QEMU's, from opening an image for writing, until it is
/// dropped.
#[derive(Debug)]
pub struct Claim(Locked);

impl Claim {
    /// The same locks once more, for a program: they hold until both it and we have let go.
    pub(super) fn lend(&self) -> io::Result<OwnedFd> {
        let copy = self.0.file.try_clone()?;
        self.0.lent.fetch_add(1, Ordering::Relaxed);
        Ok(copy.into())
    }

    /// A program to which they were lent has ended.
    pub(super) fn take_back(&self) {
        self.0.lent.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Claims an image as a QEMU that writes to it does: `IMAGE_IN_USE` if another process has it open. From then
/// on none can. Blocks.
pub fn claim_now(path: &HostPath) -> Result<Claim, ImageError> {
    let io = |source| ImageError::io(path, source);
    let locked = Locked::new(open(path)?.0);
    let mut bytes = WRITER.iter();
    bytes
        .try_for_each(|byte| hold(&locked.file, SHARED, *byte))
        .map_err(io)?;
    // As QEMU does: first locked, then looked, so of two that come at once not both get it.
    if !is_locked(&locked.file, Access::Write).map_err(io)? {
        return Ok(Claim(locked));
    }
    drop(locked);
    refuse_now(path, Access::Write)?;
    let (path, holder) = (path.clone(), None);
    Err(ImageError::InUse { path, holder })
}

/// Keeps every machine, and every program of QEMU's, from writing to an image, until it is dropped.
/// Anybody may read it.
#[derive(Debug)]
pub struct Unchanged(Locked);

impl Unchanged {
    /// The image, open for reading.
    pub(super) fn file(&self) -> &File {
        &self.0.file
    }
}

/// Holds an image as it is, as QEMU holds what must not change: `IMAGE_IN_USE` if somebody writes to it. From
/// then on nobody can. Blocks.
pub fn keep_unchanged_now(path: &HostPath) -> Result<Unchanged, ImageError> {
    let locked = Locked::new(open(path)?.0);
    let bytes = [
        HELD + CONSISTENT_READ,
        NOT_SHARED + WRITE,
        NOT_SHARED + RESIZE,
    ];
    let mut bytes = bytes.iter();
    let held = bytes.try_for_each(|byte| hold(&locked.file, SHARED, *byte));
    // First held, then looked, as QEMU does: of two who come at once one sees the other.
    let found = held.and_then(|()| is_locked(&locked.file, Access::Read));
    if found.map_err(|source| ImageError::io(path, source))? {
        return Err(ImageError::InUse {
            holder: holder_of(&locked.file),
            path: path.clone(),
        });
    }
    Ok(Unchanged(locked))
}

/// The failure for an image whose locks qemu-img could not get.
pub(super) async fn in_use(path: &HostPath) -> ImageError {
    match refuse(path, Access::Write).await {
        Err(in_use @ ImageError::InUse { .. }) => in_use,
        // It let go in the meantime; for this call it was in use all the same.
        _ => ImageError::InUse {
            path: path.clone(),
            holder: None,
        },
    }
}

/// Says of a file that is not finished that it is being made, until the descriptor is closed: by a kill, too.
/// `false` if somebody takes it for abandoned at this moment, and may be about to remove it.
pub(super) fn mark_as_making(file: &File) -> bool {
    match hold(file, EXCLUSIVE, MAKING) {
        Err(error) if is_taken(&error) => return false,
        Err(error) => tracing::debug!(%error, "a file that is being made could not be marked"),
        Ok(()) => {}
    }
    true
}

/// A file that is not finished, if nobody makes it any more: until it is dropped nobody can begin to. Where a
/// file system has no locks, its age has to tell. Blocks.
pub(super) fn abandoned_now(path: &HostPath) -> Result<Option<Locked>, ImageError> {
    let locked = Locked::new(open(path)?.0);
    let abandoned = if has_locks(&locked.file) {
        // First held, then looked: who has just made the file, and not marked it yet, finds out.
        match hold(&locked.file, SHARED, MAKING) {
            Err(error) if is_taken(&error) => Ok(false),
            Err(error) => Err(error),
            Ok(()) => is_locked(&locked.file, Access::Write).map(|written| !written),
        }
    } else {
        let written = locked.file.metadata().and_then(|found| found.modified());
        written.map(is_old)
    };
    let abandoned = abandoned.map_err(|source| ImageError::io(path, source))?;
    Ok(abandoned.then_some(locked))
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::PermissionDenied
}

/// A time to come is none: the clock was set back.
fn is_old(written: SystemTime) -> bool {
    written.elapsed().is_ok_and(|age| age > LONGEST_PAUSE)
}

/// Does nothing on a file system without locks: QEMU goes without, too.
fn hold(file: &File, kind: libc::c_short, byte: libc::off_t) -> io::Result<()> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(kind, byte))) {
        Err(errno) if !means_no_locks(errno) => Err(errno.into()),
        _ => Ok(()),
    }
}

fn has_locks(file: &File) -> bool {
    let mut lock = lock_of(EXCLUSIVE, MAKING);
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    !asked.is_err_and(means_no_locks)
}

/// NFS without its lock daemon, Lustre without `flock`, and what has no such thing at all.
fn means_no_locks(errno: Errno) -> bool {
    matches!(errno, Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP)
}

fn lock_of(kind: libc::c_short, byte: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: kind,
        l_whence: FROM_START,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn is_locked(file: &File, access: Access) -> io::Result<bool> {
    for &byte in access.conflicts() {
        // An exclusive lock conflicts with every other; asking takes none.
        let mut lock = lock_of(EXCLUSIVE, byte);
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)) {
            Err(errno) if means_no_locks(errno) => return Ok(false),
            Err(errno) => return Err(errno.into()),
            Ok(_) if lock.l_type != NONE => return Ok(true),
            Ok(_) => {}
        }
    }
    Ok(false)
}

/// Finds the process with a locked descriptor of the file. The kernel names no owner of such a
/// lock (it belongs to the open file, which processes may share), but lists it under the
/// descriptor. Processes that may not be looked into are passed over.
fn holder_of(file: &File) -> Option<Holder> {
    let image = file.metadata().ok()?;
    let pids = fs::read_dir("/proc").ok()?.flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|&pid| locks(pid, &image))
        .map(|pid| Holder {
            pid,
            name: name_of(pid),
        })
}

fn locks(pid: u32, image: &fs::Metadata) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.flatten().any(|descriptor| {
        let same = fs::metadata(descriptor.path())
            .is_ok_and(|open| (open.dev(), open.ino()) == (image.dev(), image.ino()));
        let fdinfo = format!("/proc/{pid}/fdinfo/{}", descriptor.file_name().display());
        same && fs::read_to_string(fdinfo).is_ok_and(|info| info.contains("\nlock:"))
    })
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "a process".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_to_lately_is_not_old() {
        let now = SystemTime::now();
        for (written, old) in [
            (now, false),
            (now - Duration::from_secs(23 * HOUR), false),
            (now - Duration::from_secs(25 * HOUR), true),
            (now + Duration::from_secs(48 * HOUR), false),
        ] {
            assert_eq!(is_old(written), old, "{written:?}");
        }
    }

    #[test]
    fn a_file_system_without_locks_is_told_from_a_lock() {
        let file = tempfile::tempfile().unwrap();
        assert!(has_locks(&file));
        assert!(!means_no_locks(Errno::EAGAIN) && means_no_locks(Errno::ENOLCK));
    }
}
