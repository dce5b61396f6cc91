//! Rows and processes brought together: `reconcileStartupState` for rows between two states, and the
//! health monitor's check of rows that claim a QEMU.
//!
//! Runs in the VM's own task, so that what was found is still so when it is written.

use serde::Serialize;
use serde_json::Value;

use super::machine::Machine;
use super::outcome::EndCause;
use super::plan::Operation;
use super::recover::Recovered;
use super::status::Status;
use crate::db::VmRecord;
use crate::error::{ErrorCode, Failure};
use crate::host::process::Exit;
use crate::types::VmId;

/// `ReconcileResult`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReconcileResult {
    /// The machine.
    pub vm_id: String,
    /// The status it was listed with.
    pub previous_status: String,
    /// Its QEMU's pid.
    pub pid: Option<i32>,
    /// Whether its QEMU is there.
    pub pid_alive: bool,
    /// What became of the row.
    pub action: ReconcileAction,
    /// Why it was left as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What reconciling made of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReconcileAction {
    /// Its QEMU is there.
    PromotedRunning,
    /// Its QEMU is gone.
    ResetOff,
    /// Its QEMU is gone and it was being rebuilt.
    ResetError,
    /// It could not be judged.
    Skipped,
}

impl ReconcileResult {
    /// The row was left as it is.
    pub fn skipped(vm_id: &str, status: &str, reason: impl Into<String>) -> Self {
        Self {
            vm_id: vm_id.to_owned(),
            previous_status: status.to_owned(),
            pid: None,
            pid_alive: false,
            action: ReconcileAction::Skipped,
            reason: Some(reason.into()),
        }
    }
}

impl Machine {
    /// Settles a row that was listed with a status between two others.
    pub(super) async fn reconcile(&mut self, listed: &str) -> Result<ReconcileResult, Failure> {
        let vm_id = self.context.vm_id.clone();
        let recovered = self.recover_launch().await?;
        let action = match &recovered {
            Recovered::Skipped(why) => {
                return Ok(ReconcileResult::skipped(vm_id.as_str(), listed, why));
            }
            Recovered::Alive if self.is_launching() => {
                let why = "its launch cannot be finished yet";
                return Ok(ReconcileResult::skipped(vm_id.as_str(), listed, why));
            }
            Recovered::Alive => ReconcileAction::PromotedRunning,
            _ if listed == "rebuilding" => ReconcileAction::ResetError,
            _ => ReconcileAction::ResetOff,
        };
        if recovered == Recovered::Nothing {
            self.nobody_has_its_name().await?;
        }
        let new = match action {
            ReconcileAction::PromotedRunning => self.shown.clone(),
            ReconcileAction::ResetError => Status::Error,
            _ => Status::Off,
        };
        self.rewrite(listed, &new).await?;
        let pid = self.process().map(|process| process.pid());
        if pid.is_none() {
            self.context.clear_run().await;
        }
        Ok(ReconcileResult {
            vm_id: vm_id.to_string(),
            previous_status: listed.to_owned(),
            pid,
            pid_alive: pid.is_some(),
            action,
            reason: None,
        })
    }

    /// [`Machine::recover`]; where it is still open how an interrupted launch ended, QEMU is asked once more.
    async fn recover_launch(&mut self) -> Result<Recovered, Failure> {
        let recovered = self.recover().await?;
        if recovered == Recovered::Alive && self.is_launching() {
            self.ask_and_follow(None, &Value::Null).await;
            if self.live.is_none() {
                return Ok(Recovered::Undone);
            }
        }
        Ok(recovered)
    }

    /// Whether it is still open how an interrupted launch ended.
    fn is_launching(&self) -> bool {
        let operation = self.context.ledger.contents().operation;
        operation.is_some_and(Operation::is_launch)
    }

    /// Writes `new` over `listed`, and over no other status that came meanwhile.
    async fn rewrite(&self, listed: &str, new: &Status) -> Result<(), Failure> {
        let (database, vm_id) = (&self.context.services.database, &self.context.vm_id);
        let row = database.find_machine(vm_id).await?;
        if row.is_some_and(|row| row.status == listed) {
            database
                .write_status_over(vm_id, new.as_str(), &[listed])
                .await?;
            self.context.journal.found_status(listed);
            self.context.journal.status(new.as_str());
        }
        Ok(())
    }

    /// The pid of the VM's QEMU, whose row is made true; `None` when there is none, which is a crash nobody saw.
    pub(super) async fn check(&mut self) -> Result<Option<i32>, Failure> {
        match self.recover_launch().await? {
            Recovered::Skipped(why) => {
                Err(Failure::new(ErrorCode::IdentityUnknown, why).of_vm(&self.context.vm_id))
            }
            Recovered::Alive => {
                self.correct_row().await?;
                Ok(self.process().map(|process| process.pid()))
            }
            Recovered::Off | Recovered::Undone => Ok(None),
            Recovered::Nothing => {
                self.bury_claim().await?;
                Ok(None)
            }
        }
    }

    /// What somebody else wrote, or a write of ours that was given up and made late all the same, says
    /// nothing of a QEMU that lives.
    async fn correct_row(&self) -> Result<(), Failure> {
        let row = self.context.row_status().await?;
        let Some(row) = row.filter(|row| row.expects_process() || row.denies_process()) else {
            return Ok(());
        };
        if self.is_launching() {
            return Ok(());
        }
        if !row.means(&self.shown) {
            self.write_shown(&[row.as_str()]).await?;
        }
        Ok(self.write_run().await?)
    }

    /// Writes what a living VM is over a row of this node that says one of `over`, and over nothing else.
    pub(super) async fn write_shown(&self, over: &[&str]) -> Result<(), Failure> {
        self.context.refuse_elsewhere().await?;
        let (database, vm_id) = (&self.context.services.database, &self.context.vm_id);
        let shown = self.shown.as_str();
        database.write_status_over(vm_id, shown, over).await?;
        self.context.journal.status(shown);
        Ok(())
    }

    /// A row claims a QEMU that no ledger knows. It may have come off by itself meanwhile.
    async fn bury_claim(&mut self) -> Result<(), Failure> {
        let context = &self.context;
        let (database, vm_id): (_, &VmId) = (&context.services.database, &context.vm_id);
        let Some(row) = database.find_machine_without_password(vm_id).await? else {
            return Ok(());
        };
        let status = Status::parse(&row.status);
        if !status.expects_process() {
            return Ok(());
        }
        self.nobody_has_its_name().await?;
        self.shown = status;
        let cause = self.cause_of(Exit::Unknown, None).await;
        self.died_unseen(recorded_pid(&row), cause).await;
        Ok(())
    }

    /// A row that says `running` or `starting` while there is no QEMU is an old claim: it becomes
    /// `off`. Refused while any process has the machine's name, and of another node's machine.
    pub(super) async fn drop_dead_claim(&mut self) -> Result<(), Failure> {
        self.context.refuse_elsewhere().await?;
        self.nobody_has_its_name().await?;
        let cleanup = self.settle(&EndCause::of("unknown")).await;
        self.alert(&cleanup);
        self.write_off().await;
        Ok(())
    }
}

fn recorded_pid(row: &VmRecord) -> Option<i32> {
    let pid = row.configuration.as_ref()?.qemu_pid?;
    i32::try_from(pid).ok()
}
