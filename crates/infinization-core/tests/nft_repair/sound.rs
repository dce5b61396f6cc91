//! What is no damage: our own changes, those elsewhere, and what another process has in the table.

use std::fmt::Write as _;

use super::*;

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

#[test]
fn another_process_that_loads_the_same_again_has_damaged_nothing() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        // What a chain says is known once it was read.
        run("nft add chain bridge infinization foreign");
        notices(&nft).await;
        assert_eq!(nft.repair().await.unwrap(), Repair::default());

        let other = Nft::with_transport(Arc::new(NftProgram::default()));
        for _ in 0..2 {
            other.ensure_vm(&compiled(&a)).await.unwrap();
            let both = run("nft -a list ruleset");
            notices(&nft).await;
            assert_eq!(nft.repair().await.unwrap(), Repair::default());
            assert_eq!(run("nft -a list ruleset"), both);
            assert!(is_quiet(&nft).await);
            assert!(!nft.ensure_vm_if_changed(&compiled(&a)).await.unwrap());
        }

        // One rule of it is changed where it stands now.
        let changed = VmFirewall {
            vm_rules: rules(&["ACCEPT IN tcp 22", "DROP IN tcp 24"]),
            ..a
        };
        nft.ensure_vm(&compiled(&changed)).await.unwrap();
        let edited = contents();
        other.ensure_vm(&compiled(&changed)).await.unwrap();
        assert_eq!(contents(), edited);
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
