//! Snapshots of a machine's disks and memory.

use napi_derive::napi;

use super::{Infinization, not_yet_fired};
use crate::argument::Argument;
use crate::classes::Cancellation;
use crate::outcome::{Outcome, data};

#[napi]
impl Infinization {
    #[napi]
    pub async fn change_disk_key(
        &self,
        vm_id: Argument,
        path: Argument,
        options: Argument,
    ) -> Outcome {
        data(async {
            let (vm_id, path) = (vm_id.text("vmId")?, path.text("path")?);
            let options = options.object("options")?;
            self.manager.change_disk_key(vm_id, path, options).await
        })
        .await
    }

    #[napi]
    pub async fn create_snapshot(
        &self,
        vm_id: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            let (vm_id, options) = (vm_id.text("vmId")?, options.object("options")?);
            let cancel = not_yet_fired(cancel, &vm_id)?;
            self.manager.create_snapshot(vm_id, options, cancel).await
        })
        .await
    }

    #[napi]
    pub async fn list_snapshots(&self, vm_id: Argument) -> Outcome {
        data(async { Box::pin(self.manager.list_snapshots(vm_id.text("vmId")?)).await }).await
    }

    #[napi]
    pub async fn revert_snapshot(
        &self,
        vm_id: Argument,
        name: Argument,
        options: Argument,
    ) -> Outcome {
        data(async {
            let (vm_id, name) = (vm_id.text("vmId")?, name.text("name")?);
            let options = options.object("options")?;
            self.manager.revert_snapshot(vm_id, name, options).await
        })
        .await
    }

    #[napi]
    pub async fn delete_snapshot(
        &self,
        vm_id: Argument,
        name: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            let (vm_id, name) = (vm_id.text("vmId")?, name.text("name")?);
            let (options, cancel) = (options.object("options")?, not_yet_fired(cancel, &vm_id)?);
            let deleted = self.manager.delete_snapshot(vm_id, name, options, cancel);
            deleted.await
        })
        .await
    }

    #[napi]
    pub async fn commit_snapshot(
        &self,
        vm_id: Argument,
        name: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            let (vm_id, name) = (vm_id.text("vmId")?, name.text("name")?);
            let cancel = not_yet_fired(cancel, &vm_id)?;
            self.manager.commit_snapshot(vm_id, name, cancel).await
        })
        .await
    }

    #[napi]
    pub async fn snapshot_tree(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.snapshot_tree(vm_id.text("vmId")?).await }).await
    }
}
