//! Bridges that go away under running machines, and come back (F24).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use firewall::{chain, run};
use infinization_core::Failure;
use infinization_core::events::Event;
use infinization_core::firewall::ChainNames;
use infinization_core::host::link::{Link, LinkEvent, LinkWatch};
use infinization_core::manager::Manager;
use infinization_core::types::{LinkName, VmId, VmNames};
use infinization_core::vm::{Action, Bench, Effects, Release};
use infinization_test_kit::{self as kit, firewall};
use kit::faults::start;
use kit::machine::{
    Host, PATIENCE, consistent_status, delete, forced, journal_of, never, next_event,
};
use kit::switch::{Mode, Switch};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::broadcast::Receiver;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

type Events = Receiver<Arc<Event>>;

/// Whoever has nothing to tell is quiet for so long.
const QUIET: Duration = Duration::from_millis(500);

fn names(vm_id: &str) -> VmNames {
    VmNames::of(&VmId::parse(vm_id).unwrap())
}

async fn create(host: &Host, manager: &Manager, vm_id: &str, port: u16) {
    let mut machine = host.machine(vm_id);
    machine["displayPort"] = json!(port);
    manager.create_vm(machine, never()).await.unwrap();
}

/// A manager that takes back what an earlier one has left, with what it tells from the beginning.
async fn next_process(host: &Host) -> (Manager, Events) {
    let manager = Manager::new(host.settings());
    let events = manager.subscribe();
    manager.initialize().await.unwrap();
    (manager, events)
}

/// The conditions of so many machines, as they are told: `id: none`, `id: bridge-gone testbr0`.
async fn told(events: &mut Events, count: usize) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    for _one in 0..count {
        let event = next_event(events, "vm:condition").await;
        let vm_id = event.data["vmId"].as_str().unwrap();
        told.insert(format!("{vm_id}: {}", words(&event.data["condition"])));
    }
    told
}

fn words(condition: &Value) -> String {
    match condition["kind"].as_str() {
        None => "none".to_owned(),
        Some("network-lost") => format!(
            "{} {}",
            condition["reason"].as_str().unwrap(),
            condition["bridge"].as_str().unwrap()
        ),
        Some(other) => other.to_owned(),
    }
}

fn all(vms: &[&str], what: &str) -> BTreeSet<String> {
    vms.iter().map(|vm| format!("{vm}: {what}")).collect()
}

/// What `getVMStatus` says ails it.
async fn condition(manager: &Manager, vm_id: &str) -> String {
    words(&consistent_status(manager, vm_id).await["condition"])
}

async fn tap(host: &Host, vm_id: &str) -> Link {
    host.links.find(&names(vm_id).tap).await.unwrap().unwrap()
}

async fn is_on(host: &Host, vm_id: &str, bridge: &str) -> bool {
    let bridge = LinkName::parse(bridge).unwrap();
    let bridge = host.links.find(&bridge).await.unwrap().unwrap();
    let tap = tap(host, vm_id).await;
    tap.up && tap.master == Some(bridge.index)
}

