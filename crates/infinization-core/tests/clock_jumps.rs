//! What a clock that is set forward or back by a day does to machines: nothing.
//!
//! Setting it concerns everybody on a host, so this runs only where `scripts/full-kernel` says that the host is its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use infinization_core::manager::Manager;
use infinization_test_kit as kit;
use kit::machine::{
    Host, PATIENCE, consistent_status, create, delete, forced, never, next_event, pid_of,
    send_signal,
};
use kit::meddler::{Deed, Meddler};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio_util::sync::CancellationToken;

const DAY: i64 = 24 * 60 * 60;
/// What a graceful stop is given, in milliseconds.
const GIVEN: u64 = 4000;

fn jump(seconds: i64) {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let then = now.checked_add_signed(seconds).unwrap();
    let set = Command::new("date")
        .args(["-s", &format!("@{then}")])
        .output();
    assert!(set.unwrap().status.success());
}

#[test]
fn f51_a_clock_that_jumps_ends_no_machine_and_moves_no_deadline() {
    if std::env::var_os("INFINIZATION_FULL_KERNEL").is_none() {
        return;
    }
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Hang);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        is_watched(&host, &manager).await;
        has_its_deadline(&manager).await;
        crashes_once(&manager).await;
        delete(&manager, "f51-1").await;
        leaves_nothing_when_aborted(&host, &manager, &meddler).await;
        manager.shutdown().await.unwrap();
        host.is_clean().await;
    });
}

/// There and back again, and beyond: nobody is taken for dead.
async fn is_watched(host: &Host, manager: &Manager) {
    let created = create(host, manager, "f51-1").await;
    for seconds in [DAY, -2 * DAY, DAY] {
        jump(seconds);
        let checked = manager.check_all_vms().await.unwrap();
        assert_eq!(
            (&checked["alive"], &checked["crashed"]),
            (&json!(1), &json!(0)),
            "{checked}"
        );
        let orphans = manager.check_orphan_processes().await.unwrap();
        assert!(orphans.as_array().unwrap().is_empty(), "{orphans}");
        let status = consistent_status(manager, "f51-1").await;
        assert_eq!(
            (&status["status"], &status["pid"]),
            (&json!("running"), &created["pid"])
        );
    }
}

/// A machine that ignores its power button is ended after the time it was given, not at once and not tomorrow.
async fn has_its_deadline(manager: &Manager) {
    let given = Duration::from_millis(GIVEN);
    for seconds in [DAY, -DAY] {
        let (begun, options) = (Instant::now(), json!({ "timeout": GIVEN }));
        let stop = tokio::spawn({
            let manager = manager.clone();
            async move { manager.stop_vm("f51-1".into(), options, never()).await }
        });
        tokio::time::sleep(given / 4).await;
        jump(seconds);
        let stopped = stop.await.unwrap().unwrap();
        assert_eq!(stopped["forced"], true, "{stopped}");
        let took = begun.elapsed();
        assert!(given <= took && took < PATIENCE, "it took {took:?}");
        kit::faults::start(manager, "f51-1").await.unwrap();
    }
}

/// An end is told at once, and only that one.
async fn crashes_once(manager: &Manager) {
    let mut events = manager.subscribe();
    for seconds in [DAY, -DAY] {
        jump(seconds);
        let pid = pid_of(&consistent_status(manager, "f51-1").await);
        send_signal(pid, Signal::SIGKILL);
        // The first is the application's event manager's.
        next_event(&mut events, "crash").await;
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.data["pid"], pid);
        kit::faults::start(manager, "f51-1").await.unwrap();
    }
    let stopped = manager.stop_vm("f51-1".into(), forced(), never()).await;
    stopped.unwrap();
}

/// Its files look a day older than the attempt that made them, or younger, and are its own all the same.
async fn leaves_nothing_when_aborted(host: &Host, manager: &Manager, meddler: &Meddler) {
    for (step, seconds) in [(4, -DAY), (4, DAY), (8, -DAY), (8, DAY)] {
        let (before, abort) = (host.files(), CancellationToken::new());
        meddler.arm(step);
        let machine = host.machine("f51-2");
        let create = tokio::spawn({
            let (manager, abort) = (manager.clone(), abort.clone());
            async move { manager.create_vm(machine, abort).await }
        });
        let reached = tokio::time::timeout(PATIENCE, meddler.hits());
        reached.await.unwrap();
        meddler.took_hit();
        jump(seconds);
        abort.cancel();
        create.await.unwrap().unwrap_err();
        assert_eq!(host.files(), before);
    }
}
