//! Whatever is taken or changed is noticed, named and put back.

use std::fmt::Write as _;

use super::*;

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
fn f28_masquerading_is_not_put_back_before_every_port_is_closed() {
    in_private_network(|| async {
        let (nft, _machines) = two_machines().await;
        let [a, b] = ["br-a", "br-b"].map(|bridge| Masquerade {
            subnet: Subnet::parse("10.0.3.0/24").unwrap(),
            bridge: LinkName::parse(bridge).unwrap(),
        });
        nft.masquerade(a.clone()).await.unwrap();
        let good = contents();
        run("nft flush ruleset");
        notices(&nft).await;
        assert_eq!(nft.repair_nat().await.unwrap(), [a.bridge]);
        assert!(is_closed(), "{}", ruleset());
        let repair = nft.repair().await.unwrap();
        assert_eq!(parts(&repair)[0], (Part::Table, None));
        assert_eq!(contents(), good);

        run("nft flush ruleset");
        nft.masquerade(b).await.unwrap();
        assert!(is_closed(), "{}", ruleset());
    });
}

/// Chains of others', which to delete is told in more words than there is room for.
fn many_others() {
    let mut script = "add table bridge other\n".to_owned();
    for n in 0..30_000 {
        writeln!(script, "add chain bridge other c{n}").unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    run(&format!("nft -f {}", file.path().display()));
}

#[test]
fn f28_a_table_that_is_lost_among_more_than_there_is_room_for_is_closed_before_anything_is_read() {
    in_private_network(|| async {
        let (nft, _machines) = two_machines().await;
        let good = contents();
        many_others();
        nft.repair().await.unwrap();
        run("nft flush ruleset");
        notices(&nft).await;
        nft.close_if_gone().await.unwrap();
        assert!(is_closed(), "{}", ruleset());
        let repair = nft.repair().await.unwrap();
        assert_eq!(parts(&repair)[0], (Part::Table, None));
        assert_eq!(contents(), good);

        // Where it is there, it is left as it is.
        many_others();
        run("nft delete table bridge other");
        notices(&nft).await;
        nft.close_if_gone().await.unwrap();
        assert_eq!(contents(), good);
        nft.repair().await.unwrap();
        assert_eq!(contents(), good);
        is_settled(&nft).await;
    });
}

#[test]
fn more_than_there_is_room_for_is_read_back() {
    in_private_network(|| async {
        let (nft, _machines) = two_machines().await;
        let good = contents();
        many_others();
        run("nft flush ruleset");
        notices(&nft).await;
        assert!(!nft.repair().await.unwrap().damages.is_empty());
        assert_eq!(contents(), good);
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        assert!(is_quiet(&nft).await);
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

/// What is left when nothing but the table and its hooks is there.
fn is_closed() -> bool {
    let all = run("nft list table bridge infinization");
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