/// Waits until the machine's chain for what it sends has, or has not, these words.
async fn guards(vm_id: &str, words: &str, expected: bool) {
    let from = ChainNames::of(&VmId::parse(vm_id).unwrap()).from;
    let settles = async {
        while chain(&from).contains(words) != expected {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let settled = timeout(PATIENCE, settles).await;
    assert!(settled.is_ok(), "{vm_id}, {words}: {}", chain(&from));
}

/// Waits until the machine's TAP is on a bridge.
async fn joins(watch: &mut LinkWatch, vm_id: &str) {
    let tap = names(vm_id).tap;
    let joined = async {
        loop {
            if let LinkEvent::Changed(link) = watch.next().await.unwrap()
                && link.name == tap.as_str()
                && link.master.is_some()
            {
                return;
            }
        }
    };
    timeout(PATIENCE, joined).await.unwrap();
}

async fn is_quiet(events: &mut Events) {
    let told = timeout(QUIET, next_event(events, "vm:condition")).await;
    assert!(told.is_err(), "{:?}", told.map(|event| event.data.clone()));
}

fn delete_bridge(name: &str) {
    run(&format!("ip link delete {name} type bridge"));
}

#[test]
fn f24_machines_are_told_to_be_off_a_deleted_bridge_and_join_its_successor() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vms = ["f24-1", "f24-2", "f24-3"];
        for (vm_id, port) in vms.iter().zip(5900..) {
            create(&host, &manager, vm_id, port).await;
        }
        let mut events = manager.subscribe();

        delete_bridge("testbr0");
        let lost = "bridge-gone testbr0";
        assert_eq!(told(&mut events, 3).await, all(&vms, lost));
        for vm_id in vms {
            assert_eq!(condition(&manager, vm_id).await, lost);
            assert_eq!(tap(&host, vm_id).await.master, None);
        }

        // A link of its name is no bridge.
        run("ip link add testbr0 type veth peer name other0");
        is_quiet(&mut events).await;
        run("ip link delete testbr0");

        // Machines that are stopped meanwhile stay off whatever comes.
        let stopped = manager.stop_vm("f24-3".into(), forced(), never());
        stopped.await.unwrap();
        host.build_bridge().await;
        assert_eq!(told(&mut events, 2).await, all(&vms[..2], "none"));
        for vm_id in &vms[..2] {
            assert!(is_on(&host, vm_id, "testbr0").await);
            assert_eq!(condition(&manager, vm_id).await, "none");
        }
        assert_eq!(tap(&host, "f24-3").await.master, None);

        // And once more, as often as it happens.
        delete_bridge("testbr0");
        assert_eq!(told(&mut events, 2).await, all(&vms[..2], lost));
        host.build_bridge().await;
        assert_eq!(told(&mut events, 2).await, all(&vms[..2], "none"));
        start(&manager, "f24-3").await.unwrap();
        assert!(is_on(&host, "f24-3", "testbr0").await);
        is_quiet(&mut events).await;

        let entries = journal_of(&manager, "f24-1").await.into_iter();
        let changes = entries.filter(|entry| entry["kind"] == "condition");
        let to: Vec<_> = changes.map(|entry| entry["to"].clone()).collect();
        assert_eq!(to, ["network-lost", "none", "network-lost", "none"]);
        for vm_id in vms {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn f24_the_addresses_of_the_bridge_are_guarded_as_they_are() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f24-4", 5900).await;
        guards("f24-4", "10.177.200.1", true).await;
        run("ip addr add 10.178.0.1/24 dev testbr0");
        guards("f24-4", "10.178.0.1", true).await;
        run("ip addr del 10.178.0.1/24 dev testbr0");
        guards("f24-4", "10.178.0.1", false).await;

        // Rules are changed while there is no bridge, too.
        let mut events = manager.subscribe();
        delete_bridge("testbr0");
        told(&mut events, 1).await;
        manager
            .set_firewall_rules("f24-4".into(), json!([]))
            .await
            .unwrap();
        guards("f24-4", "10.177.200.1", true).await;
        host.build_bridge().await;
        told(&mut events, 1).await;
        guards("f24-4", "10.177.200.1", true).await;

        // One that comes back without an address is guarded as before, until it has one.
        delete_bridge("testbr0");
        told(&mut events, 1).await;
        run("ip link add testbr0 type bridge");
        assert_eq!(told(&mut events, 1).await, all(&["f24-4"], "none"));
        guards("f24-4", "10.177.200.1", true).await;
        run("ip addr add 10.179.0.1/24 dev testbr0");
        guards("f24-4", "10.179.0.1", true).await;
        guards("f24-4", "10.177.200.1", false).await;

        // One that is renamed into its place brings its address along.
        delete_bridge("testbr0");
        told(&mut events, 1).await;
        run("ip link add other0 type bridge");
        run("ip addr add 10.180.0.1/24 dev other0");
        let mut watch = host.links.watch().unwrap();
        run("ip link set other0 name testbr0");
        joins(&mut watch, "f24-4").await;
        let loaded = chain(&ChainNames::of(&VmId::parse("f24-4").unwrap()).from);
        assert!(loaded.contains("10.180.0.1"), "before it joins: {loaded}");
        assert_eq!(told(&mut events, 1).await, all(&["f24-4"], "none"));
        delete(&manager, "f24-4").await;
        host.is_clean().await;
    });
}

