//! Department rules live once: changes of many machines against the real kernel.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use infinization_core::db::RuleSplit;
use infinization_core::firewall::{ChainNames, Compiled, SharedChain, VmFirewall};
use infinization_core::host::nft::{Nft, NftProgram, NftTransport as _, OurTable, Part, Repair};
use infinization_core::manager::{Department, Firewall, Member, Wanted};
use infinization_core::types::{FirewallDefaultAction, FirewallRuleInput, VmId, VmNames};
use infinization_test_kit::{self as kit, firewall};
use serde_json::json;

use firewall::{chain, compiled, rule, rules, ruleset, run, vm};
use kit::in_private_network;

const MACHINES: usize = 30;

fn member(id: &str, department: &[&str], own: &[&str]) -> VmFirewall {
    VmFirewall {
        department_rules: rules(department),
        vm_rules: rules(own),
        ..vm(id)
    }
}

/// Machines without and with rules of their own, which do not come between.
fn all(department: &[&str]) -> Vec<Compiled> {
    let own: [&[&str]; 3] = [&[], &["ACCEPT IN tcp 22"], &["DROP OUT udp 53"]];
    let member = |n: usize| member(&format!("vm-{n}"), department, own[n % 3]);
    (0..MACHINES).map(member).map(|vm| compiled(&vm)).collect()
}

async fn load(nft: &Nft, machines: &[Compiled]) {
    for outcome in nft.ensure_vms(machines).await {
        outcome.unwrap();
    }
}

async fn settled() -> Nft {
    let nft = Nft::new();
    nft.prepare().await.unwrap();
    nft
}

async fn shared(nft: &Nft) -> Vec<String> {
    let mut chains = nft.list_chains().await.unwrap();
    chains.retain(|name| SharedChain::is_name(name));
    chains.sort();
    chains
}

/// The handles of a machine's own rules: others, once they were loaded again.
fn handles(machine: &Compiled) -> String {
    run(&format!(
        "nft -a list chain bridge infinization {}",
        machine.ruleset.names.vm
    ))
}

#[test]
fn department_rules_live_once_and_a_change_leaves_the_machines_chains_alone() {
    in_private_network(|| async {
        let nft = settled().await;
        let before = all(&["ACCEPT IN tcp 80", "DROP OUT tcp 25"]);
        load(&nft, &before).await;
        // One per direction; the other two hold the replies.
        assert_eq!(shared(&nft).await.len(), 3, "{:?}", shared(&nft).await);
        assert_eq!(ruleset().matches("tcp dport 80 accept").count(), 1);
        nft.repair().await.unwrap();
        let untouched: Vec<_> = before.iter().map(handles).collect();

        let after = all(&["ACCEPT IN tcp 443", "DROP OUT tcp 465"]);
        let transactions = async || NftProgram::default().generation().await.unwrap();
        let so_far = transactions().await;
        load(&nft, &after).await;
        assert_eq!(transactions().await, so_far + 1, "the kernel counts them");
        let without_names = |text: &String| -> String {
            let lines = text.lines().filter(|line| !line.contains("jump dept_"));
            lines.collect()
        };
        let now: Vec<_> = after.iter().map(handles).collect();
        assert!(
            now.iter()
                .map(without_names)
                .eq(untouched.iter().map(without_names))
        );
        let loaded = ruleset();
        assert_eq!(
            loaded.matches("tcp dport 443 accept").count(),
            1,
            "{loaded}"
        );
        assert!(
            !loaded.contains("dport 80") && !loaded.contains("dport 25"),
            "{loaded}"
        );
        assert_eq!(shared(&nft).await.len(), 3);
        for machine in &after {
            assert!(!nft.ensure_vm_if_changed(machine).await.unwrap());
        }

        // Another process finds them as this one left them, by reading.
        run("nft add table inet unrelated");
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        // And all of it, loaded from nothing, is the same.
        run("nft flush ruleset");
        assert!(!nft.repair().await.unwrap().damages.is_empty());
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        assert_eq!(lines_of(&ruleset()), lines_of(&loaded));
    });
}

