use napi_derive::napi;

use super::Infinization;
use crate::js_value::Argument;
use crate::manager::Manager;
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

    /// The VMs whose monitor is connected.
    #[napi(js_name = "getAttachedVMs")]
    pub fn get_attached_vms(&self) -> Outcome {
        now(Ok(self.manager.attached_vms()))
    }

    #[napi]
    pub fn is_attached(&self, vm_id: Argument) -> Outcome {
        now(vm_id.text("vmId").map(|id| self.manager.is_attached(&id)))
    }

    /// While an install is in progress a guest's shutdown neither changes its row nor reaps it.
    #[napi]
    pub fn mark_install_in_progress(&self, vm_id: Argument) -> Outcome {
        now(vm_id
            .text("vmId")
            .map(|id| self.manager.set_install_in_progress(&id, true)))
    }

    #[napi]
    pub fn clear_install_in_progress(&self, vm_id: Argument) -> Outcome {
        now(vm_id
            .text("vmId")
            .map(|id| self.manager.set_install_in_progress(&id, false)))
    }

    #[napi]
    pub fn is_install_in_progress(&self, vm_id: Argument) -> Outcome {
        now(vm_id
            .text("vmId")
            .map(|id| self.manager.is_install_in_progress(&id)))
    }
}
