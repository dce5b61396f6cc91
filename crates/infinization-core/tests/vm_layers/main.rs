//! External snapshots of VMs, running and not, on real images under a real QEMU.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod backups;
mod chain;
mod drill;
mod errors;
mod faults;
mod kills;
mod monitor;
mod running;
mod stopped;
mod walk;
mod witness;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use chain::patterns;
use infinization_core::manager::Manager;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::machine::{Host, delete, forced, never};
use serde_json::{Value, json};

/// A machine with so many disks that was on once.
async fn stopped(host: &Host, manager: &Manager, vm_id: &str, disks: usize) {
    running(host, manager, vm_id, disks).await;
    stop(manager, vm_id).await;
}

async fn running(host: &Host, manager: &Manager, vm_id: &str, disks: usize) {
    let mut machine = host.machine(vm_id);
    machine["disks"] = json!(vec![json!({ "sizeGB": 1 }); disks]);
    manager.create_vm(machine, never()).await.unwrap();
}

async fn stop(manager: &Manager, vm_id: &str) {
    let stopped = manager.stop_vm(vm_id.into(), forced(), never()).await;
    assert_eq!(stopped.unwrap()["success"], true);
}

async fn start(manager: &Manager, vm_id: &str) {
    let started = manager.start_vm(vm_id.into(), Value::Null, never()).await;
    assert_eq!(started.unwrap()["success"], true);
}

async fn take(manager: &Manager, vm_id: &str, name: &str) -> Result<Value, Failure> {
    let options = json!({ "name": name, "kind": "external" });
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

async fn remove(
    manager: &Manager,
    vm_id: &str,
    name: &str,
    options: Value,
) -> Result<Value, Failure> {
    manager
        .delete_snapshot(vm_id.into(), name.into(), options, never())
        .await
}

async fn commit(manager: &Manager, vm_id: &str, name: &str) -> Result<Value, Failure> {
    manager
        .commit_snapshot(vm_id.into(), name.into(), never())
        .await
}

fn rebase() -> Value {
    json!({ "children": "rebase" })
}

async fn tree(manager: &Manager, vm_id: &str) -> Value {
    manager.snapshot_tree(vm_id.into()).await.unwrap()
}

/// `name<parent`, and what the machine has gone on from.
fn shape(tree: &Value) -> (Vec<String>, Option<String>) {
    let nodes = tree["snapshots"].as_array().unwrap().iter();
    let told = nodes.map(|node| {
        let name = node["name"].as_str().unwrap();
        format!("{name}<{}", node["parent"].as_str().unwrap_or_default())
    });
    let current = tree["current"].as_str().map(ToOwned::to_owned);
    (told.collect(), current)
}

fn paths(layers: &Value) -> Vec<PathBuf> {
    let layers = layers.as_array().unwrap().iter();
    layers
        .map(|layer| PathBuf::from(layer["path"].as_str().unwrap()))
        .collect()
}

fn node<'t>(tree: &'t Value, name: &str) -> &'t Value {
    let mut nodes = tree["snapshots"].as_array().unwrap().iter();
    nodes.find(|node| node["name"] == name).unwrap()
}

/// Every image is in the tree, every file of the tree is there, all are sound.
fn no_orphans(host: &Host, trees: &[Value]) -> BTreeSet<PathBuf> {
    let mut known = BTreeSet::new();
    for tree in trees {
        known.extend(paths(&tree["active"]));
        for node in tree["snapshots"].as_array().unwrap() {
            known.extend(paths(&node["layers"]));
        }
    }
    let images: BTreeSet<PathBuf> = std::fs::read_dir(host.state_dir().join("disks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(images, known, "files and trees differ");
    known
}

/// `qemu-img check` finds nothing at all.
fn sound<'p>(images: impl IntoIterator<Item = &'p PathBuf>) {
    for image in images {
        let mut check = Command::new("qemu-img");
        let output = check.args(["check", "-f", "qcow2"]).arg(image).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}: {output:?}", image.display());
    }
}

/// Writes patterns into clusters of an image nobody has open.
fn write_offline(image: &Path, writes: &[(usize, u8)]) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2"]);
    for (cluster, pattern) in writes {
        let write = format!("write -q -P {pattern} {}k 64k", cluster * 64);
        command.args(["-c", &write]);
    }
    let output = command.arg(image).output().unwrap();
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
}

/// The same through the QEMU that runs.
async fn write_live(manager: &Manager, vm_id: &str, disk: usize, writes: &[(usize, u8)]) {
    for (cluster, pattern) in writes {
        let line = format!(
            "qemu-io -d /machine/peripheral/disk{disk}/virtio-backend \"write -P {pattern} {}k 64k\"",
            cluster * 64
        );
        let arguments = json!({ "command-line": line });
        let answer = manager.qmp_execute(vm_id, "human-monitor-command", arguments);
        assert_eq!(answer.await.unwrap().get(), "\"\"");
    }
}

/// What QEMU itself reads in the first clusters is `expected`.
fn qemu_reads(image: &Path, expected: &[u8]) {
    let mut command = Command::new("qemu-io");
    command.args(["-r", "-f", "qcow2"]);
    for (cluster, pattern) in expected.iter().enumerate() {
        let read = format!("read -q -P {pattern} {}k 64k", cluster * 64);
        command.args(["-c", &read]);
    }
    let output = command.arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.is_empty(),
        "{}: {said}",
        image.display()
    );
}
