//! What was removed, flushed or closed stays so, and a machine whose rules cannot be loaded is closed.

use super::*;

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
