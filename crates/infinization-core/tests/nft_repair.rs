//! What other programs do to the firewall is noticed, told from what we do, and put back.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

#[path = "kit/firewall.rs"]
mod firewall;
mod kit;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use infinization_core::db::sqlite::SqliteDatabase;
use infinization_core::events::Event;
use infinization_core::firewall::{
    ChainNames, Masquerade, Subnet, Transaction, VmFirewall, document,
};
use infinization_core::host::nft::{Nft, OurTable, Part, Repair};
use infinization_core::types::{FirewallDefaultAction, LinkName, VmId};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::time::timeout;

use firewall::{chain, compiled, rules, ruleset, run, vm};
use kit::in_private_network;
use kit::machine::{Host, delete, forced, never, next_event};
use kit::switch::{Mode, Switch};

type Events = broadcast::Receiver<Arc<Event>>;

/// Long enough for a loaded machine.
const SOON: Duration = Duration::from_secs(20);
/// Whoever has nothing to notice is quiet for so long.
const QUIET: Duration = Duration::from_millis(300);

/// Two machines, set up and found sound.
async fn two_machines() -> (Nft, [VmFirewall; 2]) {
    let nft = Nft::new();
    nft.prepare().await.unwrap();
    let machines = ["vm-a", "vm-b"].map(|id| VmFirewall {
        vm_rules: rules(&["ACCEPT IN tcp 22", "DROP IN tcp 23"]),
        ..vm(id)
    });
    for machine in &machines {
        nft.ensure_vm(&compiled(machine)).await.unwrap();
    }
    assert!(is_quiet(&nft).await, "what we do ourselves is no news");
    (nft, machines)
}

async fn is_quiet(nft: &Nft) -> bool {
    timeout(QUIET, nft.meddled(OurTable::Filter)).await.is_err()
}

async fn notices(nft: &Nft) {
    timeout(SOON, nft.meddled(OurTable::Filter))
        .await
        .unwrap()
        .unwrap();
}

/// All of nftables, whatever the order in which it was made.
fn contents() -> Vec<String> {
    let all = ruleset();
    let mut lines: Vec<String> = all
        .lines()
        .map(|line| {
            line.trim()
                .replace("elements = {", "")
                .replace([',', '}'], "")
        })
        .map(|line| line.trim().to_owned())
        .collect();
    lines.sort();
    lines
}

/// The parts that were missing, each with the machine's visible chain.
fn parts(repair: &Repair) -> Vec<(Part, Option<&str>)> {
    let parts = repair.damages.iter();
    let mut parts: Vec<_> = parts
        .map(|it| (it.part, it.machine.as_ref().map(|names| names.vm.as_str())))
        .collect();
    parts.dedup();
    parts
}

/// Commands of one machine's chains, and what each damages.
fn meddling(machine: &VmFirewall) -> Vec<(String, Part)> {
    let names = ChainNames::of(&machine.vm_id);
    let (vm, from, tap) = (&names.vm, &names.from, &machine.tap);
    let first_rule = format!("nft -a list chain bridge infinization {vm}");
    let handle = run(&first_rule);
    let handle = handle
        .lines()
        .find(|line| line.contains("dport 22"))
        .unwrap();
    let handle = handle.rsplit(' ').next().unwrap();
    let in_table = |rest: String| format!("nft {rest}");
    vec![
        (
            in_table(format!(
                "delete rule bridge infinization {vm} handle {handle}"
            )),
            Part::Rules,
        ),
        (
            in_table(format!("insert rule bridge infinization {from} accept")),
            Part::Rules,
        ),
        (
            in_table(format!("flush chain bridge infinization {vm}")),
            Part::Rules,
        ),
        (
            in_table(format!(
                "delete element bridge infinization to_vm {{ {tap} }}"
            )),
            Part::Dispatch,
        ),
    ]
}

