//! `getVMStatus` and `getActiveVMs`: what a VM is now. Neither waits for an operation of the VM.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;

use super::{Manager, Open, not_found, parse_id, to_value};
use crate::db::DbError;
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::blocking;
use crate::host::process::is_alive;
use crate::qmp::RunState;
use crate::types::VmId;
use crate::vm::status::Status;
use crate::vm::{Contents, LiveView, Operation, StatusResult, VmContext, VmHandle};

impl Manager {
    /// `getVMStatus`.
    pub async fn get_vm_status(&self, vm_id: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let vm_id = parse_id(&vm_id)?;
        let database = &open.services.database;
        let row = database.find_machine(&vm_id).await;
        let row = row.map_err(|error| unread(&vm_id, error))?;
        let row = row.ok_or_else(|| not_found(&vm_id))?;
        let handle = open.vms().get(&vm_id).cloned();
        let view = handle.as_ref().map(VmHandle::view).unwrap_or_default();
        let live = view.live.filter(|live| live.process.is_alive());
        let qmp_status = match (&handle, &live) {
            (Some(handle), Some(live)) => handle.context().ask_run_state(live).await,
            _ => None,
        };
        let answers = qmp_status.is_some();
        let contents = match &handle {
            Some(handle) => handle.context().ledger.contents(),
            None => open.context_of(&vm_id).await?.ledger.contents(),
        };
        let known = match &live {
            Some(live) => Some(live.process.pid()),
            None => unproven(&contents),
        };
        let expected = Status::parse(&row.status).expects_process();
        let pid = match known {
            None if expected => open.unknown_to_ledgers(&vm_id).await?,
            known => known,
        };
        let (tap_device, qmp_socket_path) = open.places(&vm_id, contents, live.as_deref()).await?;
        to_value(&StatusResult {
            consistent: consistent(&Status::parse(&row.status), pid.is_some()),
            status: row.status,
            pid,
            uptime: live.as_deref().and_then(uptime),
            process_alive: pid.is_some(),
            unresponsive: pid.is_some() && !answers,
            qmp_status: qmp_status.and_then(|status| run_state(&status.status)),
            tap_device,
            qmp_socket_path,
            condition: live.as_ref().and_then(|live| live.health.condition()),
            missed_events: live.as_ref().map_or(0, |live| live.missed.load(Relaxed)),
            last_exit: view.last_exit,
            vm_id,
        })
    }

    /// `getActiveVMs`: VMs whose QEMU is ours now. Empty before `initialize`.
    pub fn get_active_vms(&self) -> Vec<String> {
        let Ok(open) = self.open() else {
            return Vec::new();
        };
        let vms = open.vms();
        let alive = vms
            .iter()
            .filter(|(_, handle)| handle.view().live.is_some());
        alive.map(|(vm_id, _)| vm_id.to_string()).collect()
    }
}

impl Open {
    /// The QEMU of a machine whose ledger was lost, or was another program's: whoever takes it for
    /// dead writes so, and it is ended as nobody's.
    async fn unknown_to_ledgers(&self, vm_id: &VmId) -> Result<Option<i32>, Failure> {
        let context = self.context_of(vm_id).await?;
        let process = context.process_of_its_name().await?;
        Ok(process.map(|process| process.pid()))
    }

    /// A context of its own, never a task: asking leaves no trace. It reads the ledger.
    async fn context_of(&self, vm_id: &VmId) -> Result<VmContext, Failure> {
        let (services, vm_id) = (Arc::clone(&self.services), vm_id.clone());
        blocking(move || services.context_of(&vm_id)).await?
    }

    /// The VM's TAP and its monitor: the row is asked only for a machine that has nothing here.
    async fn places(
        &self,
        vm_id: &VmId,
        contents: Contents,
        live: Option<&LiveView>,
    ) -> Result<(Option<String>, Option<String>), Failure> {
        if let Some(live) = live {
            return Ok((Some(live.tap.to_string()), Some(live.qmp_socket.clone())));
        }
        if !contents.entries.is_empty() || contents.lived.is_some() {
            let tap = contents.tap().map(ToString::to_string);
            let socket = contents.lived.map(|lived| lived.qmp_socket.to_string());
            return Ok((tap, socket));
        }
        let database = &self.services.database;
        let row = database.find_machine_without_password(vm_id).await;
        let columns = row.map_err(|error| unread(vm_id, error))?;
        let columns = columns.and_then(|row| row.configuration);
        let columns = columns.unwrap_or_default();
        Ok((columns.tap_device_name, columns.qmp_socket_path))
    }
}

fn unread(vm_id: &VmId, error: DbError) -> Failure {
    let message = "the machine could not be read";
    Failure::caused_by(ErrorCode::DatabaseError, message, error).of_vm(vm_id)
}

/// A process that cannot be proven to be the VM's QEMU may be: it counts as there.
fn unproven(contents: &Contents) -> Option<i32> {
    let launching = contents.operation.is_some_and(Operation::is_launch);
    let lived = contents.lived.as_ref().filter(|_| !launching);
    let pid = lived.map(|lived| lived.process.pid);
    pid.filter(|pid| is_alive(*pid))
}

/// One of the public contract's run states; `None` for one it does not have.
fn run_state(state: &RunState) -> Option<String> {
    let word = match state {
        RunState::SaveVm | RunState::Debug => RunState::Paused.as_str(),
        RunState::InternalError => RunState::IoError.as_str(),
        RunState::Other(_) => return None,
        state => state.as_str(),
    };
    Some(word.to_owned())
}

fn uptime(live: &LiveView) -> Option<f64> {
    live.process.id().age().ok().map(|age| age.as_secs_f64())
}

/// Running, suspended and paused go with a process; off and error with none. What is between two
/// states, or claimed by the consumer, agrees with both.
fn consistent(status: &Status, alive: bool) -> bool {
    match status {
        Status::Running | Status::Suspended | Status::Paused => alive,
        Status::Off | Status::Error => !alive,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_state_is_one_of_the_contract_or_none() {
        let table = [
            ("running", Some("running")),
            ("finish-migrate", Some("finish-migrate")),
            ("guest-panicked", Some("guest-panicked")),
            ("save-vm", Some("paused")),
            ("debug", Some("paused")),
            ("internal-error", Some("io-error")),
            ("of-a-later-qemu", None),
        ];
        for (word, told) in table {
            assert_eq!(run_state(&RunState::from(word.to_owned())).as_deref(), told);
        }
    }

    #[test]
    fn a_row_and_a_process_agree() {
        // status, whether it agrees with a living QEMU, and with none
        let table = [
            ("running", true, false),
            ("suspended", true, false),
            ("paused", true, false),
            ("off", false, true),
            ("error", false, true),
            ("starting", true, true),
            ("rebuilding", true, true),
            ("updating_hardware", true, true),
            ("powering_off_update", true, true),
            ("backing_up", true, true),
        ];
        for (word, with, without) in table {
            let status = Status::parse(word);
            assert_eq!(consistent(&status, true), with, "{word}, alive");
            assert_eq!(consistent(&status, false), without, "{word}, gone");
        }
    }
}
