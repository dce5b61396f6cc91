//! Whether somebody wrote to a disk since it was looked at last, as its files' inodes tell it.
//!
//! With each write a file system sets the file's time of change (ctime in inode(7)), which nobody else can set. Some
//! writes it does not show, and where one could be among them nothing is told: one within the same tick of the kernel's
//! clock as the one before; one by another host, which may be seen later; one that a power cut kept the data of but not
//! the time, so another boot is another story; and one to a page that is mapped and was written to before. Pages
//! are flushed first, so that the next such write is seen; where there is nothing to flush to (tmpfs), it never is.
//!
//! What is left: a write(2) that goes on for longer than [`SETTLED`], of a process that heeds no image locks; and a file
//! system that loses its device within seconds of the first write since (with `lazytime`, within a day), and is
//! mounted again in the same boot.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use rustix::fs::fstatfs;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::ImageFormat;
use super::inspect::{inspect_closed_now, open};
use crate::host::process::boot_id;
use crate::types::HostPath;

/// Of the kernel's clock, at most (`CONFIG_HZ=100`).
const TICK: Duration = Duration::from_millis(10);
const SETTLED: Duration = Duration::from_millis(100);

/// statfs(2) does not name it.
const ZFS_SUPER_MAGIC: libc::c_long = 0x2fc1_2fc1;

/// File systems that nobody but this host's kernel writes to.
const LOCAL: [libc::c_long; 6] = [
    libc::EXT4_SUPER_MAGIC,
    libc::XFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    libc::F2FS_SUPER_MAGIC,
    libc::OVERLAYFS_SUPER_MAGIC,
    ZFS_SUPER_MAGIC,
];

/// Two that are equal are of a disk that nobody wrote to in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskState {
    boot_id: String,
    /// The image, and what lies below it, nearest first.
    files: Vec<FileState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileState {
    path: HostPath,
    device: u64,
    inode: u64,
    /// In bytes.
    length: u64,
    /// Seconds and nanoseconds since the epoch.
    changed: (i64, i64),
}

impl DiskState {
    /// Of a disk that nobody writes to now; nothing where a later write might not show. Blocks, and for up to
    /// [`SETTLED`] where the last write is not as long ago: of a machine that has stopped this moment, say.
    pub fn of(disk: &HostPath, format: ImageFormat) -> Option<Self> {
        let found = inspect_closed_now(disk, format, &[]).ok()?;
        let files = std::iter::once(disk).chain(&found.backing_chain);
        Some(Self {
            boot_id: boot_id().ok()?,
            files: files.map(FileState::of).collect::<Option<_>>()?,
        })
    }
}

impl FileState {
    fn of(path: &HostPath) -> Option<Self> {
        let (file, length) = open(path).ok()?;
        if !LOCAL.contains(&fstatfs(&file).ok()?.f_type) || !file.metadata().ok()?.is_file() {
            return None;
        }
        file.sync_all().ok()?;
        let found = Self::read(path, &file, length)?;
        let unsettled = found.settles_in(now())?;
        if unsettled.is_zero() {
            return Some(found);
        }
        // No event tells that a clock has ticked.
        thread::sleep(unsettled + TICK);
        let settled = Self::read(path, &file, length)?;
        settled.settles_in(now())?.is_zero().then_some(settled)
    }

    fn read(path: &HostPath, file: &File, length: u64) -> Option<Self> {
        let found = file.metadata().ok()?;
        Some(Self {
            path: path.clone(),
            device: found.dev(),
            inode: found.ino(),
            length,
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// How long until the next write will have another time; nothing where it may never have.
    fn settles_in(&self, now: Duration) -> Option<Duration> {
        let (seconds, nanoseconds) = self.changed;
        let changed = u64::try_from(seconds).ok();
        let changed = changed.zip(u32::try_from(nanoseconds).ok());
        // Where inodes have no room for it, the time is one of whole seconds.
        let Some((seconds, nanoseconds @ 1..)) = changed else {
            return None;
        };
        let since = now.checked_sub(Duration::new(seconds, nanoseconds))?;
        Some(SETTLED.saturating_sub(since))
    }
}

/// Since the epoch, by the clock that inodes get their times from: at least as late as any of them.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::RealtimeCoarse)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_the_next_write_may_have_too_tells_nothing() {
        let at = |seconds, nanoseconds| FileState {
            path: HostPath::parse("/d/a.qcow2").unwrap(),
            device: 1,
            inode: 2,
            length: 3,
            changed: (seconds, nanoseconds),
        };
        let now = Duration::new(100, 500_000_000);
        let some = |left| Some(Duration::from_millis(left));
        for (changed, left) in [
            ((100, 399_000_000), some(0)),
            ((99, 1), some(0)),
            ((100, 401_000_000), some(1)),
            ((100, 500_000_000), some(100)),
            // The clock was set back since.
            ((101, 1), None),
            // Whole seconds.
            ((99, 0), None),
            ((-1, 1), None),
        ] {
            let found = at(changed.0, changed.1).settles_in(now);
            assert_eq!(found, left, "{changed:?}");
        }
    }
}
