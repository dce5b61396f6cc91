//! Our process is killed ever later after it has begun to change a tree. The next one finds the change
//! done or undone, no orphan, and every snapshot as it was.
//!
//! The test starts itself again as the victim, in the same private network.

use std::time::Duration;

use kit::machine::PATIENCE;
use kit::victim;

use super::*;

/// How much later the second kill comes than the first.
const LATER: Duration = Duration::from_millis(4);
const MOST_ROUNDS: u32 = 40;

/// Not a test of its own: what a test starts, and kills.
#[test]
fn victim() {
    let Some(orders) = victim::orders() else {
        return;
    };
    kit::runtime().block_on(async {
        let manager = Manager::new(orders["settings"].clone());
        manager.initialize().await.unwrap();
        die_later(&orders);
        let text = |key: &str| orders[key].as_str().unwrap();
        perform(&manager, text("vm"), text("verb")).await.unwrap();
    });
}

async fn perform(manager: &Manager, vm: &str, verb: &str) -> Result<Value, Failure> {
    match verb {
        "create" => take(manager, vm, "new").await,
        "revert" => revert(manager, vm, "a", json!({ "keep": "tip" })).await,
        "discard" => revert(manager, vm, "a", json!({ "discard": true })).await,
        "commit" => commit(manager, vm, "b").await,
        "delete" => remove(manager, vm, "c", Value::Null).await,
        "commit active" => remove(manager, vm, "b", rebase()).await,
        _ => remove(manager, vm, "a", rebase()).await,
    }
}

/// Counts from the moment the file beside the spec says that something is being done.
fn die_later(orders: &Value) {
    let state = Path::new(orders["settings"]["stateDir"].as_str().unwrap());
    let record = state
        .join("vms")
        .join(orders["vm"].as_str().unwrap())
        .join("snapshot-tree.json");
    let read = move || std::fs::read(&record).unwrap_or_default();
    let round = u32::try_from(orders["round"].as_u64().unwrap()).unwrap();
    victim::die_after_change(read, victim::delay(LATER, round));
}

fn run_victim(host: &Host, vm: &str, verb: &str, round: u32) -> bool {
    let orders = json!({ "vm": vm, "verb": verb, "round": round, "settings": host.settings() });
    victim::run(&["--exact", "kills::victim", "--quiet"], &orders)
}

/// `a` with the children `b` and `c`, which are leaves but for the active layer on `b`.
async fn plant(manager: &Manager, vm: &str, live: bool, both: bool) {
    let write = async |writes: &[(usize, u8)]| {
        if live {
            write_live(manager, vm, 0, writes).await;
            write_live(manager, vm, 1, writes).await;
        } else {
            for path in paths(&tree(manager, vm).await["active"]) {
                write_offline(&path, writes);
            }
        }
    };
    write(&[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]).await;
    take(manager, vm, "a").await.unwrap();
    write(&[(1, 2), (2, 2), (6, 2), (7, 2), (8, 2)]).await;
    if both {
        revert(manager, vm, "a", json!({ "keep": "c" }))
            .await
            .unwrap();
        write(&[(2, 3), (3, 3)]).await;
    }
    take(manager, vm, "b").await.unwrap();
    write(&[(3, 4)]).await;
}

/// What each snapshot holds, and the active layers.
async fn contents(manager: &Manager, vm: &str) -> Vec<(String, Vec<Vec<u8>>)> {
    let now = tree(manager, vm).await;
    let of = |layers: &Value| paths(layers).iter().map(|path| patterns(path)).collect();
    let nodes = now["snapshots"].as_array().unwrap().iter();
    let mut found: Vec<(String, Vec<Vec<u8>>)> = nodes
        .filter(|node| node["complete"] == true)
        .map(|node| {
            (
                node["name"].as_str().unwrap().to_owned(),
                of(&node["layers"]),
            )
        })
        .collect();
    found.push(("(active)".to_owned(), of(&now["active"])));
    found
}

async fn restart(host: &Host) -> Manager {
    host.manager().await
}

