//! The lock on a whole file (`flock`), and hearing when somebody else's ends.
//!
//! The kernel announces no unlocking, but the closing of a file that was open for writing (inotify's
//! `IN_CLOSE_WRITE`). So whoever holds such a lock has the file open for writing and closes it right after he
//! has unlocked it, as the kernel does for one that was killed.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::dir_watch::drain;

/// Locks the file as soon as it is free; `WOULDBLOCK` when it still is not at `until`, or when it is not
/// `worth_waiting`. Blocks.
pub(super) fn lock_by(
    file: &File,
    until: Instant,
    worth_waiting: impl Fn() -> bool,
) -> Result<(), Errno> {
    let mut closings = None;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < until && worth_waiting() => {}
            outcome => return outcome,
        }
        match &closings {
            // One that came before it is not heard, so the lock is tried once more.
            None => closings = Some(closings_of(file)?),
            Some(closings) => next_of(closings, until)?,
        }
    }
}

fn closings_of(file: &File) -> Result<OwnedFd, Errno> {
    let closings = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    // The file that is open, whatever its name leads to by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    inotify::add_watch(&closings, path, WatchFlags::CLOSE_WRITE)?;
    Ok(closings)
}

fn next_of(closings: &OwnedFd, until: Instant) -> Result<(), Errno> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
    match poll(&mut [PollFd::new(closings, PollFlags::IN)], Some(&left)) {
        Ok(_) | Err(Errno::INTR) => drain(closings),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn open(path: &Path) -> File {
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        options.open(path).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn the_end_of_anothers_lock_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = open(&path);
        lock_by(&held, soon(), || true).unwrap();
        let (asks, asked) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let file = open(&path);
            // Asked once before it listens, and once after that.
            lock_by(&file, soon(), || asks.send(()).is_ok())
        });
        asked.recv().unwrap();
        asked.recv().unwrap();
        flock(&held, FlockOperation::Unlock).unwrap();
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn nobody_waits_for_longer_than_he_wants() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = open(&path);
        lock_by(&held, Instant::now(), || false).unwrap();
        let other = open(&path);
        assert_eq!(lock_by(&other, soon(), || false), Err(Errno::WOULDBLOCK));
        let now = Instant::now() + Duration::from_millis(20);
        assert_eq!(lock_by(&other, now, || true), Err(Errno::WOULDBLOCK));
    }
}