#[test]
fn f28_whatever_is_taken_is_noticed_and_put_back() {
    in_private_network(|| async {
        let (nft, [a, b]) = two_machines().await;
        let good = contents();
        let names = [&a, &b].map(|vm| ChainNames::of(&vm.vm_id).vm);
        for round in 0..4 {
            let (command, part) = meddling(&a).swap_remove(round);
            run(&command);
            notices(&nft).await;
            let repair = nft.repair().await.unwrap();
            assert_eq!(
                parts(&repair),
                [(part, Some(names[0].as_str()))],
                "{command}"
            );
            assert_eq!(contents(), good, "{command}");
            assert_eq!(nft.repair().await.unwrap(), Repair::default());
            assert!(is_quiet(&nft).await, "{command}");
        }
        let all_gone = [
            (Part::Table, None),
            (Part::Chain, Some(names[0].as_str())),
            (Part::Dispatch, Some(names[0].as_str())),
            (Part::Chain, Some(names[1].as_str())),
            (Part::Dispatch, Some(names[1].as_str())),
        ];
        let mut sorted = all_gone;
        sorted.sort();
        for command in ["nft flush ruleset", "nft delete table bridge infinization"] {
            run(command);
            notices(&nft).await;
            let repair = nft.repair().await.unwrap();
            let mut found = parts(&repair);
            found.sort();
            assert_eq!(found, sorted, "{command}");
            assert_eq!(contents(), good, "{command}");
        }
    });
}

/// What is left when nothing but the table and its hooks is there.
fn is_closed() -> bool {
    let all = ruleset();
    all.matches("infinization-closed").count() == 2 && !all.contains("elements")
}

#[test]
fn f28_a_lost_table_is_closed_before_anything_is_read() {
    in_private_network(|| async {
        let (nft, [a, b]) = two_machines().await;
        let good = contents();
        for command in ["nft flush ruleset", "nft delete table bridge infinization"] {
            run(command);
            notices(&nft).await;
            nft.close_if_gone().await.unwrap();
            assert!(is_closed(), "{command}: {}", ruleset());
            // Closed is not repaired, and what was gone is told all the same.
            notices(&nft).await;
            let repair = nft.repair().await.unwrap();
            assert_eq!(parts(&repair)[0], (Part::Table, None), "{command}");
            assert_eq!(contents(), good, "{command}");
            nft.close_if_gone().await.unwrap();
            assert_eq!(contents(), good, "{command}: it is there");
            assert_eq!(nft.repair().await.unwrap(), Repair::default());
            assert!(is_quiet(&nft).await, "{command}");
        }

        // Whoever makes it again in the same commit, or meanwhile, has taken nothing.
        let saved = run("nft list table bridge infinization");
        let file = tempfile::NamedTempFile::new().unwrap();
        let again = format!("delete table bridge infinization\n{saved}");
        std::fs::write(file.path(), again).unwrap();
        run(&format!("nft -f {}", file.path().display()));
        notices(&nft).await;
        nft.close_if_gone().await.unwrap();
        assert_eq!(contents(), good);
        nft.repair().await.unwrap();
        assert_eq!(contents(), good);

        // A verb that comes first has made the table.
        run("nft flush ruleset");
        nft.ensure_vm(&compiled(&a)).await.unwrap();
        nft.close_if_gone().await.unwrap();
        let names = ChainNames::of(&b.vm_id);
        let repair = nft.repair().await.unwrap();
        let found = parts(&repair);
        assert!(
            found.contains(&(Part::Chain, Some(names.vm.as_str()))),
            "{found:?}"
        );
        assert_eq!(contents(), good);
    });
}

#[test]
fn f28_the_hooks_are_put_back_however_they_were_changed() {
    in_private_network(|| async {
        let (nft, _machines) = two_machines().await;
        let good = contents();
        for command in [
            "nft flush chain bridge infinization prerouting",
            "nft insert rule bridge infinization postrouting accept",
            "nft add rule bridge infinization prerouting drop comment \"infinization-closed\"",
            "nft chain bridge infinization prerouting { policy drop; }",
        ] {
            run(command);
            notices(&nft).await;
            let repair = nft.repair().await.unwrap();
            assert_eq!(parts(&repair), [(Part::Hook, None)], "{command}");
            assert_eq!(contents(), good, "{command}");
        }
    });
}

