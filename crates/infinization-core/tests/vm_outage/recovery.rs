//! A manager that comes up without its database takes nothing for gone.

use infinization_core::host::state_file::{self, Durability};

use super::*;

#[test]
fn f31_machines_are_taken_back_without_a_database_and_rows_follow_when_it_is_back() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let first = host.manager().await;
        let mut pids = Vec::new();
        for vm_id in ["back-1", "back-2", "back-3"] {
            pids.push(create(&host, &first, vm_id).await);
        }
        for vm_id in ["back-4", "back-5", "back-6", "back-7"] {
            stopped(&host, &first, vm_id).await;
        }
        first.shutdown().await.unwrap();
        drop(first);
        // Nobody has seen the third one end, nor what became of the fourth.
        send_signal(pids[2], Signal::SIGKILL);
        host.claim("back-4", "starting");
        host.claim("back-1", "suspended");
        // Nobody is at work on this one any more: a start without a database has that still to tell.
        host.claim("back-5", "rebuilding");

        let switch = Switch::new();
        switch.turn(Mode::Down);
        let next = Manager::with_wrappers(host.settings(), None, Some(switch.wrapper()));
        let mut events = next.subscribe();
        next.initialize().await.unwrap();
        // The consumer finds the database before this process does, and is at work on these.
        host.claim("back-6", "rebuilding");
        host.claim("back-7", "powering_off_update");
        let mut active = next.get_active_vms();
        active.sort();
        assert_eq!(active, ["back-1", "back-2"]);
        send_signal(pids[1], Signal::SIGKILL);
        let crash = async {
            loop {
                let crash = next_event(&mut events, "crash").await;
                if crash.vm_id.as_ref().unwrap().as_str() == "back-2" {
                    return crash;
                }
            }
        };
        crash.await;
        assert_eq!(row(&next, "back-2").await["status"], "running");

        switch.turn(Mode::Up);
        next_event(&mut events, "database-restored").await;
        for (vm_id, status) in [
            ("back-1", "running"),
            ("back-2", "off"),
            ("back-3", "off"),
            ("back-4", "off"),
            ("back-5", "error"),
        ] {
            row_says(&next, vm_id, status).await;
            assert_eq!(consistent_status(&next, vm_id).await["status"], status);
            delete(&next, vm_id).await;
        }
        for (vm_id, claim) in [("back-6", "rebuilding"), ("back-7", "powering_off_update")] {
            assert_eq!(row(&next, vm_id).await["status"], claim, "{vm_id}");
            host.claim(vm_id, "off");
            delete(&next, vm_id).await;
        }
        next.shutdown().await.unwrap();
        host.is_clean().await;
    });
}

#[test]
fn f11_a_create_whose_guest_may_have_run_is_not_undone_for_want_of_its_row() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let first = host.manager().await;
        let pid = create(&host, &first, "ran-9").await;
        first.shutdown().await.unwrap();
        drop(first);
        // A power cut that left an older ledger than the row.
        let path = host.state_dir().join("vms/ran-9/ledger.json");
        let body = state_file::read(&path).unwrap().unwrap();
        let mut ledger: Value = serde_json::from_slice(&body).unwrap();
        ledger["operation"] = json!("create");
        ledger["attempt"] = json!(0);
        ledger["guestMayRun"] = json!(false);
        let body = serde_json::to_vec(&ledger).unwrap();
        state_file::write(&path, &body, Durability::ProcessCrash).unwrap();
        send_signal(pid, Signal::SIGKILL);

        let switch = Switch::new();
        switch.turn(Mode::Down);
        let next = Manager::with_wrappers(host.settings(), None, Some(switch.wrapper()));
        let mut events = next.subscribe();
        next.initialize().await.unwrap();
        let disk = host.state_dir().join("disks/ran-9.qcow2");
        assert!(disk.exists());
        switch.turn(Mode::Up);
        next_event(&mut events, "database-restored").await;
        row_says(&next, "ran-9", "off").await;
        assert!(disk.exists());
        start(&next, "ran-9").await.unwrap();
        delete(&next, "ran-9").await;
        next.shutdown().await.unwrap();
        host.is_clean().await;
    });
}

#[test]
fn b14_a_qemu_whose_row_cannot_be_read_is_not_ended() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let owner = host.manager().await;
        let pid = create(&host, &owner, "b14-1").await;
        owner.shutdown().await.unwrap();
        // Of another state directory, so that nobody owns what the pidfile names.
        let mut settings = host.settings();
        settings["stateDir"] = json!(host.path().join("other"));
        settings["pidfileDir"] = json!(host.state_dir().join("pids"));
        settings["healthMonitorInterval"] = json!(1000);
        settings["autoStartHealthMonitor"] = json!(false);
        let switch = Switch::new();
        let other = Manager::with_wrappers(settings, None, Some(switch.wrapper()));
        other.initialize().await.unwrap();
        switch.turn(Mode::Down);
        for _ in 0..3 {
            let orphans = other.check_orphan_processes().await.unwrap();
            assert_eq!(orphans, json!([]));
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        // Now there is no row of its name; but that was not seen before.
        switch.turn(Mode::Up);
        let orphans = other.check_orphan_processes().await.unwrap();
        assert_eq!(orphans[0]["pid"], pid);
        assert_eq!(orphans[0]["killed"], false);
        assert_eq!(qemus(host.path()), [pid]);
        other.shutdown().await.unwrap();

        let owner = host.manager().await;
        delete(&owner, "b14-1").await;
        std::fs::remove_dir_all(host.path().join("other")).unwrap();
        host.is_clean().await;
    });
}
