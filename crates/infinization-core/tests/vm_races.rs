//! Requests that meet: of one machine they are served one after the other, of several at once.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use infinization_core::manager::Manager;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::machine::{
    Host, PATIENCE, consistent_status, create, delete, forced, never, next_event, pid_of, qemus,
    send_signal,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

fn patient() -> Value {
    json!({ "graceful": true, "force": false, "timeout": 60_000 })
}

#[test]
fn f34_fifty_concurrent_starts_make_one_qemu() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f34-1").await;
        manager
            .stop_vm("f34-1".into(), forced(), never())
            .await
            .unwrap();
        let mut starts = JoinSet::new();
        for _ in 0..50 {
            let manager = manager.clone();
            starts.spawn(async move {
                manager
                    .start_vm("f34-1".into(), Value::Null, never())
                    .await
                    .unwrap()
            });
        }
        let answers = starts.join_all().await;
        assert!(answers.iter().all(|answer| answer["success"] == true));
        let started = answers
            .iter()
            .filter(|answer| answer["message"] == "VM started");
        assert_eq!(started.count(), 1);
        assert_eq!(qemus(host.path()).len(), 1);
        assert_eq!(
            consistent_status(&manager, "f34-1").await["status"],
            "running"
        );
        delete(&manager, "f34-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f35_starts_stops_and_destroys_that_meet_end_in_a_serial_outcome() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f35-1").await;
        for round in 0..6 {
            let mut verbs = JoinSet::new();
            for turn in 0..6 {
                let manager = manager.clone();
                verbs.spawn(async move {
                    let vm_id = "f35-1".to_owned();
                    match (round + turn) % 3 {
                        0 => start_unless_undone(&manager, vm_id).await,
                        1 => manager.stop_vm(vm_id, forced(), never()).await,
                        _ => Ok(consistent_while_busy(&manager).await),
                    }
                });
            }
            for outcome in verbs.join_all().await {
                outcome.unwrap();
            }
            let status = consistent_status(&manager, "f35-1").await;
            let alive = qemus(host.path()).len();
            assert_eq!(status["status"] == "running", alive == 1, "{status}");
            assert!(alive <= 1);
        }
        delete(&manager, "f35-1").await;
        host.is_clean().await;
    });
}

/// A start that takes long is undone for the forced stop behind it.
async fn start_unless_undone(manager: &Manager, vm_id: String) -> Result<Value, Failure> {
    match manager.start_vm(vm_id, Value::Null, never()).await {
        Err(failure) if failure.code() == ErrorCode::Aborted => Ok(Value::Null),
        started => started,
    }
}

/// A status asked for in between is one that the machine has been in.
async fn consistent_while_busy(manager: &Manager) -> Value {
    let status = manager.get_vm_status("f35-1".into()).await.unwrap();
    let known = ["off", "starting", "running"];
    assert!(
        known.contains(&status["status"].as_str().unwrap()),
        "{status}"
    );
    status
}

#[test]
fn f35_a_destroy_that_meets_starts_and_stops_leaves_nothing_once_it_is_last() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for round in 0..5 {
            create(&host, &manager, "f35-2").await;
            let mut verbs = JoinSet::new();
            for turn in 0..6 {
                let manager = manager.clone();
                verbs.spawn(async move {
                    let vm_id = "f35-2".to_owned();
                    match (round + turn) % 3 {
                        0 => start_unless_undone(&manager, vm_id).await,
                        1 => manager.stop_vm(vm_id, forced(), never()).await,
                        _ => manager.destroy_vm(vm_id).await,
                    }
                });
            }
            for outcome in verbs.join_all().await {
                // A destroyed machine cannot be started: it has no spec any more.
                if let Err(failure) = outcome {
                    let refused = [ErrorCode::InvalidState, ErrorCode::InvalidConfig];
                    let told = refused.contains(&failure.code())
                        || failure.has(ErrorCode::StateFile)
                        || failure.has(ErrorCode::DiskError);
                    assert!(told, "{failure:?}");
                }
            }
            let status = consistent_status(&manager, "f35-2").await;
            let alive = qemus(host.path()).len();
            assert_eq!(status["processAlive"], alive == 1, "{status}");
            delete(&manager, "f35-2").await;
            host.is_clean().await;
        }
    });
}

