//! What goes wrong while a machine is created, started and stopped leaves it as it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use infinization_core::host::process::is_alive;
use infinization_core::host::state_file;
use infinization_core::manager::Manager;
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::faults::{snapshot, start, stopped};
use kit::machine::{
    Host, PATIENCE, consistent_status, create, delete, forced, never, next_event, pid_of, qemus,
    send_signal,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[test]
fn f02_the_words_of_a_qemu_that_ends_while_starting_are_told() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let code = host.path().join("OVMF_CODE.fd");
        let vars = host.path().join("OVMF_VARS.fd");
        std::fs::write(&code, b"no firmware").unwrap();
        std::fs::write(&vars, b"no variables").unwrap();
        let before = host.files();
        let mut machine = host.machine("f02-1");
        machine["uefiFirmware"] = json!(code);

        let failure = manager
            .create_vm(machine.clone(), never())
            .await
            .unwrap_err();
        ended_while_starting(&failure, ErrorCode::CreateFailed);
        assert_eq!(host.files(), before);
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));

        std::fs::copy("/usr/share/OVMF/OVMF_CODE.fd", &code).unwrap();
        std::fs::copy("/usr/share/OVMF/OVMF_VARS.fd", &vars).unwrap();
        manager.create_vm(machine, never()).await.unwrap();
        manager
            .stop_vm("f02-1".into(), forced(), never())
            .await
            .unwrap();
        std::fs::write(&code, b"no firmware").unwrap();
        let before = snapshot(&host, &manager, "f02-1").await;
        let failure = start(&manager, "f02-1").await.unwrap_err();
        ended_while_starting(&failure, ErrorCode::StartFailed);
        assert_eq!(snapshot(&host, &manager, "f02-1").await, before);

        delete(&manager, "f02-1").await;
        std::fs::remove_file(code).unwrap();
        std::fs::remove_file(vars).unwrap();
        host.is_clean().await;
    });
}

fn ended_while_starting(failure: &Failure, code: ErrorCode) {
    assert_eq!(failure.code(), code);
    let cause = failure
        .chain()
        .find(|cause| cause.code() == ErrorCode::QemuStartFailed);
    let cause = cause.unwrap_or_else(|| panic!("{failure:?}"));
    let stderr = cause.context()["stderr"].as_str().unwrap();
    assert!(stderr.contains("qemu-system"), "{stderr:?}");
    assert!(
        failure
            .to_string()
            .contains(stderr.lines().last().unwrap().trim()),
        "the last line is in the message: {failure}"
    );
}

#[test]
fn f05_a_qemu_that_dies_in_the_middle_of_a_command_ends_the_command() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for attempt in 0..5 {
            let failure = killed_while_suspended(&host, &manager, &format!("f05-{attempt}")).await;
            if failure.code() == ErrorCode::QmpError {
                assert!(failure.has(ErrorCode::QmpDisconnected), "{failure:?}");
                host.is_clean().await;
                return;
            }
            // Its machine was busy with an event of the guest until QEMU was gone, so it was never sent.
            assert_eq!(failure.code(), ErrorCode::InvalidState, "{failure:?}");
        }
        panic!("no command was under way");
    });
}

async fn killed_while_suspended(host: &Host, manager: &Manager, vm: &str) -> Failure {
    let mut events = manager.subscribe();
    let created = create(host, manager, vm).await;
    let pid = pid_of(&created);
    // A stopped QEMU takes the command and does not answer it.
    send_signal(pid, Signal::SIGSTOP);
    let suspending = tokio::spawn({
        let (manager, vm) = (manager.clone(), vm.to_owned());
        async move { manager.suspend_vm(vm).await }
    });
    // Its status is told all the same, once the monitor's time is up.
    let status = consistent_status(manager, vm).await;
    assert_eq!(status["processAlive"], true);
    assert_eq!(status["qmpStatus"], Value::Null);
    send_signal(pid, Signal::SIGKILL);
    let failure = timeout(PATIENCE, suspending).await.unwrap().unwrap();
    next_event(&mut events, "crash").await;
    assert_eq!(consistent_status(manager, vm).await["status"], "off");
    delete(manager, vm).await;
    failure.unwrap_err()
}