#[test]
fn a_rule_that_is_replaced_under_the_same_comment_is_noticed() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        let good = contents();
        let vm = ChainNames::of(&a.vm_id).vm;
        let listed = run(&format!("nft -a list chain bridge infinization {vm}"));
        let last = listed
            .lines()
            .find(|line| line.contains("default-drop"))
            .unwrap();
        let handle = last.rsplit(' ').next().unwrap();
        run(&format!(
            "nft replace rule bridge infinization {vm} handle {handle} accept comment \"infinization-default-drop\""
        ));
        notices(&nft).await;
        let repair = nft.repair().await.unwrap();
        assert_eq!(parts(&repair), [(Part::Rules, Some(vm.as_str()))]);
        assert_eq!(contents(), good);
    });
}

#[test]
fn b28_unchanged_is_known_without_a_program_as_long_as_nobody_meddles() {
    in_private_network(|| async {
        let (nft, [a, b]) = two_machines().await;
        let (a, b) = (compiled(&a), compiled(&b));
        assert!(!nft.ensure_vm_if_changed(&a).await.unwrap());
        // A change of ours keeps what is known of the others.
        nft.flush_vm(&b.ruleset.names, FirewallDefaultAction::Drop)
            .await
            .unwrap();
        assert!(is_quiet(&nft).await);
        assert!(!nft.ensure_vm_if_changed(&a).await.unwrap());
        assert!(nft.ensure_vm_if_changed(&b).await.unwrap());
        nft.detach(&a.ruleset.tap).await.unwrap();
        assert!(is_quiet(&nft).await);
        assert!(nft.ensure_vm_if_changed(&a).await.unwrap());
    });
}

#[test]
fn what_others_do_elsewhere_is_not_even_read() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        run("nft add table bridge other");
        run("nft add table inet infinization");
        let mut script = String::new();
        for n in 0..1000 {
            writeln!(script, "add chain bridge other c{n}").unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        run(&format!("nft -f {}", file.path().display()));
        for n in 0..100 {
            run(&format!("nft add chain inet infinization c{n}"));
        }
        assert!(is_quiet(&nft).await);
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        assert!(!nft.ensure_vm_if_changed(&compiled(&a)).await.unwrap());
    });
}

#[test]
fn more_than_there_is_room_for_is_read_back() {
    in_private_network(|| async {
        let (nft, _machines) = two_machines().await;
        let good = contents();
        run("nft add table bridge other");
        let mut script = "delete table bridge infinization\n".to_owned();
        for n in 0..30_000 {
            writeln!(script, "add chain bridge other c{n}").unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        run(&format!("nft -f {}", file.path().display()));
        run("nft delete table bridge other");
        notices(&nft).await;
        assert!(!nft.repair().await.unwrap().damages.is_empty());
        assert_eq!(contents(), good);
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        assert!(is_quiet(&nft).await);
    });
}

#[test]
fn what_was_removed_or_closed_on_purpose_is_not_put_back() {
    in_private_network(|| async {
        let (nft, [a, b]) = two_machines().await;
        nft.detach(&a.tap).await.unwrap();
        nft.remove_vm(&ChainNames::of(&b.vm_id)).await.unwrap();
        run("nft flush ruleset");
        notices(&nft).await;
        let repair = nft.repair().await.unwrap();
        assert_eq!(parts(&repair), [(Part::Table, None)]);
        let left = ruleset();
        assert!(left.contains("infinization-closed"), "{left}");
        assert!(!left.contains("vm_") && !left.contains(" : jump"), "{left}");
    });
}

#[test]
fn a_flushed_machine_stays_flushed() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        let names = ChainNames::of(&a.vm_id);
        nft.flush_vm(&names, FirewallDefaultAction::Drop)
            .await
            .unwrap();
        run("nft flush ruleset");
        nft.repair().await.unwrap();
        let left = chain(&names.vm);
        assert!(
            !left.contains("dport 22") && left.contains("default-drop"),
            "{left}"
        );
    });
}

