//! Storage that fails under a running guest: told while it lasts, and the guest goes on when it is over.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod backups;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use infinization_core::Failure;
use infinization_core::events::Event;
use infinization_core::manager::Manager;
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use infinization_test_kit as kit;
use kit::machine::{
    Host, PATIENCE, consistent_status, delete, journal_of, never, next_event, qemus,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::broadcast::Receiver;
use tokio_util::sync::CancellationToken;

type Working = tokio::task::JoinHandle<Result<Value, Failure>>;

const MIB: u64 = 1 << 20;
/// Where the second disk fails, once: out of the way of whoever looks for partitions.
const BAD_WRITE: u64 = 512 * MIB;
const BAD_READ: u64 = 768 * MIB;
const BAD_END: u64 = 896 * MIB;

/// Puts QEMU's own fault injection below the second disk.
#[derive(Debug)]
struct Failing(Arc<dyn Effects>);

#[async_trait]
impl Effects for Failing {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let Action::SpawnQemu(spawn) = action else {
            return self.0.perform(action, bench, cancel).await;
        };
        let mut spawn = spawn.clone();
        let second = |arg: &&mut String| arg.contains(r#""node-name":"disk1""#);
        let disk = spawn.args.iter_mut().find(second).unwrap();
        let mut node: Value = serde_json::from_str(disk).unwrap();
        let once = |iotype: &str, offset: u64| {
            json!({
                "event": "none", "iotype": iotype, "errno": libc::EIO, "sector": offset / 512, "once": true,
            })
        };
        node["file"] = json!({
            "driver": "blkdebug",
            "image": node["file"],
            "inject-error": [once("write", BAD_WRITE), once("read", BAD_READ), once("write", BAD_END)],
        });
        *disk = node.to_string();
        let action = Action::SpawnQemu(spawn);
        self.0.perform(&action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.0.release(release, bench).await
    }
}

/// A guest's shell at work.
fn does(manager: &Manager, machine: &Value, script: &str) -> Working {
    let text = |key: &str| machine[key].as_str().unwrap().to_owned();
    let (manager, vm_id, agent) = (manager.clone(), text("vmId"), text("guestAgentSocketPath"));
    let arguments = vec!["-c".to_owned(), format!("{script} 2>&1 && echo well done")];
    let options = json!({ "timeout": 90_000 });
    tokio::spawn(async move {
        let done = manager.guest_exec(vm_id, agent, "/bin/sh".into(), arguments, options);
        done.await
    })
}

fn writes(manager: &Manager, machine: &Value) -> Working {
    writes_at(manager, machine, BAD_WRITE)
}

fn writes_at(manager: &Manager, machine: &Value, at: u64) -> Working {
    let at = at / MIB;
    let script = format!("dd if=/dev/urandom of=/dev/vdb bs=1M count=1 seek={at} conv=fsync");
    does(manager, machine, &script)
}

fn reads(manager: &Manager, machine: &Value) -> Working {
    let at = BAD_READ / MIB;
    let script = format!("dd if=/dev/vdb of=/dev/null bs=1M count=1 skip={at}");
    does(manager, machine, &script)
}

fn went_well(done: &Value) {
    let said = done["stdout"].as_str().unwrap();
    assert!(said.contains("well done"), "the guest saw an error: {done}");
}

async fn next_condition(events: &mut Receiver<Arc<Event>>) -> Value {
    next_event(events, "vm:condition").await.data["condition"].clone()
}

/// Waits until the guest stands still because of its second disk.
async fn is_stopped(manager: &Manager, vm_id: &str, events: &mut Receiver<Arc<Event>>) {
    let mut condition = next_condition(events).await;
    assert!(condition["since"].as_u64().unwrap() > 0);
    condition.as_object_mut().unwrap().remove("since");
    let failed = json!({ "kind": "io-error", "reason": "other", "device": "disk1" });
    assert_eq!(condition, failed);
    while next_event(events, "vm:event").await.data["newStatus"] != "error" {}
    let mut status = manager.get_vm_status(vm_id.into()).await.unwrap();
    let status = status.as_object_mut().unwrap();
    assert_eq!(
        (&status["status"], &status["qmpStatus"]),
        (&json!("error"), &json!("io-error"))
    );
    assert_eq!(status["processAlive"], true, "it is not ended");
    assert_eq!(status["condition"]["kind"], "io-error");
}

/// Waits until the guest stands still, or has done its work.
async fn stands_still(manager: &Manager, vm_id: &str, working: &Working) -> bool {
    let settled = async {
        loop {
            if working.is_finished() {
                return false;
            }
            let status = manager.get_vm_status(vm_id.into()).await.unwrap();
            if (&status["status"], &status["qmpStatus"]) == (&json!("error"), &json!("io-error")) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap()
}

async fn goes_on(manager: &Manager, vm_id: &str) {
    let status = consistent_status(manager, vm_id).await;
    assert_eq!(
        (
            &status["condition"],
            &status["qmpStatus"],
            &status["status"]
        ),
        (&Value::Null, &json!("running"), &json!("running"))
    );
}

#[test]
fn f16_a_disk_that_fails_stops_the_guest_which_makes_the_request_again() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let wrapper: EffectsWrapper = Arc::new(|host| Arc::new(Failing(host)));
        let manager = host.manager_with(Some(wrapper)).await;
        let mut events = manager.subscribe();
        let vm = "eio-1";
        let mut machine = host.tiny_guest(vm);
        let disks = machine["disks"].as_array_mut().unwrap();
        disks.push(json!({ "sizeGB": 1, "format": "raw" }));
        manager.create_vm(machine.clone(), never()).await.unwrap();
        host.console_says(vm, "INFZ-READY", 1).await;
        let qemu = qemus(host.path());

        for work in [writes, reads] {
            let working = work(&manager, &machine);
            is_stopped(&manager, vm, &mut events).await;
            manager.resume_vm(vm.into()).await.unwrap();
            assert_eq!(next_condition(&mut events).await, Value::Null);
            went_well(&working.await.unwrap().unwrap());
            goes_on(&manager, vm).await;
        }
        assert_eq!(qemus(host.path()), qemu);
        // It hears the button, too: its storage is well by then.
        let _working = writes_at(&manager, &machine, BAD_END);
        is_stopped(&manager, vm, &mut events).await;
        let stopped = manager.stop_vm(vm.into(), Value::Null, never()).await;
        assert_eq!(stopped.unwrap()["forced"], false);
        let journal = journal_of(&manager, vm).await.into_iter();
        let told = journal.filter(|entry| entry["kind"] == "condition");
        let told: Vec<_> = told.map(|entry| entry["to"].clone()).collect();
        assert_eq!(
            told[..5],
            ["io-error", "none", "io-error", "none", "io-error"]
        );
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// A `qemu-nbd` with the export `disk`.
async fn serve(image: &Path, socket: &Path) -> Child {
    let mut command = Command::new("qemu-nbd");
    command
        .args([
            "--persistent",
            "--shared=2",
            "--export-name=disk",
            "--format=raw",
        ])
        .arg(format!("--socket={}", socket.display()))
        .arg(image)
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let server = command.spawn().unwrap();
    let listens = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listens).await.unwrap();
    server
}

fn image(host: &Host) -> PathBuf {
    let path = host.path().join("disk.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1024 * MIB).unwrap();
    path
}

#[test]
fn f16_a_guest_whose_storage_is_away_waits_for_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let vm = "eio-2";
        let (image, socket) = (image(&host), host.path().join("nbd.sock"));
        let mut server = serve(&image, &socket).await;
        let mut machine = host.tiny_guest(vm);
        let location = json!({ "type": "nbd", "path": socket, "export": "disk" });
        let disks = machine["disks"].as_array_mut().unwrap();
        disks.push(json!({ "location": location }));
        manager.create_vm(machine.clone(), never()).await.unwrap();
        host.console_says(vm, "INFZ-READY", 1).await;

        server.kill().await.unwrap();
        let working = writes(&manager, &machine);
        is_stopped(&manager, vm, &mut events).await;
        // Resuming it early does no harm: it stands still again, so soon that nobody need have seen it go on.
        manager.resume_vm(vm.into()).await.unwrap();
        assert!(stands_still(&manager, vm, &working).await);

        let mut server = serve(&image, &socket).await;
        // QEMU looks for its server beside the request, which may be too early.
        while stands_still(&manager, vm, &working).await {
            manager.resume_vm(vm.into()).await.unwrap();
        }
        let done = working.await;
        went_well(&done.unwrap().unwrap());
        goes_on(&manager, vm).await;
        let blocks = std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap());
        assert!(blocks > 0, "what was written is there");
        delete(&manager, vm).await;
        server.kill().await.unwrap();
        for file in [image, socket] {
            std::fs::remove_file(file).unwrap();
        }
        host.is_clean().await;
    });
}
