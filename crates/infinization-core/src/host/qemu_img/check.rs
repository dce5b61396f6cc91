//! `qemu-img check`: whether an image's tables agree with each other.

use serde::Deserialize;

use super::command::QemuImg;
use super::in_use::Access;
use super::{ImageError, ImageFormat, Job, inspect, lock};
use crate::types::{DiskKey, HostPath};

/// Exit codes that come with a report: corruption, and leaks alone.
const REPORTED: &[i32] = &[2, 3];

/// What was found. Damage is a result, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ImageCheck {
    /// Trouble while checking, such as unreadable sectors.
    #[serde(rename = "check-errors")]
    pub errors: u64,
    /// Clusters that nothing uses but that are counted as used: lost space, no danger.
    pub leaks: u64,
    /// Tables that contradict each other: lost data.
    pub corruptions: u64,
    /// Clusters the disk has.
    pub total_clusters: u64,
    /// Clusters that hold data.
    pub allocated_clusters: u64,
}

/// Reads all of the image's tables; changes nothing. `INVALID_FORMAT` for formats that have none
/// to check (raw).
pub async fn check(
    path: &HostPath,
    format: ImageFormat,
    job: &Job,
) -> Result<ImageCheck, ImageError> {
    check_with_key(path, format, None, job).await
}

/// [`check`] of an image that may be encrypted, and has a key exactly then.
pub async fn check_with_key(
    path: &HostPath,
    format: ImageFormat,
    key: Option<&DiskKey>,
    job: &Job,
) -> Result<ImageCheck, ImageError> {
    let (image, opens) = (path.clone(), key.cloned());
    let vetted = lock::shared(path, move || {
        inspect::vet_unused_now(&image, format, Access::Read, &[], opens.as_ref())
    });
    let (_settled, _found) = job.unless_cancelled(path, vetted).await??;
    QemuImg::new("check", path)
        .args(["--output=json"])
        .on_image_as(format, key)
        .accept(REPORTED)
        .json(job)
        .await
}
