//! A larger disk under a running machine.

use super::machine::Machine;
use super::outcome::OperationResult;
use crate::error::{ErrorCode, Failure};
use crate::qmp::QmpClient;
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
        let Some(live) = self
            .snapshots_allowed("given a disk of another size")
            .await?
        else {
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
        qmp.block_resize(&node, size.as_bytes()).await?;
        Ok(OperationResult::done(&self.context.vm_id, "disk resized"))
    }
}

/// The node of the device that stands on the file, and the disk's size.
async fn root_of(qmp: &QmpClient, path: &HostPath) -> Result<Option<(String, u64)>, Failure> {
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
