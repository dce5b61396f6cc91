//! The firewall's transactions against the real kernel, in private network namespaces.

use infinization_core::firewall::{
    BridgeConntrackMode, ChainNames, Conntrack, Degradation, Field, Item, Match, NftRule,
    VmFirewall,
};
use infinization_core::host::nft::{Listing, Nft};
use infinization_core::types::{FirewallDefaultAction, FirewallRuleInput, LinkName};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit::{self as kit, firewall};

use firewall::{address, chain, compiled, network, rule, rules, ruleset, run, strongest, vm};
use kit::in_private_network;

fn names(vm: &VmFirewall) -> ChainNames {
    ChainNames::of(&vm.vm_id)
}

#[test]
fn one_transaction_sets_up_table_hooks_chains_rules_and_dispatch() {
    in_private_network(|| async {
        let nft = Nft::new();
        let vm = VmFirewall {
            bridge_addresses: vec![network("10.0.0.1/24"), network("fd00::1/64")],
            known_addresses: vec![address("10.0.0.5"), address("fd00::5")],
            vm_rules: rules(&["ACCEPT IN tcp 22", "DROP INOUT icmp", "ACCEPT OUT all"]),
            ..vm("vm-1")
        };
        let vm = strongest(nft.capabilities().await.unwrap(), vm);
        let before = infinization_core::host::program::programs_started();
        nft.ensure_vm(&compiled(&vm)).await.unwrap();
        let spawned = infinization_core::host::program::programs_started() - before;
        assert!(
            spawned >= 1,
            "other tests may have started programs meanwhile"
        );

        let names = names(&vm);
        let listed = nft.list_chains().await.unwrap();
        let visible: Vec<_> = listed
            .iter()
            .filter(|name| name.starts_with("vm_"))
            .collect();
        assert_eq!(visible, [&names.vm]);
        assert!(nft.chain_exists(&names.vm).await.unwrap());
        assert!(
            !nft.chain_exists("vm_000000000000000000000000")
                .await
                .unwrap()
        );

        let user = chain(&names.vm);
        assert!(
            user.contains("tcp dport 22 accept comment \"ACCEPT IN tcp 22\""),
            "{user}"
        );
        assert!(
            user.contains("drop comment \"infinization-default-drop\""),
            "{user}"
        );
        for (hook, key, map) in [
            ("prerouting", "iifname", "from_vm"),
            ("postrouting", "oifname", "to_vm"),
        ] {
            let base = chain(hook);
            assert!(base.contains(&format!("hook {hook} priority")), "{base}");
            assert!(base.contains("policy accept"), "{base}");
            assert!(base.contains(&format!("{key} vmap @{map}")), "{base}");
            assert!(base.contains(&format!("{key} \"vnet-*\" drop")), "{base}");
            let map = run(&format!("nft list map bridge infinization {map}"));
            assert!(map.contains(&format!("\"{}\" : jump", vm.tap)), "{map}");
        }
    });
}

#[test]
fn a_vlan_tag_hides_nothing_from_the_rules() {
    in_private_network(|| async {
        let nft = Nft::new();
        let vm = VmFirewall {
            bridge_addresses: vec![network("10.0.0.1/24"), network("fd00::1/64")],
            known_addresses: vec![address("10.0.0.5"), address("fd00::5")],
            vm_rules: rules(&["ACCEPT IN tcp 22", "DROP INOUT icmp"]),
            ..vm("vm-1")
        };
        nft.ensure_vm(&compiled(&vm)).await.unwrap();
        // `ether type` reads the tag's own type; `meta protocol` reads what is behind it.
        let loaded = ruleset();
        assert!(!loaded.contains("ether type"), "{loaded}");
        let debug = run("nft --debug=netlink list ruleset");
        assert!(debug.contains("meta load protocol"), "{debug}");
        assert!(!debug.contains("load 2b @ link header + 12"), "{debug}");
    });
}

#[test]
fn applying_again_replaces_and_leaves_nothing_over() {
    in_private_network(|| async {
        let nft = Nft::new();
        let first = VmFirewall {
            vm_rules: rules(&["ACCEPT IN tcp 22"]),
            ..vm("vm-1")
        };
        nft.ensure_vm(&compiled(&first)).await.unwrap();
        let once = ruleset();
        nft.ensure_vm(&compiled(&first)).await.unwrap();
        assert_eq!(ruleset(), once);

        let second = VmFirewall {
            vm_rules: rules(&["ACCEPT IN tcp 80"]),
            default_action: FirewallDefaultAction::Accept,
            ..vm("vm-1")
        };
        nft.ensure_vm(&compiled(&second)).await.unwrap();
        let replaced = ruleset();
        assert!(replaced.contains("dport 80") && !replaced.contains("dport 22"));
        assert!(replaced.contains("infinization-default-accept"));
        assert!(!replaced.contains("infinization-default-drop"));
    });
}

