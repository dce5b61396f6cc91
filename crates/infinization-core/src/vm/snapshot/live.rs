//! Snapshots of a running VM, through its monitor: QEMU holds the images, so only QEMU may change
//! them.

use tokio_util::sync::CancellationToken;

use super::super::context::VmContext;
use super::super::live::LiveView;
use super::disks::{self, Disk, Listed};
use super::quiet::{self, Frozen};
use crate::config::{DiskFormat, SnapshotOptions, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{SnapshotInfo, SnapshotName};
use crate::qmp::{BITMAP_PREFIX, BlockNode, QmpClient, QmpError};

/// A snapshot that every disk of a running VM has.
#[derive(Debug)]
pub(super) struct Found {
    nodes: Vec<String>,
    /// The node that holds the memory.
    pub(super) memory_in: Option<String>,
}

/// A disk, and the block node its device stands on now.
struct OnNode {
    node: String,
    listed: Listed,
}

/// The snapshots of every disk.
pub(super) async fn list(live: &LiveView, config: &VmConfig) -> Result<Vec<Listed>, Failure> {
    let disks = look(&live.qmp, config).await?;
    Ok(disks.into_iter().map(|disk| disk.listed).collect())
}

/// Makes the snapshot on all disks, or on none. Answers what the machine is made of if its memory
/// is in it.
pub(super) async fn create(
    context: &VmContext,
    live: &LiveView,
    config: &VmConfig,
    name: &SnapshotName,
    options: &SnapshotOptions,
    cancel: &CancellationToken,
) -> Result<Option<Vec<String>>, Failure> {
    let qmp = &live.qmp;
    let (nodes, listed) = split(look(qmp, config).await?);
    disks::refuse_raw(listed.iter().map(|listed| &listed.disk))?;
    disks::refuse_taken(&listed, name)?;
    qmp.dismiss_old_jobs().await?;
    let attempt = Attempt {
        qmp,
        nodes: &nodes,
        name,
    };
    if options.memory {
        let hardware = qmp.hardware().await?;
        let saved = qmp.snapshot_save(&nodes, name.as_str()).await;
        attempt.all_or_none(saved).await?;
        return Ok(Some(hardware));
    }
    if options.quiesce {
        let frozen = quiet::freeze(context, qmp, config, options).await?;
        attempt.of_frozen_disks(frozen, cancel).await?;
    } else {
        attempt.of_disks(cancel).await?;
    }
    Ok(None)
}

/// One attempt to make a snapshot.
struct Attempt<'a> {
    qmp: &'a QmpClient,
    nodes: &'a [String],
    name: &'a SnapshotName,
}

impl Attempt<'_> {
    async fn of_disks(&self, cancel: &CancellationToken) -> Result<(), Failure> {
        if cancel.is_cancelled() {
            let message = "the snapshot was aborted before it was made";
            return Err(Failure::new(ErrorCode::Aborted, message));
        }
        let made = self.qmp.snapshot_disks(self.nodes, self.name.as_str());
        self.all_or_none(made.await).await
    }

    /// A guest that cannot be thawed hangs: that is no success, whatever became of the disks.
    async fn of_frozen_disks(
        &self,
        frozen: Frozen,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let made = self.of_disks(cancel).await;
        let thawed = frozen.thaw().await;
        if made.is_ok() && thawed.is_err() {
            self.take_back().await;
        }
        made.and(thawed)
    }

    /// What QEMU refuses it has undone itself, and a snapshot of this name is somebody else's. An
    /// answer that did not come leaves open whether there is one of ours.
    async fn all_or_none(&self, made: Result<(), QmpError>) -> Result<(), Failure> {
        if let Err(QmpError::Timeout { .. } | QmpError::Disconnected { .. }) = &made {
            self.take_back().await;
        }
        Ok(made?)
    }

    async fn take_back(&self) {
        let name = self.name.as_str();
        if let Err(error) = self.qmp.snapshot_delete(self.nodes, name).await {
            tracing::warn!(%error, snapshot = name, "a failed snapshot may be left");
        }
    }
}

