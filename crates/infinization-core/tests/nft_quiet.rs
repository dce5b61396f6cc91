//! What costs nothing: programs are counted, so this is the one test of its process.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use std::fmt::Write as _;

use infinization_core::firewall::{Compiled, Masquerade, Subnet};
use infinization_core::host::nft::{Nft, OurTable, Repair};
use infinization_core::host::program::programs_started;
use infinization_core::types::LinkName;
use infinization_test_kit::{self as kit, firewall};

use firewall::{compiled, run, vm};
use kit::in_private_network;

/// Everything that is asked for again and again, and has not changed.
async fn again(nft: &Nft, machine: &Compiled, masquerade: &Masquerade) {
    nft.prepare().await.unwrap();
    assert!(!nft.ensure_vm_if_changed(machine).await.unwrap());
    nft.masquerade(masquerade.clone()).await.unwrap();
    assert_eq!(nft.repair().await.unwrap(), Repair::default());
    assert_eq!(nft.repair_nat().await.unwrap(), []);
}

#[test]
fn b28_unchanged_costs_no_program_whatever_others_do_elsewhere() {
    in_private_network(|| async {
        let nft = Nft::new();
        let (a, b) = (compiled(&vm("vm-a")), compiled(&vm("vm-b")));
        let masquerade = Masquerade {
            subnet: Subnet::parse("10.0.3.0/24").unwrap(),
            bridge: LinkName::parse("br-a").unwrap(),
        };
        nft.prepare().await.unwrap();
        nft.ensure_vm(&a).await.unwrap();
        nft.masquerade(masquerade.clone()).await.unwrap();

        let mut before = programs_started();
        again(&nft, &a, &masquerade).await;
        assert_eq!(programs_started(), before, "nothing has happened");

        // Our own changes are no news either, and cost no program themselves.
        nft.ensure_vm(&b).await.unwrap();
        nft.detach(&b.ruleset.tap).await.unwrap();
        again(&nft, &a, &masquerade).await;
        assert_eq!(programs_started(), before);

        // Another handle of the same process knows what this one does.
        before = programs_started();
        again(&Nft::new(), &a, &masquerade).await;
        assert_eq!(programs_started(), before);

        // A thousand foreign commits, heard as they come by somebody who waits for worse.
        let waits = nft.clone();
        let waiting = tokio::spawn(async move { waits.meddled(OurTable::Filter).await });
        let mut script = String::new();
        for n in 0..1000 {
            writeln!(script, "add table inet other{n}").unwrap();
        }
        let one_by_one = run_each(&script);
        assert_eq!(one_by_one, 1000);
        again(&nft, &a, &masquerade).await;
        assert_eq!(programs_started(), before);
        assert!(!waiting.is_finished());

        // One that concerns us is read, and repaired: a listing, a load without one, and a listing to be
        // sure.
        run("nft delete table bridge infinization");
        waiting.await.unwrap().unwrap();
        assert!(!nft.repair().await.unwrap().damages.is_empty());
        assert_eq!(nft.repair().await.unwrap(), Repair::default());
        again(&nft, &a, &masquerade).await;
        assert_eq!(programs_started(), before + 2);
        again(&nft, &a, &masquerade).await;
        assert_eq!(programs_started(), before + 2);
    });
}

/// Each line a commit of its own, by one interactive `nft`.
fn run_each(script: &str) -> usize {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut nft = Command::new("nft");
    let nft = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut nft = nft.stderr(Stdio::null()).spawn().unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    nft.wait().unwrap();
    run("nft list tables").matches("table inet other").count()
}
