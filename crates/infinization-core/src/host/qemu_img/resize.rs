//! `qemu-img resize`: a larger disk, or with consent a smaller one.

use super::bitmap::drop_bitmaps;
use super::command::QemuImg;
use super::create::check_size;
use super::in_use::Access;
use super::info::{Sharing, info_locked};
use super::job::to_its_end;
use super::{ImageError, ImageFormat, Inspection, Job, inspect, lock};
use crate::types::{ByteSize, DiskKey, HostPath};

/// Which way an image may change its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// A smaller size is refused (`DATA_LOSS_REFUSED`).
    Grow,
    /// A smaller size cuts off what lies beyond it.
    GrowOrShrink,
}

/// Changes the disk's size; the guest's partitions are not touched. The same size is no work.
pub async fn resize(
    path: &HostPath,
    format: ImageFormat,
    size: ByteSize,
    direction: Resize,
) -> Result<(), ImageError> {
    resize_with_key(path, format, size, direction, None).await
}

/// [`resize`] of an image that may be encrypted, and has a key exactly then.
pub async fn resize_with_key(
    path: &HostPath,
    format: ImageFormat,
    size: ByteSize,
    direction: Resize,
    key: Option<&DiskKey>,
) -> Result<(), ImageError> {
    let (image, key) = (path.clone(), key.cloned());
    to_its_end(path, async move {
        let _alone = lock::exclusive(&image).await?;
        let key = key.as_ref();
        let found = inspect::vet_unused(&image, format, Access::Write, key).await?;
        let opened = (&found, key);
        // That nobody uses it was just found.
        let now = info_locked(&image, format, Sharing::Force).await?;
        check_size(&image, format, size, now.cluster_size)?;
        match size.cmp(&now.virtual_size) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => run(&image, format, size, opened, &[]).await,
            std::cmp::Ordering::Less if direction == Resize::GrowOrShrink => {
                drop_bitmaps(&image, key, &now.bitmaps).await?;
                run(&image, format, size, opened, &["--shrink"]).await
            }
            std::cmp::Ordering::Less => Err(ImageError::ShrinkRefused {
                path: image,
                from: now.virtual_size.as_bytes(),
                to: size,
            }),
        }
    })
    .await
}

async fn run(
    path: &HostPath,
    format: ImageFormat,
    size: ByteSize,
    (found, key): (&Inspection, Option<&DiskKey>),
    consent: &'static [&'static str],
) -> Result<(), ImageError> {
    QemuImg::new("resize", path)
        .args(["-q"])
        .args(consent.iter().copied())
        .on_chain_as(format, found, key)
        .args([size.as_bytes().to_string()])
        .run_as(&Job::short())
        .await?;
    Ok(())
}
