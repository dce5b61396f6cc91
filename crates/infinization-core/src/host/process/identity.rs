//! Whether a process is ours, and whose it is: pid, start time, boot and name must agree. What cannot be
//! proven is told as such, never guessed.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::pidfd::{self, Status};
use super::proc_files::{QemuMarks, Stat, is_qemu, is_qemu_named};
use super::{ProcessError, ProcessHandle};
use crate::host::blocking::{blocking, promptly};

/// Reading `/proc/<pid>/cmdline` waits for a process that hangs while it changes its memory map.
const PROC_DEADLINE: Duration = Duration::from_secs(5);
/// The same for a caller whom everything else waits for.
const PROC_PATIENCE: Duration = Duration::from_millis(100);
/// How long a process that cannot be told, for it is just starting or ending, is waited for.
const CHANGE_PATIENCE: Duration = Duration::from_secs(1);

/// `/proc` counts in USER_HZ, which is 100 on every architecture we build for.
const TICK_MILLIS: u64 = 10;

/// What tells a process apart from all others, before and after it: written beside the VM, so that
/// a restarted library finds its QEMU again, and touches no process that got the number later.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProcessId {
    /// The number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_time: u64,
    /// The boot it belongs to (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl ProcessId {
    /// Reads the id of the process that has this number now. The caller holds its pidfd.
    pub(super) fn read(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: stat(pid)?.start_time,
            boot_id: boot_id()?,
        })
    }

    /// How long ago it started, to 10 ms; meaningful while it runs.
    pub fn age(&self) -> io::Result<Duration> {
        let uptime = fs::read_to_string("/proc/uptime")?;
        let now = ticks_since_boot(&uptime).ok_or(io::ErrorKind::InvalidData)?;
        let ticks = now.saturating_sub(self.start_time);
        Ok(Duration::from_millis(ticks.saturating_mul(TICK_MILLIS)))
    }
}

/// Reads `/proc/uptime`, whose first number has exactly two decimals.
fn ticks_since_boot(uptime: &str) -> Option<u64> {
    let (seconds, hundredths) = uptime.split_whitespace().next()?.split_once('.')?;
    let (seconds, hundredths): (u64, u64) = (seconds.parse().ok()?, hundredths.parse().ok()?);
    Some(seconds * 100 + hundredths)
}

/// The id of this boot of the host: a recorded one that differs means the host was restarted since.
pub fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// Whose process a recorded [`ProcessId`] names today.
#[derive(Debug)]
pub enum Identity {
    /// It still runs, and is the VM's QEMU.
    Ours(ProcessHandle),
    /// It has ended (or the host was restarted), and its number is free.
    Gone,
    /// It has ended, and its number belongs to another process: not to be touched.
    NotOurs,
    /// The proof could not be read, for this reason: not to be touched, and not to be taken for
    /// dead either.
    Unknown(String),
}

/// Finds a recorded process again. `name` is the exact argument after QEMU's `-name`
/// (`guest=<internalName>,debug-threads=on`).
///
/// The pidfd is opened first and everything is compared afterwards: what was compared cannot be
/// replaced by another process any more.
pub async fn adopt(id: &ProcessId, name: &str) -> Identity {
    let (wanted, name) = (id.clone(), name.to_owned());
    judge(id.pid, move || {
        if ProcessId::read(wanted.pid)? != wanted {
            return Ok(None);
        }
        let cmdline = cmdline(wanted.pid)?;
        Ok(is_qemu_named(&cmdline, &name).then(|| wanted.clone()))
    })
    .await
}

/// Whether the process that has this number now is the QEMU with these marks: for a number of which
/// no [`ProcessId`] was recorded. As careful as [`adopt`].
pub async fn identify(pid: i32, marks: QemuMarks) -> Identity {
    judge(pid, move || {
        let id = ProcessId::read(pid)?;
        Ok(marks.are_on(&cmdline(pid)?).then_some(id))
    })
    .await
}

/// Whether the process that has this number now was started with exactly this argument, which is nobody
/// else's. As careful as [`adopt`].
pub async fn identify_by(pid: i32, argument: String) -> Identity {
    judge(pid, move || {
        let id = ProcessId::read(pid)?;
        let cmdline = cmdline(pid)?;
        let mut arguments = cmdline.split(|octet| *octet == 0).skip(1);
        let is_there = arguments.any(|found| found == argument.as_bytes());
        Ok(is_there.then_some(id))
    })
    .await
}

/// Opens the pidfd, then runs `proof`, which answers who the process was proven to be.
async fn judge(
    pid: i32,
    proof: impl Fn() -> io::Result<Option<ProcessId>> + Send + 'static,
) -> Identity {
    let compared = blocking(move || compare(pid, proof));
    let verdict = match timeout(PROC_DEADLINE, compared).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(not_done)) => Verdict::Unknown(not_done.to_string()),
        Err(_) => Verdict::Unknown(format!("/proc/{pid} does not answer")),
    };
    match verdict {
        Verdict::Ours(id, pidfd) => match ProcessHandle::watch(id, pidfd, Status::Peek) {
            Ok(handle) => Identity::Ours(handle),
            Err(error) => Identity::Unknown(error.to_string()),
        },
        Verdict::Gone => Identity::Gone,
        Verdict::NotOurs => Identity::NotOurs,
        Verdict::Unknown(why) => Identity::Unknown(why),
    }
}

enum Verdict {
    Ours(ProcessId, Arc<OwnedFd>),
    Gone,
    NotOurs,
    Unknown(String),
}