#[test]
fn f8_unchanged_is_what_the_kernel_says() {
    in_private_network(|| async {
        let nft = Nft::new();
        let vm = VmFirewall {
            vm_rules: rules(&["ACCEPT IN tcp 22"]),
            ..vm("vm-1")
        };
        let (names, wanted) = (names(&vm), compiled(&vm));
        assert_eq!(nft.read_vm(&names).await.unwrap(), Listing::default());
        assert!(nft.ensure_vm_if_changed(&wanted).await.unwrap());
        assert!(!nft.ensure_vm_if_changed(&wanted).await.unwrap());
        let good = ruleset();

        let meddling = [
            "nft flush ruleset".to_owned(),
            format!("nft flush chain bridge infinization {}", names.vm),
            format!("nft insert rule bridge infinization {} accept", names.from),
            format!(
                "nft delete element bridge infinization to_vm {{ {} }}",
                vm.tap
            ),
            "nft flush chain bridge infinization prerouting".to_owned(),
        ];
        for command in meddling {
            run(&command);
            assert!(
                nft.ensure_vm_if_changed(&wanted).await.unwrap(),
                "{command}"
            );
            assert_eq!(ruleset(), good, "{command}");
        }
        nft.flush_vm(&names, FirewallDefaultAction::Drop)
            .await
            .unwrap();
        assert!(nft.ensure_vm_if_changed(&wanted).await.unwrap());
    });
}

#[test]
fn f27_a_refused_batch_leaves_the_old_rules() {
    in_private_network(|| async {
        let nft = Nft::new();
        let vm = VmFirewall {
            vm_rules: rules(&["ACCEPT IN tcp 22"]),
            ..vm("vm-1")
        };
        nft.ensure_vm(&compiled(&vm)).await.unwrap();
        let before = ruleset();

        let mut broken = compiled(&VmFirewall {
            vm_rules: rules(&["ACCEPT IN tcp 80", "ACCEPT IN tcp 81"]),
            ..vm
        });
        make_nonsense(&mut broken.ruleset.vm[1]);
        let error = nft.ensure_vm(&broken).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NftCommandFailed);
        assert_eq!(error.context()["exitCode"], 1);
        assert_eq!(ruleset(), before);
    });
}

/// Neither our encoder nor nft knows the word.
fn make_nonsense(rule: &mut NftRule) {
    let nonsense = Match::is(Field::Protocol, Item::Word("no-such-protocol".into()));
    *rule = rule.clone().when([nonsense]);
}

