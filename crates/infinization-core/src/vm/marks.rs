//! What is known of machines beside their tasks: which are being installed, whose events the user does
//! not want, and whose row a claim of ours may come to late.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::types::VmId;

/// A set of machines that anybody may change at any time.
#[derive(Debug, Default)]
pub struct Marked(Mutex<HashSet<VmId>>);

impl Marked {
    /// From now on the machine is one of them.
    pub fn insert(&self, vm_id: &VmId) {
        self.with(|vms| vms.insert(vm_id.clone()));
    }

    /// From now on it is not; whether it was.
    pub fn remove(&self, vm_id: &VmId) -> bool {
        self.with(|vms| vms.remove(vm_id))
    }

    /// Whether it is.
    pub fn contains(&self, vm_id: &VmId) -> bool {
        self.with(|vms| vms.contains(vm_id))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.with(|vms| vms.is_empty())
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashSet<VmId>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The marks of all machines.
#[derive(Debug, Default)]
pub struct Marks {
    /// Their SHUTDOWN is a step of the installation: it is told, and neither is the row changed nor
    /// anything given back until this ends.
    pub installing: Marked,
    /// Their `vm:*` events are not told.
    pub unheard: Marked,
    /// A claim of their row whose answer was lost may still be made: `starting` may come to it late.
    pub claimed: Marked,
}
