//! `getVMStatus` and `getActiveVMs`: what a VM is now. Neither waits for an operation of the VM.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;

use super::{Manager, Open, not_found, parse_id, to_value};
use crate::error::{ErrorCode, Failure};
use crate::host::process::is_alive;
use crate::types::VmId;
use crate::vm::status::Status;
use crate::vm::{LiveView, Operation, StatusResult, VmHandle};

impl Manager {
    /// `getVMStatus`.
    pub async fn get_vm_status(&self, vm_id: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let vm_id = parse_id(&vm_id)?;
        let database = &open.services.database;
        let row = database.find_machine_with_config(&vm_id).await;
        let row = row.map_err(|error| {
            let message = "the machine could not be read";
            Failure::caused_by(ErrorCode::DatabaseError, message, error).of_vm(&vm_id)
        })?;
        let row = row.ok_or_else(|| not_found(&vm_id))?;
        let handle = open.vms().get(&vm_id).cloned();
        let view = handle.as_ref().map(VmHandle::view).unwrap_or_default();
        let live = view.live.filter(|live| live.process.is_alive());
        let qmp_status = match (&handle, &live) {
            (Some(handle), Some(live)) => handle.context().ask_run_state(live).await,
            _ => None,
        };
        let qmp_status = qmp_status.map(|status| status.status.as_str().to_owned());
        // A process that cannot be proven to be its QEMU may be: it counts as there.
        let unproven = handle
            .filter(|_| live.is_none())
            .map(|handle| handle.context().ledger.contents())
            .filter(|contents| !contents.operation.is_some_and(Operation::is_launch))
            .and_then(|contents| Some(contents.lived?.process.pid))
            .filter(|pid| is_alive(*pid));
        let known = live.as_ref().map(|live| live.process.pid()).or(unproven);
        let expected = Status::parse(&row.status).expects_process();
        let pid = match known {
            None if expected => open.unknown_to_ledgers(&vm_id).await?,
            known => known,
        };
        let columns = row.configuration.unwrap_or_default();
        to_value(&StatusResult {
            consistent: consistent(&Status::parse(&row.status), pid.is_some()),
            status: row.status,
            pid,
            uptime: live.as_deref().and_then(uptime),
            process_alive: pid.is_some(),
            unresponsive: pid.is_some() && qmp_status.is_none(),
            qmp_status,
            tap_device: columns.tap_device_name,
            qmp_socket_path: columns.qmp_socket_path,
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
        // A context of its own, never a task: asking leaves no trace.
        let context = self.services.context_of(vm_id)?;
        let process = context.process_of_its_name().await?;
        Ok(process.map(|process| process.pid()))
    }
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
