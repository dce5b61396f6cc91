//! `StateSync`, over the core's `sync`.

use infinization_core::Failure;
use infinization_core::sync::{StateSync as Core, SyncResult};
use infinization_core::types::VmId;
use napi_derive::napi;

use super::qmp_client::QmpClient;
use super::refused::Refused;
use super::watching::database;
use crate::argument::{Argument, wrong};
use crate::js_port::Ask;
use crate::outcome::{Outcome, data, done, now};

/// Questions to a database of the user's about one machine.
#[napi]
#[derive(Debug)]
pub struct StateSync {
    core: Result<Core, Refused>,
}

#[napi]
impl StateSync {
    /// Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(ask: Option<Ask>) -> Self {
        Self {
            core: database(ask).map(Core::new).map_err(Refused::from),
        }
    }

    /// What a run state of QEMU's means for the column; an unknown one is `error`.
    #[napi(js_name = "mapQMPStatusToDBStatus")]
    #[allow(clippy::unused_self, reason = "the contract has a method")]
    pub fn map_qmp_status_to_db_status(&self, run_state: Argument) -> Outcome {
        now(run_state
            .text("qmpStatus")
            .map(|state| Core::status_of(&state)))
    }

    #[napi]
    pub async fn sync_state(&self, vm_id: Argument, client: Option<&QmpClient>) -> Outcome {
        let monitor = client.map(QmpClient::monitor);
        let monitor = monitor.unwrap_or_else(|| Err(wrong("client", "must be a QMPClient")));
        data(async {
            let (vm_id, core) = match self.addressed(vm_id) {
                Ok(addressed) => addressed,
                Err(refused) => return Ok(refused),
            };
            Ok(match monitor {
                Ok(monitor) => core.sync_state(&vm_id, &monitor).await,
                Err(failure) => Core::refused(vm_id.as_str(), "QMP_UNAVAILABLE", &failure),
            })
        })
        .await
    }

    #[napi(js_name = "updateVMStatus")]
    pub async fn update_vm_status(&self, vm_id: Argument, status: Argument) -> Outcome {
        done(async {
            let (vm_id, status) = (id(vm_id)?, status.text("status")?);
            self.core()?.update_vm_status(&vm_id, &status).await
        })
        .await
    }

    #[napi]
    pub async fn update_status_direct(&self, vm_id: Argument, status: Argument) -> Outcome {
        data(async {
            let (vm_id, core) = match self.addressed(vm_id) {
                Ok(addressed) => addressed,
                Err(refused) => return Ok(refused),
            };
            Ok(match status.text("status") {
                Ok(status) => core.update_status_direct(&vm_id, &status).await,
                Err(failure) => Core::refused(vm_id.as_str(), "INVALID_STATUS", &failure),
            })
        })
        .await
    }

    #[napi(js_name = "getVMStatus")]
    pub async fn get_vm_status(&self, vm_id: Argument) -> Outcome {
        data(async { self.core()?.vm_status(&id(vm_id)?).await }).await
    }

    #[napi(js_name = "getVMPid")]
    pub async fn get_vm_pid(&self, vm_id: Argument) -> Outcome {
        data(async { self.core()?.vm_pid(&id(vm_id)?).await }).await
    }

    #[napi(js_name = "getVMInfo")]
    pub async fn get_vm_info(&self, vm_id: Argument) -> Outcome {
        data(async { self.core()?.vm_info(&id(vm_id)?).await }).await
    }

    #[napi]
    pub async fn clear_volatile_machine_configuration(&self, vm_id: Argument) -> Outcome {
        done(async { self.core()?.clear_volatile(&id(vm_id)?).await }).await
    }

    /// For methods that do not fail: which machine, and the questions to ask of it.
    fn addressed(&self, vm_id: Argument) -> Result<(VmId, &Core), SyncResult> {
        let given = vm_id.clone().text("vmId").unwrap_or_default();
        let vm_id = id(vm_id).map_err(|failure| Core::refused(&given, "VM_NOT_FOUND", &failure))?;
        let core = self.core();
        let core = core.map_err(|failure| Core::refused(&given, "DB_ERROR", &failure))?;
        Ok((vm_id, core))
    }

    fn core(&self) -> Result<&Core, Failure> {
        Ok(self.core.as_ref()?)
    }
}

fn id(vm_id: Argument) -> Result<VmId, Failure> {
    vm_id.parsed("vmId")
}