#[test]
fn a_forced_stop_interrupts_a_graceful_one() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "force-1").await;
        let mut events = manager.subscribe();
        let began = Instant::now();
        let graceful = tokio::spawn({
            let manager = manager.clone();
            async move { manager.stop_vm("force-1".into(), patient(), never()).await }
        });
        // The button was pressed: the graceful stop waits for the guest.
        next_event(&mut events, "vm:powerdown").await;
        let forceful = manager
            .stop_vm("force-1".into(), forced(), never())
            .await
            .unwrap();
        assert_eq!(forceful["success"], true);
        let graceful = graceful.await.unwrap().unwrap();
        assert_eq!(graceful["forced"], true);
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "it did not wait for its deadline"
        );
        assert_eq!(
            consistent_status(&manager, "force-1").await["status"],
            "off"
        );
        delete(&manager, "force-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f3_a_forced_stop_does_not_wait_for_a_monitor_that_hangs() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for (vm_id, verb) in [
            ("deaf-1", "suspend"),
            ("deaf-2", "reset"),
            ("deaf-3", "stop"),
        ] {
            let created = create(&host, &manager, vm_id).await;
            let pid = pid_of(&created);
            send_signal(pid, Signal::SIGSTOP);
            let hanging = tokio::spawn({
                let manager = manager.clone();
                let id = vm_id.to_owned();
                async move {
                    match verb {
                        "suspend" => manager.suspend_vm(id).await,
                        "reset" => manager.reset_vm(id).await,
                        _ => manager.stop_vm(id, patient(), never()).await,
                    }
                }
            });
            // It is asked only once the verb has the VM: a status is not in line behind it.
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(!hanging.is_finished(), "{verb}");
            let stop = manager.stop_vm(vm_id.into(), forced(), never());
            // Monitor calls have 30 s.
            let stopped = timeout(Duration::from_secs(5), stop).await.expect(verb);
            assert_eq!(stopped.unwrap()["success"], true);
            match hanging.await.unwrap() {
                Ok(stopped) => assert_eq!(stopped["forced"], true, "{verb}"),
                Err(failure) => assert_eq!(failure.code(), ErrorCode::Aborted, "{verb}"),
            }
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn f52_a_stop_of_a_hanging_guest_can_be_aborted() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let created = create(&host, &manager, "deaf-4").await;
        let pid = pid_of(&created);
        manager.suspend_vm("deaf-4".into()).await.unwrap();
        // Aborted before it began: the guest is not even woken.
        let cancelled = never();
        cancelled.cancel();
        let stop = manager.stop_vm("deaf-4".into(), patient(), cancelled).await;
        assert_eq!(stop.unwrap_err().code(), ErrorCode::Aborted);
        assert_eq!(
            consistent_status(&manager, "deaf-4").await["status"],
            "suspended"
        );

        send_signal(pid, Signal::SIGSTOP);
        let cancel = never();
        let stop = tokio::spawn({
            let (manager, cancel) = (manager.clone(), cancel.clone());
            async move { manager.stop_vm("deaf-4".into(), patient(), cancel).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
        let stopped = timeout(Duration::from_secs(5), stop).await.unwrap();
        assert_eq!(stopped.unwrap().unwrap_err().code(), ErrorCode::Aborted);
        send_signal(pid, Signal::SIGCONT);
        delete(&manager, "deaf-4").await;
        host.is_clean().await;
    });
}

#[test]
fn a_forced_stop_that_waits_in_line_ends_the_wait_of_the_one_before() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "line-1").await;
        manager
            .stop_vm("line-1".into(), forced(), never())
            .await
            .unwrap();
        // All three are asked before the first is done.
        let (started, graceful, forceful) = timeout(Duration::from_secs(20), async {
            tokio::join!(
                manager.start_vm("line-1".into(), Value::Null, never()),
                manager.stop_vm("line-1".into(), patient(), never()),
                manager.stop_vm("line-1".into(), forced(), never()),
            )
        })
        .await
        .expect("the graceful stop did not wait for its deadline");
        // A start that takes long is undone for the forced stop behind it; then there is nothing to wait for.
        match started {
            Ok(_) => assert_eq!(graceful.unwrap()["forced"], true),
            Err(failure) => {
                assert_eq!(failure.code(), ErrorCode::Aborted, "{failure:?}");
                graceful.unwrap();
            }
        }
        forceful.unwrap();
        assert!(qemus(host.path()).is_empty());
        delete(&manager, "line-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_shutdown_gives_up_waiting_for_guests_and_ends_none() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "going-1").await;
        let mut events = manager.subscribe();
        let stop = tokio::spawn({
            let manager = manager.clone();
            async move { manager.stop_vm("going-1".into(), patient(), never()).await }
        });
        next_event(&mut events, "vm:powerdown").await;
        timeout(Duration::from_secs(10), manager.shutdown())
            .await
            .unwrap()
            .unwrap();
        let failure = stop.await.unwrap().unwrap_err();
        assert_eq!(failure.code(), ErrorCode::Closed);
        assert_eq!(qemus(host.path()).len(), 1, "the guest goes on");

        // Nothing of the first one holds the state directory.
        let next = host.manager().await;
        assert_eq!(
            consistent_status(&next, "going-1").await["qmpStatus"],
            "running"
        );
        delete(&next, "going-1").await;
        host.is_clean().await;
    });
}

