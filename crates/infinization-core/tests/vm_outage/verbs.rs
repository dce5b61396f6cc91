//! What is asked while the database is away: done without it, refused, or undone.

use infinization_core::ErrorCode;
use kit::faults::snapshot;

use super::*;

#[test]
fn f32_stop_and_destroy_end_the_guest_whatever_the_database_does() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        let mut events = manager.subscribe();
        for vm_id in ["f32-2", "f32-3"] {
            create(&host, &manager, vm_id).await;
        }
        switch.forget();
        switch.turn(Mode::Down);
        assert_eq!(stop(&manager, "f32-2").await.unwrap()["success"], true);
        let destroyed = manager.destroy_vm("f32-3".into()).await.unwrap();
        assert_eq!(destroyed["success"], true);
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        let tap = VmNames::of(&VmId::parse("f32-2").unwrap()).tap;
        assert_eq!(host.links().await, [tap.to_string()]);
        let status = manager.get_vm_status("f32-2".into()).await.unwrap_err();
        assert_eq!(status.code(), ErrorCode::DatabaseError, "{status}");
        assert!(!status.to_string().contains("not found"));

        switch.turn(Mode::Up);
        next_event(&mut events, "database-restored").await;
        assert_eq!(switch.made("f32-2"), ["clear volatile", "off"]);
        assert_eq!(switch.made("f32-3"), ["clear volatile", "off", "clear"]);
        for vm_id in ["f32-2", "f32-3"] {
            assert_eq!(consistent_status(&manager, vm_id).await["status"], "off");
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn f31_what_needs_an_answer_is_refused_and_touches_nothing() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        let mut events = manager.subscribe();
        stopped(&host, &manager, "f31-1").await;
        create(&host, &manager, "f31-2").await;
        let before = snapshot(&host, &manager, "f31-1").await;
        switch.turn(Mode::Down);
        let vm = || "f31-2".to_owned();
        let refused = [
            manager.create_vm(host.machine("f31-3"), never()).await,
            manager.create_vm(host.machine("f31-1"), never()).await,
            start(&manager, "f31-1").await,
            stop(&manager, "f31-1").await,
            manager.suspend_vm(vm()).await,
            manager.resume_vm(vm()).await,
            manager.reset_vm(vm()).await,
            manager.restart_vm(vm()).await,
            manager.check_all_vms().await,
            manager.reconcile_startup_state(None).await,
        ];
        for (number, refused) in refused.into_iter().enumerate() {
            let refused = refused.unwrap_err();
            assert!(
                refused.has(ErrorCode::DbConnectionError),
                "{number}: {refused:?}"
            );
        }
        assert_eq!(snapshot(&host, &manager, "f31-1").await, before);

        switch.turn(Mode::Up);
        next_event(&mut events, "database-restored").await;
        start(&manager, "f31-1").await.unwrap();
        for vm_id in ["f31-1", "f31-2"] {
            assert_eq!(
                consistent_status(&manager, vm_id).await["status"],
                "running"
            );
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn f31_a_start_that_loses_the_database_at_any_request_is_done_or_undone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        stopped(&host, &manager, "f31-4").await;
        let before = snapshot(&host, &manager, "f31-4").await;
        let (mut refused, mut done) = (0, 0);
        for requests in 0.. {
            switch.turn(Mode::DownAfter(requests));
            let started = start(&manager, "f31-4").await;
            let lost_it = switch.is_down();
            switch.turn(Mode::Up);
            // What looks at the machine after the outage asks, too.
            switch.rests().await;
            let word = if started.is_ok() { "running" } else { "off" };
            let status = consistent_status(&manager, "f31-4").await;
            assert_eq!(status["status"], word, "after {requests} requests");
            match started {
                Ok(_) => {
                    done += 1;
                    stop(&manager, "f31-4").await.unwrap();
                }
                Err(failure) => {
                    refused += 1;
                    assert!(failure.has(ErrorCode::DbConnectionError), "{failure:?}");
                    assert_eq!(snapshot(&host, &manager, "f31-4").await, before);
                }
            }
            if !lost_it {
                break;
            }
        }
        assert!(refused >= 4 && done >= 2, "{refused} refused, {done} done");
        delete(&manager, "f31-4").await;
        host.is_clean().await;
    });
}

#[test]
fn f33_a_claim_whose_answer_was_lost_is_given_back() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        stopped(&host, &manager, "f33-1").await;
        switch.turn(Mode::Deaf);
        let failure = start(&manager, "f33-1").await.unwrap_err();
        assert!(failure.has(ErrorCode::DbConnectionError), "{failure:?}");
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        switch.turn(Mode::Up);
        assert_eq!(consistent_status(&manager, "f33-1").await["status"], "off");
        start(&manager, "f33-1").await.unwrap();
        delete(&manager, "f33-1").await;
        host.is_clean().await;
    });
}
