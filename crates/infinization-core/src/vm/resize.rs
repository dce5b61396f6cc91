//! A larger disk under a running machine.

use super::machine::Machine;
use super::outcome::OperationResult;
use crate::error::{ErrorCode, Failure};
use crate::qmp::{BITMAP_PREFIX, QmpClient, QmpError};
use crate::types::{ByteSize, HostPath};

impl Machine {
    /// Has QEMU change the size of the disk whose active file is `path`; the guest is told.
    pub(super) async fn resize_disk(
        &mut self,
        path: &HostPath,
        size: ByteSize,
        shrink: bool,
    ) -> Result<OperationResult, Failure> {
        let refuse = |message: &str| {
            let failure = Failure::new(ErrorCode::InvalidState, message);
            Err(failure.with("path", path.as_str()))
        };
        let Some(live) = self.changes_allowed("given a disk of another size").await? else {
            return refuse("the machine has ended meanwhile: ask again");
        };
        let qmp = &live.qmp;
        let Some((node, now)) = root_of(qmp, path).await? else {
            return refuse("the running machine has this image behind another, not as a disk");
        };
        if size.as_bytes() < now && !shrink {
            let message =
                format!("shrinking {path} from {now} bytes would lose data and was not agreed to");
            return Err(Failure::new(ErrorCode::DataLossRefused, message));
        }
        if size.as_bytes() < now {
            forget_changes(qmp, &node).await?;
        }
        qmp.block_resize(&node, size.as_bytes()).await?;
        Ok(OperationResult::done(&self.context.vm_id, "disk resized"))
    }
}

/// What marks changes for incremental backups does not mark what is cut off, which would come back out of
/// the backup before once the disk grows again: it goes, and the next one compares.
async fn forget_changes(qmp: &QmpClient, node: &str) -> Result<(), QmpError> {
    let images = qmp.query_images().await?;
    let bitmaps = images.iter().filter(|image| image.name == node);
    let bitmaps = bitmaps.flat_map(|image| &image.bitmaps);
    for bitmap in bitmaps.filter(|name| name.starts_with(BITMAP_PREFIX)) {
        qmp.remove_bitmap(node, bitmap).await?;
    }
    Ok(())
}

/// The node of the device that stands on the file, and the disk's size.
pub(super) async fn root_of(
    qmp: &QmpClient,
    path: &HostPath,
) -> Result<Option<(String, u64)>, Failure> {
    let images = qmp.query_images().await?;
    let drives = qmp.query_block().await?;
    let mut roots = drives
        .into_iter()
        .filter_map(|drive| drive.inserted?.node_name);
    Ok(roots.find_map(|root| {
        let image = images.iter().find(|image| image.name == root)?;
        (image.file == path.as_str()).then_some((root, image.size))
    }))
}
