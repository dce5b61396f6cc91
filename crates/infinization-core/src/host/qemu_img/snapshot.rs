//! Internal snapshots of an image that no machine runs on. A running machine's snapshots are the
//! monitor's business.

use serde::Deserialize;

use super::bitmap::drop_bitmaps;
use super::command::QemuImg;
use super::in_use::{self, Access};
use super::info::{ImageInfo, Sharing, info, info_locked};
use super::job::to_its_end;
use super::{ImageError, ImageFormat, Job, inspect, lock};
use crate::types::{ByteSize, DiskKey, HostPath, clock, iso_date};

const LONGEST_NAME: usize = 64;
/// The option that puts a disk back.
const REVERT: &str = "-a";

/// A snapshot's name: 1 to 64 letters, digits, `-` and `_`. It is not a number, since
/// `qemu-img` would take that for an id, and does not start with `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Checks the name (`INVALID_SNAPSHOT_NAME`).
    pub fn parse(name: impl Into<String>) -> Result<Self, ImageError> {
        let name = name.into();
        let why = if name.is_empty() || name.len() > LONGEST_NAME {
            "must have 1 to 64 characters"
        } else if !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            "must hold only letters, digits, '-' and '_'"
        } else if name.starts_with('-') {
            "must not start with '-'"
        } else if name.bytes().all(|b| b.is_ascii_digit()) {
            "must not be a number"
        } else {
            return Ok(Self(name));
        };
        Err(ImageError::InvalidSnapshotName { why })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Listed")]
pub struct SnapshotInfo {
    /// The number the image gave it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The saved memory of a machine, in bytes; 0 for a snapshot of the disk alone.
    pub vm_state_size: ByteSize,
    /// When it was made: ISO 8601, UTC, to the millisecond.
    pub date: String,
    /// How long the machine had run: `HH:MM:SS.mmm`.
    pub vm_clock: String,
}

/// Makes a snapshot of the disk as it is. `SNAPSHOT_ALREADY_EXISTS` if the name is taken
/// (`qemu-img` itself would make a second one).
pub async fn create_snapshot(path: &HostPath, name: &SnapshotName) -> Result<(), ImageError> {
    create_snapshot_with_key(path, name, None).await
}

/// [`create_snapshot`] in an image that may be encrypted, and has a key exactly then.
pub async fn create_snapshot_with_key(
    path: &HostPath,
    name: &SnapshotName,
    key: Option<&DiskKey>,
) -> Result<(), ImageError> {
    change(path, name, key, |path, name, snapshots| {
        if has(snapshots, name) {
            Err(ImageError::SnapshotAlreadyExists {
                path: path.clone(),
                name: name.0.clone(),
            })
        } else {
            Ok(Some("-c"))
        }
    })
    .await
}

/// Puts the disk back to the snapshot; what was written since is lost. The snapshot stays.
pub async fn revert_snapshot(path: &HostPath, name: &SnapshotName) -> Result<(), ImageError> {
    revert_snapshot_with_key(path, name, None).await
}

/// [`revert_snapshot`] of an image that may be encrypted, and has a key exactly then.
pub async fn revert_snapshot_with_key(
    path: &HostPath,
    name: &SnapshotName,
    key: Option<&DiskKey>,
) -> Result<(), ImageError> {
    change(path, name, key, |path, name, snapshots| {
        if has(snapshots, name) {
            Ok(Some(REVERT))
        } else {
            Err(ImageError::SnapshotNotFound {
                path: path.clone(),
                name: name.0.clone(),
            })
        }
    })
    .await
}

/// Deletes the snapshot. One that does not exist is deleted already.
pub async fn delete_snapshot(path: &HostPath, name: &SnapshotName) -> Result<(), ImageError> {
    delete_snapshot_with_key(path, name, None).await
}

/// [`delete_snapshot`] of an image that may be encrypted, and has a key exactly then.
pub async fn delete_snapshot_with_key(
    path: &HostPath,
    name: &SnapshotName,
    key: Option<&DiskKey>,
) -> Result<(), ImageError> {
    change(path, name, key, |_, name, snapshots| {
        Ok(has(snapshots, name).then_some("-d"))
    })
    .await
}

/// All snapshots, oldest first.
pub async fn list_snapshots(
    path: &HostPath,
    sharing: Sharing,
) -> Result<Vec<SnapshotInfo>, ImageError> {
    Ok(info(path, ImageFormat::Qcow2, sharing).await?.snapshots)
}

