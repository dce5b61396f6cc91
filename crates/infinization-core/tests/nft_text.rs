//! The rules as they are shown, against the rules as they are loaded.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use infinization_core::firewall::{ChainNames, Compiled, VmFirewall, chain_texts, table_text};
use infinization_core::host::nft::Nft;
use infinization_core::types::{FirewallDefaultAction, FirewallRuleInput, VmId};
use infinization_core::{ErrorCode, firewall::Service};
use infinization_test_kit::{self as kit, firewall};
use serde_json::json;

use firewall::{address, chain, compiled, network, rule, rules, ruleset, run, strongest, vm};
use kit::in_private_network;
use kit::machine::{Host, create, delete, forced, never};

/// What nft lists after it was given the text.
fn loaded_from_text(compiled: &Compiled) -> String {
    run("nft flush ruleset");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), table_text(compiled)).unwrap();
    run(&format!("nft -f {}", file.path().display()));
    ruleset()
}

#[test]
fn the_text_means_what_is_loaded() {
    in_private_network(|| async {
        let nft = Nft::new();
        let capabilities = nft.capabilities().await.unwrap();
        let of_addresses = FirewallRuleInput {
            src_ip_addr: Some("10.0.0.0".into()),
            src_ip_mask: Some("8".into()),
            src_port_start: Some(1000.0),
            src_port_end: Some(2000.0),
            ..rule("ACCEPT INOUT tcp 443")
        };
        let names =
            ["it's; \"drop\" \\ {}", "ж".repeat(64).as_str()].map(|name| FirewallRuleInput {
                name: name.to_owned(),
                dst_ip_addr: Some("fd00::7".into()),
                ..rule("DROP OUT udp 53")
            });
        let machines = [
            vm("vm-1"),
            VmFirewall {
                bridge_addresses: vec![network("10.0.0.1/24"), network("fd00::1/64")],
                known_addresses: vec![address("10.0.0.5"), address("fd00::5")],
                vm_rules: rules(&[
                    "ACCEPT IN tcp 22",
                    "DROP INOUT icmp",
                    "REJECT OUT all",
                    "REJECT IN tcp 1",
                ]),
                ..vm("vm-1")
            },
            VmFirewall {
                department_rules: vec![of_addresses],
                vm_rules: names.to_vec(),
                default_action: FirewallDefaultAction::Accept,
                ..vm("vm-1")
            },
        ];
        for machine in machines {
            let wanted = compiled(&strongest(capabilities, machine));
            assert_eq!(wanted.failures, []);
            let shown = loaded_from_text(&wanted);
            run("nft flush ruleset");
            nft.ensure_vm(&wanted).await.unwrap();
            assert_eq!(shown, ruleset());
        }
    });
}

#[test]
fn every_chain_is_shown_and_explaining_changes_nothing() {
    let wanted = compiled(&vm("vm-1"));
    let names = ChainNames::of(&VmId::parse("vm-1").unwrap());
    let chains = chain_texts(&wanted);
    let shown: Vec<_> = chains
        .iter()
        .map(|it| (it.name.as_str(), it.hook))
        .collect();
    let hooks = ["prerouting", "postrouting", "output"].map(|hook| (hook, Some(hook)));
    let own = [&names.from, &names.to, &names.vm].map(|name| (name.as_str(), None));
    assert_eq!(shown, [&hooks[..], &own].concat());
    let vm = &chains.last().unwrap().rules;
    assert_eq!(vm, &["drop comment \"infinization-default-drop\""]);
}

#[test]
fn a_machine_that_is_off_or_runs_is_explained_by_its_stored_rules() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let nobody = manager.explain_firewall("nobody".into()).await.unwrap_err();
        assert_eq!(nobody.code(), ErrorCode::VmNotFound);

        create(&host, &manager, "explain-1").await;
        let ssh = Service::known("ssh").unwrap();
        let from = serde_json::from_value(json!({ "from": "10.0.0.0/8" })).unwrap();
        let rules = serde_json::to_value(ssh.rules(&from).unwrap()).unwrap();
        manager
            .set_firewall_rules("explain-1".into(), rules)
            .await
            .unwrap();
        let running = manager.explain_firewall("explain-1".into()).await.unwrap();
        assert_eq!(running["totalRules"], 1);
        assert_eq!(running["defaultAction"], "drop");
        // Exactly what is in force.
        let name = running["chainName"].as_str().unwrap();
        let in_force = chain(name);
        for rule in running["chains"][5]["rules"].as_array().unwrap() {
            let comment = rule.as_str().unwrap().split("comment").nth(1).unwrap();
            assert!(in_force.contains(comment), "{rule}: {in_force}");
        }

        manager
            .stop_vm("explain-1".into(), forced(), never())
            .await
            .unwrap();
        run("nft flush ruleset");
        host.links.delete(&host.bridge).await.unwrap();
        let off = manager.explain_firewall("explain-1".into()).await.unwrap();
        assert_eq!(off["chains"][5], running["chains"][5]);
        host.build_bridge().await;
        delete(&manager, "explain-1").await;
        manager.shutdown().await.unwrap();
        host.is_clean().await;
    });
}
