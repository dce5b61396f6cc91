//! What the fault tests share: a machine that is off, and all that an observer sees of it.

use infinization_core::Failure;
use infinization_core::manager::Manager;
use serde_json::{Value, json};

use super::machine::{Host, create, forced, never, qemus, vm_chains};

pub fn step_of(failure: &Failure) -> Option<&str> {
    failure
        .chain()
        .find_map(|failure| failure.context().get("step")?.as_str())
}

/// A created and stopped machine.
pub async fn stopped(host: &Host, manager: &Manager, vm_id: &str) {
    create(host, manager, vm_id).await;
    manager
        .stop_vm(vm_id.into(), forced(), never())
        .await
        .unwrap();
}

pub async fn start(manager: &Manager, vm_id: &str) -> Result<Value, Failure> {
    manager.start_vm(vm_id.into(), Value::Null, never()).await
}

/// What an observer sees of a machine that is off: its row, its links, its chains, its files.
pub async fn snapshot(host: &Host, manager: &Manager, vm_id: &str) -> Value {
    let mut row = manager.get_vm(vm_id.into()).await.unwrap();
    row["updatedAt"] = Value::Null;
    json!({
        "row": row,
        "links": host.links().await,
        "chains": vm_chains().await,
        "files": host.files(),
        "qemus": qemus(host.path()),
    })
}
