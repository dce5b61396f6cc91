use infinization_core::manager::Manager;
use napi_derive::napi;

use super::Infinization;
use crate::argument::Argument;
use crate::outcome::{Outcome, now};

/// What `getEventHandler()` returns, once `js/infinization.js` has made it an `EventEmitter`.
#[napi]
#[derive(Debug)]
pub struct EventHandler {
    manager: Manager,
}

#[napi]
impl EventHandler {
    /// The face of `owner`.
    #[napi(constructor)]
    pub fn new(owner: &Infinization) -> Self {
        Self {
            manager: owner.manager(),
        }
    }

    /// The VMs whose monitor is connected, or will be again.
    #[napi(js_name = "getAttachedVMs")]
    pub fn get_attached_vms(&self) -> Outcome {
        now(Ok(self.manager.attached_vms()))
    }

    #[napi]
    pub fn is_attached(&self, vm_id: Argument) -> Outcome {
        now(vm_id.text("vmId").map(|id| self.manager.is_attached(&id)))
    }
}
