//! Keys of encrypted layers. All layers of a disk have one key, as an overlay begins with the LUKS header of
//! what it lies on; but keys are known by the paths of disks, which a change of the tree changes.

use super::layers::Layers;
use crate::config::DiskKeys;
use crate::db::sqlite::KeyChange;
use crate::error::Failure;
use crate::host::qemu_img::layer;
use crate::types::{DiskKey, HostPath};
use crate::vm::machine::Machine;

impl Layers<'_> {
    /// What opens the layers of a disk; nothing if they are not encrypted. `KEY_REQUIRED` if nobody has it.
    pub(super) async fn key(&self, disk: usize) -> Result<Option<DiskKey>, Failure> {
        let active = &self.record.tree.active[disk];
        if !layer(active).await?.encrypted {
            return Ok(None);
        }
        let files = self.files_of(disk);
        let key = self.context.key_among(&files, &self.keys).await?;
        match key {
            None => Err(self.context.key_required(active)),
            key => Ok(key),
        }
    }

    /// The keys of all disks, by their places.
    pub(super) async fn all_keys(&self) -> Result<Vec<Option<DiskKey>>, Failure> {
        let mut keys = Vec::new();
        for disk in 0..self.record.tree.active.len() {
            keys.push(self.key(disk).await?);
        }
        Ok(keys)
    }

    /// Every file that is or was the disk, the one that spec and row speak of first.
    fn files_of(&self, disk: usize) -> Vec<HostPath> {
        let tree = &self.record.tree;
        let told = self.config.disks.get(disk);
        let told = told.and_then(|disk| disk.path());
        let nodes = tree.nodes.iter().map(|node| &node.layers[disk]);
        let files = told.into_iter().chain([&tree.active[disk]]).chain(nodes);
        files.cloned().collect()
    }

    /// Has the store know the keys by what the disks are now, before spec and row speak of that: whoever
    /// reads these finds a key, whenever we die.
    pub(super) async fn keep_keys(&self) -> Result<(), Failure> {
        let Some(store) = &self.context.services.embedded else {
            return Ok(());
        };
        let mut keys = DiskKeys::new();
        for (disk, path) in self.record.tree.active.iter().enumerate() {
            let files = self.files_of(disk);
            let key = self.context.key_among(&files, &DiskKeys::new()).await?;
            keys.extend(key.map(|key| (path.clone(), key)));
            // An overlay has the places of what it lies on, and so what is to be erased there.
            let left = self.context.left_keys(&files).await?;
            if !left.is_empty() {
                let (files, key) = (vec![path.clone()], None);
                let change = KeyChange { files, key, left };
                store.note_disk_keys(&self.context.vm_id, change).await?;
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        Ok(store.keep_disk_keys(&self.context.vm_id, keys).await?)
    }

    /// Files that are gone need none.
    pub(super) async fn forget_keys(&self, gone: &[HostPath]) {
        let Some(store) = &self.context.services.embedded else {
            return;
        };
        let vm = &self.context.vm_id;
        if let Err(error) = store.forget_disk_keys(vm, gone.to_vec()).await {
            tracing::warn!(%vm, %error, "keys of removed layers are still stored");
        }
    }
}

impl Machine {
    /// What opens the disks, as far as somebody said: now, or when QEMU was started.
    pub(in crate::vm) fn keys_at_hand(&self, given: &DiskKeys) -> DiskKeys {
        let of_run = self.live.as_ref().map(|live| live.view.disk_keys.get());
        let mut keys = of_run.unwrap_or_default();
        keys.extend(given.clone());
        keys
    }

    /// The disks are other files than before: what opened these opens those.
    pub(super) fn keys_follow(&self, before: &[HostPath], after: &[HostPath]) {
        let Some(live) = &self.live else { return };
        let mut keys = live.view.disk_keys.get();
        follow(&mut keys, before, after);
        for (disk, key) in keys {
            live.view.disk_keys.put(disk, key);
        }
    }
}

/// Knows each key by the later path too.
pub(super) fn follow(keys: &mut DiskKeys, before: &[HostPath], after: &[HostPath]) {
    for (before, after) in before.iter().zip(after) {
        if let Some(key) = keys.get(before).cloned() {
            keys.insert(after.clone(), key);
        }
    }
}
