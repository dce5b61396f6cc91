//! On which file systems files are, for whoever finds one of them missing later: it was removed, or its file system
//! is not mounted now. An empty mount point looks like a directory whose files are gone. Everything here blocks.
//!
//! Neighbours: `backup` and `vm` note it with what is to be done to disks after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstatvfs, open};
use serde::{Deserialize, Serialize};

use crate::types::HostPath;

/// The file systems of the directories that files are in, by the files' paths. Empty in records of releases that
/// did not note them: whatever is missing then is waited for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileSystems(BTreeMap<HostPath, Mounted>);

/// A file system and where it is mounted, as they are again after a restart of the host. The number of its device
/// is not where it has none (NFS, btrfs, ZFS, overlay).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mounted {
    at: String,
    /// Its type, its source, and which of its directories is mounted.
    what: String,
    /// By itself, whatever its disk is called; 0 where it has none.
    id: u64,
}

impl FileSystems {
    /// Of these files, whether or not they are there yet.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a HostPath>) -> io::Result<Self> {
        let found = files.into_iter().map(|file| {
            let mounted = mounted_for(file.as_path())?;
            Ok((file.clone(), mounted))
        });
        found.collect::<io::Result<_>>().map(Self)
    }

    /// Whether the file is there. Only one that was removed is not: what may be there another time is an error.
    pub fn have(&self, file: &HostPath) -> io::Result<bool> {
        if file.as_path().try_exists()? {
            return Ok(true);
        }
        let now = nearest(file.as_path())?;
        let noted = self.0.get(file);
        if noted.is_some_and(|noted| noted.is_again(&now)) {
            return Ok(false);
        }
        let why = "it is not there, and may be on a file system that is not mounted now";
        Err(io::Error::other(why))
    }
}

impl Mounted {
    /// What the directory is on. It is opened as a name alone: its own permissions do not matter.
    fn of(directory: &Path) -> io::Result<Self> {
        let directory = open(directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let number = directory.as_raw_fd();
        let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{number}"))?;
        // The mounts that this thread sees, which may have some of its own.
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let found = mount_of(&info).and_then(|mount| described(&mounts, mount));
        let (at, what) = found.ok_or_else(|| io::Error::other("its mount is not listed"))?;
        let id = fstatvfs(&directory)?.f_fsid;
        Ok(Self { at, what, id })
    }

    /// Whether this file system is there now; its disk may be called otherwise.
    fn is_again(&self, now: &Self) -> bool {
        let same = self.what == now.what || (self.id != 0 && self.id == now.id);
        same && self.at == now.at
    }
}

/// The number of the mount that an open file is on, by its `/proc/thread-self/fdinfo`.
fn mount_of(info: &str) -> Option<&str> {
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    Some(mount.trim())
}

/// Where the mount is, and what it shows, by `/proc/thread-self/mountinfo`:
/// `36 35 98:0 <root> <mount point> <options> [optional…] - <type> <source> <super options>`.
fn described(mounts: &str, mount: &str) -> Option<(String, String)> {
    let of_it = |line: &&str| line.split(' ').next() == Some(mount);
    let (place, what) = mounts.lines().find(of_it)?.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut what = what.split(' ');
    let (kind, source) = (what.next()?, what.next()?);
    Some((point.to_owned(), format!("{kind} {source} {root}")))
}

fn mounted_for(file: &Path) -> io::Result<Mounted> {
    // What a symbolic link leads to may be elsewhere.
    let file = match fs::canonicalize(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
        found => found?,
    };
    Mounted::of(file.parent().unwrap_or(Path::new("/")))
}

/// Of the nearest directory above that is there.
fn nearest(file: &Path) -> io::Result<Mounted> {
    for above in file.ancestors().skip(1) {
        match Mounted::of(above) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
    }
    Mounted::of(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_told_from_what_is_elsewhere_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| HostPath::parse(dir.path().join(name).to_str().unwrap()).unwrap();
        let (disk, other) = (path("d/disk"), path("d/other"));
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(disk.as_path(), []).unwrap();
        let noted = FileSystems::of([&disk]).unwrap();
        assert!(noted.have(&disk).unwrap());
        fs::remove_file(disk.as_path()).unwrap();
        assert!(!noted.have(&disk).unwrap());
        assert!(noted.have(&other).is_err(), "of that nothing is known");
        fs::remove_dir(dir.path().join("d")).unwrap();
        assert!(!noted.have(&disk).unwrap());

        let mut elsewhere = noted;
        for mounted in elsewhere.0.values_mut() {
            mounted.at.push_str("/d");
        }
        let text = serde_json::to_string(&elsewhere).unwrap();
        let elsewhere: FileSystems = serde_json::from_str(&text).unwrap();
        assert!(elsewhere.have(&disk).is_err());
        let unknown = FileSystems::default();
        assert!(unknown.have(&disk).is_err(), "nobody knows where it was");
    }

    #[test]
    fn a_file_system_is_the_same_after_a_restart_of_the_host() {
        let mounted = |(at, what, id): (&str, &str, u64)| Mounted {
            at: at.to_owned(),
            what: what.to_owned(),
            id,
        };
        let nfs = ("/vms", "nfs4 server:/vms /", 0);
        let ext4 = ("/vms", "ext4 /dev/sda1 /", 7);
        for (noted, now, same) in [
            (nfs, nfs, true),
            (nfs, ("/", "overlay overlay /", 0), false),
            (nfs, ("/vms", "nfs4 other:/vms /", 0), false),
            (ext4, ("/vms", "ext4 /dev/sdb1 /", 7), true),
            (ext4, ("/", "ext4 /dev/sda1 /", 7), false),
            (ext4, ("/vms", "ext4 /dev/sdb1 /", 8), false),
        ] {
            let (noted, now) = (mounted(noted), mounted(now));
            assert_eq!(noted.is_again(&now), same, "{noted:?}, {now:?}");
        }
    }

    #[test]
    fn a_mount_is_found_by_its_number() {
        let info = "pos:\t0\nflags:\t012000000\nmnt_id:\t36\nino:\t2\n";
        let mounts = "\
            3 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            36 3 0:47 /@vms /vms rw,noatime master:1 shared:2 - btrfs /dev/sdb rw,subvol=/@vms\n";
        let found = described(mounts, mount_of(info).unwrap());
        let (at, what) = found.unwrap();
        assert_eq!(
            (at.as_str(), what.as_str()),
            ("/vms", "btrfs /dev/sdb /@vms")
        );
        assert_eq!(described(mounts, "6"), None);
    }

    #[test]
    fn a_link_is_where_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let link = HostPath::parse(dir.path().join("link").to_str().unwrap()).unwrap();
        std::os::unix::fs::symlink("/proc/self/status", link.as_path()).unwrap();
        let noted = FileSystems::of([&link]).unwrap();
        assert!(noted.have(&link).unwrap());
        fs::remove_file(link.as_path()).unwrap();
        assert!(noted.have(&link).is_err());
    }
}
