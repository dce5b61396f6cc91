//! `backup.json`: everything there is to know about a backup, without a path that could move.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::BackupError;
use super::kinds::{BackupStatus, BackupType, Compression};
use super::names::{BackupId, disk_file};
use super::request::{CreateBackup, SourceDisk};
use crate::host::qemu_img::{DiskState, ImageFormat};
use crate::types::{HostPath, VmId};

/// The version this library writes, and the only one it reads.
const VERSION: u32 = 1;

/// A backup as its manifest describes it. The names are the public `BackupMetadata`'s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the contract's names say it")]
pub struct Manifest {
    /// Of this format.
    pub version: u32,
    pub id: BackupId,
    pub vm_id: VmId,
    #[serde(rename = "type")]
    pub kind: BackupType,
    pub status: BackupStatus,
    /// Counts the machine's backups, from 1: a clock may be set back, and this is not.
    #[serde(default)]
    pub sequence: u64,
    /// ISO 8601, UTC: the moment whose state a restore gives back, of a stopped machine.
    pub created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    pub disks: Vec<DiskRecord>,
    /// What all files take, in bytes.
    pub total_size: u64,
    /// What the disks have as the guest sees them, in bytes.
    pub total_original_size: u64,
    pub compression: Compression,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_backup_id: Option<BackupId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_at_backup: Option<bool>,
    /// The machine ran and its file systems were not frozen: a restore is like after a power cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crash_consistent: Option<bool>,
}

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskRecord {
    /// Where the disk was.
    pub source_path: HostPath,
    /// What it was, and is again when it is restored.
    pub source_format: ImageFormat,
    /// The file beside the manifest; of a SNAPSHOT the snapshot's name.
    pub backup_path: String,
    /// The disk's size as the guest sees it, in bytes.
    pub original_size: u64,
    /// The file's length in bytes; 0 for a SNAPSHOT.
    pub backup_size: u64,
    /// The file's length before gzip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<u64>,
    /// The file's format (before gzip): qcow2.
    pub format: ImageFormat,
    /// The parent's file, relative to this one's folder if they lie side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// LUKS: the key that the disk had opens it. It is never compressed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Of the file, in hexadecimal digits: what older backups have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Of the file, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// How the disk of a stopped machine was found, if that tells whether it was written to since. Not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_state: Option<DiskState>,
}

/// What tells a file from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum<'a> {
    Blake3(&'a str),
    Sha256(&'a str),
}

impl DiskRecord {
    /// Whether what was copied is what the disk, which is in this state now, still holds.
    pub(super) fn is_of(&self, disk: &SourceDisk, size: u64, state: Option<&DiskState>) -> bool {
        let alike = self.source_format == disk.format && self.original_size == size;
        alike && state.is_some() && self.source_state.as_ref() == state
    }

    pub(super) fn checksum(&self) -> Option<Checksum<'_>> {
        let blake3 = self.blake3.as_deref().map(Checksum::Blake3);
        blake3.or_else(|| self.sha256.as_deref().map(Checksum::Sha256))
    }
}

impl Manifest {
    /// What is known before anything was done.
    pub(super) fn begun(id: BackupId, request: &CreateBackup, sequence: u64, now: String) -> Self {
        Self {
            version: VERSION,
            id,
            vm_id: request.vm_id.clone(),
            kind: request.kind,
            status: BackupStatus::InProgress,
            sequence,
            created_at: now,
            completed_at: None,
            duration_ms: None,
            disks: Vec::new(),
            total_size: 0,
            total_original_size: 0,
            compression: request.compression,
            description: request.description.clone(),
            tags: request.tags.clone(),
            parent_backup_id: request.parent.clone(),
            error_message: None,
            running_at_backup: None,
            crash_consistent: None,
        }
    }

