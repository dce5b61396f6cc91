//! The dirty bitmaps in a running machine's disks.

use serde_json::{Value, json};

use super::super::BackupError;
use super::super::draft::Draft;
use super::super::kinds::BackupType;
use super::super::names::BITMAP_PREFIX;
use super::Live;
use super::attached::{Attached, attached};
use super::copying::Copying;

/// QEMU's default bitmap granularity, and the cluster size of what it writes into.
const CLUSTER: u32 = 64 << 10;

impl Live<'_> {
    /// After a success only this backup's bitmaps stay, after a failure only those before it.
    pub(super) async fn settle_bitmaps(&self, made: bool) -> Result<(), BackupError> {
        if self.creation.request.kind == BackupType::Snapshot {
            return Ok(());
        }
        let disks = attached(&self.monitor, &self.paths()).await?;
        let ours = &self.creation.id;
        self.drop_bitmaps(&disks, |name| ours.has_bitmap(name) != made)
            .await
    }

    /// A bitmap of a backup that is gone, or never was complete.
    pub(super) fn is_stale(&self, name: &str) -> bool {
        let all = self.prepared.all.iter().map(|kept| &kept.manifest);
        let mut complete = all.filter(|manifest| manifest.is_complete());
        !complete.any(|manifest| manifest.id.has_bitmap(name))
    }

    pub(super) async fn drop_bitmaps(
        &self,
        disks: &[Attached],
        unwanted: impl Fn(&str) -> bool,
    ) -> Result<(), BackupError> {
        for disk in disks {
            for bitmap in &disk.bitmaps {
                let ours = bitmap.name.starts_with(BITMAP_PREFIX);
                if ours && (bitmap.inconsistent || unwanted(&bitmap.name)) {
                    let arguments = json!({ "node": disk.node, "name": bitmap.name });
                    self.monitor
                        .execute("block-dirty-bitmap-remove", arguments)
                        .await?;
                }
            }
        }
        Ok(())
    }
}

/// What records the changes after this backup. A raw disk has no room for one: it lasts as long as QEMU.
pub(super) fn new_bitmap(draft: &Draft, n: usize, copy: &Copying) -> Value {
    json!({ "type": "block-dirty-bitmap-add", "data": {
        "node": copy.disk.node,
        "name": draft.manifest.id.bitmap(n),
        "granularity": CLUSTER,
        "persistent": copy.disk.format == "qcow2",
    }})
}