/// Whether there is a snapshot of this name. An image that does not exist has none; any other
/// trouble is an error, never "no".
pub async fn snapshot_exists(
    path: &HostPath,
    name: &SnapshotName,
    sharing: Sharing,
) -> Result<bool, ImageError> {
    match list_snapshots(path, sharing).await {
        Ok(snapshots) => Ok(has(&snapshots, name)),
        Err(ImageError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn has(snapshots: &[SnapshotInfo], name: &SnapshotName) -> bool {
    snapshots.iter().any(|snapshot| snapshot.name == name.0)
}

/// Decides on the snapshots there are which option to run, under the image's lock.
async fn change(
    path: &HostPath,
    name: &SnapshotName,
    key: Option<&DiskKey>,
    decide: impl FnOnce(
        &HostPath,
        &SnapshotName,
        &[SnapshotInfo],
    ) -> Result<Option<&'static str>, ImageError>
    + Send
    + 'static,
) -> Result<(), ImageError> {
    let (image, name, key) = (path.clone(), name.clone(), key.cloned());
    to_its_end(path, async move {
        let _alone = lock::exclusive(&image).await?;
        in_use::refuse(&image, Access::Write).await?;
        let key = key.as_ref();
        inspect::vet_with_key(&image, ImageFormat::Qcow2, &[], key).await?;
        let ImageInfo {
            snapshots, bitmaps, ..
        } = info_locked(&image, ImageFormat::Qcow2, Sharing::Refuse).await?;
        if let Some(option) = decide(&image, &name, &snapshots)? {
            if option == REVERT {
                drop_bitmaps(&image, key, &bitmaps).await?;
            }
            run(&image, option, &name, key).await?;
        }
        Ok(())
    })
    .await
}

/// `qemu-img snapshot` has no `-f`, so the format goes into the image's options. A [`HostPath`]
/// holds no `,` that would end the file name there.
async fn run(
    path: &HostPath,
    option: &str,
    name: &SnapshotName,
    key: Option<&DiskKey>,
) -> Result<(), ImageError> {
    let command = QemuImg::new("snapshot", path).args([option, name.as_str()]);
    let command = if key.is_some() {
        command.on_image_as(ImageFormat::Qcow2, key)
    } else {
        let options = format!("driver=qcow2,file.driver=file,file.filename={path}");
        command.args(["--image-opts", "--", &options])
    };
    command.run_as(&Job::short()).await?;
    Ok(())
}

/// A snapshot as `qemu-img info` lists it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    id: String,
    name: String,
    vm_state_size: u64,
    date_sec: i64,
    date_nsec: u32,
    vm_clock_sec: u64,
    vm_clock_nsec: u32,
}

impl From<Listed> for SnapshotInfo {
    fn from(listed: Listed) -> Self {
        Self {
            id: listed.id,
            name: listed.name,
            vm_state_size: ByteSize::bytes(listed.vm_state_size),
            date: iso_date(listed.date_sec, listed.date_nsec / 1_000_000),
            vm_clock: clock(listed.vm_clock_sec, listed.vm_clock_nsec / 1_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b16_refuses_names_qemu_img_could_misread() {
        let long = "a".repeat(65);
        for bad in [
            "",
            "a/b",
            "-x",
            "a b",
            "7",
            "007",
            "ä",
            "a\n",
            "a,b",
            long.as_str(),
        ] {
            assert!(SnapshotName::parse(bad).is_err(), "{bad:?} was taken");
        }
        for good in [
            "before-update",
            "1e5",
            "_",
            "backup-3f2b8c1e-7a4d",
            &long[..64],
        ] {
            assert!(SnapshotName::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn s9_reads_what_qemu_img_lists() {
        let listed = r#"{ "icount": 0, "vm-clock-nsec": 83000000, "name": "s1",
            "date-sec": 1795232753, "date-nsec": 255715000, "vm-clock-sec": 3723,
            "id": "1", "vm-state-size": 4096 }"#;
        let snapshot: SnapshotInfo = serde_json::from_str(listed).unwrap();
        let expected = SnapshotInfo {
            id: "1".to_owned(),
            name: "s1".to_owned(),
            vm_state_size: ByteSize::bytes(4096),
            date: "2026-11-21T03:45:53.255Z".to_owned(),
            vm_clock: "01:02:03.083".to_owned(),
        };
        assert_eq!(snapshot, expected);
    }
}
