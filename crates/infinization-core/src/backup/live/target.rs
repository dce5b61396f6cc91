//! The file that a disk is copied into, and its node in QEMU.

use serde_json::json;

use super::super::kinds::Compression;
use super::super::pieces::Followed;
use super::super::{BackupError, off_thread};
use super::Live;
use super::copying::{Copying, Method};
use super::handover::give_to_qemu;
use crate::host::qemu_img::{Clusters, make_target};
use crate::types::ByteSize;

/// How much of its target's tables QEMU keeps in memory: parts of 16 MiB of disk each, twice what is on its way at a
/// time. What is not kept is in the file, which tells whoever follows what is finished.
const TABLE_PART: u32 = 2 << 10;
const TABLE_PARTS: u32 = 8;

impl Live<'_> {
    /// Makes the file that QEMU writes into, and opens it there. What is followed of it is told.
    pub(super) async fn add_target(
        &self,
        n: usize,
        copy: &Copying,
    ) -> Result<Option<Followed>, BackupError> {
        let size = ByteSize::bytes(copy.disk.size);
        let (clusters, parent) = match &copy.method {
            Method::Full => (self.creation.clusters(), None),
            Method::Marked { parent } => (self.creation.clusters(), Some(parent)),
            Method::Compared { .. } => (Clusters::Plain, None),
        };
        let encryption = self.prepared.encryption[n].as_ref();
        make_target(&copy.target, size, clusters, parent, encryption).await?;
        let followed = self.follow(n, copy).await?;
        give_to_qemu(&copy.target, &self.creation.request.disks[n].path).await?;
        let node = self.creation.id.node(n);
        let mut options = json!({
            "driver": "qcow2",
            "node-name": node,
            // We flush it, when the job is over: QEMU's main loop, and so the guest, would wait for that.
            "file": {
                "driver": "file", "filename": copy.target,
                "cache": { "direct": false, "no-flush": true },
            },
            "l2-cache-entry-size": TABLE_PART,
            "l2-cache-size": TABLE_PARTS * TABLE_PART,
            // What is marked is copied by whole clusters: the parent's files are not needed for it.
            "backing": null,
        });
        let Some(encryption) = encryption else {
            self.monitor.blockdev_add(options).await?;
            return Ok(followed);
        };
        // QEMU needs it to open the file, and not after.
        self.monitor.add_secret(&node, &encryption.key).await?;
        options["encrypt"] = json!({ "format": "luks", "key-secret": node });
        let opened = self.monitor.blockdev_add(options).await;
        self.monitor.object_del(&node).await?;
        opened?;
        Ok(followed)
    }

    /// What becomes the backup as it is can be summed as it grows.
    async fn follow(&self, n: usize, copy: &Copying) -> Result<Option<Followed>, BackupError> {
        let encrypted = self.prepared.encryption[n].is_some();
        let as_it_is = encrypted || self.creation.request.compression == Compression::None;
        if !as_it_is || matches!(copy.method, Method::Compared { .. }) {
            return Ok(None);
        }
        let target = copy.target.clone();
        off_thread(move || Followed::begin(&target).map(Some)).await
    }
}