/// Kills ever later until the verb is done first.
async fn kill_ever_later(verb: &'static str, both: bool) {
    let vm = "layers-killed-off";
    let host = Host::new().await;
    let manager = host.manager().await;
    stopped(&host, &manager, vm, 2).await;
    manager.shutdown().await.unwrap();
    drop(manager);
    for round in 0..MOST_ROUNDS {
        let manager = restart(&host).await;
        plant(&manager, vm, false, both).await;
        let before = contents(&manager, vm).await;
        let old = shape(&tree(&manager, vm).await);
        manager.shutdown().await.unwrap();
        drop(manager);
        let killed = run_victim(&host, vm, verb, round);
        let manager = restart(&host).await;
        let at = format!("{verb} killed in round {round}");
        // What merging was cut short waits for whoever needs the disks.
        let _none = remove(&manager, vm, "none", Value::Null).await.unwrap();
        let now = tree(&manager, vm).await;
        let after = contents(&manager, vm).await;
        let undone = shape(&now) == old;
        assert!(killed || !undone, "{at}");
        for (name, content) in &after {
            let was = before.iter().find(|(known, _)| known == name);
            let expected = match (verb, name.as_str()) {
                // These two end at `a`, those of the others where they were.
                ("revert" | "discard", "(active)") if !undone => find(&before, "a"),
                ("revert", "tip") | ("create", "new") => find(&before, "(active)"),
                ("commit", "a") if !undone => find(&before, "b"),
                _ => &was.unwrap_or_else(|| panic!("{at}: {name} is new")).1,
            };
            assert_eq!(content, expected, "{at}: {name}");
        }
        sound(&no_orphans(&host, &[now]));
        if undone {
            perform(&manager, vm, verb).await.unwrap();
        }
        start(&manager, vm).await;
        stop(&manager, vm).await;
        clear(&manager, vm).await;
        sound(&no_orphans(&host, &[tree(&manager, vm).await]));
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

fn find<'c>(contents: &'c [(String, Vec<Vec<u8>>)], name: &str) -> &'c Vec<Vec<u8>> {
    let mut contents = contents.iter();
    &contents.find(|(known, _)| known == name).unwrap().1
}

/// No snapshot is left, and the disks are zeros again where the tests write.
async fn clear(manager: &Manager, vm: &str) {
    loop {
        let now = tree(manager, vm).await;
        let Some(first) = now["snapshots"].as_array().unwrap().first() else {
            break;
        };
        let name = first["name"].as_str().unwrap().to_owned();
        remove(manager, vm, &name, rebase()).await.unwrap();
    }
    for path in paths(&tree(manager, vm).await["active"]) {
        let zeros: Vec<_> = (0..chain::CLUSTERS).map(|at| (at, 0)).collect();
        write_offline(&path, &zeros);
    }
}

#[test]
fn f9_a_change_of_a_stopped_machines_tree_is_done_or_undone() {
    for (verb, both) in [
        ("create", false),
        ("revert", false),
        ("discard", false),
        ("delete", true),
        ("commit", false),
        ("rebase", true),
    ] {
        kit::in_private_network(move || async move { kill_ever_later(verb, both).await });
    }
}

#[test]
fn f9_a_change_of_a_running_machines_tree_is_done_or_undone() {
    for verb in ["create", "commit", "rebase", "commit active"] {
        kit::in_private_network(move || async move { kill_running(verb).await });
    }
}

/// Whether or not it stood still when we died, it runs, and that is what is told.
async fn goes_on(manager: &Manager, vm: &str, at: &str) {
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            let status = manager.get_vm_status(vm.into()).await.unwrap();
            if status["status"] == "running" && status["qmpStatus"] == "running" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(told.await.is_ok(), "{at}: the guest stands still");
}

async fn kill_running(verb: &'static str) {
    let vm = "layers-killed-on";
    let host = Host::new().await;
    let manager = host.manager().await;
    running(&host, &manager, vm, 2).await;
    manager.shutdown().await.unwrap();
    drop(manager);
    for round in 0..MOST_ROUNDS {
        let manager = restart(&host).await;
        plant(&manager, vm, true, false).await;
        let old = shape(&tree(&manager, vm).await);
        manager.shutdown().await.unwrap();
        drop(manager);
        let killed = run_victim(&host, vm, verb, round);
        let at = format!("{verb} killed in round {round} under a running machine");
        let manager = restart(&host).await;
        goes_on(&manager, vm, &at).await;
        // The guest goes on, and the next verb finishes what is left.
        write_live(&manager, vm, 0, &[(9, 9)]).await;
        write_live(&manager, vm, 1, &[(9, 9)]).await;
        let _none = remove(&manager, vm, "none", Value::Null).await.unwrap();
        let undone = shape(&tree(&manager, vm).await) == old;
        assert!(killed || !undone, "{at}");
        if undone {
            perform(&manager, vm, verb).await.unwrap();
        }
        stop(&manager, vm).await;
        let now = tree(&manager, vm).await;
        for path in paths(&now["active"]) {
            let expected = [1, 2, 2, 4, 1, 1, 2, 2, 2, 9, 0, 0];
            assert_eq!(patterns(&path), expected, "{at}: {now}");
        }
        sound(&no_orphans(&host, &[now]));
        clear(&manager, vm).await;
        start(&manager, vm).await;
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
