//! Directories on full disks: nothing starts, and nothing that runs is harmed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use infinization_core::manager::Manager;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::faults::{snapshot, start, stopped};
use kit::machine::{
    Host, consistent_status, create, delete, forced, never, next_event, qemus, vm_chains,
};
use kit::small_disk::SmallDisk;
use serde_json::{Value, json};

#[test]
fn f17_a_full_runtime_directory_refuses_starts_and_harms_no_guest() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let disk = SmallDisk::new(512);
        let mut settings = host.settings();
        settings["pidfileDir"] = json!(disk.path());
        settings["qmpSocketDir"] = json!(disk.path());
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
        create(&host, &manager, "f17-1").await;
        stopped(&host, &manager, "f17-2").await;
        let running = qemus(host.path());
        let before = snapshot(&host, &manager, "f17-2").await;
        disk.fill();

        let failure = start(&manager, "f17-2").await.unwrap_err();
        assert!(failure.has(ErrorCode::InsufficientSpace), "{failure:?}");
        assert_eq!(snapshot(&host, &manager, "f17-2").await, before);
        let failure = manager
            .create_vm(host.machine("f17-3"), never())
            .await
            .unwrap_err();
        assert!(failure.has(ErrorCode::InsufficientSpace), "{failure:?}");
        assert_eq!(qemus(host.path()), running);
        let status = consistent_status(&manager, "f17-1").await;
        assert_eq!(status["qmpStatus"], "running");
        manager
            .stop_vm("f17-1".into(), forced(), never())
            .await
            .unwrap();

        disk.relieve();
        start(&manager, "f17-2").await.unwrap();
        for vm_id in ["f17-1", "f17-2"] {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    });
}

/// A host whose state directory is on a small disk, and the disks elsewhere.
async fn on_a_small_disk(host: &Host) -> (SmallDisk, Manager) {
    let disk = SmallDisk::new(16 * 1024);
    let mut settings = host.settings();
    settings["stateDir"] = json!(disk.path().join("state"));
    settings["diskDir"] = json!(host.path().join("disks"));
    let manager = Manager::new(settings);
    manager.initialize().await.unwrap();
    (disk, manager)
}

/// Everything outside the machines' directories that a refusal must not touch.
async fn surroundings(host: &Host, disk: &SmallDisk) -> Value {
    json!({
        "links": host.links().await,
        "chains": vm_chains().await,
        "files": host.files(),
        "run": files_in(&disk.path().join("state/run")),
        "pids": files_in(&disk.path().join("state/pids")),
        "machines": files_in(&disk.path().join("state/vms")),
        "qemus": qemus(host.path()),
    })
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn f17_a_full_state_directory_refuses_starts_and_harms_no_guest() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let (disk, manager) = on_a_small_disk(&host).await;
        create(&host, &manager, "f17-4").await;
        stopped(&host, &manager, "f17-5").await;
        disk.fill();

        let before = surroundings(&host, &disk).await;
        let failure = start(&manager, "f17-5").await.unwrap_err();
        is_for_want_of_space(&failure, ErrorCode::StartFailed, "f17-5");
        assert_eq!(surroundings(&host, &disk).await, before);
        let refused = manager.create_vm(host.machine("f17-6"), never()).await;
        is_for_want_of_space(&refused.unwrap_err(), ErrorCode::CreateFailed, "f17-6");
        assert_eq!(surroundings(&host, &disk).await, before);
        let status = consistent_status(&manager, "f17-4").await;
        assert_eq!(status["qmpStatus"], "running");

        disk.relieve();
        assert_eq!(consistent_status(&manager, "f17-5").await["status"], "off");
        start(&manager, "f17-5").await.unwrap();
        for vm_id in ["f17-4", "f17-5"] {
            delete(&manager, vm_id).await;
        }
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        host.is_clean().await;
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
    });
}

fn is_for_want_of_space(failure: &Failure, code: ErrorCode, vm_id: &str) {
    assert_eq!(failure.code(), code, "{failure:?}");
    let mut chain = failure.chain();
    let full = chain.any(|cause| cause.context().get("errno") == Some(&json!(libc::ENOSPC)));
    assert!(full, "{failure:?}");
    assert_eq!(failure.vm_id().unwrap().as_str(), vm_id);
}

#[test]
fn f17_a_machine_on_a_full_state_directory_can_be_ended_and_started_later() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let (disk, manager) = on_a_small_disk(&host).await;
        let mut events = manager.subscribe();
        create(&host, &manager, "f17-7").await;
        disk.fill();
        let stopped = manager
            .stop_vm("f17-7".into(), forced(), never())
            .await
            .unwrap();
        assert_eq!(stopped["success"], true, "{stopped}");
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        // The row is on the full disk too: it is told that it is not what it should be.
        let untold = next_event(&mut events, "error").await;
        assert_eq!(untold.data["event"], "off");
        // What the row says is old, so nothing is said.
        let unknown = manager.get_vm_status("f17-7".into()).await.unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::DatabaseError, "{unknown}");

        disk.relieve();
        start(&manager, "f17-7").await.unwrap();
        let status = consistent_status(&manager, "f17-7").await;
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("running"), &json!("running"))
        );
        assert_eq!(qemus(host.path()).len(), 1);
        delete(&manager, "f17-7").await;
        host.is_clean().await;
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
    });
}
