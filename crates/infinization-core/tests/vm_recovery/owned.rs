//! A QEMU that is proven ours is managed again, however much of what we knew of it is lost.

use super::*;

#[test]
fn the_next_manager_takes_back_what_runs_and_what_is_suspended() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let runs = create(&host, &manager, "back-1").await;
        let sleeps = create(&host, &manager, "back-2").await;
        manager.suspend_vm("back-2".into()).await.unwrap();
        manager.shutdown().await.unwrap();
        drop(manager);

        let (next, mut events) = next_manager(&host).await;
        for (vm_id, pid, status, run_state) in [
            ("back-1", runs, "running", "running"),
            ("back-2", sleeps, "suspended", "paused"),
        ] {
            let found = consistent_status(&next, vm_id).await;
            assert_eq!(found["pid"], pid);
            assert_eq!(found["status"], status);
            assert_eq!(found["qmpStatus"], run_state);
        }
        assert_eq!(told(&mut events, "crash"), 0);
        let other = create(&host, &next, "back-3").await;
        assert_eq!(qemus(host.path()).len(), 3);
        assert!(is_alive(other));
        next.resume_vm("back-2".into()).await.unwrap();
        next.suspend_vm("back-1".into()).await.unwrap();
        for vm_id in ["back-1", "back-2", "back-3"] {
            let stopped = next.stop_vm(vm_id.into(), forced(), never()).await.unwrap();
            assert_eq!(stopped["success"], true);
            assert_eq!(consistent_status(&next, vm_id).await["status"], "off");
        }
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        for vm_id in ["back-1", "back-2", "back-3"] {
            delete(&next, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn f3_a_qemu_that_hangs_at_re_own_is_watched_and_goes_on() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "hang-1").await;
        send_signal(pid, Signal::SIGSTOP);

        let (next, mut events) = next_manager(&host).await;
        let status = consistent_status(&next, "hang-1").await;
        assert_eq!(
            (&status["status"], &status["pid"], &status["unresponsive"]),
            (&json!("running"), &json!(pid), &json!(true))
        );
        let again = next.start_vm("hang-1".into(), Value::Null, never()).await;
        assert_eq!(again.unwrap()["message"], "VM is already running");
        next.check_all_vms().await.unwrap();
        assert_eq!(told(&mut events, "crash"), 0);

        send_signal(pid, Signal::SIGCONT);
        next_event(&mut events, "vm:reconnect").await;
        let status = consistent_status(&next, "hang-1").await;
        assert_eq!(status["unresponsive"], false);
        next.suspend_vm("hang-1".into()).await.unwrap();
        delete(&next, "hang-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f6_a_qemu_whose_socket_file_is_gone_is_ours_and_can_be_ended() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        for (vm_id, end) in [
            ("sock-1", "stop"),
            ("sock-2", "destroy"),
            ("sock-3", "delete"),
        ] {
            let pid = left_running(&host, vm_id).await;
            let socket = host.state_dir().join(format!("run/{vm_id}.sock"));
            std::fs::remove_file(socket).unwrap();
            let (next, _events) = next_manager(&host).await;
            let status = consistent_status(&next, vm_id).await;
            assert_eq!(
                (&status["pid"], &status["unresponsive"]),
                (&json!(pid), &json!(true))
            );
            match end {
                "stop" => {
                    let stopped = next.stop_vm(vm_id.into(), forced(), never()).await.unwrap();
                    assert_eq!(stopped["forced"], true);
                }
                "destroy" => drop(next.destroy_vm(vm_id.into()).await.unwrap()),
                _ => delete(&next, vm_id).await,
            }
            assert_eq!(qemus(host.path()), Vec::<i32>::new(), "{end}");
            if end != "delete" {
                assert_eq!(consistent_status(&next, vm_id).await["status"], "off");
                delete(&next, vm_id).await;
            }
            next.shutdown().await.unwrap();
            host.is_clean().await;
        }
    });
}

#[test]
fn f18_a_torn_spec_does_not_lose_a_running_qemu() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "torn-1").await;
        let spec = host.state_dir().join("vms/torn-1/spec.json");
        std::fs::write(&spec, b"{ torn").unwrap();
        let (next, _events) = next_manager(&host).await;
        let status = consistent_status(&next, "torn-1").await;
        assert_eq!(status["pid"], pid);
        assert_eq!(status["qmpStatus"], "running");
        next.suspend_vm("torn-1".into()).await.unwrap();
        delete(&next, "torn-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f18_a_torn_ledger_loses_neither_the_qemu_nor_what_it_holds() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        for ended in [false, true] {
            let pid = left_running(&host, "torn-2").await;
            let ledger = host.state_dir().join("vms/torn-2/ledger.json");
            std::fs::write(&ledger, b"").unwrap();
            if ended {
                send_signal(pid, Signal::SIGKILL);
                ends(pid).await;
            }
            let (next, mut events) = next_manager(&host).await;
            let status = consistent_status(&next, "torn-2").await;
            assert_eq!(status["processAlive"], !ended);
            if ended {
                next_event(&mut events, "crash").await;
            } else {
                assert_eq!(
                    (&status["pid"], &status["qmpStatus"]),
                    (&json!(pid), &json!("running"))
                );
                next.stop_vm("torn-2".into(), forced(), never())
                    .await
                    .unwrap();
            }
            assert_eq!(consistent_status(&next, "torn-2").await["status"], "off");
            assert_eq!(qemus(host.path()), Vec::<i32>::new());
            next.start_vm("torn-2".into(), Value::Null, never())
                .await
                .unwrap();
            delete(&next, "torn-2").await;
            next.shutdown().await.unwrap();
            host.is_clean().await;
        }
    });
}