/// Gives the bridge another address once a launch has loaded its rules.
#[derive(Debug)]
struct AddressComes(Arc<dyn Effects>);

#[async_trait]
impl Effects for AddressComes {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        if matches!(action, Action::SpawnQemu(_)) {
            run("ip addr add 10.182.0.1/24 dev testbr0");
        }
        self.0.perform(action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.0.release(release, bench).await
    }
}

#[test]
fn an_address_that_the_bridge_is_given_during_a_launch_is_guarded() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let wrap = |host| Arc::new(AddressComes(host)) as Arc<dyn Effects>;
        let manager = host.manager_with(Some(Arc::new(wrap))).await;
        create(&host, &manager, "f24-9", 5900).await;
        guards("f24-9", "10.182.0.1", true).await;
        guards("f24-9", "10.177.200.1", true).await;
        delete(&manager, "f24-9").await;
        host.is_clean().await;
    });
}

#[test]
fn f24_a_process_that_was_away_finds_out_and_puts_back() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f24-5", 5900).await;
        manager.shutdown().await.unwrap();
        delete_bridge("testbr0");

        // It is gone still.
        let (manager, mut events) = next_process(&host).await;
        let lost = all(&["f24-5"], "bridge-gone testbr0");
        assert_eq!(told(&mut events, 1).await, lost);
        // There is nobody to ask for the addresses that its rules guard.
        let none = manager.set_firewall_rules("f24-5".into(), json!([]));
        none.await.unwrap();
        guards("f24-5", "10.177.200.1", true).await;
        manager.shutdown().await.unwrap();

        // It is there again.
        host.build_bridge().await;
        let (manager, mut events) = next_process(&host).await;
        assert_eq!(told(&mut events, 1).await, lost);
        assert_eq!(told(&mut events, 1).await, all(&["f24-5"], "none"));
        assert!(is_on(&host, "f24-5", "testbr0").await);
        delete(&manager, "f24-5").await;
        host.is_clean().await;
    });
}

#[test]
fn f24_who_was_taken_off_a_bridge_or_moved_is_left_where_he_is() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f24-6", 5900).await;
        let tap = names("f24-6").tap;
        let mut events = manager.subscribe();
        run(&format!("ip link set {tap} nomaster"));
        let off = all(&["f24-6"], "taken-off testbr0");
        assert_eq!(told(&mut events, 1).await, off);

        // The next process leaves it too.
        manager.shutdown().await.unwrap();
        let (manager, mut events) = next_process(&host).await;
        assert_eq!(told(&mut events, 1).await, off);

        // Onto another bridge: it has a network, and that is the one it waits for.
        run("ip link add otherbr0 type bridge");
        run("ip addr add 10.181.0.1/24 dev otherbr0");
        run(&format!("ip link set {tap} master otherbr0"));
        assert_eq!(told(&mut events, 1).await, all(&["f24-6"], "none"));
        guards("f24-6", "10.181.0.1", true).await;
        delete_bridge("otherbr0");
        assert_eq!(
            told(&mut events, 1).await,
            all(&["f24-6"], "bridge-gone otherbr0")
        );
        is_quiet(&mut events).await;
        run("ip link add otherbr0 type bridge");
        assert_eq!(told(&mut events, 1).await, all(&["f24-6"], "none"));
        assert!(is_on(&host, "f24-6", "otherbr0").await);
        // It has no address yet, but most likely gets the one it had.
        guards("f24-6", "10.181.0.1", true).await;
        guards("f24-6", "10.177.200.1", true).await;

        // A bridge that is renamed keeps its ports.
        run(&format!("ip link set {tap} master testbr0"));
        run("ip link set testbr0 name oldbr0");
        run("ip link add testbr0 type bridge");
        is_quiet(&mut events).await;
        assert!(is_on(&host, "f24-6", "oldbr0").await);
        let none = manager.set_firewall_rules("f24-6".into(), json!([]));
        none.await.unwrap();
        guards("f24-6", "10.177.200.1", true).await;
        delete_bridge("oldbr0");
        assert_eq!(
            told(&mut events, 1).await,
            all(&["f24-6"], "bridge-gone testbr0")
        );
        assert_eq!(told(&mut events, 1).await, all(&["f24-6"], "none"));
        assert!(is_on(&host, "f24-6", "testbr0").await);
        delete(&manager, "f24-6").await;
        delete_bridge("otherbr0");
        host.is_clean().await;
    });
}

