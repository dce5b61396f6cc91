//! What files, snapshots, bitmaps and block nodes of a backup are called. Nothing else names them.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kinds::Compression;
use crate::types::{InvalidValue, checked_string};

/// The manifest's name, in every backup's folder.
pub(super) const MANIFEST: &str = "backup.json";

/// A backup's id: a UUID as RFC 9562 prints it, in lower case. Any other spelling is refused, so that
/// one id is one path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

checked_string!(BackupId, check_id);

fn check_id(text: &str) -> Result<(), InvalidValue> {
    let canonical = Uuid::try_parse(text).is_ok_and(|id| id.hyphenated().to_string() == text);
    if canonical {
        Ok(())
    } else {
        Err(InvalidValue::new("must be a UUID in lower case"))
    }
}

impl BackupId {
    /// A new one.
    pub fn random() -> Self {
        Self(Uuid::new_v4().hyphenated().to_string())
    }

    /// The internal snapshot of a SNAPSHOT backup.
    pub(super) fn snapshot(&self) -> String {
        format!("backup-{}", self.0)
    }

    /// The dirty bitmap that records what changes on disk `n` after this backup. It lies in the disk and
    /// goes where that goes, so it says of which disk of the backup it tells.
    pub(super) fn bitmap(&self, n: usize) -> String {
        format!("{BITMAP_PREFIX}{}-{n}", self.0)
    }

    /// Whether a dirty bitmap is one of this backup.
    pub(super) fn has_bitmap(&self, name: &str) -> bool {
        name.strip_prefix(BITMAP_PREFIX)
            .and_then(|rest| rest.strip_prefix(&self.0))
            .is_some_and(|rest| rest.starts_with('-'))
    }

    /// The block node (and job) that writes disk `n` of this backup; QEMU takes at most 31 bytes.
    pub(super) fn node(&self, n: usize) -> String {
        let unique: String = self.0.chars().filter(|c| *c != '-').take(16).collect();
        format!("{NODE_PREFIX}{unique}-{n}")
    }

    /// Where another directory than the usual one is noted.
    pub(super) fn place(&self) -> String {
        format!("{}.place", self.0)
    }
}

/// How our bitmaps' names begin, and those of our block nodes and jobs.
pub(super) use crate::qmp::{BACKUP_PREFIX as NODE_PREFIX, BITMAP_PREFIX};

/// The file of disk `n` while QEMU's tools work on it.
pub(super) fn image_file(n: usize) -> String {
    format!("disk-{n}.qcow2")
}

/// The file of disk `n` when it is done.
pub(super) fn disk_file(n: usize, compression: Compression) -> String {
    match compression {
        Compression::Gzip => format!("{}.gz", image_file(n)),
        Compression::None | Compression::Qcow2 | Compression::Zstd => image_file(n),
    }
}

/// Whether a file in a backup's folder is data of ours.
pub(super) fn is_data(name: &str) -> bool {
    name.strip_prefix("disk-")
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k4_an_id_has_one_spelling_and_no_way_out() {
        let id = BackupId::random();
        assert_eq!(BackupId::parse(id.as_str()).unwrap(), id);
        for bad in [
            "",
            "..",
            "../x",
            "3F2B8C1E-7A4D-4E55-9B0A-1C2D3E4F5A6B",
            "3f2b8c1e7a4d4e559b0a1c2d3e4f5a6b",
            "{3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b}",
            "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b/",
            "urn:uuid:3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b",
        ] {
            assert!(BackupId::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn qemu_takes_the_names() {
        let id = BackupId::random();
        assert!(id.node(999).len() <= 31);
        assert!(id.snapshot().len() <= 64);
    }

    #[test]
    fn a_bitmap_tells_its_backup_and_its_disk() {
        let (id, other) = (BackupId::random(), BackupId::random());
        assert!(id.has_bitmap(&id.bitmap(0)) && id.has_bitmap(&id.bitmap(12)));
        assert_ne!(id.bitmap(0), id.bitmap(1));
        assert!(!other.has_bitmap(&id.bitmap(0)));
        assert!(!id.has_bitmap("theirs") && !id.has_bitmap(id.as_str()));
    }

    #[test]
    fn only_disks_are_data() {
        for (name, data) in [
            ("disk-0.qcow2", true),
            ("disk-12.qcow2.gz", true),
            ("disk-0.full.qcow2", true),
            ("backup.json", false),
            ("disk-.qcow2", false),
            ("disk-a.qcow2", false),
            ("notes.txt", false),
        ] {
            assert_eq!(is_data(name), data, "{name}");
        }
    }
}
