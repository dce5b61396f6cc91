//! The verbs that act on a running guest: suspend, resume, reset.

use serde_json::{Value, json};

use super::machine::Machine;
use super::outcome::OperationResult;
use super::status::{FOLLOWED, OURS, Status};
use crate::error::{ErrorCode, Failure};
use crate::qmp::{QmpClient, QmpError, RunState};

impl Machine {
    /// Stops the guest's CPUs.
    pub(super) async fn suspend(&mut self) -> Result<OperationResult, Failure> {
        let qmp = self.monitor_of("suspended", &["running"]).await?;
        qmp.stop()
            .await
            .map_err(|error| self.monitor_failed(error))?;
        self.shows(Status::Suspended, "STOP", &FOLLOWED).await?;
        self.context.crud("suspend", Value::Null);
        Ok(OperationResult::done(&self.context.vm_id, "VM suspended"))
    }

    /// Lets the guest run again; wakes it if it sleeps (S3). One that stands still for an error of its
    /// disk goes on too, though the row says `error`.
    pub(super) async fn resume(&mut self) -> Result<OperationResult, Failure> {
        let halted = self.halted_in_error().await?;
        let over = match halted {
            Some(_) => &OURS[..],
            None => &FOLLOWED[..],
        };
        let qmp = match halted {
            Some(qmp) => qmp,
            None => self.monitor_of("resumed", &["suspended", "paused"]).await?,
        };
        let resumed = match qmp.query_status().await {
            Ok(status) if status.status == RunState::Suspended => qmp.system_wakeup().await,
            Ok(_) => qmp.cont().await,
            Err(error) => Err(error),
        };
        resumed.map_err(|error| self.monitor_failed(error))?;
        self.shows(Status::Running, "RESUME", over).await?;
        self.context.crud("resume", Value::Null);
        Ok(OperationResult::done(&self.context.vm_id, "VM resumed"))
    }

    /// Presses the reset button.
    pub(super) async fn reset(&mut self) -> Result<OperationResult, Failure> {
        let qmp = self.monitor_of("reset", &["running"]).await?;
        qmp.system_reset()
            .await
            .map_err(|error| self.monitor_failed(error))?;
        self.context.crud("update", json!({ "type": "hardware" }));
        Ok(OperationResult::done(&self.context.vm_id, "VM reset"))
    }

    /// The monitor of a guest that could go on and whose row says `error`.
    async fn halted_in_error(&self) -> Result<Option<QmpClient>, Failure> {
        let Some(live) = &self.live else {
            return Ok(None);
        };
        if self.context.status().await? != Status::Error {
            return Ok(None);
        }
        let status = self.context.ask_run_state(&live.view).await;
        let halted = status
            .is_some_and(|status| matches!(status.status, RunState::IoError | RunState::Paused));
        Ok(halted.then(|| live.view.qmp.clone()))
    }

    /// The monitor, if the row has one of `allowed` and QEMU is there.
    async fn monitor_of(&self, verb: &str, allowed: &[&str]) -> Result<QmpClient, Failure> {
        let status = self.context.status().await?;
        if !allowed.contains(&status.as_str()) {
            return Err(self.context.refused(verb, &status, allowed));
        }
        let gone = || self.context.refused(verb, &Status::Off, allowed);
        self.live
            .as_ref()
            .map(|live| live.view.qmp.clone())
            .ok_or_else(gone)
    }

    /// QEMU has done it: the row, if it has one of `over`, then the listeners.
    pub(super) async fn shows(
        &mut self,
        new: Status,
        event: &str,
        over: &[&str],
    ) -> Result<(), Failure> {
        let (database, vm_id) = (&self.context.services.database, &self.context.vm_id);
        database
            .write_status_over(vm_id, new.as_str(), over)
            .await
            .map_err(|error| {
                Failure::caused_by(
                    ErrorCode::DatabaseError,
                    "the status could not be written",
                    error,
                )
                .of_vm(vm_id)
            })?;
        self.context.status_was_written(new.as_str(), Ok(()));
        self.context.journal.status(new.as_str());
        self.owns_error = false;
        let previous = std::mem::replace(&mut self.shown, new.clone());
        if previous != new {
            self.context
                .guest_event(event, &previous, &new, &Value::Null);
        }
        Ok(())
    }

    fn monitor_failed(&self, error: QmpError) -> Failure {
        Failure::caused_by(ErrorCode::QmpError, error.to_string(), error).of_vm(&self.context.vm_id)
    }
}
