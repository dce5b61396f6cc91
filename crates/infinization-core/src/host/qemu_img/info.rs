//! `qemu-img info`: what an image says about itself. Most are read by us ([`describe`]).

use serde::Deserialize;

use super::command::QemuImg;
use super::describe::describe;
use super::in_use::{self, Access};
use super::job::blocking;
use super::snapshot::SnapshotInfo;
use super::{ImageError, ImageFormat, Job, inspect, lock};
use crate::types::{ByteSize, HostPath};

/// Whether a running machine's image may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Refuses an image another process writes to: the answer would be out of date at once.
    Refuse,
    /// Reads it all the same (`--force-share`); sizes and snapshots may be mid-change.
    Force,
}

/// What `qemu-img info` reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The disk's size as the guest sees it, in bytes.
    pub virtual_size: ByteSize,
    /// What the file takes on the host's disk, in bytes.
    pub actual_size: ByteSize,
    /// In bytes, for formats that have clusters.
    pub cluster_size: Option<ByteSize>,
    /// A secret is needed to read it.
    pub encrypted: bool,
    /// The backing file as the image names it.
    pub backing_file: Option<String>,
    /// The backing file's recorded format.
    pub backing_format: Option<String>,
    /// It was not closed cleanly.
    pub dirty: bool,
    /// Its internal snapshots, oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// The names of its persistent dirty bitmaps.
    pub bitmaps: Vec<String>,
}

/// Reads an image's sizes, flags and snapshots. Its backing files are not opened.
pub async fn info(
    path: &HostPath,
    format: ImageFormat,
    sharing: Sharing,
) -> Result<ImageInfo, ImageError> {
    let image = path.clone();
    let read = move || read_now(&image, format, sharing);
    let (_settled, read) = lock::shared(path, read).await?;
    or_asked(read, path, format, sharing).await
}

/// [`info`] for a verb that holds the image's lock.
pub(super) async fn info_locked(
    path: &HostPath,
    format: ImageFormat,
    sharing: Sharing,
) -> Result<ImageInfo, ImageError> {
    let image = path.clone();
    let read = blocking(path, move || read_now(&image, format, sharing)).await?;
    or_asked(read, path, format, sharing).await
}

/// What we can read ourselves, if anything. Blocks.
pub(super) fn read_now(
    path: &HostPath,
    format: ImageFormat,
    sharing: Sharing,
) -> Result<Option<ImageInfo>, ImageError> {
    if sharing == Sharing::Refuse {
        in_use::refuse_now(path, Access::Read)?;
    }
    let read = describe(path, format)?;
    if read.is_none() {
        inspect::vet_alone_now(path, format)?;
    }
    Ok(read)
}

/// What was read, or what `qemu-img` says.
pub(super) async fn or_asked(
    read: Option<ImageInfo>,
    path: &HostPath,
    format: ImageFormat,
    sharing: Sharing,
) -> Result<ImageInfo, ImageError> {
    if let Some(read) = read {
        return Ok(read);
    }
    let force_share: &[&str] = match sharing {
        Sharing::Refuse => &[],
        Sharing::Force => &["-U"],
    };
    let answer: Answer = QemuImg::new("info", path)
        .args(["--output=json", "-f", format.as_str()])
        .args(force_share.iter().copied())
        .on_image()
        .json(&Job::short())
        .await?;
    Ok(answer.into())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    virtual_size: u64,
    #[serde(default)]
    actual_size: u64,
    cluster_size: Option<u64>,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    backing_filename_format: Option<String>,
    #[serde(default)]
    dirty_flag: bool,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
    #[serde(default)]
    format_specific: FormatSpecific,
}

/// What only some formats say.
#[derive(Debug, Default, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
struct SpecificData {
    #[serde(default)]
    bitmaps: Vec<Bitmap>,
}

#[derive(Debug, Deserialize)]
struct Bitmap {
    name: String,
}

impl From<Answer> for ImageInfo {
    fn from(answer: Answer) -> Self {
        Self {
            virtual_size: ByteSize::bytes(answer.virtual_size),
            actual_size: ByteSize::bytes(answer.actual_size),
            cluster_size: answer.cluster_size.map(ByteSize::bytes),
            encrypted: answer.encrypted,
            backing_file: answer.backing_filename,
            backing_format: answer.backing_filename_format,
            dirty: answer.dirty_flag,
            snapshots: answer.snapshots,
            bitmaps: (answer.format_specific.data.bitmaps.into_iter())
                .map(|bitmap| bitmap.name)
                .collect(),
        }
    }
}