#[test]
fn two_processes_that_share_the_table_leave_each_other_alone() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        // As another process does: the same hooks anew, and a machine of its own.
        let other = vm("vm-of-another");
        loaded_by_another(&other);
        let both = run("nft -a list ruleset");
        notices(&nft).await;
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        assert_eq!(run("nft -a list ruleset"), both);
        assert!(is_quiet(&nft).await);
        assert!(!nft.ensure_vm_if_changed(&compiled(&a)).await.unwrap());
    });
}

/// What the event says is missing, as `part vmId name`.
fn told(event: &Value) -> Vec<String> {
    let missing = event["missing"].as_array().unwrap();
    let words = |it: &Value| {
        let [part, vm_id] = ["part", "vmId"].map(|key| it[key].as_str().unwrap_or("-").to_owned());
        format!("{part} {vm_id}")
    };
    let mut told: Vec<String> = missing.iter().map(words).collect();
    told.dedup();
    told
}

/// What so many parts were that were told to be there again, whatever the number of events.
async fn all_told(events: &mut Events, parts: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < parts {
        let event = next_event(events, "firewall-repaired").await;
        assert_eq!(event.data["failed"], json!([]));
        all.extend(told(&event.data));
    }
    all.sort();
    all
}

/// What was repaired is found sound, and then there is nothing to look at.
async fn is_settled(nft: &Nft) {
    assert_eq!(nft.repair().await.unwrap().damages, []);
    assert!(is_quiet(nft).await);
}

/// Loads the machine's rules as another process would have.
fn loaded_by_another(machine: &VmFirewall) {
    let all = Transaction::ensure_vm(&compiled(machine));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), document(&all).to_string()).unwrap();
    run(&format!("nft -j -f {}", file.path().display()));
}

#[test]
fn f28_a_damaged_machine_whose_rules_are_not_known_is_closed_until_they_are_loaded() {
    in_private_network(|| async {
        let (nft, _others) = two_machines().await;
        let machine = vm("vm-of-before");
        let names = ChainNames::of(&machine.vm_id);
        loaded_by_another(&machine);
        let good = contents();
        nft.adopt_vm(&names, &machine.tap);
        notices(&nft).await;
        let found = nft.repair().await.unwrap();
        assert_eq!(
            (found.damages.len(), &found.unconfirmed),
            (0, &vec![names.clone()])
        );
        is_settled(&nft).await;

        for command in [
            format!("nft insert rule bridge infinization {} accept", names.vm),
            format!(
                "nft add element bridge infinization to_vm {{ {} : jump {} }}",
                machine.tap, names.to
            ),
        ] {
            run(&command);
            notices(&nft).await;
            let repair = nft.repair().await.unwrap();
            assert_eq!(repair.unknown, std::slice::from_ref(&names), "{command}");
            assert!(
                !ruleset().contains(&format!("\"{}\" : jump", machine.tap)),
                "{command}"
            );
            is_settled(&nft).await;
        }
        assert!(nft.ensure_vm_if_changed(&compiled(&machine)).await.unwrap());
        assert_eq!(contents(), good);
        assert!(!nft.is_closed(&names));
        is_settled(&nft).await;
    });
}

#[test]
fn a_port_that_was_led_elsewhere_is_led_back() {
    in_private_network(|| async {
        let (nft, [a, b]) = two_machines().await;
        let good = contents();
        run(&format!(
            "nft delete element bridge infinization to_vm {{ {} }}",
            a.tap
        ));
        run(&format!(
            "nft add element bridge infinization to_vm {{ {} : jump {} }}",
            a.tap,
            ChainNames::of(&b.vm_id).to
        ));
        notices(&nft).await;
        let repair = nft.repair().await.unwrap();
        assert_eq!(
            parts(&repair),
            [(Part::Dispatch, Some(ChainNames::of(&a.vm_id).vm.as_str()))]
        );
        assert_eq!(contents(), good);
        is_settled(&nft).await;
    });
}