fn compare(pid: i32, proof: impl Fn() -> io::Result<Option<ProcessId>>) -> Verdict {
    let pidfd = match pidfd::open(pid) {
        Ok(Some(pidfd)) => Arc::new(pidfd),
        Ok(None) => return Verdict::Gone,
        Err(error) => return Verdict::Unknown(error.to_string()),
    };
    match prove(&pidfd, proof) {
        Ok(Proven::Ended) => Verdict::Gone,
        Ok(Proven::Runs(Some(id))) => Verdict::Ours(id, pidfd),
        Ok(Proven::Runs(None)) => Verdict::NotOurs,
        Err(error) => Verdict::Unknown(error.to_string()),
    }
}

enum Proven {
    Ended,
    Runs(Option<ProcessId>),
}

/// Proves it for the process that the pidfd stands for, which may end meanwhile. One without a proof
/// may be ending: a QEMU that was killed is so for some milliseconds.
fn prove(pidfd: &OwnedFd, proof: impl Fn() -> io::Result<Option<ProcessId>>) -> io::Result<Proven> {
    let mut proven = proof();
    if proven.is_err() && !pidfd::ends_within(pidfd.as_fd(), CHANGE_PATIENCE)? {
        proven = proof();
    }
    if pidfd::has_ended(pidfd.as_fd())? {
        return Ok(Proven::Ended);
    }
    proven.map(Proven::Runs)
}

/// The arguments of a running process, NUL-separated.
fn cmdline(pid: i32) -> io::Result<Vec<u8>> {
    let path = format!("/proc/{pid}/cmdline");
    let cmdline = fs::read(&path)?;
    // They are read in pieces, of which a process that ends has only the first.
    let is_there = File::open(&path)?.read(&mut [0])? > 0;
    if cmdline.is_empty() || !is_there {
        // In the middle of `execve`, or its memory is gone already but a thread of it is not.
        return Err(io::Error::other("the process is just starting or ending"));
    }
    Ok(cmdline)
}

/// Whether a process with this number runs that is a QEMU, or may be one: `/proc` may not tell at once.
/// Proves nothing about whose it is.
pub fn is_qemu_alive(pid: i32) -> bool {
    let cmdline = || promptly(PROC_PATIENCE, move || cmdline(pid))?.ok();
    is_alive(pid) && cmdline().is_none_or(|cmdline| is_qemu(&cmdline))
}

/// Every QEMU on this host whose `-name` argument is exactly `name`: what a crash between the spawn
/// and the writing of its [`ProcessId`] leaves.
pub async fn find_by_name(name: &str) -> Result<Vec<ProcessHandle>, ProcessError> {
    find_by_names(vec![name.to_owned()]).await
}

/// [`find_by_name`] for several names in one look at `/proc`.
pub async fn find_by_names(names: Vec<String>) -> Result<Vec<ProcessHandle>, ProcessError> {
    let scanned = timeout(PROC_DEADLINE, blocking(move || scan(&names))).await;
    let found = match scanned {
        Ok(Ok(found)) => found,
        Ok(Err(not_done)) => Err(not_done.into()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let handles = found.and_then(|found| {
        let watch = |(id, pidfd)| ProcessHandle::watch(id, pidfd, Status::Peek);
        found.into_iter().map(watch).collect()
    });
    handles.map_err(|source| ProcessError::Scan { source })
}

fn scan(names: &[String]) -> io::Result<Vec<(ProcessId, Arc<OwnedFd>)>> {
    let mut found = Vec::new();
    // A /proc that shows nobody, not even us, proves nobody's absence.
    stat(std::process::id().cast_signed())?;
    for entry in fs::read_dir("/proc")? {
        let file_name = entry?.file_name();
        let Some(pid) = file_name.to_str().and_then(|text| text.parse().ok()) else {
            continue;
        };
        // Most are not QEMU: those cost one read and no pidfd.
        if !is_named(pid, names)? {
            continue;
        }
        let Some(pidfd) = pidfd::open(pid)? else {
            continue;
        };
        let id = ProcessId::read(pid);
        if is_named(pid, names)? && !pidfd::has_ended(pidfd.as_fd())? {
            found.push((id?, Arc::new(pidfd)));
        }
    }
    Ok(found)
}

/// A process that ends while it is looked at is not it, nor is one that is hidden from us
/// (`hidepid`): a user that may not look could not have started it.
fn is_named(pid: i32, names: &[String]) -> io::Result<bool> {
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(cmdline) => Ok(names.iter().any(|name| is_qemu_named(&cmdline, name))),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a process with this number runs: one we may not signal does, a zombie does not.
///
/// For numbers without a recorded identity (old pidfiles). It proves nothing about whose it is.
pub fn is_alive(pid: i32) -> bool {
    let Some(process) = pidfd::number(pid) else {
        return false;
    };
    if rustix::process::test_kill_process(process) == Err(Errno::SRCH) {
        return false;
    }
    stat(pid).map_or_else(|error| !is_gone(&error), |stat| !stat.is_dead())
}

fn stat(pid: i32) -> io::Result<Stat> {
    let line = fs::read(format!("/proc/{pid}/stat"))?;
    Stat::parse(&line).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_read_in_ticks() {
        assert_eq!(ticks_since_boot("3506.05 6771.62\n"), Some(350_605));
        assert_eq!(ticks_since_boot("0.00 0.00\n"), Some(0));
        assert_eq!(ticks_since_boot(""), None);
    }

    #[test]
    fn our_own_age_is_short() {
        let us = ProcessId::read(std::process::id().cast_signed()).unwrap();
        assert!(us.age().unwrap() < Duration::from_secs(3600));
        let text = serde_json::to_string(&us).unwrap();
        assert!(
            text.contains("\"startTime\":") && text.contains("\"bootId\":"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<ProcessId>(&text).unwrap(), us);
    }
}
