use infinization_core::manager::Manager;
use napi_derive::napi;
use serde_json::{Map, Value};

use super::Infinization;
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// What `getHealthMonitor()` returns, once `js/infinization.js` has made it an `EventEmitter`.
#[napi]
#[derive(Debug)]
pub struct HealthMonitor {
    manager: Manager,
}

#[napi]
impl HealthMonitor {
    /// The face of `owner`.
    #[napi(constructor)]
    pub fn new(owner: &Infinization) -> Self {
        Self {
            manager: owner.manager(),
        }
    }

    /// Runs one cycle, then one per interval.
    #[napi]
    pub async fn start(&self) -> Outcome {
        done(self.manager.start_health_monitor()).await
    }

    #[napi]
    pub async fn stop(&self) -> Outcome {
        done(async { self.manager.stop_health_monitor() }).await
    }

    #[napi]
    pub fn is_monitoring(&self) -> bool {
        self.manager.is_monitoring()
    }

    #[napi(js_name = "checkAllVMs")]
    pub async fn check_all_vms(&self) -> Outcome {
        data(self.manager.check_all_vms()).await
    }

    #[napi]
    pub async fn check_orphan_processes(&self) -> Outcome {
        data(self.manager.check_orphan_processes()).await
    }

    /// The record is what the row said when the clean-up got stuck. What is left, the machine's own
    /// ledger knows better, so the record is checked for its shape and no more.
    #[napi]
    pub async fn retry_cleanup(&self, vm_id: Argument, machine_configuration: Argument) -> Outcome {
        data(async {
            let vm_id = vm_id.text("vmId")?;
            let _hint: Option<Map<String, Value>> =
                machine_configuration.shaped("machineConfiguration")?;
            self.manager.retry_cleanup(vm_id).await
        })
        .await
    }

    #[napi]
    pub async fn reconcile_transient_states(&self, statuses: Argument) -> Outcome {
        data(async {
            let statuses = statuses.texts("statuses")?;
            self.manager.reconcile_startup_state(statuses).await
        })
        .await
    }
}
