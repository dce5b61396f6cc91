//! Directories on full disks: nothing starts, and nothing that runs is harmed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use infinization_core::ErrorCode;
use infinization_core::manager::Manager;
use kit::faults::{snapshot, start, stopped};
use kit::machine::{Host, consistent_status, delete, forced, never, qemus};
use kit::small_disk::SmallDisk;
use serde_json::json;

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
        manager
            .create_vm(host.machine("f17-1"), never())
            .await
            .unwrap();
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

#[test]
fn f17_a_full_state_directory_refuses_starts_and_harms_no_guest() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let disk = SmallDisk::new(16 * 1024);
        let mut settings = host.settings();
        settings["stateDir"] = json!(disk.path().join("state"));
        settings["diskDir"] = json!(host.path().join("disks"));
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
        manager
            .create_vm(host.machine("f17-4"), never())
            .await
            .unwrap();
        stopped(&host, &manager, "f17-5").await;
        let running = qemus(disk.path());
        disk.fill();

        let links = host.links().await;
        start(&manager, "f17-5").await.unwrap_err();
        let refused = manager.create_vm(host.machine("f17-6"), never()).await;
        refused.unwrap_err();
        assert_eq!(host.links().await, links, "no TAP is left");
        assert_eq!(qemus(disk.path()), running);
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
        assert_eq!(qemus(disk.path()), Vec::<i32>::new());
    });
}
