//! On which file systems files are, for whoever finds one of them missing later: it was removed, or its file system
//! is not mounted now. An empty mount point looks like a directory whose files are gone. Everything here blocks.
//!
//! Neighbours: `backup` and `vm` note it with what is to be done to disks after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::types::HostPath;

/// The file systems of the directories that files are in, by the files' paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileSystems(BTreeMap<HostPath, u64>);

impl FileSystems {
    /// Of these files, whether or not they are there yet.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a HostPath>) -> io::Result<Self> {
        let found = files.into_iter().map(|file| {
            let device = device_of(file.as_path())?;
            Ok((file.clone(), device))
        });
        found.collect::<io::Result<_>>().map(Self)
    }

    /// Whether the file is there. Only one that was removed is not: what may be there another time is an error.
    pub fn have(&self, file: &HostPath) -> io::Result<bool> {
        if file.as_path().try_exists()? {
            return Ok(true);
        }
        let noted = self.0.get(file).copied();
        if noted.is_some() && noted == nearest_device(file.as_path())? {
            return Ok(false);
        }
        let why = "it is not there, and may be on a file system that is not mounted now";
        Err(io::Error::other(why))
    }
}

fn device_of(file: &Path) -> io::Result<u64> {
    // What a symbolic link leads to may be elsewhere.
    let file = match fs::canonicalize(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
        found => found?,
    };
    let above = file.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(above)?.dev())
}

/// Of the nearest directory above that is there.
fn nearest_device(file: &Path) -> io::Result<Option<u64>> {
    for above in file.ancestors().skip(1) {
        match fs::metadata(above) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return Ok(Some(found?.dev())),
        }
    }
    Ok(None)
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

        let elsewhere = noted.0.into_iter().map(|(file, device)| (file, !device));
        let elsewhere = FileSystems(elsewhere.collect());
        let text = serde_json::to_string(&elsewhere).unwrap();
        let elsewhere: FileSystems = serde_json::from_str(&text).unwrap();
        assert!(elsewhere.have(&disk).is_err());
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
