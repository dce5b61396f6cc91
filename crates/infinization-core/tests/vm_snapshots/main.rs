//! Snapshots of VMs, running and not, on real images under a real QEMU.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kills;
mod memory;
mod offline;
mod quiet;
mod refused;
mod running;

use std::process::Command;

use infinization_core::manager::Manager;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::machine::{Host, delete, forced, never};
use serde_json::{Value, json};

/// A machine with two disks that is on.
async fn with_two_disks(host: &Host, manager: &Manager, vm_id: &str) -> Vec<String> {
    let mut machine = host.machine(vm_id);
    machine["disks"] = json!([{ "sizeGB": 1 }, { "sizeGB": 1 }]);
    let created = manager.create_vm(machine, never()).await.unwrap();
    let paths = created["diskPaths"].as_array().unwrap().iter();
    paths
        .map(|path| path.as_str().unwrap().to_owned())
        .collect()
}

/// Fills the start of a running machine's disks.
async fn write(manager: &Manager, vm_id: &str, disks: usize, pattern: u8) {
    for disk in 0..disks {
        let line = format!(
            "qemu-io -d /machine/peripheral/disk{disk}/virtio-backend \"write -P {pattern} 0 64k\""
        );
        let arguments = json!({ "command-line": line });
        let answer = manager.qmp_execute(vm_id, "human-monitor-command", arguments);
        assert_eq!(answer.await.unwrap().get(), "\"\"");
    }
}

/// Whether a machine's disk, once it is off, starts with this pattern, and is sound.
fn holds(path: &str, pattern: u8) -> bool {
    let read = format!("read -P {pattern} 0 64k");
    let output = Command::new("qemu-io")
        .args(["-r", "-f", "qcow2", "-c", &read, path])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("read 65536/65536"), "{said}");
    let mut check = Command::new("qemu-img");
    let checked = check.args(["check", "-q", "-f", "qcow2", path]).status();
    // 3: clusters that nothing uses. On a full disk qemu-img counts some in that it never gets.
    let sound = matches!(checked.unwrap().code(), Some(0 | 3));
    assert!(sound, "{path} is damaged");
    !said.contains("verification failed")
}

async fn take(manager: &Manager, vm_id: &str, options: Value) -> Result<Value, Failure> {
    manager
        .create_snapshot(vm_id.into(), options, never())
        .await
}

async fn revert(
    manager: &Manager,
    vm_id: &str,
    name: &str,
    options: Value,
) -> Result<Value, Failure> {
    manager
        .revert_snapshot(vm_id.into(), name.into(), options)
        .await
}

async fn names(manager: &Manager, vm_id: &str) -> Vec<String> {
    let listed = manager.list_snapshots(vm_id.into()).await.unwrap();
    let name = |one: &Value| one["name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

async fn stop(manager: &Manager, vm_id: &str) {
    let stopped = manager.stop_vm(vm_id.into(), forced(), never()).await;
    assert_eq!(stopped.unwrap()["success"], true);
}
