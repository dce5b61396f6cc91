//! The lock per VM: first come, first served. It is the user's, so that code of his can share it.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::db::port::{Port, PortError};
use crate::types::VmId;

/// Takes turns on VMs. Clones share the lock.
///
/// The other side understands `acquire(vmId)` (waits), `tryAcquire(vmId)` (never waits) and
/// `release(turn)`; the first two answer the turn, or null.
#[derive(Debug, Clone)]
pub struct Turns(Arc<dyn Port>);

/// One VM's turn; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    lock: Arc<dyn Port>,
    number: Value,
}

impl Turns {
    /// Over the lock on the other side.
    pub fn new(port: Arc<dyn Port>) -> Self {
        Self(port)
    }

    /// Waits for the VM's turn. An error: nobody is there to give it. Dropping the future leaves the
    /// place in the queue to nobody.
    pub(super) async fn take(&self, vm_id: &VmId) -> Result<Turn, PortError> {
        let turns = self.clone();
        let request = json!({ "method": "acquire", "args": [vm_id] });
        // A turn that comes after its taker has gone is given back by the `Turn` itself.
        let taken = tokio::spawn(async move { turns.ask(request).await }).await;
        let taken = taken.unwrap_or_else(|defect| Err(PortError::gone(defect.to_string())))?;
        taken.ok_or_else(|| PortError::gone("the VM's lock gave no turn"))
    }

    /// The VM's turn, if nobody has it.
    pub(super) async fn try_take(&self, vm_id: &VmId) -> Option<Turn> {
        let asked = self.ask(json!({ "method": "tryAcquire", "args": [vm_id] }));
        asked.await.unwrap_or_else(|error| {
            tracing::warn!(vm = %vm_id, %error, "the VM's lock could not be asked");
            None
        })
    }

    async fn ask(&self, request: Value) -> Result<Option<Turn>, PortError> {
        let number = self.0.call(request).await?;
        let lock = Arc::clone(&self.0);
        Ok((!number.is_null()).then(|| Turn { lock, number }))
    }
}

impl Turn {
    /// Gives it back, and waits until somebody else can have it. As for a turn that is dropped, this goes on
    /// without its caller.
    pub(super) async fn end(mut self) {
        if let Some(given_back) = self.give_back() {
            let _defect_was_told = given_back.await;
        }
    }

    fn give_back(&mut self) -> Option<JoinHandle<()>> {
        let number = self.number.take();
        if number.is_null() {
            return None;
        }
        let runtime = Handle::try_current().ok()?;
        let lock = Arc::clone(&self.lock);
        let request = json!({ "method": "release", "args": [number] });
        Some(runtime.spawn(async move {
            if let Err(error) = lock.call(request).await {
                tracing::debug!(%error, "a VM's turn could not be given back");
            }
        }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.give_back());
    }
}
