//! `qemu-img resize`: a larger disk, or with consent a smaller one.

use std::cmp::Ordering;

use super::bitmap::drop_bitmaps;
use super::command::QemuImg;
use super::create::check_size;
use super::in_use::Access;
use super::info::{self, Sharing};
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
    let (image, opens) = (path.clone(), key.cloned());
    let look = move || {
        let key = opens.as_ref();
        let found = inspect::vet_unused_now(&image, format, Access::Write, &[], key)?;
        // That nobody uses it was just found.
        let read = info::read_now(&image, format, Sharing::Force)?;
        Ok((found, read))
    };
    let looked = lock::exclusive(path, look);
    let (image, key) = (path.clone(), key.cloned());
    to_its_end(path, async move {
        let (_alone, (found, read)) = looked.await?;
        let now = info::or_asked(read, &image, format, Sharing::Force).await?;
        let key = key.as_ref();
        let opened = (&found, key);
        check_size(&image, format, size, now.cluster_size)?;
        match size.cmp(&now.virtual_size) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => run(&image, format, size, opened, &[]).await,
            Ordering::Less if direction == Resize::GrowOrShrink => {
                drop_bitmaps(&image, key, &now.bitmaps).await?;
                run(&image, format, size, opened, &["--shrink"]).await
            }
            Ordering::Less => Err(ImageError::ShrinkRefused {
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