#[test]
fn f06_a_machine_whose_monitor_socket_was_removed_stays_managed() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let created = create(&host, &manager, "f06-1").await;
        std::fs::remove_file(created["qmpSocketPath"].as_str().unwrap()).unwrap();

        let status = consistent_status(&manager, "f06-1").await;
        assert_eq!(status["qmpStatus"], "running");
        manager.suspend_vm("f06-1".into()).await.unwrap();
        manager.resume_vm("f06-1".into()).await.unwrap();
        let stopped = manager
            .stop_vm("f06-1".into(), forced(), never())
            .await
            .unwrap();
        assert_eq!(stopped["success"], true);
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        start(&manager, "f06-1").await.unwrap();
        assert_eq!(
            consistent_status(&manager, "f06-1").await["qmpStatus"],
            "running"
        );
        delete(&manager, "f06-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f3_a_stopped_qemu_is_told_and_can_be_ended_and_no_other_vm_waits_for_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for vm_id in ["f3-1", "f3-2"] {
            create(&host, &manager, vm_id).await;
        }
        let frozen = consistent_status(&manager, "f3-1").await;
        assert_eq!(frozen["unresponsive"], false);
        let pid = pid_of(&frozen);
        send_signal(pid, Signal::SIGSTOP);

        let (frozen, other) = tokio::join!(
            timeout(PATIENCE, manager.get_vm_status("f3-1".into())),
            async {
                manager.suspend_vm("f3-2".into()).await.unwrap();
                manager.get_vm_status("f3-2".into()).await.unwrap()
            }
        );
        let frozen = frozen.unwrap().unwrap();
        assert_eq!(frozen["unresponsive"], true);
        assert_eq!(frozen["processAlive"], true);
        assert_eq!(frozen["qmpStatus"], Value::Null);
        assert_eq!(other["qmpStatus"], "paused");

        // Well below what a QEMU that is deaf to SIGTERM is given; the others' calls go on meanwhile.
        let stop = async {
            let began = Instant::now();
            let stop = manager.stop_vm("f3-1".into(), forced(), never());
            (stop.await.unwrap(), began.elapsed())
        };
        let others = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..20 {
                let asked = Instant::now();
                let status = manager.get_vm_status("f3-2".into()).await.unwrap();
                assert_eq!(status["unresponsive"], false);
                slowest = slowest.max(asked.elapsed());
            }
            slowest
        };
        let ((stopped, took), slowest) = tokio::join!(stop, others);
        assert_eq!(stopped["forced"], true);
        assert!(!is_alive(pid));
        assert!(took < Duration::from_secs(1), "it took {took:?} to end");
        let soon = Duration::from_millis(500);
        assert!(slowest < soon, "another VM's call took {slowest:?}");
        for vm_id in ["f3-1", "f3-2"] {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

/// Claims the row, as its owner may at any moment, before the status is written.
#[derive(Debug)]
struct Claimant {
    host: Arc<dyn Effects>,
    store: std::path::PathBuf,
}

#[async_trait]
impl Effects for Claimant {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        if matches!(action, Action::WriteStatus { .. }) {
            let store = rusqlite::Connection::open(&self.store).unwrap();
            store
                .execute("UPDATE machine SET status = 'deleting'", [])
                .unwrap();
        }
        self.host.perform(action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.host.release(release, bench).await
    }
}

#[test]
fn a_claim_made_during_a_start_stays_in_the_row() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let store = host.state_dir().join("infinization.db");
        let wrapper: EffectsWrapper = Arc::new(move |host| {
            let store = store.clone();
            Arc::new(Claimant { host, store })
        });
        let manager = host.manager_with(Some(wrapper)).await;
        create(&host, &manager, "mine-1").await;
        let status = manager.get_vm_status("mine-1".into()).await.unwrap();
        assert_eq!(
            (&status["status"], &status["processAlive"]),
            (&json!("deleting"), &json!(true))
        );
        // A restart would stop it and could not start it again.
        let failure = manager.restart_vm("mine-1".into()).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InvalidState);
        assert_eq!(failure.context()["currentStatus"], "deleting");
        assert_eq!(qemus(host.path()).len(), 1);
        delete(&manager, "mine-1").await;
        host.is_clean().await;
    });
}

