//! What every operation on one VM needs: who it is, where its files are, whom to tell.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::bench::Bench;
use super::journal::Journal;
use super::ledger::Ledger;
use super::outcome::EndCause;
use super::run::{Desk, Effects};
use super::services::Services;
use super::spec;
use super::status::{STARTABLE, Status};
use crate::db::{ConfigurationUpdate, DbError};
use crate::error::{ErrorCode, Failure};
use crate::events::{GuestEvent, Source};
use crate::host::blocking::file_call;
use crate::types::{InternalName, VmId, VmNames};

/// One VM's surroundings. Shared by its task and the operations the task runs.
#[derive(Debug)]
pub struct VmContext {
    /// The machine's id.
    pub vm_id: VmId,
    /// Its host names.
    pub names: VmNames,
    /// Its state directory (`{stateDir}/vms/{vmId}`).
    pub directory: PathBuf,
    /// What it holds.
    pub ledger: Arc<Ledger>,
    /// Held by whoever puts its TAP on a bridge or takes it off.
    pub(super) port: Arc<Mutex<()>>,
    /// What was done with it.
    pub journal: Journal,
    /// Performs its actions.
    pub effects: Arc<dyn Effects>,
    /// What all VMs share.
    pub services: Arc<Services>,
    /// Whether recovery has found that the row is another node's by now.
    pub(super) elsewhere: AtomicBool,
}

impl VmContext {
    /// What an operation on this VM works with.
    pub(super) fn desk<'a>(&'a self, bench: &'a Bench) -> Desk<'a> {
        Desk {
            effects: self.effects.as_ref(),
            ledger: &self.ledger,
            journal: &self.journal,
            bench,
        }
    }

