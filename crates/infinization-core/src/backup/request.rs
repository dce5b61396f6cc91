//! What callers ask for, checked.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::BackupError;
use super::kinds::{BackupType, Compression};
use super::names::BackupId;
use crate::config::{DiskKeys, DiskLocation, disk_keys};
use crate::host::qemu_img::ImageFormat;
use crate::types::{HostPath, VmId};

/// More disks than this is a mistake.
const MOST_DISKS: usize = 64;

/// A disk to back up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceDisk {
    /// Where it is.
    pub path: HostPath,
    /// What it is; never guessed, since a guest can write any header into its disk.
    pub format: ImageFormat,
}

/// A backup to make.
#[derive(Debug, Clone)]
pub struct CreateBackup {
    /// Whose.
    pub vm_id: VmId,
    /// Its disks; at least one.
    pub disks: Vec<SourceDisk>,
    /// The directory in which the backup's own folder is made. It is made too if need be.
    pub destination: HostPath,
    /// What to make.
    pub kind: BackupType,
    /// How the files are compressed.
    pub compression: Compression,
    /// For people.
    pub description: Option<String>,
    /// What an incremental one builds on.
    pub parent: Option<BackupId>,
    /// For programs.
    pub tags: Vec<String>,
    /// What opens encrypted disks, by their paths. The machine's owner is asked for others.
    pub keys: Keys,
}

/// Keys of encrypted disks, by paths.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Those that are given.
    pub given: DiskKeys,
    /// As [`Encryption::iter_time`], for what is made.
    pub iter_time: Option<Duration>,
}