#[test]
fn the_options_of_one_start_end_with_its_run() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        stopped(&host, &manager, "once-1").await;
        let spec = host.state_dir().join("vms/once-1/spec.json");
        let options = json!({ "firewallDefaultAction": "accept", "disableSandbox": true });
        manager
            .start_vm("once-1".into(), options, never())
            .await
            .unwrap();
        let pid = qemus(host.path())[0];
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&command).contains("-sandbox"));
        let kept = state_file::read(&spec).unwrap().unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        assert_eq!(kept["sandbox"], true);
        assert_eq!(kept["firewall"]["defaultAction"], Value::Null);
        delete(&manager, "once-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f38_a_guest_that_ignores_the_power_button_is_ended_only_when_that_is_allowed() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f38-1").await;
        let before = manager.get_vm("f38-1".into()).await.unwrap();
        let patient = json!({ "graceful": true, "force": false, "timeout": 1500 });
        let failure = manager
            .stop_vm("f38-1".into(), patient, never())
            .await
            .unwrap_err();
        assert_eq!(failure.code(), ErrorCode::Timeout);
        assert_eq!(failure.vm_id().unwrap().as_str(), "f38-1");
        assert_eq!(manager.get_vm("f38-1".into()).await.unwrap(), before);
        let status = consistent_status(&manager, "f38-1").await;
        assert_eq!(status["qmpStatus"], "running");

        let resolute = json!({ "graceful": true, "force": true, "timeout": 300 });
        let stopped = manager
            .stop_vm("f38-1".into(), resolute, never())
            .await
            .unwrap();
        assert_eq!(stopped["forced"], true);
        assert_eq!(consistent_status(&manager, "f38-1").await["status"], "off");
        delete(&manager, "f38-1").await;
        host.is_clean().await;
    });
}

/// A signal that fires so much later; at once, where that is nothing.
fn fires_after(delay: Duration) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let cancel = CancellationToken::new();
    if delay.is_zero() {
        cancel.cancel();
    }
    let later = tokio::spawn({
        let cancel = cancel.clone();
        async move {
            tokio::time::sleep(delay).await;
            cancel.cancel();
        }
    });
    (cancel, later)
}

#[test]
fn f52_an_aborted_create_leaves_nothing_and_can_be_tried_again() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for delay in [0, 5, 15, 30, 60] {
            let (cancel, later) = fires_after(Duration::from_millis(delay));
            let created = manager.create_vm(host.machine("f52-1"), cancel).await;
            later.await.unwrap();
            match created {
                Ok(_) => assert_ne!(delay, 0, "it was aborted before it began"),
                Err(failure) => {
                    assert_eq!(
                        failure.code(),
                        ErrorCode::Aborted,
                        "{delay} ms: {failure:?}"
                    );
                    assert_eq!(manager.list_vms().await.unwrap(), json!([]));
                    host.is_clean().await;
                    create(&host, &manager, "f52-1").await;
                }
            }
            assert_eq!(
                consistent_status(&manager, "f52-1").await["status"],
                "running"
            );
            delete(&manager, "f52-1").await;
            host.is_clean().await;
        }
    });
}

#[test]
fn f52_an_aborted_start_leaves_the_machine_as_it_was() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        stopped(&host, &manager, "f52-2").await;
        for delay in [0, 5, 15, 30] {
            let before = snapshot(&host, &manager, "f52-2").await;
            let (cancel, later) = fires_after(Duration::from_millis(delay));
            let started = manager.start_vm("f52-2".into(), Value::Null, cancel).await;
            later.await.unwrap();
            match started {
                Ok(_) => assert_ne!(delay, 0, "it was aborted before it began"),
                Err(failure) => {
                    assert_eq!(failure.code(), ErrorCode::Aborted, "{failure:?}");
                    assert_eq!(snapshot(&host, &manager, "f52-2").await, before);
                    start(&manager, "f52-2").await.unwrap();
                }
            }
            manager
                .stop_vm("f52-2".into(), forced(), never())
                .await
                .unwrap();
        }
        delete(&manager, "f52-2").await;
        host.is_clean().await;
    });
}