    /// The row's status, or `VM_NOT_FOUND`.
    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.row_status().await?.ok_or_else(|| self.not_found())
    }

    /// The row's status, if there is a row.
    pub(super) async fn row_status(&self) -> Result<Option<Status>, DbError> {
        let row = self.services.database.find_machine(&self.vm_id).await?;
        Ok(row.map(|row| Status::parse(&row.status)))
    }

    /// Whether the machine has a row, and it is another node's. Where only one node's rows are seen, that
    /// there is no process here says nothing of such a machine.
    pub(super) async fn is_elsewhere(&self) -> Result<bool, DbError> {
        let Services {
            database,
            sees_every_row,
            ..
        } = self.services.as_ref();
        if *sees_every_row {
            return Ok(false);
        }
        let name = database.get_machine_internal_name(&self.vm_id).await?;
        let Some(Ok(name)) = name.map(InternalName::parse) else {
            return Ok(false);
        };
        let row = database.find_machine_by_internal_name(&name).await?;
        Ok(row.is_none_or(|row| row.id != self.vm_id.as_str()))
    }

    /// The machine moved to another node while nobody watched: from here on its row is let be.
    pub(super) async fn look_whose_row(&self) {
        let elsewhere = matches!(self.is_elsewhere().await, Ok(true));
        if elsewhere {
            tracing::warn!(vm = %self.vm_id, "its row is another node's: only what is here is settled");
        }
        self.elsewhere.store(elsewhere, Relaxed);
    }

    /// Whether the row is this node's, as far as recovery knows; it may have come back.
    pub(super) async fn owns_row(&self) -> bool {
        if self.elsewhere.load(Relaxed) {
            self.look_whose_row().await;
        }
        !self.elsewhere.load(Relaxed)
    }

    /// Refuses what must not be done with another node's row.
    pub(super) async fn refuse_elsewhere(&self) -> Result<(), Failure> {
        if !self.is_elsewhere().await? {
            return Ok(());
        }
        let message = format!("VM {} is another node's", self.vm_id);
        Err(Failure::new(ErrorCode::InvalidState, message).of_vm(&self.vm_id))
    }

    pub(super) fn not_found(&self) -> Failure {
        Failure::new(
            ErrorCode::VmNotFound,
            format!("VM {} not found", self.vm_id),
        )
        .of_vm(&self.vm_id)
    }

    /// A refusal: nothing was touched.
    pub(super) fn refused(&self, verb: &str, status: &Status, allowed: &[&str]) -> Failure {
        let message = format!("VM {} cannot be {verb} while it is {status}", self.vm_id);
        let which = if allowed == STARTABLE {
            "startableStatuses"
        } else {
            "allowedStatuses"
        };
        Failure::new(ErrorCode::InvalidState, message)
            .of_vm(&self.vm_id)
            .with("currentStatus", status.as_str())
            .with(which, allowed.to_vec())
    }

    /// Tells the consumer's `eventManager.emitCRUD('machines', action, vmId, data)`.
    pub(super) fn crud(&self, action: &str, data: Value) {
        self.services
            .events
            .publish(Source::Crud, action, Some(&self.vm_id), data);
    }

    /// Clears what the row says of a run that is over.
    pub(super) async fn clear_run(&self) {
        if !self.owns_row().await {
            return;
        }
        let database = &self.services.database;
        if let Err(error) = database
            .clear_volatile_machine_configuration(&self.vm_id)
            .await
        {
            tracing::warn!(vm = %self.vm_id, %error, "the configuration could not be cleared");
        }
    }

    /// The display port of a failed attempt is nobody's: the next start looks where the last run was.
    pub(super) async fn row_keeps_port(&self, port: u16) {
        let update = ConfigurationUpdate {
            graphic_port: Some(Some(port.into())),
            ..ConfigurationUpdate::default()
        };
        let database = &self.services.database;
        if let Err(error) = database
            .update_machine_configuration(&self.vm_id, update)
            .await
        {
            tracing::warn!(vm = %self.vm_id, %error, "the display port could not be restored");
        }
    }

    /// Makes the VM's state directory. Others may pass through it to files they are given.
    pub(super) async fn make_directory(&self) -> Result<(), Failure> {
        let directory = self.directory.clone();
        let made = file_call(move || std::fs::create_dir_all(directory)).await;
        made.map_err(|error| self.directory_failure("made", &error))
    }

    /// Before a launch that may have to put a spec back: only one that it replaced itself.
    pub(super) async fn forget_previous_spec(&self) -> Result<(), Failure> {
        let directory = self.directory.clone();
        let forgotten = file_call(move || spec::forget_previous(&directory)).await;
        forgotten.map_err(|error| self.directory_failure("tidied", &error))
    }

    /// Removes the VM's state directory, and with it the ledger.
    pub(super) async fn remove_directory(&self) -> Result<(), Failure> {
        let directory = self.directory.clone();
        match file_call(move || std::fs::remove_dir_all(directory)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.directory_failure("removed", &error))
            }
            _ => {
                self.ledger.discard();
                self.services.journals.prune();
                Ok(())
            }
        }
    }

    fn directory_failure(&self, done: &str, error: &std::io::Error) -> Failure {
        let path = self.directory.display().to_string();
        Failure::new(
            ErrorCode::StateFile,
            format!("{path} could not be {done}: {error}"),
        )
        .of_vm(&self.vm_id)
        .with("path", path)
    }

    /// Emits what the guest did: the specific event, the resulting status, and `vm:event`.
    pub(super) fn guest_event(&self, event: &str, previous: &Status, new: &Status, qmp: &Value) {
        self.emit_guest_event(event, previous, new, qmp, None);
    }

    /// Emits that the guest is off, and why.
    pub(super) fn guest_off(
        &self,
        event: &str,
        previous: &Status,
        qmp: &Value,
        cause: Option<&EndCause>,
    ) {
        self.emit_guest_event(event, previous, &Status::Off, qmp, cause);
    }

    fn emit_guest_event(
        &self,
        event: &str,
        previous: &Status,
        new: &Status,
        qmp: &Value,
        cause: Option<&EndCause>,
    ) {
        let cause = cause.map(|cause| json!(cause));
        let guest = GuestEvent {
            event,
            previous: previous.as_str(),
            new: new.as_str(),
            qmp,
            cause: cause.as_ref(),
        };
        if !self.services.marks.unheard.contains(&self.vm_id) {
            self.services.events.publish_guest(&self.vm_id, guest);
        }
    }

    /// Writes what has become of the VM, if the row has one of `over`.
    pub(super) async fn write_status(&self, status: &str, over: &[&str]) {
        if !self.owns_row().await {
            return;
        }
        let database = &self.services.database;
        let written = database.write_status_over(&self.vm_id, status, over).await;
        self.status_was_written(status, written);
    }

    /// Tells when the database has not taken a status. The host is as it should be; the row is not, or
    /// not yet.
    pub(super) fn status_was_written(&self, status: &str, written: Result<(), DbError>) {
        let error = match written {
            Err(error) => {
                tracing::error!(vm = %self.vm_id, status, %error, "the status could not be written");
                error.to_string()
            }
            Ok(()) if self.services.outbox.keeps(&self.vm_id) => {
                "the database is away: the status is kept and will be written".to_owned()
            }
            Ok(()) => return,
        };
        let data = json!({ "vmId": self.vm_id, "event": status, "error": error });
        self.emit("error", data);
    }

    /// Emits on `getEventHandler()`, unless the user wants to hear no more of the machine. Of
    /// failures he hears.
    pub(super) fn emit(&self, kind: &str, data: Value) {
        if kind != "error" && self.services.marks.unheard.contains(&self.vm_id) {
            return;
        }
        self.services
            .events
            .publish(Source::EventHandler, kind, Some(&self.vm_id), data);
    }
}
