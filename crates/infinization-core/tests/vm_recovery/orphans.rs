//! A QEMU that no machine has, or that no row knows, is told.

use super::*;

/// A manager whose health monitor looks when it is asked to, and takes half a second for a while.
async fn that_looks_when_asked(host: &Host) -> Manager {
    let mut settings = host.settings();
    settings["healthMonitorInterval"] = json!(500);
    settings["autoStartHealthMonitor"] = json!(false);
    let manager = Manager::new(settings);
    manager.initialize().await.unwrap();
    manager
}

#[test]
fn an_orphan_is_told_first_and_ended_when_it_is_still_there() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = that_looks_when_asked(&host).await;
        create(&host, &manager, "own-1").await;
        let pids = host.state_dir().join("pids");
        let file = |name: &str| pids.join(format!("{name}.pid"));
        let lost = Foreign::run("lost-1", &file("lost-1")).await;
        // A dead pid, garbage, and a living process that is no QEMU of that name.
        std::fs::write(file("dead-1"), "4194303").unwrap();
        std::fs::write(file("junk-1"), "not a number").unwrap();
        std::fs::write(file("reused-1"), std::process::id().to_string()).unwrap();
        // The row of another says that it is being used.
        create(&host, &manager, "kept-1").await;
        manager
            .stop_vm("kept-1".into(), forced(), never())
            .await
            .unwrap();
        host.claim("kept-1", "backing_up");
        let kept = Foreign::run("kept-1", &file("kept-1")).await;

        let first = manager.check_all_vms().await.unwrap();
        assert_eq!(
            (&first["orphansDetected"], &first["orphansCleaned"]),
            (&json!(2), &json!(2))
        );
        assert!(is_alive(lost.pid()) && file("own-1").exists());
        assert!(!file("dead-1").exists() && !file("junk-1").exists() && file("reused-1").exists());

        let again = manager.check_orphan_processes().await.unwrap();
        assert!(
            again
                .as_array()
                .unwrap()
                .iter()
                .all(|orphan| orphan["killed"] == false)
        );

        // It is there a whole interval later.
        tokio::time::sleep(Duration::from_millis(600)).await;
        let mut events = manager.subscribe();
        let last = manager.check_all_vms().await.unwrap();
        assert_eq!(
            (&last["orphansDetected"], &last["orphansCleaned"]),
            (&json!(2), &json!(1))
        );
        let mut killed = Vec::new();
        for _ in 0..2 {
            let orphan = next_event(&mut events, "orphan-detected").await;
            killed.push((orphan.data["vmId"].clone(), orphan.data["killed"].clone()));
        }
        killed.sort_by_key(|(vm_id, _)| vm_id.to_string());
        let expected = [
            (json!("kept-1"), json!(false)),
            (json!("lost-1"), json!(true)),
        ];
        assert_eq!(killed, expected);
        ends(lost.pid()).await;
        assert!(is_alive(kept.pid()) && file("kept-1").exists());
        assert!(!file("lost-1").exists());

        std::fs::remove_file(file("reused-1")).unwrap();
        lost.end();
        kept.end();
        assert_eq!(manager.check_orphan_processes().await.unwrap(), json!([]));
        host.claim("kept-1", "off");
        delete(&manager, "kept-1").await;
        delete(&manager, "own-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_live_qemu_no_ledger_knows_is_alive_and_is_never_ended() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = that_looks_when_asked(&host).await;
        create(&host, &manager, "old-1").await;
        manager
            .stop_vm("old-1".into(), forced(), never())
            .await
            .unwrap();
        let status = manager.get_vm_status("old-1".into()).await.unwrap();
        assert_eq!(status["processAlive"], false);
        // Another program's, with the plain name.
        let pid_file = host.state_dir().join("pids/old-1.pid");
        let old = Foreign::named("old-1", &pid_file).await;
        host.claim("old-1", "running");

        let status = manager.get_vm_status("old-1".into()).await.unwrap();
        assert_eq!(
            (&status["processAlive"], &status["qmpStatus"]),
            (&json!(true), &Value::Null)
        );
        assert_eq!(status["pid"], old.pid());
        manager.check_all_vms().await.unwrap();
        // Somebody takes it for dead all the same.
        host.claim("old-1", "off");
        tokio::time::sleep(Duration::from_millis(600)).await;
        let orphans = manager.check_orphan_processes().await.unwrap();
        assert_eq!(
            (&orphans[0]["pid"], &orphans[0]["killed"]),
            (&json!(old.pid()), &json!(false))
        );
        assert!(is_alive(old.pid()));

        old.end();
        assert_eq!(manager.check_orphan_processes().await.unwrap(), json!([]));
        delete(&manager, "old-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_that_lives_without_a_row_is_told_and_left_alone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let pid = create(&host, &manager, "rowless-1").await;
        let mut events = manager.subscribe();
        assert_eq!(
            manager.check_all_vms().await.unwrap()["orphansDetected"],
            json!(0)
        );
        host.delete_row("rowless-1");
        for _ in 0..2 {
            let summary = manager.check_all_vms().await.unwrap();
            assert_eq!(summary["orphansDetected"], json!(1));
            let orphan = next_event(&mut events, "orphan-detected").await;
            assert_eq!(orphan.vm_id.as_ref().map(VmId::as_str), Some("rowless-1"));
            let data = &orphan.data;
            assert_eq!(
                (&data["vmId"], &data["pid"]),
                (&json!("rowless-1"), &json!(pid))
            );
            assert_eq!(
                (&data["dbStatus"], &data["killed"]),
                (&Value::Null, &json!(false))
            );
            assert!(Path::new(data["pidfilePath"].as_str().unwrap()).exists());
        }
        assert!(is_alive(pid));
        let destroyed = manager.destroy_vm("rowless-1".into()).await.unwrap();
        assert_eq!(destroyed["success"], true);
        assert!(!is_alive(pid));
        assert_eq!(
            manager.check_all_vms().await.unwrap()["orphansDetected"],
            json!(0)
        );
    });
}
