//! Which block node of a running QEMU a disk's file is, and what QEMU knows of it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde::Deserialize;

use super::super::request::SourceDisk;
use super::super::{BackupError, off_thread};
use crate::host::qemu_img::ImageError;
use crate::qmp::{QmpClient, file_name};
use crate::types::HostPath;

/// A disk of a running machine.
#[derive(Debug, Clone)]
pub(super) struct Attached {
    pub(super) node: String,
    /// QEMU's name for what it is.
    pub(super) format: String,
    /// Whether QEMU decrypts what it reads of it, or of a file below.
    pub(super) encrypted: bool,
    /// As the guest sees it, in bytes.
    pub(super) size: u64,
    /// What its file and those below it take on the host, in bytes.
    pub(super) allocated: u64,
    pub(super) bitmaps: Vec<Bitmap>,
    pub(super) snapshots: Vec<String>,
}

/// A dirty bitmap.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Bitmap {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    recording: bool,
    #[serde(default)]
    busy: bool,
    /// QEMU ended without storing it: it may lack anything.
    #[serde(default)]
    pub(super) inconsistent: bool,
}

impl Attached {
    /// Refuses what is not as the request says, or would be copied in plain text, as `has_key` says of what was
    /// found to be encrypted. A file that is said to be
    /// raw is not looked into, since its guest writes its header: QEMU alone knows what it runs on.
    pub(super) fn refuse_unfit(
        &self,
        asked: &SourceDisk,
        has_key: bool,
    ) -> Result<(), BackupError> {
        let SourceDisk { path, format } = asked;
        if self.encrypted && !has_key {
            let (path, what) = (path.clone(), "a backup of it");
            return Err(ImageError::PlainText { path, what }.into());
        }
        if self.format != format.as_str() {
            let path = path.clone();
            let why = format!("is {} to its machine, not {}", self.format, format.as_str());
            return Err(ImageError::Format { path, why }.into());
        }
        Ok(())
    }

    /// Whether a bitmap of this name has marked every change since it was made.
    pub(super) fn has_usable_bitmap(&self, name: &str) -> bool {
        self.bitmaps.iter().any(|bitmap| {
            bitmap.name == name && bitmap.recording && !bitmap.busy && !bitmap.inconsistent
        })
    }
}

/// Part of an element of `query-block`.
#[derive(Debug, Deserialize)]
struct Device {
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: Option<String>,
    drv: String,
    #[serde(default)]
    encrypted: bool,
    image: Image,
    #[serde(default)]
    dirty_bitmaps: Vec<Bitmap>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    filename: String,
    virtual_size: u64,
    #[serde(default)]
    actual_size: u64,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    snapshots: Vec<Snapshot>,
    #[serde(rename = "backing-image")]
    below: Option<Box<Image>>,
}

impl Image {
    fn allocated(&self) -> u64 {
        let below = self.below.as_deref().map_or(0, Self::allocated);
        self.actual_size.saturating_add(below)
    }

    fn is_encrypted(&self) -> bool {
        let below = self.below.as_deref();
        self.encrypted || below.is_some_and(Self::is_encrypted)
    }
}

#[derive(Debug, Deserialize)]
struct Snapshot {
    name: String,
}

/// The nodes of the disks at `paths`, in their order. The same file by another name is the same disk.
pub(super) async fn attached(
    monitor: &QmpClient,
    paths: &[&HostPath],
) -> Result<Vec<Attached>, BackupError> {
    let answer = monitor.query_block_raw().await?;
    let devices: Vec<Device> = serde_json::from_str(answer.get()).map_err(|error| {
        let why = format!("query-block answers strangely: {error}");
        BackupError::Job { why }
    })?;
    let inserted: Vec<_> = devices.into_iter().filter_map(|it| it.inserted).collect();
    let paths: Vec<HostPath> = paths.iter().map(|path| (*path).clone()).collect();
    off_thread(move || {
        let found = paths.iter().map(|path| find(&inserted, path));
        found.collect()
    })
    .await
}

fn find(devices: &[Inserted], path: &HostPath) -> Result<Attached, BackupError> {
    let missing = || BackupError::NotAttached { path: path.clone() };
    let identity = |name: &str| fs::metadata(name).map(|file| (file.dev(), file.ino())).ok();
    let wanted = identity(path.as_str()).ok_or_else(missing)?;
    let found = devices
        .iter()
        .find(|device| identity(&file_name(&device.image.filename)) == Some(wanted));
    let device = found.ok_or_else(missing)?;
    Ok(Attached {
        node: device.node_name.clone().ok_or_else(missing)?,
        format: device.drv.clone(),
        encrypted: device.encrypted || device.image.is_encrypted(),
        size: device.image.virtual_size,
        allocated: device.image.allocated(),
        bitmaps: device.dirty_bitmaps.clone(),
        snapshots: device
            .image
            .snapshots
            .iter()
            .map(|one| one.name.clone())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_under_qemu_s_options() {
        let json = r#"json:{"driver": "qcow2", "discard": "unmap",
            "file": {"driver": "file", "filename": "/d/a.qcow2", "aio": "native"}}"#;
        assert_eq!(file_name(json), "/d/a.qcow2");
        assert_eq!(file_name("/d/a.qcow2"), "/d/a.qcow2");
        assert_eq!(file_name("json:{}"), "");
    }

    #[test]
    fn only_a_bitmap_that_saw_everything_is_used() {
        let bitmap = |recording, busy, inconsistent| Attached {
            node: String::new(),
            format: String::new(),
            encrypted: false,
            size: 0,
            allocated: 0,
            bitmaps: vec![Bitmap {
                name: "infz-1".to_owned(),
                recording,
                busy,
                inconsistent,
            }],
            snapshots: Vec::new(),
        };
        assert!(bitmap(true, false, false).has_usable_bitmap("infz-1"));
        assert!(!bitmap(true, false, false).has_usable_bitmap("infz-2"));
        assert!(!bitmap(false, false, false).has_usable_bitmap("infz-1"));
        assert!(!bitmap(true, true, false).has_usable_bitmap("infz-1"));
        assert!(!bitmap(true, false, true).has_usable_bitmap("infz-1"));
    }
}
