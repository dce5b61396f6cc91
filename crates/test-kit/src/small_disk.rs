//! A file system that is soon full.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A tmpfs in the mount namespace of a test (`super::in_private_network`). Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// One of `kib` KiB.
    pub fn new(kib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        // Without this the mount would be seen by the host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let size = format!("size={kib}k,mode=0700");
        let (tmpfs, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(tmpfs, dir.path(), tmpfs, flags, Some(size.as_str())).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Mounts it on a directory as well, until [`unmount`].
    pub fn mount_on(&self, place: &Path) {
        let none: Option<&str> = None;
        mount(Some(self.path()), place, none, MsFlags::MS_BIND, none).unwrap();
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        fill(self.path());
    }

    /// Gives it back.
    pub fn relieve(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path());
    }
}

/// Takes all the space that is left on a small disk, which may be another process's.
pub fn fill(place: &Path) {
    let ballast = place.join("ballast");
    let mut ballast = OpenOptions::new()
        .create(true)
        .append(true)
        .open(ballast)
        .unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
}

/// Undoes a mount.
pub fn unmount(place: &Path) {
    umount2(place, MntFlags::MNT_DETACH).unwrap();
}
