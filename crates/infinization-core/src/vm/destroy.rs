//! `destroyVM` and `deleteVM`: nothing of the machine stays on the host.

use std::sync::Arc;

use serde_json::{Value, json};

use super::action::Release;
use super::cleanup::Cleanup;
use super::machine::Machine;
use super::outcome::{EndCause, OperationResult};
use super::plan::{Lifetime, Operation, Undo};
use super::snapshot::files_of;
use super::status::Status;
use super::stop::TERM_GRACE;
use crate::config::{DiskLocation, FirmwareConfig};
use crate::db::sqlite::SqliteDatabase;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::host::blocking::{blocking, file_call};
use crate::host::process::ProcessHandle;
use crate::host::qemu_img::sweep_partials_of;
use crate::types::{HostPath, InvalidValue};

impl Machine {
    /// Ends QEMU and releases everything but the user's data. The row stays.
    pub(super) async fn destroy(&mut self) -> Result<OperationResult, Failure> {
        let process = self.process_to_end().await?;
        let razed = self.raze(self.at_least(Operation::Destroy), process);
        razed.await?.complete(&self.context.vm_id)?;
        Ok(OperationResult::done(&self.context.vm_id, "VM destroyed"))
    }

    /// Destroys the machine and deletes its row (embedded store); its disks too if asked. All in one
    /// request: a start that waits finds the machine whole or gone.
    pub(super) async fn delete(&mut self, with_data: bool) -> Result<OperationResult, Failure> {
        let wanted = if with_data {
            Operation::DeleteData
        } else {
            Operation::Delete
        };
        let operation = self.at_least(wanted);
        let machine = self.store()?.get_machine(&self.context.vm_id).await?;
        // One that was cut short may have deleted the row already.
        if machine.is_none() && self.context.ledger.contents().operation != Some(operation) {
            return Err(self.context.not_found());
        }
        let process = self.process_to_end().await?;
        let razed = self.raze(operation, process).await?;
        razed.complete(&self.context.vm_id)?;
        Ok(OperationResult::done(&self.context.vm_id, "VM deleted"))
    }

    /// What was begun and cut short is not made less of.
    fn at_least(&self, wanted: Operation) -> Operation {
        let begun = self.context.ledger.contents().operation;
        let more = |begun: &Operation| {
            [Operation::DeleteData, Operation::Delete].contains(begun)
                && wanted != Operation::DeleteData
        };
        begun.filter(more).unwrap_or(wanted)
    }

    /// Destroys or deletes, wherever an earlier attempt was cut short. The row and what knows of the
    /// machine go only when all the rest has gone.
    pub(super) async fn raze(
        &mut self,
        operation: Operation,
        process: Option<ProcessHandle>,
    ) -> Result<Cleanup, Failure> {
        self.context.make_directory().await?;
        // Read before anything is ended: a store that cannot be read leaves all as it is.
        let data = match operation {
            Operation::DeleteData => self.data().await?,
            _ => Vec::new(),
        };
        self.context.ledger.begin_release(operation, now_ms());
        if let Some(process) = &process {
            // Its disks may stay: QEMU writes what it holds of them before it ends.
            let ended = match operation {
                Operation::DeleteData => process.kill_now().await,
                _ => process.terminate(TERM_GRACE).await,
            };
            ended.map_err(|error| {
                Failure::caused_by(ErrorCode::StopFailed, "QEMU could not be ended", error)
                    .of_vm(&self.context.vm_id)
            })?;
        }
        for path in &data {
            // A layer that was being made anew when somebody was killed; the disk itself goes anyway.
            if let Err(error) = sweep_partials_of(path).await {
                tracing::warn!(vm = %self.context.vm_id, %path, %error, "half-made files stay");
            }
        }
        let until = self.intend_to_raze(operation, data);
        let cleanup = self.settle_up_to(&EndCause::of("host-kill"), until).await;
        if process.is_some() && self.context.owns_row().await {
            self.write_off().await;
            self.tell_off(&Value::Null);
            self.context.crud("power_off", json!({ "forced": true }));
        }
        self.alert(&cleanup);
        if cleanup.is_complete() {
            if operation != Operation::DeleteData {
                Box::pin(self.finish_pivots()).await?;
            }
            self.forget(operation).await?;
        }
        Ok(cleanup)
    }

    /// TAP and chains carry the VM's own name: they go even if a lost ledger does not list them. So
    /// do the disks the row knows of and the firmware variables, if data is to go.
    fn intend_to_raze(&self, operation: Operation, data: Vec<HostPath>) -> Lifetime {
        let tap = self.context.names.tap.clone();
        let of = |lifetime| move |release| Undo { lifetime, release };
        let named = [Release::DeleteTap { tap }, Release::RemoveFirewall];
        let ledger = &self.context.ledger;
        ledger.release_too(named.into_iter().map(of(Lifetime::Machine)));
        if operation != Operation::DeleteData {
            return Lifetime::Machine;
        }
        let files = data.into_iter().map(|path| Release::RemoveFile { path });
        ledger.release_too(files.map(of(Lifetime::Data)));
        Lifetime::Data
    }

    async fn data(&self) -> Result<Vec<HostPath>, Failure> {
        let machine = self.store()?.get_machine(&self.context.vm_id).await?;
        let disks = machine.and_then(|machine| machine.record.configuration?.disk_paths);
        let disk_dir = &self.context.services.config.disk_dir;
        let vars = FirmwareConfig::vars_of(disk_dir, &self.context.vm_id);
        let directory = self.context.directory.clone();
        let layers = blocking(move || files_of(&directory)).await??;
        let disks = disks.unwrap_or_default().into_iter();
        // What is on the network is not ours to delete.
        let disks = disks.filter(|disk| !DiskLocation::is_network_text(disk));
        let disks = disks.map(HostPath::parse);
        let layers = layers.into_iter().map(Ok);
        let paths: Result<_, InvalidValue> = disks.chain([vars]).chain(layers).collect();
        paths.map_err(|error| {
            let message = format!("a disk of the machine cannot be deleted: its path {error}");
            Failure::new(ErrorCode::DiskError, message).of_vm(&self.context.vm_id)
        })
    }

    /// Clears or deletes the row, and then the state directory: what knows of the rest goes last.
    async fn forget(&mut self, operation: Operation) -> Result<(), Failure> {
        let context = &self.context;
        let forgotten = match operation {
            Operation::Delete | Operation::DeleteData => {
                let deleted = self.store()?.delete_machine(&context.vm_id).await;
                deleted.map(|_existed| context.services.outbox.forget(&context.vm_id))
            }
            _ if !context.owns_row().await => Ok(()),
            _ => {
                let database = &context.services.database;
                database.clear_machine_configuration(&context.vm_id).await
            }
        };
        forgotten.map_err(|error| {
            let message = "the VM's row could not be cleared";
            Failure::caused_by(ErrorCode::DatabaseError, message, error).of_vm(&context.vm_id)
        })?;
        context.remove_directory().await?;
        let (services, vm_id) = (Arc::clone(&context.services), context.vm_id.clone());
        let unmarked = file_call(move || services.installation_files.remove(&vm_id)).await;
        if let Err(error) = unmarked {
            tracing::warn!(vm = %context.vm_id, %error, "its mark of an installation stays");
        }
        self.shown = Status::Off;
        Ok(())
    }

    fn store(&self) -> Result<&SqliteDatabase, Failure> {
        let store = self.context.services.embedded.as_deref();
        store.ok_or_else(|| Failure::new(ErrorCode::Internal, "there is no store to delete from"))
    }
}