#[test]
fn f11_a_create_whose_guest_has_run_is_never_undone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        // Killed after `cont`; and a power cut that left an older ledger than the row.
        for marked in [true, false] {
            let pid = left_running(&host, "ran-1").await;
            rewrite(&host, "ran-1", |ledger| {
                ledger["operation"] = json!("create");
                ledger["attempt"] = json!(0);
                ledger["guestMayRun"] = json!(marked);
            });
            send_signal(pid, Signal::SIGKILL);
            ends(pid).await;
            let (next, mut events) = next_manager(&host).await;
            next_event(&mut events, "crash").await;
            assert_eq!(consistent_status(&next, "ran-1").await["status"], "off");
            let disk = host.state_dir().join("disks/ran-1.qcow2");
            assert!(disk.exists(), "marked: {marked}");
            next.start_vm("ran-1".into(), Value::Null, never())
                .await
                .unwrap();
            delete(&next, "ran-1").await;
            next.shutdown().await.unwrap();
            host.is_clean().await;
        }
    });
}

#[test]
fn a_suspended_machine_that_was_reset_is_taken_back_as_suspended() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "reset-1").await;
        let mut events = manager.subscribe();
        manager.suspend_vm("reset-1".into()).await.unwrap();
        manager
            .qmp_execute("reset-1", "system_reset", Value::Null)
            .await
            .unwrap();
        next_event(&mut events, "vm:reset").await;
        let status = consistent_status(&manager, "reset-1").await;
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("suspended"), &json!("prelaunch"))
        );
        manager.shutdown().await.unwrap();

        let (next, _events) = next_manager(&host).await;
        let status = consistent_status(&next, "reset-1").await;
        assert_eq!(status["status"], "suspended");
        next.resume_vm("reset-1".into()).await.unwrap();
        assert_eq!(
            consistent_status(&next, "reset-1").await["qmpStatus"],
            "running"
        );
        delete(&next, "reset-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f09_a_launch_that_was_cut_short_before_its_last_word_was_heard_is_finished() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        for answers in [true, false] {
            let pid = cut_short_at_its_last_word(&host, "last-1").await;
            if !answers {
                send_signal(pid, Signal::SIGSTOP);
            }
            let (manager, mut events) = next_manager(&host).await;
            if !answers {
                send_signal(pid, Signal::SIGCONT);
                next_event(&mut events, "vm:reconnect").await;
            }
            let again = manager.start_vm("last-1".into(), Value::Null, never());
            assert_eq!(again.await.unwrap()["message"], "VM is already running");
            let status = consistent_status(&manager, "last-1").await;
            let seen = (&status["status"], &status["qmpStatus"], &status["pid"]);
            assert_eq!(seen, (&json!("running"), &json!("running"), &json!(pid)));
            delete(&manager, "last-1").await;
            manager.shutdown().await.unwrap();
            host.is_clean().await;
        }
    });
}

#[test]
fn f09_a_claimed_machine_is_not_let_run_by_finishing_its_launch() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = cut_short_at_its_last_word(&host, "last-2").await;
        host.claim("last-2", "moving");
        let (manager, _events) = next_manager(&host).await;
        let status = manager.get_vm_status("last-2".into()).await.unwrap();
        let seen = (&status["status"], &status["qmpStatus"], &status["pid"]);
        assert_eq!(seen, (&json!("moving"), &json!("prelaunch"), &json!(pid)));
        host.claim("last-2", "suspended");
        manager.resume_vm("last-2".into()).await.unwrap();
        let status = consistent_status(&manager, "last-2").await;
        assert_eq!(status["qmpStatus"], "running");
        delete(&manager, "last-2").await;
        manager.shutdown().await.unwrap();
        host.is_clean().await;
    });
}

#[test]
fn f09_a_launch_that_cannot_be_judged_yet_is_finished_when_it_can_be() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = cut_short_at_its_last_word(&host, "last-3").await;
        let switch = Switch::new();
        switch.turn(Mode::Down);
        let mut settings = host.settings();
        settings["healthMonitorInterval"] = json!(1000);
        let manager = Manager::with_wrappers(settings, None, Some(switch.wrapper()));
        let mut events = manager.subscribe();
        manager.initialize().await.unwrap();
        // Whose machine it is nobody can say, so its guest does not run.
        next_event(&mut events, "vm:reconnect").await;
        let asked = manager.qmp_execute("last-3", "query-status", Value::Null);
        assert!(asked.await.unwrap().get().contains("prelaunch"));
        switch.turn(Mode::Up);
        let finished = async {
            while manager.get_vm_status("last-3".into()).await.unwrap()["status"] != "running" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, finished).await.unwrap();
        let status = consistent_status(&manager, "last-3").await;
        let seen = (&status["qmpStatus"], &status["pid"]);
        assert_eq!(seen, (&json!("running"), &json!(pid)));
        delete(&manager, "last-3").await;
        manager.shutdown().await.unwrap();
        host.is_clean().await;
    });
}

/// A machine whose create was about to let its guest run, and whose QEMU has not done so.
async fn cut_short_at_its_last_word(host: &Host, vm_id: &str) -> i32 {
    let manager = host.manager().await;
    let pid = create(host, &manager, vm_id).await;
    let mut events = manager.subscribe();
    manager.suspend_vm(vm_id.into()).await.unwrap();
    // Now QEMU says again that its guest has not run yet.
    let reset = manager.qmp_execute(vm_id, "system_reset", Value::Null);
    reset.await.unwrap();
    next_event(&mut events, "vm:reset").await;
    manager.shutdown().await.unwrap();
    rewrite(host, vm_id, |ledger| {
        assert_eq!(ledger["guestMayRun"], true);
        ledger["operation"] = json!("create");
    });
    host.claim(vm_id, "starting");
    pid
}
