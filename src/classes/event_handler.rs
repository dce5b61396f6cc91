//! `EventHandler`, over the core's `sync`.

use infinization_core::config::EventHandlerOptions;
use infinization_core::manager::Manager;
use infinization_core::sync::EventHandler as Alone;
use infinization_core::types::VmId;
use infinization_core::{ErrorCode, Failure};
use napi::bindgen_prelude::spawn;
use napi_derive::napi;

use super::qmp_client::QmpClient;
use super::watching::{Of, watching};
use super::{Infinization, warned};
use crate::argument::Argument;
use crate::events::Deliver;
use crate::js_port::Ask;
use crate::outcome::{Outcome, checked, done, now};

/// Follows what guests do, once `js/event-handler.js` has made it an `EventEmitter`.
#[napi]
#[derive(Debug)]
pub struct EventHandler {
    of: Of<Alone>,
}

#[napi]
impl EventHandler {
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

    #[napi(js_name = "attachToVM")]
    pub async fn attach_to_vm(&self, vm_id: Argument, client: &QmpClient) -> Outcome {
        let (monitor, shared) = (client.monitor(), client.shared_vm().map(str::to_owned));
        done(async {
            let vm_id: VmId = vm_id.parsed("vmId")?;
            match &self.of {
                Of::User(alone) => {
                    let attached = alone.as_ref()?.attach(&vm_id, monitor?).await;
                    attached.map_err(|error| Failure::from(error).of_vm(&vm_id))
                }
                Of::Manager(manager) if shared.as_deref() == Some(vm_id.as_str()) => {
                    manager.hear_again(&vm_id)
                }
                Of::Manager(_) => Err(not_the_managers(&vm_id)),
            }
        })
        .await
    }

    /// What is done about the client, `js/event-handler.js` does.
    #[napi(js_name = "detachFromVM")]
    pub async fn detach_from_vm(&self, vm_id: Argument) -> Outcome {
        done(async {
            let vm_id: VmId = vm_id.parsed("vmId")?;
            match &self.of {
                Of::User(alone) => {
                    alone.as_ref()?.detach(&vm_id).await;
                    Ok(())
                }
                Of::Manager(manager) => manager.hear_no_more(&vm_id),
            }
        })
        .await
    }

    /// The VMs whose monitor is connected, or will be again.
    #[napi(js_name = "getAttachedVMs")]
    pub fn get_attached_vms(&self) -> Outcome {
        now(Ok(match &self.of {
            Of::User(alone) => alone.as_ref().map(Alone::attached_vms).unwrap_or_default(),
            Of::Manager(manager) => manager.heard_vms(),
        }))
    }

    #[napi]
    pub fn is_attached(&self, vm_id: Argument) -> Outcome {
        now(vm_id
            .text("vmId")
            .map(|id| match (&self.of, VmId::parse(id)) {
                (Of::User(Ok(alone)), Ok(id)) => alone.is_attached(&id),
                (Of::Manager(manager), Ok(id)) => manager.is_heard(&id),
                _ => false,
            }))
    }

    #[napi]
    pub fn mark_install_in_progress(&self, vm_id: Argument) -> Outcome {
        checked(vm_id.parsed("vmId").and_then(|vm_id: VmId| match &self.of {
            Of::User(alone) => {
                alone.as_ref()?.mark_installing(&vm_id);
                Ok(())
            }
            Of::Manager(manager) => manager.mark_installing(&vm_id),
        }))
    }

    #[napi]
    pub fn clear_install_in_progress(&self, vm_id: Argument) -> Outcome {
        checked(vm_id.parsed("vmId").and_then(|vm_id: VmId| match &self.of {
            Of::User(alone) => {
                alone.as_ref()?.clear_installing(&vm_id);
                Ok(())
            }
            Of::Manager(manager) => {
                manager.clear_installing(&vm_id)?;
                settle(manager.clone(), vm_id);
                Ok(())
            }
        }))
    }

    #[napi]
    pub fn is_install_in_progress(&self, vm_id: Argument) -> Outcome {
        now(vm_id
            .text("vmId")
            .map(|id| match (&self.of, VmId::parse(id)) {
                (Of::User(Ok(alone)), Ok(id)) => alone.is_installing(&id),
                (Of::Manager(manager), Ok(id)) => manager.is_installing(&id),
                _ => false,
            }))
    }
}

/// Told by events, and a failure by the log.
fn settle(manager: Manager, vm_id: VmId) {
    spawn(async move {
        if let Err(error) = manager.settle_installed(&vm_id).await {
            tracing::warn!(vm = %vm_id, %error, "not settled after its installation");
        }
    });
}

fn alone(
    config: Argument,
    database: Option<Ask>,
    lock: Option<Ask>,
    deliver: Option<Deliver>,
) -> Result<Alone, Failure> {
    let options = EventHandlerOptions::parse(&config.object("config")?)?;
    let options = warned("EventHandler", options);
    Ok(Alone::new(watching(database, lock, deliver)?, options))
}

fn not_the_managers(vm_id: &VmId) -> Failure {
    let message = format!(
        "the library attaches its own VMs: VM {vm_id} is attached by attachToRunningVM(), or again by \
         the client of getQMPClient()"
    );
    Failure::new(ErrorCode::InvalidState, message).of_vm(vm_id)
}