fn lines_of(text: &str) -> Vec<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == ',');
    let mut words: Vec<_> = words.map(str::to_owned).collect();
    words.sort();
    words
}

#[test]
fn machines_of_an_earlier_process_leave_the_old_chain_together() {
    in_private_network(|| async {
        let before = all(&["DROP IN tcp 80"]);
        load(&settled().await, &before).await;
        let nft = settled().await;
        for machine in &before {
            nft.adopt_vm(&machine.ruleset.names, &machine.ruleset.tap);
        }
        let found = nft.repair().await.unwrap();
        assert_eq!(found.unconfirmed.len(), MACHINES);
        for machine in &before {
            let is_loaded = nft.ensure_vm_if_changed(machine).await.unwrap();
            assert!(is_loaded, "nobody here knows what it has");
        }
        load(&nft, &all(&["DROP IN tcp 443"])).await;
        assert_eq!(shared(&nft).await.len(), 1, "{:?}", shared(&nft).await);
        let untouched = handles(&before[0]);
        load(&nft, &all(&["DROP IN tcp 444"])).await;
        let without_jumps = |text: &str| -> String {
            let lines = text.lines().filter(|line| !line.contains("jump dept_"));
            lines.collect()
        };
        assert_eq!(
            without_jumps(&handles(&before[0])),
            without_jumps(&untouched)
        );
        assert_eq!(shared(&nft).await.len(), 1);
    });
}

#[test]
fn machines_that_go_different_ways_get_what_each_of_them_asked_for() {
    in_private_network(|| async {
        let nft = settled().await;
        load(&nft, &all(&["DROP IN tcp 80"])).await;
        nft.repair().await.unwrap();
        let others = all(&["DROP IN tcp 443"]);
        // Half of them, one by one and together; the other half keeps what it has.
        let (moved, kept) = others.split_at(MACHINES / 2);
        nft.ensure_vm(&moved[0]).await.unwrap();
        load(&nft, moved).await;
        assert_eq!(shared(&nft).await.len(), 2);
        for machine in kept {
            assert!(nft.ensure_vm_if_changed(machine).await.unwrap());
        }
        assert_eq!(
            shared(&nft).await.len(),
            1,
            "the last one takes the old chain with it"
        );
        assert!(!ruleset().contains("dport 80"));
        // An override, and a rule that comes between, take their machines' runs apart.
        let overriding = FirewallRuleInput {
            overrides_dept: true,
            ..rule("ACCEPT IN tcp 443")
        };
        let between = FirewallRuleInput {
            priority: 500.5,
            ..rule("ACCEPT IN tcp 1")
        };
        let later = FirewallRuleInput {
            priority: 501.0,
            ..rule("DROP IN tcp 2")
        };
        let special = [overriding, between].map(|own| {
            let department_rules = vec![rule("DROP IN tcp 443"), later.clone()];
            let machine = VmFirewall {
                department_rules,
                vm_rules: vec![own],
                ..vm("special")
            };
            compiled(&machine)
        });
        for machine in &special {
            nft.ensure_vm(machine).await.unwrap();
            assert!(!nft.ensure_vm_if_changed(machine).await.unwrap());
        }
        assert_eq!(
            shared(&nft).await.len(),
            2,
            "its own run, and the one it shares"
        );
    });
}

#[test]
fn shared_chains_go_with_the_last_machine_that_jumps_there() {
    in_private_network(|| async {
        let nft = settled().await;
        let machines = all(&["DROP IN tcp 80"]);
        load(&nft, &machines[..4]).await;
        nft.remove_vm(&machines[0].ruleset.names).await.unwrap();
        nft.flush_vm(&machines[1].ruleset.names, FirewallDefaultAction::Drop)
            .await
            .unwrap();
        // A machine that is off keeps its chains.
        nft.detach(&machines[2].ruleset.tap).await.unwrap();
        nft.remove_vm(&machines[3].ruleset.names).await.unwrap();
        assert_eq!(shared(&nft).await.len(), 1);
        nft.remove_vm(&machines[2].ruleset.names).await.unwrap();
        assert_eq!(shared(&nft).await, [] as [&str; 0]);

        // One that another process has loaded, removed by its visible name.
        loaded_by_another(&machines[4]);
        assert_eq!(shared(&nft).await.len(), 1);
        nft.remove_chain_by_name(&machines[4].ruleset.names.vm)
            .await
            .unwrap();
        assert_eq!(shared(&nft).await, [] as [&str; 0]);
    });
}

