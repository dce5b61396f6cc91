//! Persistent dirty bitmaps, as live backups keep them in a running machine's disks.

use super::command::QemuImg;
use super::{Held, ImageError, ImageFormat, Job};
use crate::types::{DiskKey, HostPath};

/// Removes the bitmaps of an image whose content is about to change in a way they cannot tell: it goes
/// back in time (QEMU refuses that while there are any), or is cut. Incremental backups compare then.
pub(super) async fn drop_bitmaps(
    path: &HostPath,
    key: Option<&DiskKey>,
    bitmaps: &[String],
) -> Result<(), ImageError> {
    for bitmap in bitmaps {
        let image = QemuImg::new("bitmap", path).args(["--remove"]);
        let image = image.on_image_as(ImageFormat::Qcow2, key);
        image.args([bitmap]).run_as(&Job::short()).await?;
    }
    Ok(())
}

/// The same of an image that is held.
pub(super) async fn drop_bitmaps_of(
    held: &Held,
    key: Option<&DiskKey>,
    bitmaps: &[String],
) -> Result<(), ImageError> {
    for bitmap in bitmaps {
        let image = QemuImg::new("bitmap", held.path()).args(["--remove"]);
        let image = image.on_held(held, key);
        image.args([bitmap]).run_as(&Job::short()).await?;
    }
    Ok(())
}