#[test]
fn f24_who_was_taken_off_a_bridge_that_is_younger_is_left_by_the_next_process_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f24-10", 5900).await;
        let mut events = manager.subscribe();
        delete_bridge("testbr0");
        told(&mut events, 1).await;
        host.build_bridge().await;
        assert_eq!(told(&mut events, 1).await, all(&["f24-10"], "none"));
        let tap = names("f24-10").tap;
        run(&format!("ip link set {tap} nomaster"));
        let off = all(&["f24-10"], "taken-off testbr0");
        assert_eq!(told(&mut events, 1).await, off);

        manager.shutdown().await.unwrap();
        let (manager, mut events) = next_process(&host).await;
        assert_eq!(told(&mut events, 1).await, off);
        is_quiet(&mut events).await;
        assert!(!is_on(&host, "f24-10", "testbr0").await);
        delete(&manager, "f24-10").await;
        host.is_clean().await;
    });
}

/// Holds up whoever reads this file: it is a pipe until he is let go on.
struct Gate {
    file: PathBuf,
    kept: PathBuf,
    content: Vec<u8>,
}

impl Gate {
    fn close(file: PathBuf) -> Self {
        let kept = file.with_extension("kept");
        let content = fs::read(&file).unwrap();
        fs::rename(&file, &kept).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Self {
            file,
            kept,
            content,
        }
    }

    /// Waits for a reader; further ones read the file.
    async fn reached(&self) -> fs::File {
        let open = || {
            let mut options = fs::File::options();
            // Refused for as long as nobody reads.
            options.write(true).custom_flags(libc::O_NONBLOCK);
            options.open(&self.file)
        };
        let comes = async {
            loop {
                match open() {
                    Ok(writer) => return writer,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let writer = timeout(PATIENCE, comes).await.unwrap();
        fs::rename(&self.kept, &self.file).unwrap();
        writer
    }
}

/// Whether its TAP leads to its chains.
fn is_open(vm_id: &str) -> bool {
    let tap = format!("\"{}\"", names(vm_id).tap);
    ["from_vm", "to_vm"].iter().any(|map| {
        let listed = run(&format!("nft list map bridge infinization {map}"));
        listed.contains(&tap)
    })
}

#[test]
fn f24_whoever_is_stopped_while_he_is_to_join_is_not_opened_again() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = Arc::new(host.manager().await);
        create(&host, &manager, "f24-11", 5900).await;
        let mut events = manager.subscribe();
        delete_bridge("testbr0");
        told(&mut events, 1).await;
        let gate = Gate::close(host.state_dir().join("vms/f24-11/spec.json"));
        run("ip link add other0 type bridge");
        run("ip addr add 10.180.0.1/24 dev other0");
        run("ip link set other0 name testbr0");
        let mut reader = gate.reached().await;

        assert!(is_open("f24-11"));
        let stopping = Arc::clone(&manager);
        let stop = async move { stopping.stop_vm("f24-11".into(), forced(), never()).await };
        let stop = tokio::spawn(stop);
        let closes = async {
            while is_open("f24-11") {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, closes).await.unwrap();
        reader.write_all(&gate.content).unwrap();
        drop(reader);
        stop.await.unwrap().unwrap();
        assert!(!is_open("f24-11"));
        delete(&manager, "f24-11").await;
        host.is_clean().await;
    });
}

#[test]
fn f24_nobody_waits_for_the_rules_of_another() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f24-12", 5900).await;
        create(&host, &manager, "f24-13", 5901).await;
        let mut events = manager.subscribe();
        delete_bridge("testbr0");
        told(&mut events, 2).await;
        let gate = Gate::close(host.state_dir().join("vms/f24-12/spec.json"));
        run("ip link add other0 type bridge");
        run("ip addr add 10.180.0.1/24 dev other0");
        run("ip link set other0 name testbr0");
        let mut reader = gate.reached().await;

