//! Machines while the database is away: the host side goes on, what needs an answer is refused, and
//! rows come to the truth in the order in which it happened.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod beside;
mod order;
mod recovery;
mod rows;
mod verbs;

use std::sync::Arc;
use std::time::Duration;

use infinization_core::Failure;
use infinization_core::events::Event;
use infinization_core::manager::Manager;
use infinization_core::types::{VmId, VmNames};
use infinization_test_kit as kit;
use kit::faults::{start, stopped};
use kit::machine::{
    Host, PATIENCE, consistent_status, delete, forced, never, next_event, pid_of, qemus,
    send_signal,
};
use kit::switch::{Mode, Switch};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::time::timeout;

type Events = broadcast::Receiver<Arc<Event>>;

async fn create(host: &Host, manager: &Manager, vm_id: &str) -> i32 {
    pid_of(&kit::machine::create(host, manager, vm_id).await)
}

async fn stop(manager: &Manager, vm_id: &str) -> Result<Value, Failure> {
    manager.stop_vm(vm_id.into(), forced(), never()).await
}

/// What the store itself says, whatever is kept before it.
async fn row(manager: &Manager, vm_id: &str) -> Value {
    manager.get_vm(vm_id.into()).await.unwrap()
}

/// Waits until the machine's own event says that it has this status.
async fn becomes(events: &mut Events, vm_id: &str, status: &str) {
    let told = async {
        loop {
            let event = events.recv().await.unwrap();
            let of_it = event.vm_id.as_ref().is_some_and(|id| id.as_str() == vm_id);
            if of_it && event.kind == "vm:event" && event.data["newStatus"] == status {
                return;
            }
        }
    };
    let told = timeout(PATIENCE, told).await;
    assert!(told.is_ok(), "{vm_id} never became {status}");
}

/// The next event about any machine; the health monitor's cycles are about none.
async fn of_its_own(events: &mut Events) -> Arc<Event> {
    let told = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.vm_id.is_some() {
                return event;
            }
        }
    };
    timeout(PATIENCE, told).await.unwrap()
}

/// Waits until the machine's row says this.
async fn row_says(manager: &Manager, vm_id: &str, status: &str) {
    let says = async {
        while row(manager, vm_id).await["status"] != status {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let says = timeout(PATIENCE, says).await;
    assert!(says.is_ok(), "the row of {vm_id} never said {status}");
}
