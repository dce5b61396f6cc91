//! What ails a VM that lives, told while it lasts: a full disk, a panic, a QEMU that does not answer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use infinization_core::Failure;
use infinization_core::events::Event;
use infinization_core::host::qemu_img::{ImageFormat, Job, check};
use infinization_core::manager::Manager;
use infinization_core::types::HostPath;
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use infinization_test_kit as kit;
use kit::machine::{
    Host, PATIENCE, consistent_status, create, delete, forced, has_no_gaps, journal_of, never,
    next_event, pid_of, send_signal,
};
use kit::small_disk::SmallDisk;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio_util::sync::CancellationToken;

type Writing = tokio::task::JoinHandle<Result<Value, Failure>>;

async fn next_condition(events: &mut Receiver<Arc<Event>>) -> Value {
    next_event(events, "vm:condition").await.data["condition"].clone()
}

/// The changes of condition in a journal.
async fn told(manager: &Manager, vm_id: &str) -> Vec<String> {
    let entries = journal_of(manager, vm_id).await.into_iter();
    let changes = entries.filter(|entry| entry["kind"] == "condition");
    let words = changes.map(|entry| format!("{} -> {}", text(&entry["from"]), text(&entry["to"])));
    words.collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn f03_one_qemu_that_hangs_holds_up_nobody_else() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let names = ["hang-1", "hang-2", "hang-3", "hang-4", "hang-5"];
        let mut pids = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let mut machine = host.machine(name);
            machine["displayPort"] = json!(5900 + number);

            pids.push(pid_of(&manager.create_vm(machine, never()).await.unwrap()));
        }
        let mut events = manager.subscribe();
        send_signal(pids[0], Signal::SIGSTOP);

        // Its own verbs hang with it; a suspend of it waits all the while.
        let hanging = manager.clone();
        let hanging = tokio::spawn(async move { hanging.suspend_vm("hang-1".into()).await });
        let began = Instant::now();
        for name in &names[1..] {
            let id = || (*name).to_owned();
            assert_eq!(
                consistent_status(&manager, name).await["condition"],
                Value::Null
            );
            manager.suspend_vm(id()).await.unwrap();
            assert_eq!(
                consistent_status(&manager, name).await["qmpStatus"],
                "paused"
            );
            manager.resume_vm(id()).await.unwrap();
        }
        assert!(!hanging.is_finished());
        // 16 calls of four VMs; one of them alone would wait 30 s for a monitor that hangs.
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
        let summary = manager.check_all_vms().await.unwrap();
        assert_eq!(summary["alive"], 5, "{summary}");

        let status = manager.get_vm_status("hang-1".into()).await.unwrap();
        assert_eq!(status["unresponsive"], true, "{status}");
        assert_eq!(status["condition"]["kind"], "unresponsive", "{status}");
        assert!(status["condition"]["since"].as_u64().unwrap() > 0);
        assert_eq!(next_condition(&mut events).await["kind"], "unresponsive");

        // It goes on, and what was asked is done.
        send_signal(pids[0], Signal::SIGCONT);
        hanging.await.unwrap().unwrap();
        let status = consistent_status(&manager, "hang-1").await;
        assert_eq!(
            (&status["condition"], &status["status"]),
            (&Value::Null, &json!("suspended"))
        );
        assert_eq!(next_condition(&mut events).await, Value::Null);

        send_signal(pids[0], Signal::SIGSTOP);
        let began = Instant::now();
        manager
            .stop_vm("hang-1".into(), forced(), never())
            .await
            .unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
        let told = told(&manager, "hang-1").await;
        // The forced stop may find it silent too, if the host is slow; the end of QEMU ends that.
        for pair in told.chunks(2) {
            assert_eq!(pair, ["none -> unresponsive", "unresponsive -> none"]);
        }
        assert!(matches!(told.len(), 2 | 4), "{told:?}");
        for name in names {
            delete(&manager, name).await;
        }
        host.is_clean().await;
    });
}

/// The guest writes 2 MiB to its second disk, from the `seek`th 64 KiB on.
fn writes(manager: &Manager, vm_id: &str, agent: &str, seek: u32) -> Writing {
    let (manager, vm_id, agent) = (manager.clone(), vm_id.to_owned(), agent.to_owned());
    let script = format!(
        "dd if=/dev/urandom of=/dev/vdb bs=64k count=32 seek={seek} conv=fsync 2>&1 && echo written"
    );
    let arguments = vec!["-c".to_owned(), script];
    let options = json!({ "timeout": 90_000 });
    tokio::spawn(async move {
        let written = manager.guest_exec(vm_id, agent, "/bin/sh".into(), arguments, options);
        written.await
    })
}

