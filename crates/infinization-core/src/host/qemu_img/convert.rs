//! `qemu-img convert`: a copy of an image, or of one of its snapshots, in another format.

use super::command::QemuImg;
use super::in_use::{self, Access};
use super::info::{Sharing, info_locked};
use super::job::{blocking, supervised};
use super::partial::Partial;
use super::{ImageError, ImageFormat, Job, SnapshotName, inspect, lock};
use crate::types::HostPath;

/// A copy to make. It holds everything, including what the source's backing files hold.
#[derive(Debug, Clone)]
pub struct ConvertImage {
    /// What is copied; no other process may be writing to it.
    pub source: HostPath,
    /// The source's format.
    pub source_format: ImageFormat,
    /// Copies this snapshot (of a qcow2) instead of the present content.
    pub snapshot: Option<SnapshotName>,
    /// Where the copy will be; nothing may be there yet.
    pub target: HostPath,
    /// The copy's format.
    pub target_format: ImageFormat,
    /// Compresses the copy's clusters (qcow2).
    pub compress: bool,
    /// Who may use the copy. Default: us. The mode is always 0600.
    pub owner: Option<(u32, u32)>,
    /// Where the source and its backing chain must be, if they are confined.
    pub allowed: Vec<HostPath>,
}

impl ConvertImage {
    /// A plain copy.
    pub fn new(source: (HostPath, ImageFormat), target: (HostPath, ImageFormat)) -> Self {
        Self {
            source: source.0,
            source_format: source.1,
            snapshot: None,
            target: target.0,
            target_format: target.1,
            compress: false,
            owner: None,
            allowed: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), ImageError> {
        if self.compress && self.target_format != ImageFormat::Qcow2 {
            return Err(ImageError::format(
                &self.target,
                "can only be compressed as qcow2",
            ));
        }
        if self.snapshot.is_some() && self.source_format != ImageFormat::Qcow2 {
            return Err(ImageError::format(
                &self.source,
                "can only have snapshots as qcow2",
            ));
        }
        Ok(())
    }
}

/// Makes the copy, reporting progress. Nothing is ever overwritten, nothing is left if it fails or
/// is cancelled, and the source is only read.
pub async fn convert(image: &ConvertImage, job: &Job) -> Result<(), ImageError> {
    image.check()?;
    let (target, image) = (&image.target, image.clone());
    supervised(job, target, move |job| make(image, job)).await
}

async fn make(image: ConvertImage, job: Job) -> Result<(), ImageError> {
    let _unchanged = job
        .unless_cancelled(&image.source, lock::shared(&image.source))
        .await??;
    in_use::refuse(&image.source, Access::Read).await?;
    inspect::vet(&image.source, image.source_format, &image.allowed).await?;
    if let Some(name) = &image.snapshot {
        require_snapshot(&image, name).await?;
    }
    let target = image.target.clone();
    let partial = blocking(&image.target, move || Partial::beside(&target)).await?;
    copy(&image, &partial, &job).await?;
    blocking(&image.target, move || partial.publish(image.owner)).await
}

async fn require_snapshot(image: &ConvertImage, name: &SnapshotName) -> Result<(), ImageError> {
    let info = info_locked(&image.source, image.source_format, Sharing::Refuse).await?;
    if info
        .snapshots
        .iter()
        .any(|snapshot| snapshot.name == name.as_str())
    {
        Ok(())
    } else {
        Err(ImageError::SnapshotNotFound {
            path: image.source.clone(),
            name: name.as_str().to_owned(),
        })
    }
}

async fn copy(image: &ConvertImage, partial: &Partial, job: &Job) -> Result<(), ImageError> {
    let mut command = QemuImg::new("convert", &image.target)
        .args(["-p", "-f", image.source_format.as_str()])
        .args(["-O", image.target_format.as_str()]);
    if image.compress {
        command = command.args(["-c"]);
    }
    if let Some(name) = &image.snapshot {
        command = command.args(["-l", name.as_str()]);
    }
    command
        .files([image.source.as_path(), partial.path()])
        .run_as(job)
        .await?;
    Ok(())
}
