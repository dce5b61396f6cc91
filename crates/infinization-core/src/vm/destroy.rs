//! `destroyVM` and `deleteVM`: nothing of the machine stays on the host.

use std::sync::Arc;

use super::action::Release;
use super::cleanup::Cleanup;
use super::machine::Machine;
use super::outcome::{EndCause, OperationResult};
use super::plan::{Lifetime, Operation, Undo};
use super::status::Status;
use crate::config::FirmwareConfig;
use crate::db::sqlite::StoredMachine;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::types::HostPath;

impl Machine {
    /// Ends QEMU and releases everything but the user's data, or that too. The row's status stays.
    pub(super) async fn destroy(&mut self, with_data: bool) -> Result<OperationResult, Failure> {
        let vm_id = self.context.vm_id.clone();
        self.context.make_directory().await?;
        self.context.ledger.begin(Operation::Destroy, now_ms())?;
        let process = self.process();
        if let Some(process) = &process {
            let ended = process.kill_now().await;
            ended.map_err(|error| {
                Failure::caused_by(ErrorCode::StopFailed, "QEMU could not be ended", error)
                    .of_vm(&vm_id)
            })?;
        }
        self.intend_names()?;
        let until = if with_data {
            Lifetime::Data
        } else {
            Lifetime::Machine
        };
        let cleanup = self.settle_up_to(&EndCause::of("host-kill"), until).await;
        if process.is_some() {
            self.write_off().await;
            self.tell_off("SHUTDOWN", &serde_json::Value::Null);
        }
        self.told_stuck(cleanup)?;
        self.forget().await?;
        Ok(OperationResult::done(&vm_id, "VM destroyed"))
    }

    /// Destroys the machine and deletes its row (embedded store); its disks too if asked. All in one
    /// request: a start that waits finds the machine whole or gone.
    pub(super) async fn delete(&mut self, with_data: bool) -> Result<OperationResult, Failure> {
        let context = Arc::clone(&self.context);
        let Some(store) = &context.services.embedded else {
            return Err(Failure::new(
                ErrorCode::Internal,
                "there is no store to delete from",
            ));
        };
        let machine = store.get_machine(&context.vm_id).await?;
        let machine = machine.ok_or_else(|| context.not_found())?;
        self.destroy(with_data).await?;
        if with_data {
            remove_data(self.data_of(&machine)).await?;
        }
        store.delete_machine(&context.vm_id).await?;
        Ok(OperationResult::done(&context.vm_id, "VM deleted"))
    }

    /// The disks the row knows of and the firmware variables: the ledger has released them already,
    /// unless an earlier destroy let them be.
    fn data_of(&self, machine: &StoredMachine) -> Vec<HostPath> {
        let configuration = machine.record.configuration.as_ref();
        let disks = configuration.and_then(|row| row.disk_paths.clone());
        let disks = disks.unwrap_or_default().into_iter().map(HostPath::parse);
        let disk_dir = &self.context.services.config.disk_dir;
        let vars = FirmwareConfig::vars_of(disk_dir, &self.context.vm_id);
        disks.chain([vars]).filter_map(Result::ok).collect()
    }

    /// TAP and chains carry the VM's own name: they go even if a lost ledger does not list them.
    fn intend_names(&self) -> Result<(), Failure> {
        let ledger = &self.context.ledger;
        let listed = ledger.contents().entries;
        let tap = self.context.names.tap.clone();
        let missing: Vec<Undo> = [Release::DeleteTap { tap }, Release::RemoveFirewall]
            .into_iter()
            .filter(|release| listed.iter().all(|entry| entry.undo.release != *release))
            .map(|release| Undo {
                lifetime: Lifetime::Machine,
                release,
            })
            .collect();
        ledger.intend(&missing)?;
        Ok(())
    }

    fn told_stuck(&self, cleanup: Cleanup) -> Result<(), Failure> {
        self.alert(&cleanup);
        let Some((release, failure)) = cleanup.into_failure() else {
            return Ok(());
        };
        let message = format!("the VM was not destroyed: {} failed", release.name());
        Err(
            Failure::caused_by(ErrorCode::CleanupFailed, message, failure)
                .of_vm(&self.context.vm_id),
        )
    }

    /// Clears the configuration row and removes the state directory.
    async fn forget(&mut self) -> Result<(), Failure> {
        let context = &self.context;
        context
            .services
            .database
            .clear_machine_configuration(&context.vm_id)
            .await
            .map_err(|error| {
                Failure::caused_by(
                    ErrorCode::DatabaseError,
                    "the configuration could not be cleared",
                    error,
                )
                .of_vm(&context.vm_id)
            })?;
        context.remove_directory().await?;
        self.shown = Status::Off;
        Ok(())
    }
}

async fn remove_data(paths: Vec<HostPath>) -> Result<(), Failure> {
    for path in paths {
        match tokio::fs::remove_file(path.as_path()).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("{path} could not be removed: {error}");
                return Err(Failure::new(ErrorCode::DiskError, message).with("path", path.as_str()));
            }
            _ => {}
        }
    }
    Ok(())
}
