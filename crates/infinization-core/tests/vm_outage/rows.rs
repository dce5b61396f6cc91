//! Rows follow what became of their machines, also after late writes.

use super::*;

#[test]
fn f32_a_crash_is_cleaned_up_while_the_database_is_away_and_written_when_it_is_back() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        let mut events = manager.subscribe();
        let tap = VmNames::of(&VmId::parse("f32-1").unwrap()).tap;
        for away in [Mode::Down, Mode::Hangs] {
            let pid = create(&host, &manager, "f32-1").await;
            switch.turn(away);
            let (mut own, mut crashes) = (manager.subscribe(), manager.subscribe());
            send_signal(pid, Signal::SIGKILL);
            let outage = next_event(&mut events, "database-outage").await;
            assert_eq!(outage.data["error"]["code"], "DB_CONNECTION_ERROR");
            let first = of_its_own(&mut own).await;
            assert_eq!(first.kind, "error", "before anybody hears of it");
            assert_eq!(first.data["event"], "off");
            // What hangs is slow at first, and away later: nobody waits for that.
            next_event(&mut crashes, "crash").await;
            let crash = next_event(&mut crashes, "crash").await;
            assert_eq!(crash.data["cleanupPerformed"], true, "{}", crash.data);
            let link = host.links.find(&tap).await.unwrap().unwrap();
            assert!(link.master.is_none() && !link.up);
            assert_eq!(row(&manager, "f32-1").await["status"], "running");

            switch.turn(Mode::Up);
            let restored = next_event(&mut events, "database-restored").await;
            assert_eq!(restored.data["lost"], 0);
            assert_eq!(restored.data["delivered"], 2, "off, and the pid");
            let row = row(&manager, "f32-1").await;
            assert_eq!(row["status"], "off");
            assert_eq!(row["pid"], Value::Null);
            delete(&manager, "f32-1").await;
        }
        host.is_clean().await;
    });
}

/// A database may make a write long after whoever asked for it gave it up, and after newer ones. The
/// health monitor's next look makes the row true.
#[test]
fn f31_a_write_that_is_made_late_stays_in_no_row() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        let pid = create(&host, &manager, "late-1").await;
        let shown = async || {
            manager.check_all_vms().await.unwrap();
            let row = row(&manager, "late-1").await;
            (row["status"].clone(), row["pid"].clone())
        };
        for late in ["off", "starting", "suspended"] {
            host.claim("late-1", late);
            assert_eq!(shown().await, (json!("running"), json!(pid)), "{late}");
        }
        manager.suspend_vm("late-1".into()).await.unwrap();
        host.claim("late-1", "running");
        host.claim_run("late-1", 1);
        assert_eq!(shown().await, (json!("suspended"), json!(pid)));
        host.claim("late-1", "paused");
        assert_eq!(shown().await.0, "paused", "another word for the same");

        stop(&manager, "late-1").await.unwrap();
        host.claim("late-1", "running");
        assert_eq!(shown().await, (json!("off"), Value::Null));

        // A claim whose answer was lost is made once more, after it was given back.
        switch.turn(Mode::Deaf);
        start(&manager, "late-1").await.unwrap_err();
        switch.turn(Mode::Up);
        assert_eq!(consistent_status(&manager, "late-1").await["status"], "off");
        host.claim("late-1", "starting");
        // Whoever looks at it after the outage may be at it still: then the next look does.
        let settled = async {
            while shown().await != (json!("off"), Value::Null) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, settled).await.unwrap();
        start(&manager, "late-1").await.unwrap();
        delete(&manager, "late-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f31_what_goes_on_over_an_outage_is_left_to_whoever_does_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        let mut events = manager.subscribe();
        let rows = [
            ("goes-1", "rebuilding", "rebuilding"),
            ("goes-2", "powering_off_update", "powering_off_update"),
            ("goes-3", "starting", "off"),
        ];
        for (vm_id, claim, _) in rows {
            stopped(&host, &manager, vm_id).await;
            host.claim(vm_id, claim);
        }
        // Its first step is over, and the next one has not begun.
        let pid = create(&host, &manager, "goes-4").await;
        let installed = VmId::parse("goes-4").unwrap();
        manager.mark_installing(&installed).unwrap();
        let quit = manager.qmp_execute("goes-4", "quit", Value::Null);
        quit.await.unwrap();
        next_event(&mut events, "vm:event").await;
        while qemus(host.path()).contains(&pid) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The second one begins when the first has looked at everything.
        for _ in 0..2 {
            switch.turn(Mode::Down);
            manager.check_all_vms().await.unwrap_err();
            switch.turn(Mode::Up);
            next_event(&mut events, "database-restored").await;
            next_event(&mut events, "reconcile-complete").await;
        }
        manager.retry_cleanup("goes-4".into()).await.unwrap();
        for (vm_id, _, status) in rows {
            assert_eq!(row(&manager, vm_id).await["status"], status, "{vm_id}");
        }
        assert_eq!(row(&manager, "goes-4").await["status"], "running");
        assert!(!host.links().await.is_empty(), "its run is not over");

        manager.clear_installing(&installed).unwrap();
        manager.check_all_vms().await.unwrap();
        row_says(&manager, "goes-4", "off").await;
        for vm_id in ["goes-1", "goes-2"] {
            host.claim(vm_id, "off");
        }
        for vm_id in ["goes-1", "goes-2", "goes-3", "goes-4"] {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}
