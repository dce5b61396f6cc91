//! A change touches the rules that change and no other, and what is left is what was asked for: against the
//! real kernel.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use infinization_core::firewall::{Compiled, VmFirewall, table_text};
use infinization_core::host::nft::{Nft, OurTable, Part, Repair};
use infinization_core::types::FirewallRuleInput;
use infinization_test_kit::{self as kit, firewall};
use tokio::time::timeout;

use firewall::{chain, compiled, rule, rules, run, vm};
use kit::in_private_network;

/// Long enough for a loaded machine.
const SOON: Duration = Duration::from_secs(20);
/// Whoever has nothing to notice is quiet for so long.
const QUIET: Duration = Duration::from_millis(300);

async fn settled() -> Nft {
    let nft = Nft::new();
    nft.prepare().await.unwrap();
    nft
}

fn machine(vm_rules: Vec<FirewallRuleInput>) -> Compiled {
    compiled(&VmFirewall {
        vm_rules,
        ..vm("edited")
    })
}

/// A machine of a department and nothing else.
fn member(department_rules: Vec<FirewallRuleInput>) -> Compiled {
    compiled(&VmFirewall {
        department_rules,
        ..vm("edited")
    })
}

fn thousand() -> Vec<FirewallRuleInput> {
    (1..=1000)
        .map(|port| rule(&format!("ACCEPT IN udp {port}")))
        .collect()
}

/// Every rule of a chain, with the kernel's number.
fn handles(chain: &str) -> BTreeSet<String> {
    let listed = run(&format!("nft -a list chain bridge infinization {chain}"));
    let lines = listed.lines().filter(|line| line.contains("comment"));
    lines.map(|line| line.trim().to_owned()).collect()
}

/// What nft lists of the machine's own chains is what it lists of another table with the same rules, loaded
/// whole.
fn assert_holds(machine: &Compiled) {
    let table = "table bridge infinization";
    let text = table_text(machine).replace(table, "table bridge whole");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    run(&format!("nft -f {}", file.path().display()));
    for name in machine.ruleset.names.all() {
        let whole = run(&format!("nft list chain bridge whole {name}"));
        assert_eq!(
            chain(name),
            whole.replace("bridge whole", "bridge infinization")
        );
    }
    run("nft delete table bridge whole");
}

/// Reads all of it back: what is remembered of it, the handles too, is so.
async fn assert_is_believed_rightly(nft: &Nft) {
    nft.distrust();
    assert_eq!(nft.repair().await.unwrap(), Repair::default());
}

#[test]
fn one_rule_of_a_thousand_is_changed_alone() {
    in_private_network(|| async {
        let nft = settled().await;
        let mut rules = thousand();
        let loaded = machine(rules.clone());
        nft.ensure_vm(&loaded).await.unwrap();
        let vm = loaded.ruleset.names.vm.clone();
        for round in 0..20 {
            let before = handles(&vm);
            rules[40 * round] = rule(&format!("DROP IN udp {}", 5000 + round));
            let changed = machine(rules.clone());
            nft.ensure_vm(&changed).await.unwrap();
            let after = handles(&vm);
            assert_eq!(before.difference(&after).count(), 1, "one is gone");
            assert_eq!(after.difference(&before).count(), 1, "and one is new");
            assert_holds(&changed);
        }
        assert_is_believed_rightly(&nft).await;
    });
}

#[test]
fn any_list_becomes_any_other() {
    in_private_network(|| async {
        let nft = settled().await;
        let words = [
            "ACCEPT IN tcp 22",
            "DROP IN tcp 23",
            "ACCEPT OUT udp 53",
            "DROP INOUT icmp",
            "ACCEPT INOUT tcp 443",
            "DROP OUT all",
        ];
        let mut seed = 7_usize;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut list: Vec<&str> = Vec::new();
        for round in 0..60 {
            for _ in 0..=random(4) {
                match random(3) {
                    0 if !list.is_empty() => {
                        let at = random(list.len());
                        list.remove(at);
                    }
                    1 => {
                        let by = random(list.len() + 1);
                        list.rotate_left(by);
                    }
                    _ => {
                        let at = random(list.len() + 1);
                        list.insert(at, words[random(words.len())]);
                    }
                }
            }
            let wanted = machine(rules(&list));
            nft.ensure_vm(&wanted).await.unwrap();
            assert_holds(&wanted);
            assert!(!nft.ensure_vm_if_changed(&wanted).await.unwrap());
            if round % 20 == 19 {
                assert_is_believed_rightly(&nft).await;
            }
        }
    });
}