#[test]
fn f27_a_refused_first_batch_leaves_nothing() {
    in_private_network(|| async {
        let mut broken = compiled(&vm("vm-1"));
        make_nonsense(&mut broken.ruleset.vm[0]);
        Nft::new().ensure_vm(&broken).await.unwrap_err();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn f15_removing_one_vm_leaves_the_other_alone() {
    in_private_network(|| async {
        let nft = Nft::new();
        let (a, b) = (vm("vm-a"), vm("vm-b"));
        nft.ensure_vm(&compiled(&b)).await.unwrap();
        let only_b = ruleset();
        nft.ensure_vm(&compiled(&a)).await.unwrap();

        nft.remove_vm(&names(&a)).await.unwrap();
        assert_eq!(ruleset(), only_b);
        nft.remove_vm(&names(&a)).await.unwrap();
        assert_eq!(ruleset(), only_b);

        nft.ensure_vm(&compiled(&a)).await.unwrap();
        nft.remove_chain_by_name(&names(&a).vm).await.unwrap();
        assert_eq!(ruleset(), only_b);
        let error = nft.remove_chain_by_name("prerouting").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ChainNotFound);
    });
}

#[test]
fn f15_removing_from_an_empty_host_makes_nothing() {
    in_private_network(|| async {
        let nft = Nft::new();
        let names = names(&vm("vm-a"));
        nft.remove_vm(&names).await.unwrap();
        nft.detach(&names.default_tap().unwrap()).await.unwrap();
        nft.flush_vm(&names, FirewallDefaultAction::Drop)
            .await
            .unwrap();
        assert_eq!(ruleset(), "");
        assert_eq!(nft.list_chains().await.unwrap(), [] as [&str; 0]);
        let tap = names.default_tap().unwrap();
        assert!(nft.attach(&names, &tap).await.unwrap_err().is_absent());
    });
}

#[test]
fn f15_chains_that_another_port_leads_to_are_removed_too() {
    in_private_network(|| async {
        let nft = Nft::new();
        let tap = |name: &str| LinkName::parse(name).unwrap();
        let a = VmFirewall {
            tap: tap("vnet-recorded"),
            ..vm("vm-a")
        };
        // Its usual port leads to somebody else's chains, which must survive.
        let b = VmFirewall {
            tap: vm("vm-a").tap,
            ..vm("vm-b")
        };
        nft.ensure_vm(&compiled(&b)).await.unwrap();
        let only_b = ruleset();
        nft.ensure_vm(&compiled(&a)).await.unwrap();
        nft.remove_vm(&names(&a)).await.unwrap();
        assert_eq!(ruleset(), only_b);
    });
}

#[test]
fn detach_and_attach_change_only_the_dispatch() {
    in_private_network(|| async {
        let nft = Nft::new();
        let vm = vm("vm-1");
        nft.ensure_vm(&compiled(&vm)).await.unwrap();
        let attached = ruleset();
        nft.detach(&vm.tap).await.unwrap();
        assert!(!ruleset().contains(&format!("\"{}\" : jump", vm.tap)));
        assert!(nft.chain_exists(&names(&vm).vm).await.unwrap());
        nft.detach(&vm.tap).await.unwrap();
        nft.attach(&names(&vm), &vm.tap).await.unwrap();
        nft.attach(&names(&vm), &vm.tap).await.unwrap();
        assert_eq!(ruleset(), attached);

        let half = format!(
            "nft delete element bridge infinization from_vm {{ {} }}",
            vm.tap
        );
        run(&half);
        nft.detach(&vm.tap).await.unwrap();
        assert!(!ruleset().contains(" : jump"), "{}", ruleset());
    });
}

#[test]
fn f7_chains_are_closed_from_birth_and_after_a_flush() {
    in_private_network(|| async {
        let nft = Nft::new();
        let vm = VmFirewall {
            vm_rules: rules(&["ACCEPT IN tcp 22"]),
            ..vm("vm-1")
        };
        let names = names(&vm);
        nft.create_chains(&names).await.unwrap();
        assert!(chain(&names.vm).contains("drop comment \"infinization-default-drop\""));

        nft.ensure_vm(&compiled(&vm)).await.unwrap();
        let loaded = ruleset();
        nft.create_chains(&names).await.unwrap();
        assert_eq!(ruleset(), loaded, "existing chains are left as they are");

        nft.flush_vm(&names, FirewallDefaultAction::Accept)
            .await
            .unwrap();
        let flushed = chain(&names.vm);
        assert!(!flushed.contains("dport 22"), "{flushed}");
        assert!(
            flushed.contains("accept comment \"infinization-default-accept\""),
            "{flushed}"
        );
    });
}

#[test]
fn b27_a_thousand_rules_are_one_transaction() {
    in_private_network(|| async {
        let nft = Nft::new();
        let many = |count: u32| VmFirewall {
            vm_rules: (0..count)
                .map(|n| rule(&format!("ACCEPT IN udp {}", n % 65_536)))
                .collect(),
            ..vm("vm-1")
        };
        let vm = many(1_000);
        nft.ensure_vm(&compiled(&vm)).await.unwrap();
        assert_eq!(chain(&names(&vm).vm).matches("udp dport").count(), 1_000);
        nft.ensure_vm(&compiled(&many(10_000))).await.unwrap();
        assert!(
            !nft.ensure_vm_if_changed(&compiled(&many(10_000)))
                .await
                .unwrap()
        );
    });
}

#[test]
fn b26_names_are_data() {
    in_private_network(|| async {
        let nft = Nft::new();
        let names = [
            "\"; flush ruleset; #".to_owned(),
            "x\" accept comment \"y".to_owned(),
            "line\nadd rule bridge infinization prerouting accept".to_owned(),
            "$(id) `id` ${PATH} \\\" \\u0000".to_owned(),
            "{\"flush\":{\"ruleset\":null}}".to_owned(),
            "\u{0}\u{1b}[2J".to_owned(),
            "😀".repeat(300),
            "ж".repeat(300),
            "infinization-default-accept".to_owned(),
        ];
        let vm_rules: Vec<_> = names
            .iter()
            .map(|name| FirewallRuleInput {
                name: name.clone(),
                ..rule("DROP IN tcp 7")
            })
            .collect();
        let vm = VmFirewall {
            vm_rules,
            ..vm("vm-1")
        };
        let wanted = compiled(&vm);
        assert_eq!(wanted.failures, []);
        nft.ensure_vm(&wanted).await.unwrap();
        assert!(!nft.ensure_vm_if_changed(&wanted).await.unwrap());
        let loaded = chain(&ChainNames::of(&vm.vm_id).vm);
        assert_eq!(
            loaded.matches("tcp dport 7 drop").count(),
            names.len(),
            "{loaded}"
        );

        // The listing is text that can be loaded again: no comment breaks out of its quotes.
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = ruleset();
        std::fs::write(file.path(), &text).unwrap();
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        assert_eq!(ruleset(), text);
    });
}

#[test]
fn f29_rules_outlive_the_process_that_loaded_them() {
    in_private_network(|| async {
        // The transport is a process of its own, which is gone when the call returns; nothing of
        // ours holds a netlink socket that could own the table.
        Nft::new().ensure_vm(&compiled(&vm("vm-1"))).await.unwrap();
        let loaded = ruleset();
        assert!(!loaded.contains("flags owner"), "{loaded}");
        assert!(loaded.contains("infinization-default-drop"), "{loaded}");
    });
}

#[test]
fn f28_a_foreign_flush_is_repaired() {
    in_private_network(|| async {
        let nft = Nft::new();
        let wanted = compiled(&vm("vm-1"));
        nft.ensure_vm(&wanted).await.unwrap();
        let before = ruleset();
        run("nft flush ruleset");
        assert_eq!(nft.list_chains().await.unwrap(), [] as [&str; 0]);
        assert!(nft.ensure_vm_if_changed(&wanted).await.unwrap());
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn f30_what_the_kernel_cannot_do_is_an_error_or_a_documented_mode() {
    in_private_network(|| async {
        let nft = Nft::new();
        let capabilities = nft.capabilities().await.unwrap();
        assert_eq!(ruleset(), "", "probing leaves nothing");
        if capabilities.conntrack {
            let mode = nft.conntrack(BridgeConntrackMode::Fail).await.unwrap();
            assert_eq!(mode, Conntrack::Stateful);
            return;
        }
        let error = nft.conntrack(BridgeConntrackMode::Fail).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ConntrackUnavailable);
        for word in ["nf_conntrack_bridge", "bridgeConntrackMode"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        let mode = nft.conntrack(BridgeConntrackMode::Degrade).await.unwrap();
        assert_eq!(mode, Conntrack::Stateless);
    });
}

#[test]
fn f30_degraded_rules_load_and_are_listed() {
    in_private_network(|| async {
        let stated = FirewallRuleInput {
            connection_state: Some(serde_json::json!({ "new": true, "established": true })),
            ..rule("ACCEPT IN tcp 22")
        };
        let vm = VmFirewall {
            vm_rules: vec![stated, rule("REJECT OUT tcp 25")],
            ..vm("vm-1")
        };
        let wanted = compiled(&vm);
        let degraded: Vec<_> = wanted
            .degraded
            .iter()
            .map(|rule| rule.degradation)
            .collect();
        assert_eq!(
            degraded,
            [Degradation::StateIgnored, Degradation::RejectDrops]
        );
        assert_eq!(wanted.failures, []);
        Nft::new().ensure_vm(&wanted).await.unwrap();
        let loaded = chain(&names(&vm).vm);
        assert!(!loaded.contains("ct state"), "{loaded}");
        assert!(loaded.contains("tcp dport 25 drop"), "{loaded}");
    });
}

#[test]
fn prepare_takes_over_a_table_of_the_earlier_implementation() {
    in_private_network(|| async {
        let old = "table bridge infinization {\n\
            chain vm_2d62b0035f348790d3b99c33 {\n drop\n }\n\
            chain forward {\n type filter hook forward priority 0; policy accept;\n\
            iifname \"vnet-2d62b0035f\" jump vm_2d62b0035f348790d3b99c33\n }\n }\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), old).unwrap();
        run(&format!("nft -f {}", file.path().display()));

        let nft = Nft::new();
        nft.prepare().await.unwrap();
        assert!(!nft.chain_exists("forward").await.unwrap());
        assert!(
            nft.chain_exists("vm_2d62b0035f348790d3b99c33")
                .await
                .unwrap()
        );
        let prepared = ruleset();
        nft.prepare().await.unwrap();
        assert_eq!(ruleset(), prepared);
        nft.ensure_vm(&compiled(&vm("vm-1"))).await.unwrap();
        nft.remove_vm(&names(&vm("vm-1"))).await.unwrap();
        let left = nft.list_chains().await.unwrap();
        assert_eq!(left, ["prerouting", "postrouting", "output"]);
    });
}

#[test]
fn transactions_at_once_do_not_lose_each_other() {
    in_private_network(|| async {
        let nft = Nft::new();
        let vms: Vec<_> = (0..20).map(|n| vm(&format!("vm-{n}"))).collect();
        let tasks: Vec<_> = vms
            .iter()
            .map(|vm| {
                let (nft, wanted) = (nft.clone(), compiled(vm));
                tokio::spawn(async move { nft.ensure_vm(&wanted).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        for vm in &vms {
            assert!(!nft.ensure_vm_if_changed(&compiled(vm)).await.unwrap());
        }
    });
}
