//! A file system whose disk begins to give errors (`EIO`).

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, PosixFadviseAdvice, SealFlag, fcntl, posix_fadvise};
use nix::mount::{MsFlags, mount};
use rustix::fs::{MemfdFlags, memfd_create};
use tempfile::TempDir;

use super::small_disk::unmount;

/// More than nothing but what the file system itself needs is on.
const WELL: u64 = 64 << 10;

/// An ext2 of 64 MiB in memory, in the mount namespace of a test (`super::in_private_network`). Dropping it unmounts
/// it.
#[derive(Debug)]
pub struct AilingDisk {
    memory: File,
    place: TempDir,
}

impl AilingDisk {
    /// One that is well as yet.
    pub fn new() -> Self {
        let none: Option<&str> = None;
        // Without this the mount would be seen by the host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let memory = memfd_create("disk", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC);
        let memory = File::from(memory.unwrap());
        memory.set_len(64 << 20).unwrap();
        let device = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let options = ["-q", "-F", "-b", "4096", "-N", "64", "-O", "^resize_inode"];
        run(Command::new("mkfs.ext2").args(options).arg(&device));
        let place = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        run(mount
            .args(["-o", "loop,noatime", &device])
            .arg(place.path()));
        Self { memory, place }
    }

    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Reads of this file from `from` on go to the disk.
    pub fn forget(&self, name: &str, from: u64) {
        let file = File::open(self.path().join(name)).unwrap();
        file.sync_all().unwrap();
        let from = i64::try_from(from).unwrap();
        posix_fadvise(&file, from, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }

    /// From now on it gives an error wherever a file's content is read or written.
    pub fn fail(&self) {
        self.memory.set_len(WELL).unwrap();
        // So that no write makes it longer again.
        fcntl(&self.memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    }
}

impl Drop for AilingDisk {
    fn drop(&mut self) {
        unmount(self.path());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