#[test]
fn eight_machines_are_created_at_once() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let names: Vec<String> = (1..=8).map(|number| format!("many-{number}")).collect();
        let mut creates = JoinSet::new();
        for name in &names {
            let (manager, machine) = (manager.clone(), host.machine(name));
            creates.spawn(async move { manager.create_vm(machine, never()).await.unwrap() });
        }
        let created = timeout(PATIENCE, creates.join_all()).await.unwrap();
        let mut ports: Vec<i64> = created
            .iter()
            .map(|answer| answer["displayPort"].as_i64().unwrap())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8, "each has a display port of its own");
        assert_eq!(qemus(host.path()).len(), 8);
        assert_eq!(manager.get_active_vms().len(), 8);
        for name in &names {
            assert_eq!(consistent_status(&manager, name).await["status"], "running");
        }
        let mut deletes = JoinSet::new();
        for name in names {
            let manager = manager.clone();
            deletes.spawn(async move { delete(&manager, &name).await });
        }
        deletes.join_all().await;
        host.is_clean().await;
    });
}

#[test]
fn a_status_does_not_wait_for_a_stop() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "ask-1").await;
        let mut events = manager.subscribe();
        let graceful = tokio::spawn({
            let manager = manager.clone();
            async move { manager.stop_vm("ask-1".into(), patient(), never()).await }
        });
        next_event(&mut events, "vm:powerdown").await;
        let asked = manager.get_vm_status("ask-1".into());
        let status = timeout(Duration::from_secs(10), asked)
            .await
            .expect("it answers while the stop goes on")
            .unwrap();
        assert_eq!(status["status"], "running");
        assert_eq!(status["consistent"], true);
        assert!(!graceful.is_finished());
        manager
            .stop_vm("ask-1".into(), forced(), never())
            .await
            .unwrap();
        graceful.await.unwrap().unwrap();
        delete(&manager, "ask-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_stop_that_gives_up_on_a_suspended_guest_says_that_it_runs_now() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "woken-1").await;
        manager.suspend_vm("woken-1".into()).await.unwrap();
        // A suspended guest is let run, or it could not hear the button.
        let patient = json!({ "graceful": true, "force": false, "timeout": 1500 });
        let failure = manager
            .stop_vm("woken-1".into(), patient, never())
            .await
            .unwrap_err();
        assert_eq!(failure.code(), ErrorCode::Timeout);
        let status = consistent_status(&manager, "woken-1").await;
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("running"), &json!("running"))
        );
        delete(&manager, "woken-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f35_a_delete_that_meets_starts_leaves_no_qemu() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for round in 0..10 {
            create(&host, &manager, "f35-3").await;
            let mut verbs = JoinSet::new();
            for turn in 0..6 {
                let manager = manager.clone();
                verbs.spawn(async move {
                    let vm_id = "f35-3".to_owned();
                    if turn == round % 6 {
                        let options = json!({ "deleteDisks": true });
                        manager.delete_vm(vm_id, options).await
                    } else {
                        manager.start_vm(vm_id, Value::Null, never()).await
                    }
                });
            }
            for outcome in verbs.join_all().await {
                if let Err(failure) = outcome {
                    assert_eq!(failure.code(), ErrorCode::VmNotFound, "{failure:?}");
                }
            }
            assert_eq!(manager.list_vms().await.unwrap(), json!([]));
            host.is_clean().await;
        }
    });
}

fn generation(host: &Host, vm_id: &str) -> u64 {
    let ledger = host.state_dir().join("vms").join(vm_id).join("ledger.json");
    let body = infinization_core::host::state_file::read(&ledger).unwrap();
    let contents: Value = serde_json::from_slice(&body.unwrap()).unwrap();
    contents["generation"].as_u64().unwrap()
}

#[test]
fn a_restarted_machine_is_a_new_process_of_the_next_generation() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let created = create(&host, &manager, "again-1").await;
        let first = generation(&host, "again-1");
        let mut events = manager.subscribe();
        let restarting = tokio::spawn({
            let manager = manager.clone();
            async move { manager.restart_vm("again-1".into()).await }
        });
        // The firmware ignores the button; QEMU's end is what the stop waits for.
        next_event(&mut events, "vm:powerdown").await;
        let pid = pid_of(&created);
        kit::machine::send_signal(pid, nix::sys::signal::Signal::SIGTERM);
        let restarted = timeout(PATIENCE, restarting)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        assert_eq!(generation(&host, "again-1"), first + 1);
        let status = consistent_status(&manager, "again-1").await;
        assert_eq!(status["status"], "running");
        assert_ne!(status["pid"], created["pid"]);
        assert_eq!(qemus(host.path()).len(), 1);
        delete(&manager, "again-1").await;
        host.is_clean().await;
    });
}
