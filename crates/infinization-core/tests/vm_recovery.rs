//! A manager finds the machines as they are, whatever happened while there was none.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use infinization_core::ErrorCode;
use infinization_core::events::Event;
use infinization_core::host::state_file::{self, Durability};
use infinization_core::manager::Manager;
use kit::machine::{
    Host, PATIENCE, consistent_status, delete, forced, never, next_event, qemus, send_signal,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::broadcast;

async fn create(host: &Host, manager: &Manager, vm_id: &str) -> i32 {
    let created = manager
        .create_vm(host.machine(vm_id), never())
        .await
        .unwrap();
    i32::try_from(created["pid"].as_i64().unwrap()).unwrap()
}

/// A machine that runs while there is no manager.
async fn left_running(host: &Host, vm_id: &str) -> i32 {
    let manager = host.manager().await;
    let pid = create(host, &manager, vm_id).await;
    manager.shutdown().await.unwrap();
    pid
}

/// The next manager, and everything it told from its first moment on.
async fn next_manager(host: &Host) -> (Manager, broadcast::Receiver<Arc<Event>>) {
    let manager = Manager::new(host.settings());
    let events = manager.subscribe();
    manager.initialize().await.unwrap();
    (manager, events)
}

fn told(events: &mut broadcast::Receiver<Arc<Event>>, kind: &str) -> usize {
    let mut count = 0;
    while let Ok(event) = events.try_recv() {
        count += usize::from(event.kind == kind);
    }
    count
}

/// Changes what the ledger says of the machine's process.
fn forge(host: &Host, vm_id: &str, change: impl FnOnce(&mut Value)) {
    let path = host.state_dir().join("vms").join(vm_id).join("ledger.json");
    let body = state_file::read(&path).unwrap().unwrap();
    let mut contents: Value = serde_json::from_slice(&body).unwrap();
    change(&mut contents["lived"]["process"]);
    let body = serde_json::to_vec(&contents).unwrap();
    state_file::write(&path, &body, Durability::ProcessCrash).unwrap();
}

fn is_alive(pid: i32) -> bool {
    infinization_core::host::process::is_alive(pid)
}

/// Waits until nothing of the process is left. It is a child of this one, reaped by the library or,
/// once its manager is gone, by nobody: a zombie counts as gone.
async fn ends(pid: i32) {
    let gone = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

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

#[test]
fn f11_after_a_reboot_no_process_is_signalled() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "boot-1").await;
        forge(&host, "boot-1", |process| {
            process["bootId"] = json!("01234567-89ab-cdef-0123-456789abcdef");
        });
        let (next, mut events) = next_manager(&host).await;
        let status = consistent_status(&next, "boot-1").await;
        assert_eq!(status["status"], "off");
        assert_eq!(status["lastExit"]["reason"], "host-reboot");
        assert_eq!(told(&mut events, "crash"), 0, "a reboot is no crash");
        assert!(is_alive(pid), "the process of that number was left alone");
        // What runs under the machine's name is not ours by proof: no second one is started.
        let failure = next
            .start_vm("boot-1".into(), Value::Null, never())
            .await
            .unwrap_err();
        assert!(failure.has(ErrorCode::ResourceUnavailable), "{failure:?}");
        assert!(is_alive(pid));
        send_signal(pid, Signal::SIGKILL);
        ends(pid).await;
        next.start_vm("boot-1".into(), Value::Null, never())
            .await
            .unwrap();
        delete(&next, "boot-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f12_a_process_that_started_at_another_time_is_not_touched() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "time-1").await;
        forge(&host, "time-1", |process| {
            process["startTime"] = json!(process["startTime"].as_u64().unwrap() + 1);
        });
        let (next, mut events) = next_manager(&host).await;
        assert_eq!(consistent_status(&next, "time-1").await["status"], "off");
        next_event(&mut events, "crash").await;
        assert!(is_alive(pid));
        send_signal(pid, Signal::SIGKILL);
        ends(pid).await;
        delete(&next, "time-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f12_an_innocent_process_with_the_number_is_not_touched() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "num-1").await;
        send_signal(pid, Signal::SIGKILL);
        ends(pid).await;
        let mut innocent = Command::new("sleep").arg("600").spawn().unwrap();
        let number = i32::try_from(innocent.id()).unwrap();
        forge(&host, "num-1", |process| process["pid"] = json!(number));
        let (next, _events) = next_manager(&host).await;
        assert_eq!(consistent_status(&next, "num-1").await["status"], "off");
        next.stop_vm("num-1".into(), forced(), never())
            .await
            .unwrap();
        delete(&next, "num-1").await;
        assert!(innocent.try_wait().unwrap().is_none(), "it still runs");
        innocent.kill().unwrap();
        innocent.wait().unwrap();
        host.is_clean().await;
    });
}

#[test]
fn orphans_are_told_and_stale_pidfiles_removed() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "own-1").await;
        let pids = host.state_dir().join("pids");
        let stale = pids.join("gone-1.pid");
        let pid_file = pids.join("orphan-1.pid");
        std::fs::write(&stale, "1\n").unwrap();
        let mut orphan = Command::new("qemu-system-x86_64")
            .args(["-name", "guest=orphan-1,debug-threads=on"])
            .args(["-accel", "tcg", "-machine", "none", "-nodefaults", "-S"])
            .args(["-display", "none", "-pidfile"])
            .arg(&pid_file)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let written = async {
            while !pid_file.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap();

        let orphans = manager.check_orphan_processes().await.unwrap();
        let orphans = orphans.as_array().unwrap();
        assert_eq!(orphans.len(), 1, "{orphans:?}");
        assert_eq!(orphans[0]["vmId"], "orphan-1");
        assert_eq!(orphans[0]["pid"], orphan.id());
        assert_eq!(orphans[0]["killed"], false);
        assert_eq!(orphans[0]["dbStatus"], Value::Null);
        assert!(!stale.exists(), "nobody has the name: it is removed");
        assert!(pid_file.exists());
        assert!(orphan.try_wait().unwrap().is_none(), "it still runs");
        assert!(pids.join("own-1.pid").exists());

        orphan.kill().unwrap();
        orphan.wait().unwrap();
        assert_eq!(manager.check_orphan_processes().await.unwrap(), json!([]));
        delete(&manager, "own-1").await;
        host.is_clean().await;
    });
}