#[test]
fn a_department_s_rule_is_changed_alone_under_all_its_machines() {
    in_private_network(|| async {
        let nft = settled().await;
        let mut rules = thousand();
        let before = member(rules.clone());
        nft.ensure_vm(&before).await.unwrap();
        assert_is_believed_rightly(&nft).await;
        let name = |machine: &Compiled| machine.ruleset.shared_names().next().unwrap().to_owned();
        let old = handles(&name(&before));
        rules[500] = rule("DROP IN udp 5000");
        let after = member(rules);
        nft.ensure_vm(&after).await.unwrap();
        let new = handles(&name(&after));
        assert_eq!(
            (old.difference(&new).count(), new.difference(&old).count()),
            (1, 1)
        );
        assert!(!nft.chain_exists(&name(&before)).await.unwrap());
        assert!(!nft.ensure_vm_if_changed(&after).await.unwrap());
        assert_is_believed_rightly(&nft).await;
    });
}

/// What an edit is made for must be what there is: whoever is committed in between, it is loaded whole then.
#[test]
fn f28_edits_come_out_right_whatever_others_commit_meanwhile() {
    in_private_network(|| async {
        let nft = settled().await;
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let others = tokio::task::spawn_blocking(move || {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                run("nft add table inet other");
                run("nft delete table inet other");
                count += 1;
            }
            count
        });
        let mut rules = thousand();
        rules.truncate(50);
        for round in 0..200 {
            let at = round % rules.len();
            rules[at] = rule(&format!("DROP OUT tcp {}", 1000 + round));
            nft.ensure_vm(&machine(rules.clone())).await.unwrap();
        }
        over.store(true, Ordering::Relaxed);
        assert!(others.await.unwrap() > 0);
        assert_holds(&machine(rules));
        assert_is_believed_rightly(&nft).await;
    });
}

#[test]
fn f28_a_chain_that_another_has_changed_is_not_edited_but_loaded() {
    in_private_network(|| async {
        let nft = settled().await;
        let mut list = rules(&["ACCEPT IN tcp 22", "DROP IN tcp 23", "ACCEPT IN tcp 24"]);
        let before = machine(list.clone());
        nft.ensure_vm(&before).await.unwrap();
        let vm = &before.ruleset.names.vm;
        run(&format!(
            "nft insert rule bridge infinization {vm} accept comment \"mine\""
        ));
        list[1] = rule("DROP IN tcp 25");
        let after = machine(list);
        nft.ensure_vm(&after).await.unwrap();
        assert_holds(&after);
        assert!(!chain(vm).contains("mine"));
        nft.repair().await.unwrap();
        assert_is_believed_rightly(&nft).await;
    });
}

/// Replaces the last rule of a chain by one that looks the same, and has more told than there is room for.
fn meddle_unheard(chain: &str, comment: &str, verdict: &str) {
    let listed = run(&format!("nft -a list chain bridge infinization {chain}"));
    let line = listed.lines().rfind(|line| line.contains(comment)).unwrap();
    let handle = line.rsplit(' ').next().unwrap();
    overflow(&format!(
        "replace rule bridge infinization {chain} handle {handle} {verdict} comment \"{comment}\""
    ));
}

/// Commits this with more than there is room for to be told.
fn overflow(command: &str) {
    let mut script = String::from("add table bridge other\n");
    for n in 0..30_000 {
        writeln!(script, "add chain bridge other c{n}").unwrap();
    }
    script.push_str(command);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    run(&format!("nft -f {}", file.path().display()));
    run("nft delete table bridge other");
}

#[test]
fn one_rule_is_changed_alone_after_others_had_more_told_than_there_is_room_for() {
    in_private_network(|| async {
        let nft = settled().await;
        let mut rules = thousand();
        let loaded = machine(rules.clone());
        nft.ensure_vm(&loaded).await.unwrap();
        assert_is_believed_rightly(&nft).await;
        overflow("");
        let noticed = timeout(SOON, nft.meddled(OurTable::Filter)).await;
        noticed.unwrap().unwrap();
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        assert_changed_alone(&nft, &mut rules).await;
    });
}

#[test]
fn a_load_of_more_rules_than_can_be_told_is_no_news_and_one_of_them_is_changed_alone() {
    in_private_network(|| async {
        let nft = settled().await;
        let watcher = nft.clone();
        let mut watching =
            tokio::spawn(async move { watcher.meddled(OurTable::Filter).await.unwrap() });
        let mut rules: Vec<_> = (1..=10_000)
            .map(|port| rule(&format!("ACCEPT IN udp {port}")))
            .collect();
        for _ in 0..2 {
            let loaded = machine(rules.clone());
            nft.ensure_vm(&loaded).await.unwrap();
            rules.reverse();
        }
        rules.reverse();
        assert!(timeout(QUIET, &mut watching).await.is_err());
        watching.abort();
        assert_changed_alone(&nft, &mut rules).await;
        assert_is_believed_rightly(&nft).await;
    });
}