async fn has_written(writing: Writing) {
    let written = tokio::time::timeout(PATIENCE, writing).await;
    let written = written.unwrap().unwrap().unwrap();
    assert!(text(&written["stdout"]).contains("written"), "{written}");
}

#[test]
fn f15_a_full_disk_is_a_condition_until_the_guest_goes_on() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let disk = SmallDisk::new(48 * 1024);
        let mut settings = host.settings();
        settings["diskDir"] = json!(disk.path());
        let manager = Manager::new(settings.clone());
        manager.initialize().await.unwrap();
        let mut events = manager.subscribe();
        let mut machine = host.tiny_guest("full-1");
        machine["disks"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "sizeGB": 1 }));
        let agent = text(&machine["guestAgentSocketPath"]).to_owned();
        let created = manager.create_vm(machine, never()).await.unwrap();
        host.console_says("full-1", "INFZ-READY", 1).await;
        disk.fill();

        let writing = writes(&manager, "full-1", &agent, 0);
        let full = json!({ "kind": "io-error", "reason": "nospace", "device": "disk1" });
        let mut condition = next_condition(&mut events).await;
        let since = condition.as_object_mut().unwrap().remove("since");
        assert_eq!(condition, full);
        let stopped = next_event(&mut events, "vm:event").await;
        assert_eq!(stopped.data["newStatus"], "error");
        let status = manager.get_vm_status("full-1".into()).await.unwrap();
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("error"), &json!("io-error"))
        );
        assert_eq!(Some(&status["condition"]["since"]), since.as_ref());

        // The next process finds the same out by asking.
        manager.shutdown().await.unwrap();
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
        let mut events = manager.subscribe();
        let mut status = manager.get_vm_status("full-1".into()).await.unwrap();
        status["condition"].as_object_mut().unwrap().remove("since");
        assert_eq!(status["condition"], full);

        disk.relieve();
        manager.resume_vm("full-1".into()).await.unwrap();
        assert_eq!(next_condition(&mut events).await, Value::Null);
        let goes_on = async || {
            let status = manager.get_vm_status("full-1".into()).await.unwrap();
            assert_eq!(
                (
                    &status["condition"],
                    &status["qmpStatus"],
                    &status["status"]
                ),
                (&Value::Null, &json!("running"), &json!("running"))
            );
        };
        goes_on().await;
        has_written(writing).await;

        // An error that this process wrote is over with the next RESUME, whoever asked for it.
        disk.fill();
        let writing = writes(&manager, "full-1", &agent, 128);
        assert_eq!(next_condition(&mut events).await["kind"], "io-error");
        while next_event(&mut events, "vm:event").await.data["newStatus"] != "error" {}
        let status = manager.get_vm_status("full-1".into()).await.unwrap();
        assert_eq!(status["status"], "error");
        disk.relieve();
        manager.qmp_client("full-1").unwrap().cont().await.unwrap();
        assert_eq!(next_condition(&mut events).await, Value::Null);
        while next_event(&mut events, "vm:event").await.data["event"] != "RESUME" {}
        goes_on().await;
        has_written(writing).await;

        let told = told(&manager, "full-1").await;
        let once = ["none -> io-error", "none -> io-error", "io-error -> none"];
        assert_eq!(told, [&once[..], &once[1..]].concat());
        manager
            .stop_vm("full-1".into(), forced(), never())
            .await
            .unwrap();
        for path in created["diskPaths"].as_array().unwrap() {
            let path = HostPath::parse(text(path)).unwrap();
            let checked = check(&path, ImageFormat::Qcow2, &Job::default())
                .await
                .unwrap();
            assert_eq!((checked.errors, checked.corruptions), (0, 0), "{path}");
        }
        delete(&manager, "full-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_panic_is_a_condition_until_the_guest_starts_over() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let machine = host.tiny_guest("panic-1");
        let agent = text(&machine["guestAgentSocketPath"]).to_owned();
        manager.create_vm(machine, never()).await.unwrap();
        host.console_says("panic-1", "INFZ-READY", 1).await;

        // What a panicking kernel's pvpanic driver does: a byte to the device's port.
        let script = r"printf '\001' | dd of=/dev/port bs=1 seek=1285 2>&1";
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let shell = "/bin/sh".to_owned();
        let options = json!({ "timeout": 60_000 });
        let output = manager
            .guest_exec("panic-1".into(), agent, shell, arguments, options)
            .await;
        assert_eq!(output.unwrap()["exitCode"], 0);
        assert_eq!(next_condition(&mut events).await["kind"], "guest-panicked");
        let status = consistent_status(&manager, "panic-1").await;
        assert_eq!(status["condition"]["kind"], "guest-panicked", "{status}");
        assert_eq!(status["status"], "running", "QEMU goes on: {status}");
        let entries = journal_of(&manager, "panic-1").await;
        let panic = entries
            .iter()
            .find(|entry| entry["step"] == "GUEST_PANICKED")
            .unwrap();
        assert_eq!(
            (&panic["actor"], &panic["operation"]),
            (&json!("guest"), &json!("run"))
        );

        manager.reset_vm("panic-1".into()).await.unwrap();
        assert_eq!(next_condition(&mut events).await, Value::Null);
        assert_eq!(
            consistent_status(&manager, "panic-1").await["condition"],
            Value::Null
        );
        delete(&manager, "panic-1").await;
        host.is_clean().await;
    });
}

