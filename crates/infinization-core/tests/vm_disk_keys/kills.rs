//! Our process, or QEMU, is killed ever later after a change of a key has begun: what the store says opens the
//! disk, and the same call again finishes it.

use std::time::Duration;

use kit::machine::send_signal;
use kit::victim;
use nix::sys::signal::Signal;

use super::changing::{change, rekey};
use super::*;

const LATER: Duration = Duration::from_millis(12);
const MOST_ROUNDS: u32 = 24;
/// QEMU takes some hundred milliseconds for it.
const QEMU_ROUNDS: u32 = 8;

/// Not a test of its own: what a test starts, and kills.
#[test]
fn victim_of_changes() {
    let Some(orders) = victim::orders() else {
        return;
    };
    kit::runtime().block_on(async {
        let text = |key: &str| orders[key].as_str().unwrap();
        let manager = begin(orders["settings"].clone()).await;
        let round = u32::try_from(orders["round"].as_u64().unwrap()).unwrap();
        let delay = victim::delay(LATER, round);
        victim::die_when_begun(&orders, text("vm"), "change disk key", delay);
        rekey(
            &manager,
            text("vm"),
            text("disk"),
            orders["options"].clone(),
        )
        .await
        .unwrap();
    });
}

/// `from` and `to` of a round: the key goes to and fro.
fn keys(round: u32) -> (&'static str, &'static str) {
    if round.is_multiple_of(2) {
        (KEY, NEW_KEY)
    } else {
        (NEW_KEY, KEY)
    }
}

async fn kill_ever_later(vm: &'static str, running: bool) {
    let host = Host::new().await;
    let manager = begin(keeping(&host)).await;
    let mut machine = host.machine(vm);
    machine["disks"] = json!([]);
    let disk = made(&manager, machine).await;
    if running {
        start(&manager, vm, Value::Null).await.unwrap();
    }
    manager.shutdown().await.unwrap();
    drop(manager);
    let mut killed = 0;
    for round in 0..MOST_ROUNDS {
        let (old, new) = keys(round);
        let options = json!({ "newKey": new, "iterTime": 10 });
        let orders = json!({
            "vm": vm, "disk": disk, "round": round, "settings": keeping(&host), "options": options,
        });
        let only = ["--exact", "kills::victim_of_changes", "--quiet"];
        let was_killed = victim::run(&only, &orders);
        let manager = begin(keeping(&host)).await;
        let at = format!("round {round}, killed: {was_killed}");
        let stored = manager
            .disk_keys(&infinization_core::types::VmId::parse(vm).unwrap())
            .await;
        let stored = stored.unwrap()[&path(&disk)].clone();
        assert!(opens(&disk, stored.reveal()).await, "{at}");
        assert!(opens(&disk, old).await || opens(&disk, new).await, "{at}");
        // What an earlier one began is finished by the same call.
        rekey(&manager, vm, &disk, change(new)).await.unwrap();
        assert!(opens(&disk, new).await && !opens(&disk, old).await, "{at}");
        if running {
            assert_eq!(qemus(host.path()).len(), 1, "{at}: it runs on");
        }
        manager.shutdown().await.unwrap();
        drop(manager);
        killed += u32::from(was_killed);
        if !was_killed {
            break;
        }
    }
    assert!(killed > 1, "nothing was killed in the middle");
    let manager = begin(keeping(&host)).await;
    if running {
        stop(&manager, vm).await;
    }
    start(&manager, vm, Value::Null).await.unwrap();
    nothing_leaked(&host);
    delete(&manager, vm).await;
    host.is_clean().await;
}

#[test]
fn f9_b38_a_killed_change_of_a_running_machine_s_key_leaves_one_that_opens() {
    kit::in_private_network(|| kill_ever_later("rekey-killed-1", true));
}

#[test]
fn f9_b38_a_killed_change_of_a_stopped_machine_s_key_leaves_one_that_opens() {
    kit::in_private_network(|| kill_ever_later("rekey-killed-2", false));
}

#[test]
fn f5_b38_a_qemu_that_dies_while_it_changes_the_key_leaves_one_that_opens() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = begin(keeping(&host)).await;
        let vm = "rekey-qemu-dies";
        let mut machine = host.machine(vm);
        machine["disks"] = json!([]);
        let disk = made(&manager, machine).await;
        let mut failed = 0;
        // One that is dead before the change begins is a machine that is off.
        for round in 1..=QEMU_ROUNDS {
            let (old, new) = keys(round);
            start(&manager, vm, Value::Null).await.unwrap();
            let pid = qemus(host.path())[0];
            let dies = async {
                tokio::time::sleep(victim::delay(LATER, round)).await;
                send_signal(pid, Signal::SIGKILL);
            };
            let options = json!({ "newKey": new, "iterTime": 10 });
            let (done, ()) = tokio::join!(rekey(&manager, vm, &disk, options), dies);
            failed += u32::from(done.is_err());
            assert!(
                opens(&disk, old).await || opens(&disk, new).await,
                "round {round}"
            );
            // What is stored opens it: a start needs nothing.
            off(&manager, vm).await;
            start(&manager, vm, Value::Null).await.unwrap();
            rekey(&manager, vm, &disk, change(new)).await.unwrap();
            assert!(
                opens(&disk, new).await && !opens(&disk, old).await,
                "round {round}"
            );
            stop(&manager, vm).await;
            is_sound(&disk, new);
        }
        assert!(failed > 0, "QEMU never died in the middle");
        nothing_leaked(&host);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// Waits until the machine is known to have ended.
async fn off(manager: &Manager, vm: &str) {
    let until = std::time::Instant::now() + kit::machine::PATIENCE;
    loop {
        let status = manager.get_vm_status(vm.into()).await.unwrap();
        if status["status"] != "running" {
            break;
        }
        assert!(std::time::Instant::now() < until, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop(manager, vm).await;
}
