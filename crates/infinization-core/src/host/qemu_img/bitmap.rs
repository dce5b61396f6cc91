//! Persistent dirty bitmaps, as live backups keep them in a running machine's disks.

use super::command::QemuImg;
use super::{ImageError, ImageFormat, Job};
use crate::types::{DiskKey, HostPath};

/// Removes the bitmaps of an image whose content is about to change in a way they cannot tell: it goes
/// back in time (QEMU refuses that while there are any), or is cut. Incremental backups compare then.
pub(super) async fn drop_bitmaps(
    path: &HostPath,
    key: Option<&DiskKey>,
    bitmaps: &[String],
) -> Result<(), ImageError> {
    for bitmap in bitmaps {
        QemuImg::new("bitmap", path)
            .args(["--remove"])
            .on_image_as(ImageFormat::Qcow2, key)
            .args([bitmap.as_str()])
            .run_as(&Job::short())
            .await?;
    }
    Ok(())
}
