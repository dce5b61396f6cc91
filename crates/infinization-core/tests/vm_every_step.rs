//! A step of create or start that fails, panics or is aborted, and a release that panics: for each there is.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use infinization_core::ErrorCode;
use infinization_core::manager::Manager;
use infinization_test_kit as kit;
use kit::faults::{snapshot, start, step_of, stopped};
use kit::full::FullHost;
use kit::machine::{
    Host, consistent_status, delete, forced, never, next_event, pid_of, send_signal,
};
use kit::meddler::{Deed, Meddler};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// No verb has this many steps; reaching it means that the meddler was never outrun.
const MOST_STEPS: usize = 60;

#[test]
fn a_create_that_fails_at_any_step_leaves_nothing() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Fail);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        let mut step = 0;
        loop {
            meddler.arm(step);
            let created = manager.create_vm(host.machine("fail-1"), never()).await;
            meddler.disarm();
            let Err(failure) = created else { break };
            let hit = meddler.was_hit().unwrap();
            assert_eq!(failure.code(), ErrorCode::CreateFailed, "{hit}");
            assert!(failure.has(ErrorCode::HostFile), "{hit}: {failure:?}");
            assert!(failure.to_string().contains("meddled with"), "{failure}");
            assert_eq!(step_of(&failure), Some(hit));
            assert_eq!(failure.vm_id().unwrap().as_str(), "fail-1");
            host.is_clean().await;
            assert_eq!(manager.list_vms().await.unwrap(), json!([]), "{hit}");
            step += 1;
            assert!(step < MOST_STEPS);
        }
        assert!(step > 8, "only {step} steps could fail");
        assert_eq!(
            consistent_status(&manager, "fail-1").await["status"],
            "running"
        );
        delete(&manager, "fail-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_start_that_fails_at_any_step_leaves_the_machine_as_it_was() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Fail);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        stopped(&host, &manager, "fail-2").await;
        let mut step = 0;
        loop {
            let before = snapshot(&host, &manager, "fail-2").await;
            meddler.arm(step);
            let started = start(&manager, "fail-2").await;
            meddler.disarm();
            let Err(failure) = started else { break };
            let hit = meddler.was_hit().unwrap();
            assert_eq!(failure.code(), ErrorCode::StartFailed, "{hit}");
            assert_eq!(step_of(&failure), Some(hit));
            assert_eq!(
                consistent_status(&manager, "fail-2").await["status"],
                "off",
                "{hit}"
            );
            let after = snapshot(&host, &manager, "fail-2").await;
            assert_eq!(after, before, "{hit} left a trace");
            start(&manager, "fail-2").await.unwrap();
            manager
                .stop_vm("fail-2".into(), forced(), never())
                .await
                .unwrap();
            step += 1;
            assert!(step < MOST_STEPS);
        }
        assert!(step > 6, "only {step} steps could fail");
        delete(&manager, "fail-2").await;
        host.is_clean().await;
    });
}

#[test]
fn a_failed_start_is_no_crash_to_the_next_manager() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Fail);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        stopped(&host, &manager, "fail-3").await;
        for step in 0.. {
            assert!(step < MOST_STEPS);
            meddler.arm(step);
            let failed = start(&manager, "fail-3").await.is_err();
            meddler.disarm();
            if failed && meddler.was_hit() == Some("continue") {
                break;
            }
            manager
                .stop_vm("fail-3".into(), forced(), never())
                .await
                .unwrap();
        }
        manager.shutdown().await.unwrap();
        drop(manager);

        let next = Manager::new(host.settings());
        let mut events = next.subscribe();
        next.initialize().await.unwrap();
        let mut heard = Vec::new();
        while let Ok(event) = events.try_recv() {
            heard.push(event.kind.clone());
        }
        assert!(!heard.contains(&"crash".to_owned()), "{heard:?}");
        delete(&next, "fail-3").await;
        host.is_clean().await;
    });
}

#[test]
fn f48_a_defect_in_any_step_is_undone_and_told() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Panic);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        let mut step = 0;
        loop {
            meddler.arm(step);
            let created = manager.create_vm(host.machine("f48-1"), never()).await;
            meddler.disarm();
            let Err(failure) = created else { break };
            let hit = meddler.was_hit().unwrap();
            assert_eq!(failure.code(), ErrorCode::CreateFailed, "{hit}");
            assert!(failure.has(ErrorCode::Internal), "{hit}: {failure:?}");
            host.is_clean().await;
            assert_eq!(manager.list_vms().await.unwrap(), json!([]), "{hit}");
            step += 1;
            assert!(step < MOST_STEPS);
        }
        assert!(step > 8, "only {step} steps could fail");
        delete(&manager, "f48-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f48_a_defect_in_a_start_leaves_the_machine_as_it_was() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Panic);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        stopped(&host, &manager, "f48-2").await;
        let before = snapshot(&host, &manager, "f48-2").await;
        let mut step = 0;
        loop {
            meddler.arm(step);
            let started = start(&manager, "f48-2").await;
            meddler.disarm();
            let Err(failure) = started else { break };
            let hit = meddler.was_hit().unwrap();
            assert_eq!(failure.code(), ErrorCode::StartFailed, "{hit}");
            assert!(failure.has(ErrorCode::Internal), "{hit}: {failure:?}");
            let after = snapshot(&host, &manager, "f48-2").await;
            assert_eq!(after, before, "{hit} left a trace");
            step += 1;
            assert!(step < MOST_STEPS);
        }
        assert!(step > 6, "only {step} steps could fail");
        delete(&manager, "f48-2").await;
        host.is_clean().await;
    });
}

