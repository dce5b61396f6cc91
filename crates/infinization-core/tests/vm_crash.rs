//! What a killed QEMU leaves: the machine's TAP, chain and disks, and nothing of the run.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use infinization_core::firewall::ChainNames;
use infinization_core::host::cgroup::Cgroups;
use infinization_core::host::nft::{Listing, Nft};
use infinization_core::host::qemu_img::{ImageFormat, Job, check};
use infinization_core::manager::Manager;
use infinization_core::types::{HostPath, VmId, VmNames};
use infinization_test_kit as kit;
use kit::faults::start;
use kit::machine::{
    Host, PATIENCE, consistent_status, create, delete, never, next_event, pid_of, qemus,
    send_signal,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

/// This much of the guest's writing is on the disk when QEMU is killed.
const WRITTEN: u64 = 4 << 20;

/// A machine whose guest writes to its second disk without end.
async fn writing(host: &Host, manager: &Manager, vm_id: &str) -> i32 {
    let mut machine = host.tiny_guest(vm_id);
    let disks = machine["disks"].as_array_mut().unwrap();
    disks.push(json!({ "sizeGB": 1 }));
    let agent = machine["guestAgentSocketPath"].as_str().unwrap().to_owned();
    let created = manager.create_vm(machine, never()).await.unwrap();
    host.console_says(vm_id, "INFZ-READY", 1).await;

    let script = "dd if=/dev/urandom of=/dev/vdb bs=64k conv=fsync";
    let (guest, id) = (manager.clone(), vm_id.to_owned());
    let arguments = vec!["-c".into(), format!("while :; do {script}; done")];
    // It is never answered: the guest is gone before that.
    tokio::spawn(async move {
        let options = json!({ "timeout": 600_000 });
        let shell = "/bin/sh".into();
        guest.guest_exec(id, agent, shell, arguments, options).await
    });
    let disk = created["diskPaths"][1].as_str().unwrap();
    let under_way = async {
        while std::fs::metadata(disk).unwrap().blocks() * 512 < WRITTEN {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, under_way).await.unwrap();
    pid_of(&created)
}

/// What the kernel holds of the machine's firewall.
async fn filtered(vm_id: &VmId) -> Listing {
    Nft::new().read_vm(&ChainNames::of(vm_id)).await.unwrap()
}

async fn is_sound(disk: &Value) {
    let path = HostPath::parse(disk.as_str().unwrap()).unwrap();
    let checked = check(&path, ImageFormat::Qcow2, &Job::default())
        .await
        .unwrap();
    assert_eq!((checked.errors, checked.corruptions), (0, 0), "{path}");
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().count() == 0
}

#[test]
fn f01_a_killed_qemu_leaves_what_the_next_run_needs_and_nothing_else() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let vm_id = VmId::parse("f01-1").unwrap();
        let tap = VmNames::of(&vm_id).tap;
        let scope = Cgroups::host().scope_of(&vm_id);
        let pid = writing(&host, &manager, "f01-1").await;
        let running = filtered(&vm_id).await;
        assert_eq!(running.elements.len(), 2, "both directions are dispatched");
        let link = host.links.find(&tap).await.unwrap().unwrap();
        assert!(link.master.is_some() && link.up);
        assert_eq!(scope.exists(), Cgroups::host().is_v2());

        send_signal(pid, Signal::SIGKILL);
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.vm_id.as_ref(), Some(&vm_id));
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.data["cause"]["signal"], 9);
        assert_eq!(crash.data["cleanupPerformed"], true, "{}", crash.data);

        let link = host.links.find(&tap).await.unwrap().unwrap();
        assert!(link.master.is_none() && !link.up);
        let crashed = filtered(&vm_id).await;
        assert_eq!(crashed.rules, running.rules, "the chain is kept");
        assert_eq!(crashed.elements, [], "the port is closed");
        assert!(is_empty(&host.state_dir().join("run")), "sockets are left");
        assert!(is_empty(&host.state_dir().join("pids")));
        assert!(!host.path().join("f01-1-ga.sock").exists());
        assert!(!scope.exists());
        let status = consistent_status(&manager, "f01-1").await;
        assert_eq!(status["status"], "off");
        let row = manager.get_vm("f01-1".into()).await.unwrap();
        assert_eq!(row["pid"], Value::Null);
        for disk in row["diskPaths"].as_array().unwrap() {
            is_sound(disk).await;
        }

        start(&manager, "f01-1").await.unwrap();
        assert_eq!(filtered(&vm_id).await, running);
        host.console_says("f01-1", "INFZ-READY", 2).await;
        delete(&manager, "f01-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f01_a_row_that_says_error_says_so_after_a_crash_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let created = create(&host, &manager, "f01-2").await;
        host.claim("f01-2", "error");
        let pid = pid_of(&created);
        send_signal(pid, Signal::SIGKILL);
        next_event(&mut events, "crash").await;
        next_event(&mut events, "crash").await;
        let status = consistent_status(&manager, "f01-2").await;
        assert_eq!(status["status"], "error");
        assert_eq!(status["lastExit"]["signal"], 9);
        assert_eq!(qemus(host.path()), Vec::<i32>::new());

        // It is startable all the same.
        start(&manager, "f01-2").await.unwrap();
        let status = consistent_status(&manager, "f01-2").await;
        assert_eq!(status["status"], "running");
        delete(&manager, "f01-2").await;
        host.is_clean().await;
    });
}
