//! Our process is killed ever later after it has begun a verb on snapshots. The next one finds it done or
//! undone on all disks, and the guest as it was.
//!
//! The test starts itself again as the victim, in the same private network.

use std::time::Duration;

use kit::faults::start;
use kit::machine::{PATIENCE, qemus};
use kit::victim;

use super::*;

/// How much later the second kill comes than the first.
const LATER: Duration = Duration::from_millis(8);
const MOST_ROUNDS: u32 = 40;
/// What the disks hold in the snapshot `first`, and now.
const FIRST: u8 = 0x11;
const NOW: u8 = 0x22;

/// Not a test of its own: what a test starts, and kills.
#[test]
fn victim() {
    let Some(orders) = victim::orders() else {
        return;
    };
    kit::runtime().block_on(async {
        let manager = Manager::new(orders["settings"].clone());
        manager.initialize().await.unwrap();
        let text = |key: &str| orders[key].as_str().unwrap();
        let (vm, verb) = (text("vm"), text("verb"));
        let operation = format!("{} snapshot", verb.split(',').next().unwrap());
        let round = u32::try_from(orders["round"].as_u64().unwrap()).unwrap();
        victim::die_when_begun(&orders, vm, &operation, victim::delay(LATER, round));
        perform(&manager, vm, verb).await.unwrap();
    });
}

async fn perform(manager: &Manager, vm: &str, verb: &str) -> Result<Value, Failure> {
    match verb {
        "create" => take(manager, vm, json!({ "name": "second" })).await,
        "create, memory" => take(manager, vm, json!({ "name": "second", "memory": true })).await,
        "revert" => revert(manager, vm, "first", Value::Null).await,
        "revert, restart" => revert(manager, vm, "first", json!({ "restart": true })).await,
        _ => drop_second(manager, vm).await,
    }
}

async fn drop_second(manager: &Manager, vm: &str) -> Result<Value, Failure> {
    let name = "second".to_owned();
    manager
        .delete_snapshot(vm.into(), name, Value::Null, never())
        .await
}

/// Whether the victim was killed rather than done.
fn run_victim(host: &Host, vm: &str, verb: &str, round: u32) -> bool {
    let orders = json!({ "vm": vm, "verb": verb, "round": round, "settings": host.settings() });
    victim::run(
        &["--exact", "kills::victim", "--quiet", "--nocapture"],
        &orders,
    )
}

/// Off: the disks hold [`NOW`], and there are `first` and what the verb needs.
async fn plant(manager: &Manager, vm: &str, disks: &[String], verb: &str) {
    let has_second = names(manager, vm).await.contains(&"second".to_owned());
    match (has_second, verb) {
        (true, "delete") => {}
        (true, _) => drop(drop_second(manager, vm).await.unwrap()),
        (false, "delete") => drop(perform(manager, vm, "create").await.unwrap()),
        (false, _) => {}
    }
    for disk in disks {
        fill(disk, NOW);
    }
}

fn fill(disk: &str, pattern: u8) {
    let write = format!("write -P {pattern} 0 64k");
    let filled = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &write, disk])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(filled.unwrap().success());
}

