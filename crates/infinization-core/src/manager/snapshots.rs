//! The verbs on a VM's snapshots, and on the keys of its disks.

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Manager, parse_id, to_value};
use crate::config::{
    ChangeDiskKeyOptions, DiskKeys, RevertOptions, SnapshotDeleteOptions, SnapshotOptions,
};
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::blocking;
use crate::host::qemu_img::SnapshotName;
use crate::types::{HostPath, VmId};
use crate::vm::{DiskKeyChange, NotedFreeze, Verb, frozen_layers};

impl Manager {
    /// `createSnapshot`.
    pub async fn create_snapshot(
        &self,
        vm_id: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let options =
            SnapshotOptions::parse(&options)?.warned("createSnapshot", &parse_id(&vm_id)?);
        let name = SnapshotName::parse(options.name.as_str())?;
        let verb = Verb::CreateSnapshot {
            name,
            options: Box::new(options),
            cancel,
        };
        self.verb(&vm_id, verb).await
    }

    /// `listSnapshots`, oldest first. Does not wait for the VM's other operations.
    pub async fn list_snapshots(&self, vm_id: String) -> Result<Value, Failure> {
        let vm_id = parse_id(&vm_id)?;
        let handle = self.open()?.known(&vm_id).await?;
        let listed = handle.snapshots().await;
        to_value(&listed.map_err(|failure| failure.of_vm(&vm_id))?)
    }

    /// `revertSnapshot`.
    pub async fn revert_snapshot(
        &self,
        vm_id: String,
        name: String,
        options: Value,
    ) -> Result<Value, Failure> {
        let options = RevertOptions::parse(&options)?.warned("revertSnapshot", &parse_id(&vm_id)?);
        let name = SnapshotName::parse(name)?;
        self.verb(&vm_id, Verb::RevertSnapshot { name, options })
            .await
    }

    /// `deleteSnapshot`: one that does not exist is deleted already.
    pub async fn delete_snapshot(
        &self,
        vm_id: String,
        name: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let options = SnapshotDeleteOptions::parse(&options)?;
        let options = options.warned("deleteSnapshot", &parse_id(&vm_id)?);
        let name = SnapshotName::parse(name)?;
        let verb = Verb::DeleteSnapshot {
            name,
            options,
            cancel,
        };
        self.verb(&vm_id, verb).await
    }

    /// `commitSnapshot`.
    pub async fn commit_snapshot(
        &self,
        vm_id: String,
        name: String,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let name = SnapshotName::parse(name)?;
        self.verb(&vm_id, Verb::CommitSnapshot { name, cancel })
            .await
    }

    /// Notes that somebody freezes the guest of a VM that runs here, as a backup does: if he is killed before
    /// he has thawed it, the next recovery does. `None` where nobody here could.
    pub async fn note_freeze(&self, vm_id: &VmId) -> Result<Option<NotedFreeze>, Failure> {
        let Ok(open) = self.open() else {
            return Ok(None);
        };
        let handle = open.vms().get(vm_id).cloned();
        match handle.filter(|handle| handle.view().live.is_some()) {
            Some(handle) => handle.context().note_freeze().await,
            None => Ok(None),
        }
    }

    /// `changeDiskKey`.
    pub async fn change_disk_key(
        &self,
        vm_id: String,
        path: String,
        options: Value,
    ) -> Result<Value, Failure> {
        let options = ChangeDiskKeyOptions::parse(&options)?;
        let options = options.warned("changeDiskKey", &parse_id(&vm_id)?);
        let invalid = |why: String| Failure::new(ErrorCode::InvalidConfig, why);
        let path = HostPath::parse(path).map_err(|why| invalid(format!("path {why}")))?;
        let missing = || invalid("newKey is missing".to_owned());
        let change = DiskKeyChange {
            path,
            old: options.key,
            new: options.new_key.ok_or_else(missing)?,
            iter_time: options.iter_time,
        };
        self.verb(&vm_id, Verb::ChangeDiskKey(Box::new(change)))
            .await
    }

    /// The keys of a VM's encrypted disks that are known: of its run, then of the store. Those that cannot be
    /// read are left out. A VM that is nobody's has none.
    pub async fn disk_keys(&self, vm_id: &VmId) -> Result<DiskKeys, Failure> {
        let open = self.open()?;
        let mut keys = DiskKeys::new();
        if let Some(store) = &open.services.embedded {
            for (path, key) in store.disk_keys(vm_id).await? {
                match key {
                    Ok(key) => drop(keys.insert(path, key)),
                    Err(error) => {
                        tracing::warn!(%vm_id, %path, %error, "a disk's key cannot be read");
                    }
                }
            }
        }
        let live = open.vms().get(vm_id).and_then(|handle| handle.view().live);
        keys.extend(live.map(|live| live.disk_keys.get()).unwrap_or_default());
        Ok(keys)
    }

    /// Files that disks lie on because of external snapshots: none may change, and none is what a disk
    /// holds now.
    pub async fn frozen_layers(&self) -> Result<Vec<HostPath>, Failure> {
        let machines = self.open()?.services.machines_directory();
        Ok(blocking(move || frozen_layers(&machines)).await??)
    }

    /// `snapshotTree`. Does not wait for the VM's other operations.
    pub async fn snapshot_tree(&self, vm_id: String) -> Result<Value, Failure> {
        let vm_id = parse_id(&vm_id)?;
        let handle = self.open()?.known(&vm_id).await?;
        let tree = handle.snapshot_tree().await;
        to_value(&tree.map_err(|failure| failure.of_vm(&vm_id))?)
    }
}