/// As another process would load it.
fn loaded_by_another(machine: &Compiled) {
    let batch = infinization_core::firewall::Transaction::ensure_vm(machine);
    let file = tempfile::NamedTempFile::new().unwrap();
    let document = infinization_core::firewall::document(&batch);
    std::fs::write(file.path(), document.to_string()).unwrap();
    run(&format!("nft -j -f {}", file.path().display()));
}

#[test]
fn another_process_that_shares_a_chain_is_left_alone() {
    in_private_network(|| async {
        let nft = settled().await;
        let machines = all(&["DROP IN tcp 80"]);
        load(&nft, &machines[..2]).await;
        // It loads the same chain again, which is no damage once it was seen.
        run("nft add chain bridge infinization elsewhere");
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        loaded_by_another(&machines[2]);
        assert_eq!(nft.repair().await.unwrap(), Repair::default());

        // Ours go elsewhere; its machine keeps what it was given.
        load(&nft, &all(&["DROP IN tcp 443"])[..2]).await;
        let its = chain(&machines[2].ruleset.names.vm);
        assert!(
            its.contains(machines[2].ruleset.shared_names().next().unwrap()),
            "{its}"
        );
        let theirs = chain(machines[2].ruleset.shared_names().next().unwrap());
        assert!(theirs.contains("tcp dport 80 drop"), "{theirs}");
        for machine in &machines[..2] {
            nft.remove_vm(&machine.ruleset.names).await.unwrap();
        }
        assert_eq!(shared(&nft).await.len(), 1);
    });
}

#[test]
fn f28_a_shared_chain_that_was_changed_is_put_back_for_all() {
    in_private_network(|| async {
        let nft = settled().await;
        let machines = all(&["DROP IN tcp 80", "DROP IN tcp 81"]);
        load(&nft, &machines).await;
        nft.repair().await.unwrap();
        let (good, name) = (
            ruleset(),
            machines[0].ruleset.shared_names().next().unwrap(),
        );
        let handle = run(&format!("nft -a list chain bridge infinization {name}"));
        let handle = handle
            .lines()
            .find(|line| line.contains("dport 80"))
            .unwrap();
        let handle = handle.rsplit(' ').next().unwrap();
        let meddling = [
            format!("nft flush chain bridge infinization {name}"),
            format!("nft insert rule bridge infinization {name} accept"),
            format!("nft delete rule bridge infinization {name} handle {handle}"),
        ];
        for command in meddling.iter().rev() {
            run(command);
            nft.meddled(OurTable::Filter).await.unwrap();
            let repair = nft.repair().await.unwrap();
            let damages: Vec<_> = repair
                .damages
                .iter()
                .map(|it| (it.part, &*it.name))
                .collect();
            assert_eq!(damages, [(Part::Rules, name)], "{command}");
            assert_eq!(repair.damages[0].machine, None);
            assert_eq!(ruleset(), good, "{command}");
            assert_eq!(nft.repair().await.unwrap(), Repair::default());
        }
        // The jump is the machine's.
        run(&format!(
            "nft flush chain bridge infinization {}",
            machines[3].ruleset.names.vm
        ));
        let repair = nft.repair().await.unwrap();
        assert_eq!(
            repair.damages[0].machine,
            Some(machines[3].ruleset.names.clone())
        );
        assert_eq!(ruleset(), good);
    });
}