/// Changes one of the machine's rules.
async fn assert_changed_alone(nft: &Nft, rules: &mut [FirewallRuleInput]) {
    rules[500] = rule("DROP IN udp 5000");
    let changed = machine(rules.to_vec());
    let vm = &changed.ruleset.names.vm;
    let before = handles(vm);
    nft.ensure_vm(&changed).await.unwrap();
    let after = handles(vm);
    assert_eq!(before.difference(&after).count(), 1);
    assert_eq!(after.difference(&before).count(), 1);
}

/// A machine of a department, and another: found as they should be before anybody meddles, or never looked at.
async fn change_nobody_heard_of(is_seen: bool) {
    let nft = settled().await;
    let both = VmFirewall {
        department_rules: rules(&["DROP IN tcp 23"]),
        ..vm("edited")
    };
    let both = compiled(&both);
    let other = compiled(&vm("untouched"));
    nft.ensure_vm(&other).await.unwrap();
    assert_is_believed_rightly(&nft).await;
    nft.ensure_vm(&both).await.unwrap();
    if is_seen {
        assert_is_believed_rightly(&nft).await;
    }
    let department = both.ruleset.shared_names().next().unwrap();
    let own = &both.ruleset.names.vm;
    for (meddled, comment) in [
        (department, "DROP IN tcp 23"),
        (own.as_str(), "infinization-default-drop"),
    ] {
        let (good, untouched) = (chain(meddled), handles(&other.ruleset.names.vm));
        meddle_unheard(meddled, comment, "accept");
        assert_ne!(chain(meddled), good);
        let noticed = timeout(SOON, nft.meddled(OurTable::Filter)).await;
        noticed.unwrap().unwrap();
        let repair = nft.repair().await.unwrap();
        let damaged = repair.damages.iter();
        let damaged: Vec<_> = damaged.map(|it| (it.part, it.name.as_str())).collect();
        let found = (Part::Rules, meddled);
        assert!(
            if is_seen {
                damaged == [found]
            } else {
                damaged.contains(&found)
            },
            "{damaged:?}"
        );
        assert_eq!(chain(meddled), good);
        assert_eq!(
            handles(&other.ruleset.names.vm),
            untouched,
            "nobody has touched it"
        );
        if is_seen {
            assert_is_believed_rightly(&nft).await;
        }
    }
}

#[test]
fn f28_a_change_nobody_heard_of_is_found_in_any_chain() {
    in_private_network(|| change_nobody_heard_of(true));
}

/// Nothing tells such a chain from one that is as it should be, so it is loaded again.
#[test]
fn f28_a_change_nobody_heard_of_is_undone_in_chains_that_were_not_read_since_they_were_loaded() {
    in_private_network(|| change_nobody_heard_of(false));
}

/// Somebody replaces a rule by one that looks the same while no process of ours is there to hear of it.
#[test]
fn f28_what_was_changed_before_this_process_began_is_undone_by_its_first_load() {
    in_private_network(|| async {
        let both = compiled(&VmFirewall {
            department_rules: rules(&["DROP IN tcp 23"]),
            ..vm("edited")
        });
        settled().await.ensure_vm(&both).await.unwrap();
        let department = both.ruleset.shared_names().next().unwrap();
        let own = &both.ruleset.names.vm;
        let good = [department, own].map(chain);
        meddle_unheard(department, "DROP IN tcp 23", "accept");
        meddle_unheard(own, "infinization-default-drop", "accept");

        let nft = settled().await;
        nft.adopt_vm(&both.ruleset.names, &both.ruleset.tap);
        assert_eq!(nft.repair().await.unwrap().unconfirmed.len(), 1);
        assert_ne!(
            [department, own].map(chain),
            good,
            "nobody can tell by reading"
        );
        assert!(nft.ensure_vm_if_changed(&both).await.unwrap());
        assert_eq!([department, own].map(chain), good);
        assert!(!nft.ensure_vm_if_changed(&both).await.unwrap());
        let before = handles(own);
        nft.ensure_vm(&both).await.unwrap();
        assert_eq!(handles(own), before, "from then on it is known");
        assert_is_believed_rightly(&nft).await;
    });
}