/// A backup to restore.
#[derive(Debug, Clone)]
pub struct RestoreBackup {
    /// Which.
    pub id: BackupId,
    /// Whose.
    pub vm_id: VmId,
    /// Where its disks go, in its order.
    pub targets: Vec<HostPath>,
    /// Replaces what is there.
    pub overwrite: bool,
    /// Lets a SNAPSHOT be restored by reverting the disk it is in.
    pub in_place_revert: bool,
    /// What opens the backup of encrypted disks, by the paths they go to; they are encrypted with it again.
    pub keys: Keys,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GivenCreate {
    vm_id: String,
    disk_paths: Vec<String>,
    disk_formats: Option<Vec<ImageFormat>>,
    destination_dir: String,
    #[serde(rename = "type")]
    kind: BackupType,
    compression: Option<Compression>,
    description: Option<String>,
    parent_backup_id: Option<String>,
    tags: Option<Vec<String>>,
    /// Read by hand: serde's own words would quote it.
    disk_keys: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GivenRestore {
    backup_id: String,
    vm_id: String,
    disk_paths: Vec<String>,
    overwrite_existing: Option<bool>,
    allow_in_place_snapshot_revert: Option<bool>,
    disk_keys: Option<Value>,
}

impl TryFrom<GivenCreate> for CreateBackup {
    type Error = BackupError;

    fn try_from(given: GivenCreate) -> Result<Self, BackupError> {
        let request = Self {
            vm_id: vm_id(given.vm_id)?,
            disks: disks(given.disk_paths, given.disk_formats)?,
            destination: destination(given.destination_dir)?,
            kind: given.kind,
            compression: given.compression.unwrap_or_default(),
            description: given.description,
            parent: given
                .parent_backup_id
                .map(|id| backup_id("parentBackupId", id))
                .transpose()?,
            tags: given.tags.unwrap_or_default(),
            keys: keys(given.disk_keys)?,
        };
        request.check()?;
        refuse_strangers(&request.keys, request.disks.iter().map(|disk| &disk.path))?;
        Ok(request)
    }
}

impl CreateBackup {
    /// Reads the public `BackupConfig`.
    pub fn read(given: Value) -> Result<Self, BackupError> {
        shaped::<GivenCreate>("config", given)?.try_into()
    }

    fn check(&self) -> Result<(), BackupError> {
        let refuse = |what, why: &str| Err(BackupError::config(what, why));
        match (self.kind, &self.parent, self.compression) {
            (BackupType::Incremental, None, _) => {
                refuse("parentBackupId", "must be given for an INCREMENTAL backup")
            }
            (BackupType::Full | BackupType::Snapshot, Some(_), _) => {
                refuse("parentBackupId", "is only for an INCREMENTAL backup")
            }
            (BackupType::Incremental, _, Compression::Gzip) => refuse(
                "compression",
                "must not be GZIP for an INCREMENTAL backup: it could not be read in place",
            ),
            (BackupType::Snapshot, ..)
                if self.disks.iter().any(|d| d.format != ImageFormat::Qcow2) =>
            {
                refuse("diskFormats", "must be qcow2 for a SNAPSHOT backup")
            }
            _ => Ok(()),
        }
    }
}

impl RestoreBackup {
    /// Reads the public `BackupRestoreOptions`.
    pub fn read(given: Value) -> Result<Self, BackupError> {
        shaped::<GivenRestore>("options", given)?.try_into()
    }
}

fn shaped<T: DeserializeOwned>(what: &'static str, given: Value) -> Result<T, BackupError> {
    serde_json::from_value(given)
        .map_err(|why| BackupError::config(what, format!("is refused: {why}")))
}

impl TryFrom<GivenRestore> for RestoreBackup {
    type Error = BackupError;

    fn try_from(given: GivenRestore) -> Result<Self, BackupError> {
        let request = Self {
            id: backup_id("backupId", given.backup_id)?,
            vm_id: vm_id(given.vm_id)?,
            targets: paths(given.disk_paths)?,
            overwrite: given.overwrite_existing.unwrap_or_default(),
            in_place_revert: given.allow_in_place_snapshot_revert.unwrap_or_default(),
            keys: keys(given.disk_keys)?,
        };
        refuse_strangers(&request.keys, &request.targets)?;
        Ok(request)
    }
}

fn keys(given: Option<Value>) -> Result<Keys, BackupError> {
    let given = given.filter(|given| !given.is_null());
    let read = given.map_or_else(|| Ok(DiskKeys::new()), |given| disk_keys(&given));
    Ok(Keys {
        given: read.map_err(|why| BackupError::config("diskKeys", why.to_string()))?,
        iter_time: None,
    })
}

/// A key for what is not there is a slip: the disk it was meant for would have none.
fn refuse_strangers<'a>(
    keys: &Keys,
    paths: impl IntoIterator<Item = &'a HostPath>,
) -> Result<(), BackupError> {
    let paths: HashSet<&HostPath> = paths.into_iter().collect();
    let mut given = keys.given.keys();
    match given.find(|path| !paths.contains(path)) {
        None => Ok(()),
        Some(path) => {
            let why = format!("has {path}, which is none of diskPaths");
            Err(BackupError::config("diskKeys", why))
        }
    }
}

fn vm_id(text: String) -> Result<VmId, BackupError> {
    VmId::parse(text).map_err(|why| BackupError::config("vmId", why.to_string()))
}

fn backup_id(what: &'static str, text: String) -> Result<BackupId, BackupError> {
    BackupId::parse(text).map_err(|why| BackupError::config(what, why.to_string()))
}

fn destination(text: String) -> Result<HostPath, BackupError> {
    HostPath::parse(text.clone()).map_err(|why| BackupError::Destination {
        path: text,
        why: why.to_string(),
    })
}

fn disks(
    given: Vec<String>,
    formats: Option<Vec<ImageFormat>>,
) -> Result<Vec<SourceDisk>, BackupError> {
    let paths = paths(given)?;
    let formats = formats.unwrap_or_else(|| vec![ImageFormat::Qcow2; paths.len()]);
    if formats.len() != paths.len() {
        let why = "must have one format for each of diskPaths";
        return Err(BackupError::config("diskFormats", why));
    }
    let known = |format: &ImageFormat| matches!(format, ImageFormat::Qcow2 | ImageFormat::Raw);
    if !formats.iter().all(known) {
        return Err(BackupError::config("diskFormats", "must be qcow2 or raw"));
    }
    let disks = paths.into_iter().zip(formats);
    Ok(disks
        .map(|(path, format)| SourceDisk { path, format })
        .collect())
}

fn paths(given: Vec<String>) -> Result<Vec<HostPath>, BackupError> {
    if given.is_empty() || given.len() > MOST_DISKS {
        let why = format!("must have 1 to {MOST_DISKS} paths");
        return Err(BackupError::config("diskPaths", why));
    }
    let mut seen = HashSet::new();
    given
        .into_iter()
        .map(|text| {
            if DiskLocation::is_network_text(&text) {
                let why =
                    format!("names {text}, a disk on the network, which is not backed up here");
                return Err(BackupError::config("diskPaths", why));
            }
            let path = HostPath::parse(text)
                .map_err(|why| BackupError::config("diskPaths", why.to_string()))?;
            if !seen.insert(path.clone()) {
                return Err(BackupError::config("diskPaths", "names a disk twice"));
            }
            Ok(path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn create(change: impl FnOnce(&mut Value)) -> Result<CreateBackup, String> {
        let mut given = json!({
            "vmId": "vm-1", "diskPaths": ["/d/a.qcow2"], "destinationDir": "/b/vm-1", "type": "FULL",
        });
        change(&mut given);
        CreateBackup::read(given).map_err(|error| error.to_string())
    }

    #[test]
    fn takes_what_the_contract_has() {
        let full = create(|_| ()).unwrap();
        assert_eq!(full.disks[0].format, ImageFormat::Qcow2);
        assert_eq!(full.compression, Compression::None);
        let parent = BackupId::random();
        let incremental = create(|given| {
            given["type"] = json!("INCREMENTAL");
            given["parentBackupId"] = json!(parent);
            given["compression"] = json!("QCOW2");
            given["tags"] = json!(["scheduled"]);
            given["description"] = Value::Null;
        });
        assert_eq!(incremental.unwrap().parent, Some(parent));
    }

    #[test]
    fn k4_refuses_what_could_leave_a_directory_and_what_makes_no_sense() {
        let id = BackupId::random();
        let table: [(&str, Value, &str); 14] = [
            ("vmId", json!("../x"), "vmId must"),
            ("diskPaths", json!([]), "1 to 64"),
            ("diskPaths", json!(["/a", "/a"]), "twice"),
            ("diskPaths", json!(["nbd:localhost:1"]), "absolute"),
            ("diskPaths", json!(["rbd:vms/a"]), "on the network"),
            ("diskFormats", json!(["raw", "raw"]), "one format"),
            ("diskFormats", json!(["vmdk"]), "qcow2 or raw"),
            ("destinationDir", json!("backups"), "cannot hold backups"),
            ("destinationDir", json!("/b/../etc"), "cannot hold backups"),
            ("type", json!("full"), "unknown variant"),
            ("type", json!("INCREMENTAL"), "must be given"),
            ("parentBackupId", json!(id), "only for"),
            ("diskKeys", json!("hunter2"), "must be an object"),
            ("diskKeys", json!({ "/d/b.qcow2": "hunter2" }), "none of"),
        ];
        for (key, value, why) in table {
            let refused = create(|given| given[key] = value.clone()).unwrap_err();
            assert!(refused.contains(why), "{key} = {value}: {refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
