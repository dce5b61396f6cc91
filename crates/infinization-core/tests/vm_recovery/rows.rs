//! Rows that say what is not so are made true.

use super::*;

#[test]
fn a_reconciliation_is_told_row_by_row() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let runs = create(&host, &manager, "rec-1").await;
        for vm_id in ["rec-2", "rec-3", "rec-4"] {
            create(&host, &manager, vm_id).await;
            manager
                .stop_vm(vm_id.into(), forced(), never())
                .await
                .unwrap();
        }
        for (vm_id, status) in [
            ("rec-1", "starting"),
            ("rec-2", "starting"),
            ("rec-3", "rebuilding"),
            ("rec-4", "backing_up"),
        ] {
            host.claim(vm_id, status);
        }
        let mut events = manager.subscribe();
        let summary = manager.reconcile_startup_state(None).await.unwrap();
        assert_eq!(summary["totalChecked"], 3);
        assert_eq!(summary["promotedToRunning"], json!(["rec-1"]));
        assert_eq!(summary["resetToOff"], json!(["rec-2"]));
        assert_eq!(summary["resetToError"], json!(["rec-3"]));
        assert_eq!(summary["skipped"], json!([]));
        assert_eq!(
            summary["results"][0],
            json!({
                "vmId": "rec-1", "previousStatus": "starting", "pid": runs, "pidAlive": true,
                "action": "promoted_running",
            })
        );
        let event = next_event(&mut events, "reconcile-complete").await;
        assert_eq!(event.data["resetToError"], json!(["rec-3"]));
        for (vm_id, status) in [
            ("rec-1", "running"),
            ("rec-2", "off"),
            ("rec-3", "error"),
            ("rec-4", "backing_up"),
        ] {
            assert_eq!(consistent_status(&manager, vm_id).await["status"], status);
        }
        host.claim("rec-4", "off");
        for vm_id in ["rec-1", "rec-2", "rec-3", "rec-4"] {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn a_row_that_denies_a_living_qemu_is_made_true() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let pid = create(&host, &manager, "deny-1").await;
        let status = async || {
            let status = manager.get_vm_status("deny-1".into()).await.unwrap();
            (status["status"].clone(), status["pid"].clone())
        };
        for row in ["off", "starting"] {
            host.claim("deny-1", row);
            manager.check_all_vms().await.unwrap();
            assert_eq!(status().await, (json!("running"), json!(pid)), "{row}");
            host.claim("deny-1", row);
            let started = manager.start_vm("deny-1".into(), json!({}), never());
            assert_eq!(started.await.unwrap()["success"], true, "{row}");
            assert_eq!(status().await, (json!("running"), json!(pid)), "{row}");
        }
        host.claim("deny-1", "backing_up");
        manager.check_all_vms().await.unwrap();
        assert_eq!(status().await.0, "backing_up");

        // A word that nobody knows is somebody's too, even when the guest ends by itself.
        host.claim("deny-1", "quarantined");
        let mut events = manager.subscribe();
        send_signal(pid, Signal::SIGKILL);
        next_event(&mut events, "crash").await;
        assert_eq!(status().await, (json!("quarantined"), Value::Null));

        host.claim("deny-1", "off");
        delete(&manager, "deny-1").await;
        host.is_clean().await;
    });
}
