use super::*;
use kit::faults;
use tokio_util::sync::CancellationToken;

#[test]
fn b16_b17_names_and_machines_that_cannot_be_are_refused() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        faults::stopped(&host, &manager, "snap-3").await;
        let before = faults::snapshot(&host, &manager, "snap-3").await;
        let long = "a".repeat(300);
        for name in ["", "a/b", "-a", "a b", "17", "ä", "a\nb", long.as_str()] {
            let refusal = take(&manager, "snap-3", json!({ "name": name }))
                .await
                .unwrap_err();
            assert_eq!(refusal.code(), ErrorCode::InvalidSnapshotName, "{name:?}");
            let refusal = revert(&manager, "snap-3", name, Value::Null)
                .await
                .unwrap_err();
            assert_eq!(refusal.code(), ErrorCode::InvalidSnapshotName, "{name:?}");
        }
        let refusal = revert(&manager, "snap-3", "unknown", Value::Null)
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::SnapshotNotFound);
        let refusal = take(&manager, "snap-3", json!({ "name": "a", "memory": true })).await;
        assert_eq!(refusal.unwrap_err().code(), ErrorCode::InvalidState);
        let refusal = take(&manager, "nobody", json!({ "name": "a" }))
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::VmNotFound);
        let deleted = manager
            .delete_snapshot("snap-3".into(), "unknown".into(), Value::Null, never())
            .await;
        assert_eq!(deleted.unwrap()["success"], true);
        assert_eq!(faults::snapshot(&host, &manager, "snap-3").await, before);
        delete(&manager, "snap-3").await;
        host.is_clean().await;
    });
}

#[test]
fn a_claimed_row_is_left_alone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        with_two_disks(&host, &manager, "snap-4").await;
        for claim in ["backing_up", "snapshotting", "error"] {
            host.claim("snap-4", claim);
            for refused in [
                take(&manager, "snap-4", json!({ "name": "a" })).await,
                revert(&manager, "snap-4", "a", Value::Null).await,
                manager
                    .delete_snapshot("snap-4".into(), "a".into(), Value::Null, never())
                    .await,
            ] {
                let refusal = refused.unwrap_err();
                assert_eq!(refusal.code(), ErrorCode::InvalidState);
                assert_eq!(refusal.context()["currentStatus"], claim);
            }
            assert_eq!(names(&manager, "snap-4").await, Vec::<String>::new());
        }
        delete(&manager, "snap-4").await;
        host.is_clean().await;
    });
}

#[test]
fn a_raw_disk_has_no_snapshots_so_neither_has_its_machine() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("snap-5");
        machine["disks"] = json!([{ "sizeGB": 1 }, { "sizeGB": 1, "format": "raw" }]);
        manager.create_vm(machine, never()).await.unwrap();
        for memory in [false, true] {
            let options = json!({ "name": "a", "memory": memory });
            let refusal = take(&manager, "snap-5", options).await.unwrap_err();
            assert_eq!(refusal.code(), ErrorCode::InvalidFormat);
        }
        assert_eq!(names(&manager, "snap-5").await, Vec::<String>::new());
        stop(&manager, "snap-5").await;
        let refusal = take(&manager, "snap-5", json!({ "name": "a" }))
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::InvalidFormat);
        assert_eq!(names(&manager, "snap-5").await, Vec::<String>::new());
        delete(&manager, "snap-5").await;
        host.is_clean().await;
    });
}

#[test]
fn f39_f52_a_snapshot_that_cannot_be_quiet_or_is_aborted_is_not_made() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("snap-6");
        machine["guestAgentSocketPath"] = json!(host.path().join("snap-6-ga.sock"));
        manager.create_vm(machine, never()).await.unwrap();
        // No system runs in this guest, so no agent answers.
        let quiet = json!({ "name": "a", "quiesce": true, "freezeTimeout": 500 });
        let failure = take(&manager, "snap-6", quiet.clone()).await.unwrap_err();
        assert!(failure.has(ErrorCode::AgentTimeout), "{failure:?}");
        assert_eq!(names(&manager, "snap-6").await, Vec::<String>::new());

        let fired = CancellationToken::new();
        fired.cancel();
        for memory in [false, true] {
            let options = json!({ "name": "a", "memory": memory });
            let aborted = manager.create_snapshot("snap-6".into(), options, fired.clone());
            assert_eq!(aborted.await.unwrap_err().code(), ErrorCode::Aborted);
            assert_eq!(names(&manager, "snap-6").await, Vec::<String>::new());
        }
        manager.suspend_vm("snap-6".into()).await.unwrap();
        let refusal = take(&manager, "snap-6", quiet).await.unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::InvalidState);
        delete(&manager, "snap-6").await;
        host.is_clean().await;
    });
}