#[test]
fn who_waits_after_a_failure_is_woken_by_the_next_meddling_alone() {
    in_private_network(|| async {
        let (nft, _machines) = two_machines().await;
        run("nft delete table bridge infinization");
        notices(&nft).await;
        let mark = nft.doubts(OurTable::Filter);
        let again = || nft.meddled_since(OurTable::Filter, mark);
        assert!(timeout(QUIET, again()).await.is_err());
        run("nft add table bridge infinization");
        timeout(SOON, again()).await.unwrap().unwrap();
    });
}

#[test]
fn one_machine_that_the_kernel_refuses_is_closed_and_the_others_are_put_back() {
    in_private_network(|| async {
        let (nft, [a, b]) = two_machines().await;
        let names = [&a, &b].map(|vm| ChainNames::of(&vm.vm_id));
        run("nft delete table bridge infinization");
        run("nft add table bridge infinization");
        // Nothing can jump to a base chain.
        run(&format!(
            "nft add chain bridge infinization {} {{ type filter hook output priority 0; }}",
            names[0].from
        ));
        notices(&nft).await;
        let repair = nft.repair().await.unwrap();
        assert_eq!(repair.unknown, std::slice::from_ref(&names[0]));
        let left = ruleset();
        assert!(left.contains(&format!("\"{}\" : jump", b.tap)), "{left}");
        assert!(!left.contains(&format!("\"{}\" : jump", a.tap)), "{left}");
        assert!(left.contains("infinization-closed"), "{left}");
        is_settled(&nft).await;
    });
}

#[test]
fn a_machine_flushed_while_its_table_is_gone_gets_no_old_rules_back() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        let names = ChainNames::of(&a.vm_id);
        run("nft flush ruleset");
        let drop = FirewallDefaultAction::Drop;
        nft.flush_vm(&names, drop).await.unwrap();
        nft.repair().await.unwrap();
        assert!(!chain(&names.vm).contains("dport 22"));
    });
}

