//! What other programs do to the firewall is noticed, told from what we do, and put back.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

mod closed;
mod damage;
mod manager;
mod orphans;
mod ports;
mod sound;

use std::sync::Arc;
use std::time::Duration;

use firewall::{chain, compiled, rules, ruleset, run, vm};
use infinization_core::events::Event;
use infinization_core::firewall::{
    ChainNames, Masquerade, Subnet, Transaction, VmFirewall, document,
};
use infinization_core::host::nft::{Nft, NftProgram, OurTable, Part, Repair};
use infinization_core::manager::Manager;
use infinization_core::types::{FirewallDefaultAction, LinkName};
use infinization_test_kit::{self as kit, firewall};
use kit::in_private_network;
use kit::machine::{Host, create, delete, forced, never, next_event};
use kit::switch::{Mode, Switch};
use serde_json::json;
use tokio::sync::broadcast;
use tokio::time::timeout;

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