    /// Takes the disks, and their sums.
    pub(super) fn with_disks(&mut self, disks: Vec<DiskRecord>) {
        self.total_size = disks.iter().map(|disk| disk.backup_size).sum();
        self.total_original_size = disks.iter().map(|disk| disk.original_size).sum();
        self.disks = disks;
    }

    /// Reads the manifest of `id`; what it says is believed from here on.
    pub(super) fn read(id: &BackupId, bytes: &[u8]) -> Result<Self, BackupError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| BackupError::corrupt(id, format!("its manifest is torn: {error}")))?;
        if value["version"] != json!(VERSION) {
            let why = format!(
                "its manifest has version {}, not {VERSION}",
                value["version"]
            );
            return Err(BackupError::corrupt(id, why));
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| {
            BackupError::corrupt(id, format!("its manifest makes no sense: {error}"))
        })?;
        manifest.check(id)?;
        Ok(manifest)
    }

    fn check(&self, id: &BackupId) -> Result<(), BackupError> {
        let refuse = |why: &str| Err(BackupError::corrupt(id, why));
        if self.id != *id {
            return refuse("its manifest is another backup's");
        }
        if (self.kind == BackupType::Incremental) != self.parent_backup_id.is_some() {
            return refuse("its manifest has a parent or should have one");
        }
        if !self.is_complete() {
            return Ok(());
        }
        if self.disks.is_empty() {
            return refuse("its manifest names no disk");
        }
        for (n, disk) in self.disks.iter().enumerate() {
            if disk.backup_path != self.expected_name(n) {
                return refuse("its manifest names a file that is none of its own");
            }
            if self.kind != BackupType::Snapshot && disk.checksum().is_none() {
                return refuse("its manifest lacks a checksum");
            }
        }
        Ok(())
    }

    fn expected_name(&self, n: usize) -> String {
        match self.kind {
            BackupType::Snapshot => self.id.snapshot(),
            BackupType::Full | BackupType::Incremental => disk_file(n, self.compression_of(n)),
        }
    }

    /// How the file of disk `n` is compressed.
    pub(super) fn compression_of(&self, n: usize) -> Compression {
        match self.disks.get(n) {
            Some(disk) if disk.encrypted => Compression::None,
            _ => self.compression,
        }
    }

    /// Reads the public `BackupMetadata` back, for whoever decides on backups that JavaScript holds.
    pub fn of_metadata(mut shown: Value) -> Result<Self, BackupError> {
        if let Some(facts) = shown.as_object_mut() {
            facts.insert("version".to_owned(), json!(VERSION));
        }
        serde_json::from_value(shown)
            .map_err(|why| BackupError::config("metadata", format!("is refused: {why}")))
    }

    /// Grows from one backup of a machine to the next.
    pub(super) fn order(&self) -> (u64, &str) {
        (self.sequence, &self.created_at)
    }

    /// Whether it can be restored.
    pub fn is_complete(&self) -> bool {
        self.status == BackupStatus::Completed
    }

    /// The public `BackupMetadata`: paths are absolute, below `folder`.
    pub(super) fn shown(&self, folder: &HostPath) -> Value {
        let mut facts = json!(self);
        if let Some(facts) = facts.as_object_mut() {
            facts.remove("version");
            if let Some(disks) = facts.get_mut("disks").and_then(Value::as_array_mut) {
                for disk in disks.iter_mut().filter_map(Value::as_object_mut) {
                    disk.remove("sourceState");
                    self.show_paths(disk, folder);
                }
            }
        }
        facts
    }

    fn show_paths(&self, disk: &mut Map<String, Value>, folder: &HostPath) {
        if self.kind == BackupType::Snapshot {
            return;
        }
        for key in ["backupPath", "backingFile"] {
            if let Some(name) = disk.get(key).and_then(Value::as_str) {
                let absolute = match name.strip_prefix("../") {
                    Some(beside) => {
                        let above = folder.as_str().rsplit_once('/').map_or("", |(dir, _)| dir);
                        format!("{above}/{beside}")
                    }
                    None if name.starts_with('/') => name.to_owned(),
                    None => format!("{folder}/{name}"),
                };
                disk.insert(key.to_owned(), Value::from(absolute));
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A complete backup of one disk, made on minute `minute`.
    pub(in crate::backup) fn complete(minute: u32, parent: Option<&Manifest>) -> Manifest {
        let id = BackupId::random();
        let incremental = parent.is_some();
        Manifest {
            version: VERSION,
            id,
            vm_id: VmId::parse("vm-1").unwrap(),
            kind: if incremental {
                BackupType::Incremental
            } else {
                BackupType::Full
            },
            status: BackupStatus::Completed,
            sequence: u64::from(minute) + 1,
            created_at: format!("2026-01-01T{:02}:{:02}:00.000Z", minute / 60, minute % 60),
            completed_at: None,
            duration_ms: None,
            disks: vec![DiskRecord {
                source_path: HostPath::parse("/d/a.qcow2").unwrap(),
                source_format: ImageFormat::Qcow2,
                backup_path: "disk-0.qcow2".to_owned(),
                original_size: 8 << 20,
                backup_size: 1 << 20,
                image_size: None,
                format: ImageFormat::Qcow2,
                backing_file: parent.map(|parent| format!("../{}/disk-0.qcow2", parent.id)),
                encrypted: false,
                sha256: None,
                blake3: Some("00".repeat(32)),
                source_state: None,
            }],
            total_size: 1 << 20,
            total_original_size: 8 << 20,
            compression: Compression::None,
            description: None,
            tags: Vec::new(),
            parent_backup_id: parent.map(|parent| parent.id.clone()),
            error_message: None,
            running_at_backup: Some(false),
            crash_consistent: None,
        }
    }

    fn reread(change: impl FnOnce(&mut Value)) -> Result<Manifest, BackupError> {
        let manifest = complete(0, None);
        let mut value = json!(manifest);
        change(&mut value);
        Manifest::read(&manifest.id, value.to_string().as_bytes())
    }

    #[test]
    fn what_is_written_is_read_and_shown_with_absolute_paths() {
        let parent = complete(0, None);
        let manifest = complete(1, Some(&parent));
        let text = serde_json::to_vec_pretty(&manifest).unwrap();
        assert_eq!(Manifest::read(&manifest.id, &text).unwrap(), manifest);
        let shown = manifest.shown(&HostPath::parse("/b/vm-1/x").unwrap());
        assert_eq!(shown["disks"][0]["backupPath"], "/b/vm-1/x/disk-0.qcow2");
        let backing = format!("/b/vm-1/{}/disk-0.qcow2", parent.id);
        assert_eq!(shown["disks"][0]["backingFile"], backing);
        assert_eq!(shown.get("version"), None);
    }

    #[test]
    fn k4_a_manifest_cannot_point_elsewhere() {
        type Spoil = fn(&mut Value);
        assert!(reread(|_| ()).is_ok());
        let table: [(&str, Spoil); 8] = [
            ("version", |m| m["version"] = json!(2)),
            ("version", |m| {
                m.as_object_mut().unwrap().remove("version");
            }),
            ("another backup's", |m| m["id"] = json!(BackupId::random())),
            ("none of its own", |m| {
                m["disks"][0]["backupPath"] = json!("../../etc/shadow");
            }),
            ("none of its own", |m| {
                m["disks"][0]["backupPath"] = json!("disk-1.qcow2");
            }),
            ("no disk", |m| m["disks"] = json!([])),
            ("lacks a checksum", |m| {
                m["disks"][0]["blake3"] = Value::Null;
            }),
            ("parent", |m| m["type"] = json!("INCREMENTAL")),
        ];
        for (why, change) in table {
            let refused = reread(change).unwrap_err().to_string();
            assert!(refused.contains(why), "{why}: {refused}");
        }
    }
}