/// What the manager's next process finds in the store.
async fn stored_meanwhile(host: &Host, change: impl AsyncFnOnce(Arc<SqliteDatabase>)) {
    let path = host.state_dir().join("infinization.db");
    change(SqliteDatabase::open(&path).await.unwrap()).await;
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, waits)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[test]
fn a_restart_loads_what_was_stored_meanwhile_and_keeps_what_the_run_was_started_with() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        manager
            .create_vm(host.machine("p4-1"), never())
            .await
            .unwrap();
        manager
            .stop_vm("p4-1".into(), forced(), never())
            .await
            .unwrap();
        let options = json!({ "firewallDefaultAction": "accept" });
        manager
            .start_vm("p4-1".into(), options, never())
            .await
            .unwrap();
        let vm_id = VmId::parse("p4-1").unwrap();
        let names = ChainNames::of(&vm_id);
        let open = || chain(&names.vm).contains("default-accept");
        assert!(open());
        manager
            .set_firewall_rules("p4-1".into(), json!([]))
            .await
            .unwrap();
        assert!(open(), "rules do not end what the run was started with");

        manager.shutdown().await.unwrap();
        drop(manager);
        stored_meanwhile(&host, async |store| {
            store
                .set_firewall_rules(&vm_id, rules(&["ACCEPT IN tcp 2222"]))
                .await
                .unwrap();
        })
        .await;
        let manager = host.manager().await;
        until("the new rule", || chain(&names.vm).contains("2222")).await;
        assert!(open());
        let shown = manager.explain_firewall("p4-1".into()).await.unwrap();
        assert_eq!(shown["defaultAction"], "accept");

        manager
            .stop_vm("p4-1".into(), forced(), never())
            .await
            .unwrap();
        let shown = manager.explain_firewall("p4-1".into()).await.unwrap();
        assert_eq!(shown["defaultAction"], "drop");
        delete(&manager, "p4-1").await;
        host.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn f28_a_machine_whose_rules_cannot_be_loaded_is_closed_and_told_once() {
    in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        manager
            .create_vm(host.machine("f28-2"), never())
            .await
            .unwrap();
        manager.shutdown().await.unwrap();
        drop(manager);
        let good = contents();

        switch.turn(Mode::Down);
        let manager = host.manager_over(&switch).await;
        let names = ChainNames::of(&VmId::parse("f28-2").unwrap());
        let mut events = manager.subscribe();
        run("nft flush ruleset");
        while next_event(&mut events, "firewall-repaired").await.data["failed"] == json!([]) {}
        tokio::time::sleep(Duration::from_secs(2)).await;
        while let Ok(event) = events.try_recv() {
            assert_ne!(event.kind, "firewall-repaired", "{}", event.data);
        }
        assert!(ruleset().contains("infinization-closed"));
        assert!(!ruleset().contains(&names.vm));

        switch.turn(Mode::Up);
        assert_eq!(
            all_told(&mut events, 2).await,
            ["chain f28-2", "dispatch f28-2"]
        );
        assert_eq!(contents(), good);
        delete(&manager, "f28-2").await;
        host.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn f28_a_manager_puts_back_what_a_running_machine_needs() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("f28-1");
        machine["firewallRules"] = json!([{
            "id": "1", "name": "ssh", "action": "ACCEPT", "direction": "IN", "priority": 500,
            "protocol": "tcp", "dstPortStart": 22,
        }]);
        manager.create_vm(machine, never()).await.unwrap();
        let nft = Nft::new();
        let bridge = LinkName::parse("testbr0").unwrap();
        let subnet = Subnet::parse("10.177.0.0/16").unwrap();
        nft.masquerade(Masquerade { subnet, bridge }).await.unwrap();
        let good = contents();
        let mut events = manager.subscribe();

        for command in ["nft flush ruleset", "nft delete table bridge infinization"] {
            run(command);
            let mut wanted = vec!["chain f28-1", "dispatch f28-1", "table -"];
            if command.contains("flush") {
                wanted.insert(2, "masquerade -");
            }
            assert_eq!(
                all_told(&mut events, wanted.len()).await,
                wanted,
                "{command}"
            );
            assert_eq!(contents(), good, "{command}");
        }

        // While nobody watches; the next one finds its rules in the database.
        manager.shutdown().await.unwrap();
        drop((manager, nft));
        run("nft delete table bridge infinization");
        let manager = infinization_core::manager::Manager::new(host.settings());
        let mut events = manager.subscribe();
        manager.initialize().await.unwrap();
        let wanted = ["chain f28-1", "dispatch f28-1"];
        assert_eq!(all_told(&mut events, wanted.len()).await, wanted);
        assert_eq!(contents(), good);

        delete(&manager, "f28-1").await;
        host.is_clean().await;
        let vm_id = VmId::parse("f28-1").unwrap();
        assert!(!ruleset().contains(&ChainNames::of(&vm_id).vm));
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn the_first_of_two_ports_is_closed_and_the_second_keeps_the_rules() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        let names = ChainNames::of(&a.vm_id);
        let second = LinkName::parse("second").unwrap();
        nft.attach(&names, &second).await.unwrap();
        nft.detach(&a.tap).await.unwrap();
        let good = contents();
        run(&format!("nft flush chain bridge infinization {}", names.vm));
        notices(&nft).await;
        let repair = nft.repair().await.unwrap();
        assert_eq!(repair.unknown, []);
        assert_eq!(parts(&repair), [(Part::Rules, Some(names.vm.as_str()))]);
        assert_eq!(contents(), good, "and the first one is still closed");
        is_settled(&nft).await;
    });
}

#[test]
fn rules_loaded_for_the_second_of_two_ports_keep_the_first_open() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        let names = ChainNames::of(&a.vm_id);
        let tap = LinkName::parse("second").unwrap();
        nft.attach(&names, &tap).await.unwrap();
        let other = VmFirewall { tap, ..a.clone() };
        nft.ensure_vm(&compiled(&other)).await.unwrap();
        let good = contents();
        for port in [&a.tap, &other.tap] {
            run(&format!(
                "nft delete element bridge infinization to_vm {{ {port} }}"
            ));
            notices(&nft).await;
            let repair = nft.repair().await.unwrap();
            assert_eq!(parts(&repair), [(Part::Dispatch, Some(names.vm.as_str()))]);
            assert_eq!(contents(), good);
            is_settled(&nft).await;
        }
    });
}