/// Wherever a defect shows while a machine is stopped, or is cleaned up after: it is off then, and starts again.
#[test]
fn f48_a_defect_in_an_end_holds_nothing_up() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Panic);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        let mut events = manager.subscribe();
        stopped(&host, &manager, "f48-3").await;
        let mut hits = Vec::new();
        for crashes in [false, true] {
            for step in 0.. {
                assert!(step < MOST_STEPS);
                start(&manager, "f48-3").await.unwrap();
                meddler.arm(step);
                if crashes {
                    let pid = pid_of(&consistent_status(&manager, "f48-3").await);
                    send_signal(pid, Signal::SIGKILL);
                    // Told to the application's event manager, then to the health monitor's listeners.
                    next_event(&mut events, "crash").await;
                    next_event(&mut events, "crash").await;
                } else {
                    let stopped = manager.stop_vm("f48-3".into(), forced(), never());
                    stopped.await.unwrap();
                }
                meddler.disarm();
                let status = consistent_status(&manager, "f48-3").await;
                assert_eq!(status["status"], "off", "{hits:?}");
                let Some(hit) = meddler.took_hit() else { break };
                hits.push(hit);
            }
        }
        assert!(hits.len() > 6, "only {hits:?} could fail");
        delete(&manager, "f48-3").await;
        host.is_clean().await;
    });
}

#[test]
fn f52_an_abort_at_any_step_is_undone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Cancel);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        let mut aborted = 0;
        for step in 0..MOST_STEPS {
            meddler.arm(step);
            let created = manager.create_vm(host.machine("f52-3"), never()).await;
            meddler.disarm();
            let Some(hit) = meddler.took_hit() else { break };
            if let Err(failure) = created {
                assert_eq!(failure.code(), ErrorCode::Aborted, "{hit}");
                assert_eq!(manager.list_vms().await.unwrap(), json!([]), "{hit}");
                aborted += 1;
            } else {
                // There was nothing left to abort.
                let status = consistent_status(&manager, "f52-3").await;
                assert_eq!(status["status"], "running", "{hit}");
                delete(&manager, "f52-3").await;
            }
            host.is_clean().await;
        }
        assert!(aborted > 8, "only {aborted} steps could be aborted");
        delete(&manager, "f52-3").await;
        host.is_clean().await;
    });
}

/// Steps that a plain machine has not.
const FULL_STEPS: [&str; 3] = [
    "copy firmware variables",
    "set display password",
    "pin vCPUs",
];

/// All that a full machine has but a key: an encrypted disk takes seconds of a core to make.
fn without_a_key(full: &FullHost, vm_id: &str) -> Value {
    let mut machine = full.machine(vm_id);
    machine["disks"] = json!([{ "sizeGB": 1 }, { "sizeGB": 1 }]);
    machine
}

async fn meddled_with(full: &FullHost, meddler: &std::sync::Arc<Meddler>) -> Manager {
    let manager = Manager::with_effects(full.settings(), Some(meddler.wrapper()));
    manager.initialize().await.unwrap();
    manager
}

#[test]
fn a_create_of_a_full_machine_that_fails_at_any_step_leaves_nothing() {
    for (deed, vm_id) in [(Deed::Fail, "fail-4"), (Deed::Panic, "f48-2")] {
        kit::in_private_network(move || async move {
            let mut full = FullHost::new().await;
            let meddler = Meddler::new(deed);
            let manager = meddled_with(&full, &meddler).await;
            let mut hits = Vec::new();
            loop {
                full = full.tpm_again().await;
                meddler.arm(hits.len());
                let created = manager.create_vm(without_a_key(&full, vm_id), never());
                let created = created.await;
                meddler.disarm();
                let Err(failure) = created else { break };
                let hit = meddler.was_hit().unwrap();
                assert_eq!(failure.code(), ErrorCode::CreateFailed, "{hit}");
                full.host.is_clean().await;
                full.has_no_trace(vm_id, hit);
                assert_eq!(manager.list_vms().await.unwrap(), json!([]), "{hit}");
                hits.push(hit);
                assert!(hits.len() < MOST_STEPS);
            }
            assert!(
                FULL_STEPS.iter().all(|step| hits.contains(step)),
                "{hits:?}"
            );
            full.keeps_its_secrets("created");
            delete(&manager, vm_id).await;
            full.host.is_clean().await;
            full.has_no_trace(vm_id, "deleted");
        });
    }
}

#[test]
fn a_start_of_a_full_machine_that_fails_at_any_step_leaves_it_as_it_was() {
    kit::in_private_network(|| async {
        let full = FullHost::new().await;
        let meddler = Meddler::new(Deed::Fail);
        let manager = meddled_with(&full, &meddler).await;
        let machine = without_a_key(&full, "fail-5");
        manager.create_vm(machine, never()).await.unwrap();
        let stop = || manager.stop_vm("fail-5".into(), forced(), never());
        stop().await.unwrap();
        let mut full = full.tpm_ended().await;
        let before = snapshot(&full.host, &manager, "fail-5").await;
        let mut hits = Vec::new();
        loop {
            full = full.tpm_again().await;
            meddler.arm(hits.len());
            let started = start(&manager, "fail-5").await;
            meddler.disarm();
            let Err(failure) = started else { break };
            let hit = meddler.was_hit().unwrap();
            assert_eq!(failure.code(), ErrorCode::StartFailed, "{hit}");
            let after = snapshot(&full.host, &manager, "fail-5").await;
            assert_eq!(after, before, "{hit} left a trace");
            hits.push(hit);
            assert!(hits.len() < MOST_STEPS);
        }
        assert!(
            FULL_STEPS[1..].iter().all(|step| hits.contains(step)),
            "{hits:?}"
        );
        delete(&manager, "fail-5").await;
        full.host.is_clean().await;
        full.has_no_trace("fail-5", "deleted");
    });
}
