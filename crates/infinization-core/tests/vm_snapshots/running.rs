use kit::machine::{PATIENCE, consistent_status, qemus, send_signal};
use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::*;

#[test]
fn the_disks_of_a_running_machine_are_snapshotted_together() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disks = with_two_disks(&host, &manager, "snap-1").await;
        write(&manager, "snap-1", 2, 0x11).await;
        let options = json!({ "name": "first", "description": "before the update" });
        let taken = take(&manager, "snap-1", options).await.unwrap();
        assert_eq!(
            (&taken["success"], &taken["vmId"]),
            (&json!(true), &json!("snap-1"))
        );
        write(&manager, "snap-1", 2, 0x22).await;

        let listed = manager.list_snapshots("snap-1".into()).await.unwrap();
        let [one] = listed.as_array().unwrap().as_slice() else {
            panic!("{listed}")
        };
        assert_eq!(one["name"], "first");
        assert_eq!(one["description"], "before the update");
        assert_eq!((&one["memory"], &one["vmSize"]), (&json!(false), &json!(0)));
        assert_eq!(
            (&one["complete"], &one["disks"]),
            (&json!(true), &json!(disks))
        );
        let refusal = take(&manager, "snap-1", json!({ "name": "first" }))
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::SnapshotAlreadyExists);
        consistent_status(&manager, "snap-1").await;

        stop(&manager, "snap-1").await;
        assert!(disks.iter().all(|disk| holds(disk, 0x22)));
        assert_eq!(
            manager.list_snapshots("snap-1".into()).await.unwrap(),
            listed,
            "on or off, the list is the same"
        );
        let reverted = revert(&manager, "snap-1", "first", Value::Null)
            .await
            .unwrap();
        assert_eq!(reverted.get("warnings"), None);
        assert!(disks.iter().all(|disk| holds(disk, 0x11)));
        assert_eq!(names(&manager, "snap-1").await, ["first"]);

        manager
            .delete_snapshot("snap-1".into(), "first".into(), Value::Null, never())
            .await
            .unwrap();
        assert_eq!(names(&manager, "snap-1").await, Vec::<String>::new());
        delete(&manager, "snap-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_running_machine_goes_back_to_a_snapshot_of_its_disks_by_a_restart() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disks = with_two_disks(&host, &manager, "snap-2").await;
        write(&manager, "snap-2", 2, 0x11).await;
        take(&manager, "snap-2", json!({ "name": "first" }))
            .await
            .unwrap();
        write(&manager, "snap-2", 2, 0x22).await;
        let first_run = qemus(host.path());

        let refusal = revert(&manager, "snap-2", "first", Value::Null)
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::InvalidState);
        assert_eq!(qemus(host.path()), first_run, "a refusal changes nothing");

        let restart = json!({ "restart": true });
        revert(&manager, "snap-2", "first", restart).await.unwrap();
        let status = consistent_status(&manager, "snap-2").await;
        assert_eq!(status["status"], "running");
        assert_ne!(qemus(host.path()), first_run);
        manager
            .delete_snapshot("snap-2".into(), "first".into(), Value::Null, never())
            .await
            .unwrap();
        assert_eq!(names(&manager, "snap-2").await, Vec::<String>::new());
        stop(&manager, "snap-2").await;
        assert!(disks.iter().all(|disk| holds(disk, 0x11)));
        delete(&manager, "snap-2").await;
        host.is_clean().await;
    });
}

#[test]
fn f22_a_job_that_a_killed_process_started_is_settled() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        with_two_disks(&host, &manager, "snap-12").await;
        let arguments = json!({
            "job-id": "infinization-1", "tag": "theirs", "vmstate": "disk0", "devices": ["disk0", "disk1"],
        });
        manager
            .qmp_execute("snap-12", "snapshot-save", arguments)
            .await
            .unwrap();
        let jobs = async || {
            let jobs = manager.qmp_execute("snap-12", "query-jobs", Value::Null);
            jobs.await.unwrap().get().to_owned()
        };
        let ends = timeout(PATIENCE, async {
            while !jobs().await.contains("concluded") {}
        });
        ends.await.unwrap();
        take(&manager, "snap-12", json!({ "name": "ours" }))
            .await
            .unwrap();
        assert_eq!(jobs().await, "[]");
        assert_eq!(names(&manager, "snap-12").await, ["theirs", "ours"]);
        delete(&manager, "snap-12").await;
        host.is_clean().await;
    });
}

#[test]
fn f3_a_forced_stop_reaches_a_machine_whose_qemu_hangs_in_a_snapshot() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disks = with_two_disks(&host, &manager, "snap-13").await;
        send_signal(qemus(host.path())[0], Signal::SIGSTOP);
        let taking = take(&manager, "snap-13", json!({ "name": "a", "memory": true }));
        let stopping = stop(&manager, "snap-13");
        let (taken, ()) = timeout(PATIENCE, async { tokio::join!(taking, stopping) })
            .await
            .unwrap();
        assert_eq!(taken.unwrap_err().code(), ErrorCode::Aborted);
        assert_eq!(names(&manager, "snap-13").await, Vec::<String>::new());
        assert!(disks.iter().all(|disk| holds(disk, 0)));
        delete(&manager, "snap-13").await;
        host.is_clean().await;
    });
}
