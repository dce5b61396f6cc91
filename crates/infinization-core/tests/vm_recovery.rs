//! A manager finds the machines as they are, whatever happened while there was none.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use infinization_core::ErrorCode;
use infinization_core::events::Event;
use infinization_core::host::state_file::{self, Durability};
use infinization_core::manager::Manager;
use infinization_core::types::VmId;
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
    rewrite(host, vm_id, |ledger| {
        change(&mut ledger["lived"]["process"]);
    });
}

fn rewrite(host: &Host, vm_id: &str, change: impl FnOnce(&mut Value)) {
    let path = host.state_dir().join("vms").join(vm_id).join("ledger.json");
    let body = state_file::read(&path).unwrap().unwrap();
    let mut contents: Value = serde_json::from_slice(&body).unwrap();
    change(&mut contents);
    let body = serde_json::to_vec(&contents).unwrap();
    state_file::write(&path, &body, Durability::ProcessCrash).unwrap();
}

/// A QEMU that no machine has.
struct Foreign(Child);

impl Foreign {
    async fn run(name: &str, pid_file: &Path) -> Self {
        Self::named(&format!("guest={name},debug-threads=on"), pid_file).await
    }

    async fn named(argument: &str, pid_file: &Path) -> Self {
        let child = Command::new("qemu-system-x86_64")
            .args(["-name", argument])
            .args(["-accel", "tcg", "-machine", "none", "-nodefaults", "-S"])
            .args(["-display", "none", "-pidfile"])
            .arg(pid_file)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let written = async {
            while std::fs::read_to_string(pid_file)
                .unwrap_or_default()
                .is_empty()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap();
        Self(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn is_alive(pid: i32) -> bool {
    infinization_core::host::process::is_alive(pid)
}

/// Waits until nothing of the process is left. It is a child of this one, reaped by the library or,
/// once its manager is gone, by nobody: a zombie counts as gone.
async fn ends(pid: i32) {
    // Its files, and the locks on them, are closed by the last of its threads.
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let gone = async {
        while is_alive(pid) || threads() > 1 {
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
fn what_cannot_be_told_ours_is_neither_ended_nor_cleaned_up() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "whose-1").await;
        // As if we had been killed between the spawn and the ledger, and the disk had eaten the spec.
        rewrite(&host, "whose-1", |ledger| {
            ledger["lived"] = Value::Null;
            ledger["operation"] = json!("start");
        });
        let spec = host.state_dir().join("vms/whose-1/spec.json");
        let good = std::fs::read(&spec).unwrap();
        std::fs::write(&spec, b"{ torn").unwrap();
        let before = host.files();

        let (next, mut events) = next_manager(&host).await;
        let start = next.start_vm("whose-1".into(), Value::Null, never()).await;
        let stop = next.stop_vm("whose-1".into(), forced(), never()).await;
        let destroy = next.destroy_vm("whose-1".into()).await;
        for (answer, code) in [
            (start, ErrorCode::StartFailed),
            (stop, ErrorCode::StopFailed),
            (destroy, ErrorCode::StopFailed),
        ] {
            let failure = answer.unwrap_err();
            assert_eq!(failure.code(), code, "{failure:?}");
            assert!(failure.has(ErrorCode::IdentityUnknown), "{failure:?}");
            assert_eq!(failure.vm_id().unwrap().as_str(), "whose-1");
        }
        next.check_all_vms().await.unwrap();
        assert_eq!(told(&mut events, "crash"), 0);
        assert!(is_alive(pid));
        assert_eq!(host.files(), before);
        assert_eq!(
            next.get_vm("whose-1".into()).await.unwrap()["status"],
            "running"
        );

        std::fs::write(&spec, good).unwrap();
        delete(&next, "whose-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_reconciliation_is_told_row_by_row() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let runs = create(&host, &manager, "rec-1").await;
        for vm_id in ["rec-2", "rec-3", "rec-4"] {
            create(&host, &manager, vm_id).await;
            manager
                .stop_vm(vm_id.into(), forced(), never())
                .await
                .unwrap();
        }
        for (vm_id, status) in [
            ("rec-1", "starting"),
            ("rec-2", "starting"),
            ("rec-3", "rebuilding"),
            ("rec-4", "backing_up"),
        ] {
            host.claim(vm_id, status);
        }
        let mut events = manager.subscribe();
        let summary = manager.reconcile_startup_state(None).await.unwrap();
        assert_eq!(summary["totalChecked"], 3);
        assert_eq!(summary["promotedToRunning"], json!(["rec-1"]));
        assert_eq!(summary["resetToOff"], json!(["rec-2"]));
        assert_eq!(summary["resetToError"], json!(["rec-3"]));
        assert_eq!(summary["skipped"], json!([]));
        assert_eq!(
            summary["results"][0],
            json!({
                "vmId": "rec-1", "previousStatus": "starting", "pid": runs, "pidAlive": true,
                "action": "promoted_running",
            })
        );
        let event = next_event(&mut events, "reconcile-complete").await;
        assert_eq!(event.data["resetToError"], json!(["rec-3"]));
        for (vm_id, status) in [
            ("rec-1", "running"),
            ("rec-2", "off"),
            ("rec-3", "error"),
            ("rec-4", "backing_up"),
        ] {
            assert_eq!(consistent_status(&manager, vm_id).await["status"], status);
        }
        host.claim("rec-4", "off");
        for vm_id in ["rec-1", "rec-2", "rec-3", "rec-4"] {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn an_orphan_is_told_first_and_ended_when_it_is_still_there() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let mut settings = host.settings();
        settings["healthMonitorInterval"] = json!(500);
        settings["autoStartHealthMonitor"] = json!(false);
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
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
        let mut settings = host.settings();
        settings["healthMonitorInterval"] = json!(500);
        settings["autoStartHealthMonitor"] = json!(false);
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
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
fn a_row_that_denies_a_living_qemu_is_made_true() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let pid = create(&host, &manager, "deny-1").await;
        let status = async || {
            let status = manager.get_vm_status("deny-1".into()).await.unwrap();
            (status["status"].clone(), status["pid"].clone())
        };
        for row in ["off", "starting"] {
            host.claim("deny-1", row);
            manager.check_all_vms().await.unwrap();
            assert_eq!(status().await, (json!("running"), json!(pid)), "{row}");
            host.claim("deny-1", row);
            let started = manager.start_vm("deny-1".into(), json!({}), never());
            assert_eq!(started.await.unwrap()["success"], true, "{row}");
            assert_eq!(status().await, (json!("running"), json!(pid)), "{row}");
        }
        host.claim("deny-1", "backing_up");
        manager.check_all_vms().await.unwrap();
        assert_eq!(status().await.0, "backing_up");

        // A word that nobody knows is somebody's too, even when the guest ends by itself.
        host.claim("deny-1", "quarantined");
        let mut events = manager.subscribe();
        send_signal(pid, Signal::SIGKILL);
        next_event(&mut events, "crash").await;
        assert_eq!(status().await, (json!("quarantined"), Value::Null));

        host.claim("deny-1", "off");
        delete(&manager, "deny-1").await;
        host.is_clean().await;
    });
}

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