/// Gives QEMU a watchdog, for which the library has no setting.
#[derive(Debug)]
struct Watched(Arc<dyn Effects>);

#[async_trait]
impl Effects for Watched {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let Action::SpawnQemu(spawn) = action else {
            return self.0.perform(action, bench, cancel).await;
        };
        let mut spawn = spawn.clone();
        let more = ["-device", "ib700", "-action", "watchdog=pause"];
        spawn.args.extend(more.map(str::to_owned));
        let action = Action::SpawnQemu(spawn);
        self.0.perform(&action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.0.release(release, bench).await
    }
}

#[test]
fn a_watchdog_that_expires_is_a_condition_until_the_guest_goes_on() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let wrapper: EffectsWrapper = Arc::new(|host| Arc::new(Watched(host)));
        let manager = host.manager_with(Some(wrapper)).await;
        let mut events = manager.subscribe();
        let machine = host.tiny_guest("dog-1");
        let agent = text(&machine["guestAgentSocketPath"]).to_owned();
        manager.create_vm(machine, never()).await.unwrap();
        host.console_says("dog-1", "INFZ-READY", 1).await;

        // Two seconds from now, and nobody will feed it: 14 to the port of an iBASE 700.
        let script = r"printf '\016' | dd of=/dev/port bs=1 seek=1091 2>&1";
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let options = json!({ "timeout": 60_000 });
        let output = manager
            .guest_exec("dog-1".into(), agent, "/bin/sh".into(), arguments, options)
            .await;
        assert_eq!(output.unwrap()["exitCode"], 0);
        let mut condition = next_condition(&mut events).await;
        condition.as_object_mut().unwrap().remove("since");
        assert_eq!(condition, json!({ "kind": "watchdog", "action": "pause" }));
        while next_event(&mut events, "vm:event").await.data["newStatus"] != "error" {}
        let status = manager.get_vm_status("dog-1".into()).await.unwrap();
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("error"), &json!("watchdog"))
        );

        manager.qmp_client("dog-1").unwrap().cont().await.unwrap();
        assert_eq!(next_condition(&mut events).await, Value::Null);
        while next_event(&mut events, "vm:event").await.data["event"] != "RESUME" {}
        let status = manager.get_vm_status("dog-1".into()).await.unwrap();
        assert_eq!(
            (&status["status"], &status["condition"]),
            (&json!("running"), &Value::Null)
        );
        assert_eq!(
            told(&manager, "dog-1").await,
            ["none -> watchdog", "watchdog -> none"]
        );
        delete(&manager, "dog-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f18_why_the_last_qemu_ended_is_known_after_a_restart() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let created = create(&host, &manager, "last-1").await;
        send_signal(pid_of(&created), Signal::SIGABRT);
        next_event(&mut events, "crash").await;
        next_event(&mut events, "crash").await;
        let crashed = consistent_status(&manager, "last-1").await["lastExit"].clone();
        assert_eq!(
            (&crashed["reason"], &crashed["signal"]),
            (&json!("signal"), &json!(6))
        );
        assert!(crashed["endedAt"].as_u64().unwrap() > 0);
        manager.shutdown().await.unwrap();

        let manager = host.manager().await;
        assert_eq!(
            consistent_status(&manager, "last-1").await["lastExit"],
            crashed
        );
        manager
            .start_vm("last-1".into(), Value::Null, never())
            .await
            .unwrap();
        let mut events = manager.subscribe();
        manager
            .stop_vm("last-1".into(), forced(), never())
            .await
            .unwrap();
        let off = next_event(&mut events, "vm:shutdown").await;
        assert_eq!(off.data["cause"]["reason"], "host-signal");
        manager.shutdown().await.unwrap();

        let manager = host.manager().await;
        let status = consistent_status(&manager, "last-1").await;
        assert_eq!(status["lastExit"]["reason"], "host-signal", "{status}");
        let entries = journal_of(&manager, "last-1").await;
        let exits = entries.iter().filter(|entry| entry["kind"] == "exit");
        let exits: Vec<_> = exits
            .map(|exit| (text(&exit["operation"]), text(&exit["detail"]["reason"])))
            .collect();
        assert_eq!(exits, [("run", "signal"), ("stop", "host-signal")]);
        delete(&manager, "last-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f08_a_flood_of_events_is_bounded_and_what_was_dropped_is_counted() {
    kit::in_private_network(|| async {
        const FLOOD: usize = 500;
        let host = Host::new().await;
        let manager = host.manager().await;
        let created = create(&host, &manager, "flood-1").await;
        assert_eq!(
            consistent_status(&manager, "flood-1").await["missedEvents"],
            0
        );
        // QEMU finds all of this at once when it goes on, and a suspend behind it: while the VM is
        // busy with that one, it takes no events.
        send_signal(pid_of(&created), Signal::SIGSTOP);
        let presses = (0..FLOOD).map(|_| {
            let qmp = manager.qmp_client("flood-1").unwrap();
            tokio::spawn(async move { qmp.system_powerdown().await })
        });
        let presses: Vec<_> = presses.collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let suspended = manager.clone();
        let suspended = tokio::spawn(async move { suspended.suspend_vm("flood-1".into()).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        send_signal(pid_of(&created), Signal::SIGCONT);
        for press in presses {
            press.await.unwrap().unwrap();
        }
        suspended.await.unwrap().unwrap();
        manager.resume_vm("flood-1".into()).await.unwrap();

        let status = consistent_status(&manager, "flood-1").await;
        assert_eq!(status["qmpStatus"], "running");
        let missed = usize::try_from(status["missedEvents"].as_u64().unwrap()).unwrap();
        assert!((1..=FLOOD).contains(&missed), "{status}");
        let entries = journal_of(&manager, "flood-1").await;
        has_no_gaps(&entries);
        let told = entries
            .iter()
            .find(|entry| entry["step"] == "missed")
            .unwrap();
        assert!(told["detail"]["count"].as_u64().unwrap() > 0);
        let noted = entries
            .iter()
            .filter(|entry| entry["step"] == "POWERDOWN")
            .count();
        assert!(noted <= 64, "{noted} entries push everything else out");
        delete(&manager, "flood-1").await;
        host.is_clean().await;
    });
}

/// A guest in S3: its CPUs do not run, and only a wake-up brings it back, not a `cont`.
#[test]
fn a_guest_that_sleeps_is_suspended_and_resuming_wakes_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "sleeps-1";
        let created = manager.create_vm(host.tiny_guest(vm), never());
        let pid = pid_of(&created.await.unwrap());
        host.console_says(vm, "INFZ-READY", 1).await;
        let mut events = manager.subscribe();
        let agent = host
            .path()
            .join(format!("{vm}-ga.sock"))
            .display()
            .to_string();
        let shell = async |command: &str| {
            let arguments = vec!["-c".to_owned(), command.to_owned()];
            let options = json!({ "timeout": 30_000 });
            let shell = "/bin/sh".to_owned();
            manager
                .guest_exec(vm.into(), agent.clone(), shell, arguments, options)
                .await
        };
        // It answers before it sleeps.
        shell("(sleep 1; echo mem >/sys/power/state) >/dev/null 2>&1 &")
            .await
            .unwrap();
        let slept = next_event(&mut events, "vm:suspended").await;
        assert_eq!(slept.data["event"], "SUSPEND");
        let status = consistent_status(&manager, vm).await;
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("suspended"), &json!("suspended"))
        );

        manager.resume_vm(vm.into()).await.unwrap();
        let status = consistent_status(&manager, vm).await;
        assert_eq!(
            (&status["status"], &status["qmpStatus"], &status["pid"]),
            (&json!("running"), &json!("running"), &json!(pid))
        );
        let awake = tokio::time::timeout(PATIENCE, async { while shell("true").await.is_err() {} });
        awake.await.unwrap();
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}