#[test]
fn a_dormant_table_is_woken_up() {
    in_private_network(|| async {
        let nft = settled().await;
        let machine = compiled(&vm("vm-1"));
        nft.ensure_vm(&machine).await.unwrap();
        nft.repair().await.unwrap();
        let good = ruleset();
        for _ in 0..2 {
            run("nft add table bridge infinization { flags dormant; }");
            assert!(ruleset().contains("dormant"));
            nft.meddled(OurTable::Filter).await.unwrap();
            let repair = nft.repair().await.unwrap();
            assert_eq!(repair.damages[0].part, Part::Table);
            assert_eq!(ruleset(), good);
            assert_eq!(nft.repair().await.unwrap(), Repair::default());
        }
        run("nft add table bridge infinization { flags dormant; }");
        assert!(nft.ensure_vm_if_changed(&machine).await.unwrap());
        assert_eq!(ruleset(), good);
    });
}

#[test]
fn a_detached_machine_keeps_its_rules_for_the_day_it_is_attached() {
    in_private_network(|| async {
        let nft = settled().await;
        let machine = compiled(&member("vm-1", &["DROP IN tcp 80"], &["ACCEPT IN tcp 22"]));
        let (names, tap) = (&machine.ruleset.names, &machine.ruleset.tap);
        nft.ensure_vm(&machine).await.unwrap();
        nft.repair().await.unwrap();
        let good = ruleset();
        nft.detach(tap).await.unwrap();
        // Nobody looks after it now, and what is attached is what was loaded.
        run(&format!("nft flush chain bridge infinization {}", names.vm));
        nft.attach(names, tap).await.unwrap();
        assert_eq!(ruleset(), good);
        assert!(!nft.ensure_vm_if_changed(&machine).await.unwrap());
        run("nft flush ruleset");
        assert!(
            !nft.repair().await.unwrap().damages.is_empty(),
            "it is looked after again"
        );
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        assert_eq!(lines_of(&ruleset()), lines_of(&good));

        // One that was closed and whose table then went is nobody's to put back.
        nft.detach(tap).await.unwrap();
        run("nft flush ruleset");
        nft.repair().await.unwrap();
        assert!(nft.attach(names, tap).await.unwrap_err().is_absent());
    });
}

fn service() -> Firewall {
    Firewall::alone(&json!({ "bridgeConntrackMode": "degrade", "stateDir": "/nonexistent" }))
        .unwrap()
}

fn wanted(id: &str, port: u32) -> Wanted {
    let vm_id = VmId::parse(id).unwrap();
    Wanted {
        addresses: None,
        tap: VmNames::of(&vm_id).tap,
        vm_id,
        rules: RuleSplit {
            department_rules: rules(&["DROP IN tcp 7"]),
            vm_rules: vec![rule(&format!("ACCEPT IN tcp {port}"))],
        },
        default_action: FirewallDefaultAction::Drop,
    }
}

#[test]
fn overlapping_changes_of_one_machine_take_effect_in_the_order_they_were_asked_for() {
    in_private_network(|| async {
        let service = service();
        service.initialize().await.unwrap();
        let vm_id = VmId::parse("vm-1").unwrap();
        let visible = ChainNames::of(&vm_id).vm;
        for round in 0..5 {
            // Whoever is polled first, and however long each takes.
            let asked: Vec<_> = (1..=20)
                .map(|n| service.apply(wanted("vm-1", n + round * 100)))
                .collect();
            let tasks: Vec<_> = asked.into_iter().rev().map(tokio::spawn).collect();
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            let loaded = chain(&visible);
            assert!(
                loaded.contains(&format!("tcp dport {}", 20 + round * 100)),
                "{loaded}"
            );
        }
        let (last, removal) = (service.apply(wanted("vm-1", 9)), service.remove(&vm_id));
        let (removal, last) = (tokio::spawn(removal), tokio::spawn(last));
        removal.await.unwrap().unwrap();
        last.await.unwrap().unwrap();
        assert!(
            !service.chains().await.unwrap().contains(&visible),
            "removed last"
        );
        // Who gives up waiting is not served.
        drop(service.apply(wanted("vm-1", 10)));
        service.apply(wanted("vm-2", 11)).await.unwrap();
        assert!(!service.chains().await.unwrap().contains(&visible));
    });
}

