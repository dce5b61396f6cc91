//! Machines while the database is away: the host side goes on, what needs an answer is refused, and
//! rows come to the truth in the order in which it happened.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::sync::Arc;
use std::time::Duration;

use infinization_core::events::Event;
use infinization_core::host::state_file::{self, Durability};
use infinization_core::manager::Manager;
use infinization_core::types::{VmId, VmNames};
use infinization_core::{ErrorCode, Failure};
use kit::faults::{snapshot, start, stopped};
use kit::machine::{
    Host, PATIENCE, consistent_status, delete, forced, never, next_event, qemus, send_signal,
};
use kit::switch::{Mode, Switch};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::timeout;

type Events = broadcast::Receiver<Arc<Event>>;

async fn create(host: &Host, manager: &Manager, vm_id: &str) -> i32 {
    let created = manager.create_vm(host.machine(vm_id), never()).await;
    i32::try_from(created.unwrap()["pid"].as_i64().unwrap()).unwrap()
}

async fn stop(manager: &Manager, vm_id: &str) -> Result<Value, Failure> {
    manager.stop_vm(vm_id.into(), forced(), never()).await
}

/// What the store itself says, whatever is kept before it.
async fn row(manager: &Manager, vm_id: &str) -> Value {
    manager.get_vm(vm_id.into()).await.unwrap()
}

/// Waits until the machine's own event says that it has this status.
async fn becomes(events: &mut Events, vm_id: &str, status: &str) {
    let told = async {
        loop {
            let event = events.recv().await.unwrap();
            let of_it = event.vm_id.as_ref().is_some_and(|id| id.as_str() == vm_id);
            if of_it && event.kind == "vm:event" && event.data["newStatus"] == status {
                return;
            }
        }
    };
    let told = timeout(PATIENCE, told).await;
    assert!(told.is_ok(), "{vm_id} never became {status}");
}

/// The next event about any machine; the health monitor's cycles are about none.
async fn of_its_own(events: &mut Events) -> Arc<Event> {
    let told = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.vm_id.is_some() {
                return event;
            }
        }
    };
    timeout(PATIENCE, told).await.unwrap()
}

/// Waits until the machine's row says this.
async fn row_says(manager: &Manager, vm_id: &str, status: &str) {
    let says = async {
        while row(manager, vm_id).await["status"] != status {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let says = timeout(PATIENCE, says).await;
    assert!(says.is_ok(), "the row of {vm_id} never said {status}");
}

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

/// Ten operations on one machine: three before the outage, four in it, three after.
struct Life {
    manager: Manager,
    events: Events,
    vm_id: String,
}

impl Life {
    fn of(manager: &Manager, vm_id: &str) -> Self {
        Self {
            manager: manager.clone(),
            events: manager.subscribe(),
            vm_id: vm_id.to_owned(),
        }
    }

    async fn before(mut self) -> Self {
        let manager = &self.manager;
        manager.suspend_vm(self.vm_id.clone()).await.unwrap();
        manager.resume_vm(self.vm_id.clone()).await.unwrap();
        manager.suspend_vm(self.vm_id.clone()).await.unwrap();
        becomes(&mut self.events, &self.vm_id, "suspended").await;
        becomes(&mut self.events, &self.vm_id, "running").await;
        becomes(&mut self.events, &self.vm_id, "suspended").await;
        self
    }

    /// What the guest and its monitor do by themselves, and an end that asks for no row.
    async fn meanwhile(mut self) -> Self {
        for (command, status) in [
            ("cont", "running"),
            ("stop", "suspended"),
            ("cont", "running"),
        ] {
            let asked = self.manager.qmp_execute(&self.vm_id, command, Value::Null);
            asked.await.unwrap();
            becomes(&mut self.events, &self.vm_id, status).await;
        }
        stop(&self.manager, &self.vm_id).await.unwrap();
        self
    }

    async fn after(self) -> Self {
        start(&self.manager, &self.vm_id).await.unwrap();
        let manager = &self.manager;
        manager.suspend_vm(self.vm_id.clone()).await.unwrap();
        stop(manager, &self.vm_id).await.unwrap();
        self
    }

    const WRITES: [&str; 14] = [
        "suspended",
        "running",
        "suspended",
        "running",
        "suspended",
        "running",
        "clear volatile",
        "off",
        "off->starting",
        "configuration",
        "running",
        "suspended",
        "clear volatile",
        "off",
    ];
}

/// The same part of all lives at once.
async fn all<F>(lives: Vec<Life>, part: fn(Life) -> F) -> Vec<Life>
where
    F: Future<Output = Life> + Send + 'static,
{
    let mut at_once = JoinSet::new();
    for life in lives {
        at_once.spawn(part(life));
    }
    at_once.join_all().await
}

#[test]
fn f31_an_outage_during_fifty_operations_loses_nothing_and_keeps_the_order() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        let mut events = manager.subscribe();
        let vms = ["fifty-1", "fifty-2", "fifty-3", "fifty-4", "fifty-5"];
        for vm_id in vms {
            create(&host, &manager, vm_id).await;
        }
        switch.forget();
        let lives = vms.map(|vm_id| Life::of(&manager, vm_id)).into();
        let lives = all(lives, Life::before).await;
        switch.turn(Mode::Down);
        let lives = all(lives, Life::meanwhile).await;
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        for vm_id in vms {
            assert_eq!(switch.made(vm_id), Life::WRITES[..3], "{vm_id}");
        }
        switch.turn(Mode::Up);
        let restored = next_event(&mut events, "database-restored").await;
        assert_eq!(restored.data["delivered"], 25);
        assert_eq!(restored.data["lost"], 0);
        all(lives, Life::after).await;
        for vm_id in vms {
            assert_eq!(switch.made(vm_id), Life::WRITES, "{vm_id}");
            assert_eq!(consistent_status(&manager, vm_id).await["status"], "off");
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}
