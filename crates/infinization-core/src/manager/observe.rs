//! Watching: the health monitor's switch, and which VMs are attached.

use std::sync::Arc;

use serde_json::Value;

use super::guest_access::is_attached;
use super::{Manager, Open, parse_id, to_value};
use crate::error::{ErrorClass, ErrorCode, Failure};
use crate::types::VmId;
use crate::vm::VmHandle;

impl Manager {
    /// Starts the health monitor; its first cycle has run when this returns.
    pub async fn start_health_monitor(&self) -> Result<(), Failure> {
        let monitor = self.open()?.monitor.clone();
        monitor.start().await;
        Ok(())
    }

    /// Stops the health monitor. Crashes are still noticed: each VM's own task watches its process.
    pub fn stop_health_monitor(&self) -> Result<(), Failure> {
        self.open()?.monitor.stop();
        Ok(())
    }

    /// Whether the health monitor runs.
    pub fn is_monitoring(&self) -> bool {
        self.open().is_ok_and(|open| open.monitor.is_monitoring())
    }

    /// `checkAllVMs`: one cycle now.
    pub async fn check_all_vms(&self) -> Result<Value, Failure> {
        let monitor = self.open()?.monitor.clone();
        to_value(&monitor.check_all().await?)
    }

    /// `checkOrphanProcesses`.
    pub async fn check_orphan_processes(&self) -> Result<Value, Failure> {
        let monitor = self.open()?.monitor.clone();
        to_value(&monitor.check_orphans().await?)
    }

    /// `retryCleanup`: gives back what earlier clean-ups of the machine could not. What is left, its
    /// ledger knows.
    pub async fn retry_cleanup(&self, vm_id: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let handle = open.handle(&parse_id(&vm_id)?)?;
        let retried = handle.retry_cleanup().await;
        open.drop_if_empty(&handle);
        retried.map_err(|failure| {
            if failure.code().class() == ErrorClass::Lifecycle {
                return failure;
            }
            let message = format!("the clean-up could not be tried again: {failure}");
            Failure::caused_by(ErrorCode::CleanupFailed, message, failure)
                .of_vm(&handle.context().vm_id)
        })
    }

    /// `getAttachedVMs`: VMs whose monitor is connected now.
    pub fn attached_vms(&self) -> Vec<String> {
        let Ok(open) = self.open() else {
            return Vec::new();
        };
        let connected = |handle: &VmHandle| {
            let live = handle.view().live;
            live.is_some_and(|live| is_attached(&live))
        };
        let vms = open.vms();
        let attached = vms.iter().filter(|(_, handle)| connected(handle));
        attached.map(|(vm_id, _)| vm_id.to_string()).collect()
    }

    /// The attached VMs whose events are told.
    pub fn heard_vms(&self) -> Vec<String> {
        let mut vms = self.attached_vms();
        if let Ok(open) = self.open() {
            let unheard = &open.services.marks.unheard;
            vms.retain(|vm| VmId::parse(vm.as_str()).is_ok_and(|vm| !unheard.contains(&vm)));
        }
        vms
    }

    /// Whether the VM is attached and its events are told.
    pub fn is_heard(&self, vm_id: &VmId) -> bool {
        let told = |open: Arc<Open>| !open.services.marks.unheard.contains(vm_id);
        self.is_attached(vm_id.as_str()) && self.open().is_ok_and(told)
    }

    /// `detachFromVM`: the VM's `vm:*` events are not told until it is attached again, or its next
    /// run. The library goes on watching it.
    pub fn hear_no_more(&self, vm_id: &VmId) -> Result<(), Failure> {
        let open = self.open()?;
        if self.is_attached(vm_id.as_str()) {
            open.services.marks.unheard.insert(vm_id);
        }
        Ok(())
    }

    /// `attachToVM`: they are told again.
    pub fn hear_again(&self, vm_id: &VmId) -> Result<(), Failure> {
        self.open()?.services.marks.unheard.remove(vm_id);
        Ok(())
    }

    /// `markInstallInProgress`: the VM's SHUTDOWN is told; its row and what it holds stay.
    pub fn mark_installing(&self, vm_id: &VmId) -> Result<(), Failure> {
        let open = self.open()?;
        open.services.marks.installing.insert(vm_id);
        open.services.keep_installation_mark(vm_id);
        Ok(())
    }

    /// `clearInstallInProgress`: a SHUTDOWN of the VM is its end again.
    pub fn clear_installing(&self, vm_id: &VmId) -> Result<(), Failure> {
        let open = self.open()?;
        open.services.marks.installing.remove(vm_id);
        open.services.keep_installation_mark(vm_id);
        Ok(())
    }

    /// Settles a VM that has shut down as a step of its installation.
    pub async fn settle_installed(&self, vm_id: &VmId) -> Result<(), Failure> {
        let open = self.open()?;
        let handle = open.vms().get(vm_id).cloned();
        let Some(handle) = handle else { return Ok(()) };
        let settled = handle.check().await;
        open.drop_if_empty(&handle);
        settled.map(drop)
    }

    /// Whether the VM is being installed.
    pub fn is_installing(&self, vm_id: &VmId) -> bool {
        let marked = |open: Arc<Open>| open.services.marks.installing.contains(vm_id);
        self.open().is_ok_and(marked)
    }
}