#[test]
fn a_department_is_applied_to_its_machines_at_once() {
    in_private_network(|| async {
        let service = service();
        service.initialize().await.unwrap();
        let department = |port: u32| Department {
            rules: rules(&[&format!("DROP IN tcp {port}"), "ACCEPT OUT all"]),
            machines: (0..10)
                .map(|n| {
                    let Wanted { vm_id, tap, .. } = wanted(&format!("vm-{n}"), 1);
                    Member {
                        addresses: None,
                        vm_id,
                        tap_name: tap,
                        vm_rules: vec![rule("ACCEPT IN tcp 22"), rule("allow IN tcp 1")],
                        default_action: FirewallDefaultAction::Drop,
                    }
                })
                .collect(),
        };
        // Two of them overlap: the later one is the last word for all.
        let (first, second) = (
            service.apply_department(department(80)),
            service.apply_department(department(81)),
        );
        let (second, first) = tokio::join!(second, first);
        first.unwrap();
        let answers = second.unwrap();
        assert_eq!(answers.len(), 10);
        for (n, answer) in answers.iter().enumerate() {
            assert_eq!(answer.vm_id.as_str(), format!("vm-{n}"));
            let applied = answer.result.as_ref().unwrap();
            assert_eq!((applied.applied_rules, applied.failed_rules), (3, 1));
        }
        let loaded = ruleset();
        assert_eq!(loaded.matches("tcp dport 81 drop").count(), 1, "{loaded}");
        assert!(!loaded.contains("dport 80"), "{loaded}");
    });
}

#[test]
fn a_start_loads_no_rules_older_than_those_that_were_applied_meanwhile() {
    in_private_network(|| async {
        let nft = settled().await;
        let older = compiled(&member("vm-1", &[], &["ACCEPT IN tcp 22"]));
        let newer = compiled(&member("vm-1", &["DROP IN tcp 7"], &["ACCEPT IN tcp 80"]));
        nft.ensure_vm(&older).await.unwrap();
        let read = nft.moment();
        assert_eq!(nft.with_newest_rules(&older, read), older);
        nft.ensure_vm(&newer).await.unwrap();
        assert_eq!(nft.with_newest_rules(&older, read), newer);
        assert_eq!(nft.with_newest_rules(&older, nft.moment()), older);
        // What a repair puts back is not newer for that.
        let read = nft.moment();
        run("nft flush ruleset");
        nft.repair().await.unwrap();
        assert_eq!(nft.with_newest_rules(&older, read), older);
    });
}

#[test]
fn f27_one_machine_that_is_refused_fails_alone() {
    in_private_network(|| async {
        let nft = settled().await;
        let mut machines = all(&["DROP IN tcp 80"]);
        let nonsense = infinization_core::firewall::Match::is(
            infinization_core::firewall::Field::Protocol,
            "no-such-protocol",
        );
        let rule = &mut machines[3].ruleset.vm[0];
        *rule = rule.clone().when([nonsense]);
        let outcomes = nft.ensure_vms(&machines).await;
        for (n, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.is_err(), n == 3, "{n}: {outcome:?}");
        }
        let chains = nft.list_chains().await.unwrap();
        let visible = chains.iter().filter(|name| name.starts_with("vm_"));
        assert_eq!(visible.count(), MACHINES - 1);
    });
}

#[test]
fn a_machine_that_joins_while_its_department_changes_jumps_to_the_same_chain() {
    in_private_network(|| async {
        let nft = settled().await;
        load(&nft, &all(&["DROP IN tcp 80"])).await;
        nft.repair().await.unwrap();
        let mut after = all(&["DROP IN tcp 443"]);
        after.push(compiled(&member("joins", &["DROP IN tcp 443"], &[])));
        load(&nft, &after).await;
        for machine in &after {
            assert!(!nft.ensure_vm_if_changed(machine).await.unwrap());
        }
        assert_eq!(shared(&nft).await.len(), 1);
        assert_eq!(ruleset().matches("tcp dport 443 drop").count(), 1);
    });
}
