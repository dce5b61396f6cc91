//! A SNAPSHOT's internal snapshots, made and deleted by the QEMU that has the disks.

use serde_json::json;

use super::super::create::Contents;
use super::super::manifest::Manifest;
use super::super::{BackupError, offline, quiesce};
use super::attached::{Attached, attached};
use super::{Live, START, running};
use crate::host::qemu_img::SnapshotName;
use crate::qmp::QmpClient;

impl Live<'_> {
    /// An internal snapshot in every disk, at one moment.
    pub(super) async fn snapshot(&self, disks: &[Attached]) -> Result<Contents, BackupError> {
        let sizes = disks.iter().map(|disk| disk.size);
        let reporter = self.creation.snapshot_reporter(sizes);
        let name = self.creation.id.snapshot();
        let actions: Vec<_> = disks
            .iter()
            .map(|disk| {
                let data = json!({ "device": disk.node, "name": name });
                json!({ "type": "blockdev-snapshot-internal-sync", "data": data })
            })
            .collect();
        let actions = json!({ "actions": actions });
        let begin = self.monitor.execute_with("transaction", actions, START);
        let (done, frozen) = quiesce::around(&*self.creation.terms.machine, begin).await;
        done?;
        let mut records = offline::planned(self.creation, self.prepared);
        for (record, disk) in records.iter_mut().zip(disks) {
            record.original_size = disk.size;
        }
        Ok(Contents {
            disks: records,
            circumstances: running(frozen),
            reporter,
        })
    }
}

/// Deletes a SNAPSHOT's snapshots through the machine that runs on its disks. One that lies under an overlay by now
/// is `IMAGE_IN_USE`; one that the machine was relieved of is nobody's.
pub(in super::super) async fn delete_snapshots(
    monitor: &QmpClient,
    manifest: &Manifest,
) -> Result<(), BackupError> {
    let name = SnapshotName::parse(manifest.id.snapshot())?;
    for disk in &manifest.disks {
        match attached(monitor, &[&disk.source_path]).await {
            Ok(found) => delete_snapshot(monitor, &found, &name).await?,
            Err(BackupError::NotAttached { .. }) => {
                offline::drop_snapshots(std::slice::from_ref(disk), &name).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn delete_snapshot(
    monitor: &QmpClient,
    disks: &[Attached],
    name: &SnapshotName,
) -> Result<(), BackupError> {
    let name = name.as_str();
    for disk in disks {
        if disk.snapshots.iter().any(|one| one == name) {
            let arguments = json!({ "device": disk.node, "name": name });
            monitor
                .execute("blockdev-snapshot-delete-internal-sync", arguments)
                .await?;
        }
    }
    Ok(())
}