        // What is heard meanwhile counts, too.
        let other = ["f24-13"];
        let lost = "bridge-gone testbr0";
        assert_eq!(told(&mut events, 1).await, all(&other, "none"));
        assert!(is_on(&host, "f24-13", "testbr0").await);
        delete_bridge("testbr0");
        assert_eq!(told(&mut events, 1).await, all(&other, lost));
        host.build_bridge().await;
        assert_eq!(told(&mut events, 1).await, all(&other, "none"));

        reader.write_all(&gate.content).unwrap();
        drop(reader);
        assert_eq!(told(&mut events, 1).await, all(&["f24-12"], "none"));
        assert!(is_on(&host, "f24-12", "testbr0").await);
        guards("f24-12", "10.177.200.1", true).await;
        guards("f24-12", "10.180.0.1", false).await;
        for vm_id in ["f24-12", "f24-13"] {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn f24_what_an_earlier_process_has_guarded_needs_no_database_to_join() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f24-14", 5900).await;
        manager.shutdown().await.unwrap();
        delete_bridge("testbr0");

        let switch = Switch::new();
        switch.turn(Mode::Down);
        let manager = Manager::with_wrappers(host.settings(), None, Some(switch.wrapper()));
        let mut events = manager.subscribe();
        manager.initialize().await.unwrap();
        let lost = all(&["f24-14"], "bridge-gone testbr0");
        assert_eq!(told(&mut events, 1).await, lost);
        host.build_bridge().await;
        assert_eq!(told(&mut events, 1).await, all(&["f24-14"], "none"));
        assert!(is_on(&host, "f24-14", "testbr0").await);
        guards("f24-14", "10.177.200.1", true).await;
        switch.turn(Mode::Up);
        next_event(&mut events, "database-restored").await;
        delete(&manager, "f24-14").await;
        host.is_clean().await;
    });
}

#[test]
fn f24_a_deleted_tap_is_told_and_a_restart_makes_a_new_one() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "f24-7", 5900).await;
        let mut events = manager.subscribe();
        run(&format!("ip link delete {}", names("f24-7").tap));
        let gone = all(&["f24-7"], "tap-gone testbr0");
        assert_eq!(told(&mut events, 1).await, gone);
        let status = consistent_status(&manager, "f24-7").await;
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("running"), &json!("running"))
        );
        let stopped = manager.stop_vm("f24-7".into(), forced(), never());
        stopped.await.unwrap();
        start(&manager, "f24-7").await.unwrap();
        assert!(is_on(&host, "f24-7", "testbr0").await);
        assert_eq!(condition(&manager, "f24-7").await, "none");
        delete(&manager, "f24-7").await;
        host.is_clean().await;
    });
}

/// Whether the guest's service says something.
async fn answers(vm_id: &str) -> bool {
    let says = async {
        let mut stream = TcpStream::connect((Host::address_of(vm_id), 22)).await?;
        stream.read_exact(&mut [0; 3]).await
    };
    matches!(timeout(Duration::from_secs(3), says).await, Ok(Ok(_)))
}

async fn comes_to_answer(vm_id: &str) {
    let comes = async { while !answers(vm_id).await {} };
    timeout(PATIENCE, comes).await.unwrap();
}

#[test]
fn f24_a_guest_is_reached_again_by_what_its_rules_allow() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.tiny_guest("f24-8");
        machine["firewallRules"] = json!([{
            "id": "1", "name": "service", "action": "ACCEPT", "direction": "IN", "priority": 10,
            "protocol": "tcp", "dstPortStart": 22,
        }]);
        manager.create_vm(machine, never()).await.unwrap();
        host.console_says("f24-8", "INFZ-READY", 1).await;
        comes_to_answer("f24-8").await;
        let mut events = manager.subscribe();
        delete_bridge("testbr0");
        told(&mut events, 1).await;
        host.build_bridge().await;
        told(&mut events, 1).await;
        comes_to_answer("f24-8").await;
        delete(&manager, "f24-8").await;
        host.is_clean().await;
    });
}