/// The snapshot, if every disk has it.
pub(super) async fn find(
    live: &LiveView,
    config: &VmConfig,
    name: &SnapshotName,
) -> Result<Found, Failure> {
    let disks = look(&live.qmp, config).await?;
    let holds_memory = |disk: &&OnNode| {
        let found = disk.listed.find(name);
        found.is_some_and(|found| found.vm_state_size.as_bytes() > 0)
    };
    let memory_in = disks
        .iter()
        .find(holds_memory)
        .map(|disk| disk.node.clone());
    let (nodes, listed) = split(disks);
    disks::refuse_raw(listed.iter().map(|listed| &listed.disk))?;
    disks::require(&listed, name)?;
    Ok(Found { nodes, memory_in })
}

/// Puts memory and disks back. Memory fits only the machine it was taken of; QEMU would notice when
/// the disks have changed already.
pub(super) async fn load(
    live: &LiveView,
    found: &Found,
    name: &SnapshotName,
    was: Option<Vec<String>>,
) -> Result<(), Failure> {
    let qmp = &live.qmp;
    if let Some(was) = was.filter(|was| !was.is_empty()) {
        refuse_other_hardware(&was, &qmp.hardware().await?)?;
    }
    qmp.dismiss_old_jobs().await?;
    drop_backup_bitmaps(qmp, &found.nodes).await?;
    let vmstate = found.memory_in.as_deref().unwrap_or_default();
    let loaded = qmp
        .snapshot_load(&found.nodes, vmstate, name.as_str())
        .await;
    loaded.map_err(|error| {
        let message = format!(
            "QEMU could not put the VM back to snapshot {}; the guest stands still, as its disks \
             may be back already: stop it by force and revert again",
            name.as_str()
        );
        Failure::caused_by(ErrorCode::QmpError, message, error)
    })
}

/// QEMU puts no disk back that has dirty bitmaps, and notices only when the guest stands still. Those of
/// incremental backups go: the next one compares. Another's are not ours to remove.
async fn drop_backup_bitmaps(qmp: &QmpClient, nodes: &[String]) -> Result<(), Failure> {
    let mut ours = Vec::new();
    for layer in qmp.query_layers().await? {
        if !nodes.contains(&layer.name) {
            continue;
        }
        for bitmap in layer.bitmaps {
            if !bitmap.starts_with(BITMAP_PREFIX) {
                let message = format!(
                    "a disk has the dirty bitmap {bitmap}, which could not tell that it went back: \
                     remove it first"
                );
                return Err(Failure::new(ErrorCode::InvalidState, message).with("bitmap", bitmap));
            }
            ours.push((layer.name.clone(), bitmap));
        }
    }
    for (node, bitmap) in ours {
        qmp.remove_bitmap(&node, &bitmap).await?;
    }
    Ok(())
}

fn refuse_other_hardware(was: &[String], now: &[String]) -> Result<(), Failure> {
    let missing = |from: &[String], of: &[String]| -> Vec<String> {
        let gone = of.iter().filter(|word| !from.contains(word));
        gone.cloned().collect()
    };
    let (gone, new) = (missing(now, was), missing(was, now));
    if gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    let message = "the saved memory fits the machine as it was, which is not as it is now: revert \
                   while the VM is off to put the disks alone back";
    Err(Failure::new(ErrorCode::InvalidState, message)
        .with("was", gone)
        .with("is", new))
}

/// Deletes the snapshot from every disk that has it.
pub(super) async fn delete(
    live: &LiveView,
    config: &VmConfig,
    name: &SnapshotName,
) -> Result<(), Failure> {
    let disks = look(&live.qmp, config).await?;
    let having = disks.into_iter().filter(|disk| disk.listed.has(name));
    let (nodes, _) = split(having.collect());
    if nodes.is_empty() {
        return Ok(());
    }
    live.qmp.dismiss_old_jobs().await?;
    Ok(live.qmp.snapshot_delete(&nodes, name.as_str()).await?)
}

