//! The system calls on a pidfd: a descriptor that stands for one process and never for the next one
//! with the same number.
#![expect(unsafe_code, reason = "PIDFD_GET_INFO has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use tokio::io::unix::AsyncFd;

use super::Exit;
use crate::host::readable::readable;

/// Opens one for the process that has this number now; `None` when there is none (or the number is
/// a thread's).
pub(super) fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = number(pid) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // A thread's number is EINVAL before Linux 6.9 and ENOENT since.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Ok(None),
        fd => Ok(Some(fd?)),
    }
}

/// A number a process can have.
pub(super) fn number(pid: i32) -> Option<Pid> {
    // `Pid` takes 0 for none, and forbids negative numbers, which name groups.
    (pid > 0).then(|| Pid::from_raw(pid)).flatten()
}

/// Tells when the process ends. Needs a runtime.
pub(super) fn events(pidfd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    readable(pidfd)
}

/// Whether the whole process has ended, reaped or not.
pub(super) fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    ends_within(pidfd, Duration::ZERO)
}

/// The same, after waiting for it. Blocks.
pub(super) fn ends_within(pidfd: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Sends a signal; one that is gone needs none, so that is no error.
pub(super) fn send(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        Err(Errno::SRCH) => Ok(()),
        sent => Ok(sent?),
    }
}

/// What to do with the status of our own child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Take it: the child disappears.
    Reap,
    /// Look only: somebody else in this process reaps it.
    Peek,
}

/// The exit status of an ended child of ours, `None` when it is not our child (any more).
pub(super) fn child_exit(pidfd: BorrowedFd<'_>, status: Status) -> Option<Exit> {
    let mut options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    options.set(WaitIdOptions::NOWAIT, status == Status::Peek);
    loop {
        match waitid(WaitId::PidFd(pidfd), options) {
            Err(Errno::INTR) => {}
            Err(_) | Ok(None) => return None,
            Ok(Some(end)) => return Exit::of(end.exit_status(), end.terminating_signal()),
        }
    }
}

/// Waits for a child that is known to end at once, and reaps it. Blocks.
pub(super) fn reap(pidfd: BorrowedFd<'_>) {
    while matches!(
        waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED),
        Err(Errno::INTR)
    ) {}
}

/// What the kernel remembers of a process that was reaped by its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remembered {
    /// How it ended.
    Exit(Exit),
    /// Nothing yet: its parent has not reaped it.
    NotYet,
    /// Nothing ever: the kernel is older than 6.15.
    Never,
}

/// Asks the kernel how a process that need not be our child ended (`PIDFD_INFO_EXIT`).
pub(super) fn remembered_exit(pidfd: &OwnedFd) -> Remembered {
    // SAFETY: the structure is made of integers, for which all zeroes is a value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = u64::from(libc::PIDFD_INFO_EXIT);
    // SAFETY: the descriptor is open, and the request's number carries the structure's size, which
    // is all the kernel writes.
    let result = unsafe {
        libc::ioctl(
            pidfd.as_fd().as_raw_fd(),
            libc::PIDFD_GET_INFO,
            &raw mut info,
        )
    };
    if result != 0 {
        return Remembered::Never;
    }
    if info.mask & u64::from(libc::PIDFD_INFO_EXIT) == 0 {
        return Remembered::NotYet;
    }
    let status = info.exit_code;
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    Exit::of(code, signal).map_or(Remembered::Never, Remembered::Exit)
}