/// Waits for what the QEMU of a killed process still does by itself. Answers the snapshots.
async fn settled(manager: &Manager, vm: &str, at: &str) -> Vec<Value> {
    let calm = tokio::time::timeout(PATIENCE, async {
        loop {
            let status = manager.get_vm_status(vm.into()).await.unwrap();
            let listed = manager.list_snapshots(vm.into()).await;
            let is_calm = ["running", "off"].contains(&status["status"].as_str().unwrap())
                && (status["qmpStatus"].is_null() || status["qmpStatus"] == "running")
                && status["consistent"] == true;
            if let Ok(Value::Array(listed)) = listed
                && is_calm
                && listed.iter().all(|one| one["complete"] == true)
            {
                return listed;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    calm.await
        .unwrap_or_else(|_| panic!("{at}: it never came to rest"))
}

/// A verb that changes nothing settles what was left, once the killed process' qemu-img has ended, too.
async fn settle(manager: &Manager, vm: &str, at: &str) {
    let settled = tokio::time::timeout(PATIENCE, async {
        loop {
            let none = manager.delete_snapshot(vm.into(), "none".into(), Value::Null, never());
            match none.await {
                Err(error) if error.code() == ErrorCode::ImageInUse => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ended => return ended,
            }
        }
    });
    let settled = settled
        .await
        .unwrap_or_else(|_| panic!("{at}: its disks stay in use"));
    assert_eq!(settled.unwrap()["success"], true, "{at}");
}

/// What the verb makes, or what was: nothing else.
fn is_one_of_both(verb: &str, killed: bool, names: &[&str], at: &str) {
    let (without, with) = (&["first"][..], &["first", "second"][..]);
    let (undone, done) = match verb {
        "delete" => (with, without),
        "create" | "create, memory" => (without, with),
        _ => (without, without),
    };
    assert!(
        names == done || (killed && names == undone),
        "{at}: {names:?}"
    );
}

/// Kills ever later until the verb is done first.
async fn kill_ever_later(verb: &'static str, runs: bool) {
    let vm = if runs {
        "snap-killed-on"
    } else {
        "snap-killed-off"
    };
    let host = Host::new().await;
    let manager = host.manager().await;
    let disks = with_two_disks(&host, &manager, vm).await;
    // A machine's first start adds the agent's channel: memory of before would not fit it.
    stop(&manager, vm).await;
    start(&manager, vm).await.unwrap();
    write(&manager, vm, 2, FIRST).await;
    let memory = verb == "revert";
    take(
        &manager,
        vm,
        json!({ "name": "first", "memory": runs && memory }),
    )
    .await
    .unwrap();
    stop(&manager, vm).await;
    manager.shutdown().await.unwrap();
    drop(manager);
    for round in 0..MOST_ROUNDS {
        let manager = host.manager().await;
        plant(&manager, vm, &disks, verb).await;
        if runs {
            start(&manager, vm).await.unwrap();
        }
        manager.shutdown().await.unwrap();
        drop(manager);
        let killed = run_victim(&host, vm, verb, round);
        let at = format!("{verb} killed in round {round}, running: {runs}");
        let manager = host.manager().await;
        if !runs {
            settle(&manager, vm, &at).await;
        }
        let listed = settled(&manager, vm, &at).await;
        let names: Vec<_> = listed
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        is_one_of_both(verb, killed, &names, &at);
        assert!(qemus(host.path()).len() <= 1, "{at}: a second QEMU");
        let must_run = runs && verb != "revert, restart";
        let living = !qemus(host.path()).is_empty();
        assert!(
            living == must_run || verb == "revert, restart",
            "{at}: the guest was harmed"
        );
        if living {
            stop(&manager, vm).await;
        }
        let went_back = disks.iter().all(|disk| holds(disk, FIRST));
        let as_it_was = disks.iter().all(|disk| holds(disk, NOW));
        let (done, undone) = if verb.starts_with("revert") {
            (went_back, killed && as_it_was)
        } else {
            (as_it_was, false)
        };
        assert!(done || undone, "{at}");
        if !killed && round > 0 {
            delete(&manager, vm).await;
            manager.shutdown().await.unwrap();
            host.is_clean().await;
            return;
        }
        manager.shutdown().await.unwrap();
    }
    panic!(
        "{verb} takes longer than {:?}",
        victim::delay(LATER, MOST_ROUNDS)
    );
}

#[test]
fn f9_a_verb_on_snapshots_of_a_machine_that_is_off_is_done_or_undone() {
    for verb in ["create", "revert", "delete"] {
        kit::in_private_network(move || async move { kill_ever_later(verb, false).await });
    }
}

#[test]
fn f9_a_verb_on_snapshots_of_a_running_machine_is_done_or_undone() {
    for verb in [
        "create",
        "create, memory",
        "revert",
        "revert, restart",
        "delete",
    ] {
        kit::in_private_network(move || async move { kill_ever_later(verb, true).await });
    }
}
