//! `HealthMonitor`, over the core's `sync` and `monitor`.

use infinization_core::Failure;
use infinization_core::config::HealthMonitorOptions;
use infinization_core::db::wire;
use infinization_core::host::process::{is_alive, is_qemu_alive};
use infinization_core::manager::TRANSIENT;
use infinization_core::sync::HealthMonitor as Alone;
use infinization_core::types::VmId;
use napi_derive::napi;
use serde_json::{Map, Value, json};

use super::watching::{Of, watching};
use super::{Infinization, warned};
use crate::argument::Argument;
use crate::events::Deliver;
use crate::js_port::Ask;
use crate::outcome::{Outcome, data, done, now};

/// Looks for what nobody watches, once `js/health-monitor.js` has made it an `EventEmitter`.
#[napi]
#[derive(Debug)]
pub struct HealthMonitor {
    of: Of<Alone>,
}

#[napi]
impl HealthMonitor {
    /// The face of `owner`; else one of the user's own, by the functions that ask his database and
    /// his lock, and the one that receives events. Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(
        owner: Option<&Infinization>,
        config: Argument,
        database: Option<Ask>,
        lock: Option<Ask>,
        deliver: Option<Deliver>,
    ) -> Self {
        Self {
            of: Of::new(owner, || alone(config, database, lock, deliver)),
        }
    }

    /// Runs one cycle, then one per interval.
    #[napi]
    pub async fn start(&self) -> Outcome {
        done(async {
            match &self.of {
                Of::Manager(manager) => manager.start_health_monitor().await,
                Of::User(alone) => {
                    alone.as_ref()?.timer().start().await;
                    Ok(())
                }
            }
        })
        .await
    }

    #[napi]
    pub async fn stop(&self) -> Outcome {
        done(async {
            match &self.of {
                Of::Manager(manager) => manager.stop_health_monitor(),
                Of::User(alone) => {
                    alone.as_ref()?.timer().stop();
                    Ok(())
                }
            }
        })
        .await
    }

    #[napi]
    pub fn is_monitoring(&self) -> bool {
        match &self.of {
            Of::Manager(manager) => manager.is_monitoring(),
            Of::User(alone) => alone.as_ref().is_ok_and(|it| it.timer().is_monitoring()),
        }
    }

    #[napi(js_name = "checkAllVMs")]
    pub async fn check_all_vms(&self) -> Outcome {
        data(async {
            match &self.of {
                Of::Manager(manager) => manager.check_all_vms().await,
                Of::User(alone) => Ok(json!(alone.as_ref()?.timer().check_all().await?)),
            }
        })
        .await
    }

    #[napi]
    pub async fn check_orphan_processes(&self) -> Outcome {
        data(async {
            match &self.of {
                Of::Manager(manager) => manager.check_orphan_processes().await,
                Of::User(alone) => Ok(json!(alone.as_ref()?.timer().check_orphans().await?)),
            }
        })
        .await
    }

    #[napi]
    pub async fn reconcile_transient_states(&self, statuses: Argument) -> Outcome {
        data(async {
            let statuses = statuses.texts("statuses")?;
            match &self.of {
                Of::Manager(manager) => manager.reconcile_startup_state(statuses).await,
                Of::User(alone) => {
                    let statuses = statuses.unwrap_or_else(|| TRANSIENT.map(str::to_owned).into());
                    Ok(json!(alone.as_ref()?.reconcile(&statuses).await?))
                }
            }
        })
        .await
    }

    /// Gives back what earlier clean-ups could not. Of a manager's machine its ledger knows what that
    /// is, so there the record is checked for its shape and no more.
    #[napi]
    pub async fn retry_cleanup(&self, vm_id: Argument, configuration: Argument) -> Outcome {
        data(async {
            let vm_id: VmId = vm_id.parsed("vmId")?;
            let configuration: Option<Map<String, Value>> =
                configuration.shaped("configuration")?;
            match &self.of {
                Of::Manager(manager) => manager.retry_cleanup(vm_id.to_string()).await,
                Of::User(alone) => {
                    let configuration = configuration.unwrap_or_default();
                    let configuration = wire::machine_configuration(&configuration)?;
                    let result = alone
                        .as_ref()?
                        .retry_cleanup(&vm_id, &configuration)
                        .await?;
                    Ok(json!(result))
                }
            }
        })
        .await
    }

    /// Whether the process is there and a QEMU, or may be one.
    #[napi(js_name = "checkVM")]
    #[allow(clippy::unused_self, reason = "the contract has a method")]
    pub fn check_vm(&self, vm_id: Argument, pid: Argument) -> Outcome {
        now(vm_id
            .text("vmId")
            .and_then(|_| Ok(is_qemu_alive(number(pid)?))))
    }

    /// Whether a process with this number runs, whosever it is. A zombie does not.
    #[napi]
    #[allow(clippy::unused_self, reason = "the contract has a method")]
    pub fn is_process_alive(&self, pid: Argument) -> Outcome {
        now(number(pid).map(is_alive))
    }
}

fn alone(
    config: Argument,
    database: Option<Ask>,
    lock: Option<Ask>,
    deliver: Option<Deliver>,
) -> Result<Alone, Failure> {
    let options = HealthMonitorOptions::parse(&config.object("config")?)?;
    let options = warned("HealthMonitor", options);
    Ok(Alone::new(watching(database, lock, deliver)?, options))
}

fn number(pid: Argument) -> Result<i32, Failure> {
    pid.shaped("pid")
}