fn split(disks: Vec<OnNode>) -> (Vec<String>, Vec<Listed>) {
    disks
        .into_iter()
        .map(|disk| (disk.node, disk.listed))
        .unzip()
}

/// Every disk with the node its device stands on; the monitor is asked, as the graph may have
/// changed since the start.
async fn look(qmp: &QmpClient, config: &VmConfig) -> Result<Vec<OnNode>, Failure> {
    let roots = roots(qmp, config).await?;
    let nodes = qmp.query_named_block_nodes().await?;
    let mut found = Vec::new();
    for (disk, root) in disks::of(config).into_iter().zip(roots) {
        let mut nodes = nodes.iter();
        let node = nodes.find(|node| node.node_name.as_ref() == Some(&root));
        let node = node.ok_or_else(|| no_disk(&disk))?;
        found.push(on_node(disk, node)?);
    }
    Ok(found)
}

/// The name of the node each disk's device stands on.
pub(super) async fn roots(qmp: &QmpClient, config: &VmConfig) -> Result<Vec<String>, Failure> {
    let drives = qmp.query_block().await?;
    let root = |disk: Disk| {
        let id = format!("disk{}", disk.index);
        let mut drives = drives.iter();
        drives
            .find(|drive| drive.qdev.as_deref().is_some_and(|qdev| is_of(qdev, &id)))
            .and_then(|drive| drive.inserted.as_ref()?.node_name.clone())
            .ok_or_else(|| no_disk(&disk))
    };
    disks::of(config).into_iter().map(root).collect()
}

fn no_disk(disk: &Disk) -> Failure {
    let message = format!("the running VM has no disk disk{}", disk.index);
    Failure::new(ErrorCode::DiskError, message).with("path", disk.path.as_str())
}

fn on_node(disk: Disk, node: &BlockNode) -> Result<OnNode, Failure> {
    let read = |snapshot: &serde_json::Value| serde_json::from_value(snapshot.clone());
    let snapshots: Result<Vec<SnapshotInfo>, _> = node.image.snapshots.iter().map(read).collect();
    let snapshots = snapshots.map_err(|error| {
        let message = format!("QEMU's list of snapshots cannot be read: {error}");
        Failure::new(ErrorCode::QmpError, message)
    })?;
    let format = match node.drv.as_str() {
        "qcow2" => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    };
    Ok(OnNode {
        node: node.node_name.clone().unwrap_or_default(),
        listed: Listed {
            disk: Disk { format, ..disk },
            snapshots,
        },
    })
}

/// A virtio disk's drive belongs to a part of the device: `/machine/peripheral/disk0/virtio-backend`.
fn is_of(qdev: &str, id: &str) -> bool {
    let inside = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    inside.split('/').next() == Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_its_devices() {
        for (qdev, is) in [
            ("/machine/peripheral/disk1", true),
            ("/machine/peripheral/disk1/virtio-backend", true),
            ("disk1", true),
            ("/machine/peripheral/disk10", false),
            ("/machine/peripheral/cdrom0", false),
        ] {
            assert_eq!(is_of(qdev, "disk1"), is, "{qdev}");
        }
    }

    #[test]
    fn memory_fits_only_the_machine_it_was_taken_of() {
        let words =
            |words: &[&str]| -> Vec<String> { words.iter().map(|&word| word.to_owned()).collect() };
        let was = words(&["cpus=1", "disk0=virtio-blk-pci"]);
        assert!(refuse_other_hardware(&was, &was).is_ok());
        let now = words(&["cpus=2", "disk0=virtio-blk-pci"]);
        let refusal = refuse_other_hardware(&was, &now).unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::InvalidState);
        assert_eq!(refusal.context()["was"][0], "cpus=1");
        assert_eq!(refusal.context()["is"][0], "cpus=2");
    }
}
