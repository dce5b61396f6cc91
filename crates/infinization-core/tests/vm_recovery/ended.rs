//! A QEMU that ends while there is no manager, or under the next one: crashes, and steps of an installation.

use super::*;

#[test]
fn i33_an_installation_goes_on_over_a_restart_of_ours() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let vm_id = VmId::parse("inst-1").unwrap();
        for told_before in [false, true] {
            let manager = host.manager().await;
            let pid = create(&host, &manager, "inst-1").await;
            manager.mark_installing(&vm_id).unwrap();
            if told_before {
                // It ends as a step of its installation while we are there, else while nobody is.
                let mut events = manager.subscribe();
                send_signal(pid, Signal::SIGTERM);
                next_event(&mut events, "vm:shutdown").await;
            }
            manager.shutdown().await.unwrap();
            drop(manager);
            send_signal_if_alive(pid);

            let (manager, mut events) = next_manager(&host).await;
            assert!(manager.is_installing(&vm_id));
            manager.check_all_vms().await.unwrap();
            let status = manager.get_vm_status("inst-1".into()).await.unwrap();
            let seen = (&status["status"], &status["processAlive"]);
            assert_eq!(seen, (&json!("running"), &json!(false)));
            assert_eq!(told(&mut events, "crash"), 0);

            manager.clear_installing(&vm_id).unwrap();
            manager.settle_installed(&vm_id).await.unwrap();
            let status = manager.get_vm_status("inst-1".into()).await.unwrap();
            assert_eq!(status["status"], "off");
            assert_eq!(told(&mut events, "crash") == 0, told_before);

            // Its next step, after one more of our restarts.
            let started = manager.start_vm("inst-1".into(), json!({}), never());
            started.await.unwrap();
            manager.mark_installing(&vm_id).unwrap();
            manager.shutdown().await.unwrap();
            drop(manager);
            for pid in qemus(host.path()) {
                send_signal_if_alive(pid);
            }
            let (manager, _) = next_manager(&host).await;
            let started = manager.start_vm("inst-1".into(), json!({}), never());
            started.await.unwrap();
            delete(&manager, "inst-1").await;
            host.is_clean().await;
            manager.shutdown().await.unwrap();
        }
    });
}

/// Ends a QEMU that may have ended, and returns when it has.
fn send_signal_if_alive(pid: i32) {
    let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
    while is_alive(pid) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn f01_a_suspended_machine_that_was_taken_back_and_is_killed_is_a_crash() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let pid = create(&host, &manager, "kill-1").await;
        manager.suspend_vm("kill-1".into()).await.unwrap();
        manager.shutdown().await.unwrap();
        let (next, mut events) = next_manager(&host).await;
        send_signal(pid, Signal::SIGKILL);
        next_event(&mut events, "crash").await;
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.data["lastKnownStatus"], "suspended");
        assert_eq!(crash.data["pid"], pid);
        assert_eq!(consistent_status(&next, "kill-1").await["status"], "off");
        next.start_vm("kill-1".into(), Value::Null, never())
            .await
            .unwrap();
        delete(&next, "kill-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f01_a_suspended_machine_that_is_killed_is_a_crash() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let pid = create(&host, &manager, "kill-2").await;
        manager.suspend_vm("kill-2".into()).await.unwrap();
        send_signal(pid, Signal::SIGKILL);
        next_event(&mut events, "crash").await;
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.data["lastKnownStatus"], "suspended");
        assert_eq!(crash.data["cause"]["signal"], 9);
        let status = consistent_status(&manager, "kill-2").await;
        assert_eq!(status["status"], "off");
        assert_eq!(status["lastExit"]["signal"], 9);
        delete(&manager, "kill-2").await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_that_died_while_there_was_no_manager_is_off() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "away-1").await;
        send_signal(pid, Signal::SIGKILL);
        ends(pid).await;
        let (next, mut events) = next_manager(&host).await;
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.vm_id.as_ref().unwrap().as_str(), "away-1");
        let status = consistent_status(&next, "away-1").await;
        assert_eq!(status["status"], "off");
        assert_eq!(status["lastExit"]["reason"], "unknown");
        let row = next.get_vm("away-1".into()).await.unwrap();
        assert_eq!(row["pid"], Value::Null);
        let left: Vec<_> = ["run", "pids"]
            .iter()
            .flat_map(|dir| std::fs::read_dir(host.state_dir().join(dir)).unwrap())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        next.start_vm("away-1".into(), Value::Null, never())
            .await
            .unwrap();
        delete(&next, "away-1").await;
        host.is_clean().await;
    });
}
