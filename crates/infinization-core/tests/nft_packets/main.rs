//! What becomes of real packets: a matrix of rule sets and traffic against an independent model, and
//! the ways around a firewall.
//!
//! `INFINIZATION_PACKET_SEED` and `INFINIZATION_PACKET_CASES` choose other rule sets. Where
//! `INFINIZATION_FULL_KERNEL` is set, the kernel must be able to track connections and to reject.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]
#![expect(
    clippy::print_stdout,
    reason = "a failed run is repeated with what it printed"
)]

mod addresses;
mod bypass;
mod cases;
mod flows;
mod matrix;
mod model;
mod random;
mod rule;

use infinization_core::host::nft::Nft;
use infinization_core::manager::Firewall;
use infinization_test_kit::{self as kit, firewall};
use serde_json::json;

use kit::in_private_network;
use kit::packets::Site;
use matrix::Matrix;
use model::Kernel;

const SEED: u64 = 2026;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// The service as it is used without a manager; stateful where the kernel can.
async fn service() -> (Firewall, Kernel) {
    let firewall = Firewall::alone(&json!({ "bridgeConntrackMode": "degrade" })).unwrap();
    firewall.initialize().await.unwrap();
    let capabilities = Nft::new().capabilities().await.unwrap();
    let calls = std::fs::read_to_string(CALL_IPTABLES).unwrap_or_default();
    let kernel = Kernel {
        tracks: capabilities.conntrack,
        rejects: capabilities.reject,
        calls_iptables: calls.trim() == "1",
    };
    let promised = std::env::var_os("INFINIZATION_FULL_KERNEL").is_some();
    assert!(!promised || kernel.tracks && kernel.rejects, "{kernel:?}");
    (firewall, kernel)
}

/// Of br_netfilter, which may not be there.
const CALL_IPTABLES: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Says whether br_netfilter is there to be told.
fn call_iptables(call: bool) -> bool {
    let switch = if call { "1" } else { "0" };
    let there = std::path::Path::new(CALL_IPTABLES).exists();
    for family in ["iptables", "ip6tables", "arptables"] {
        if there {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
            std::fs::write(path, switch).unwrap();
        }
    }
    there
}

async fn try_cases(default: usize) {
    let seed = setting("INFINIZATION_PACKET_SEED").unwrap_or(SEED);
    let count = setting("INFINIZATION_PACKET_CASES").map_or(default, |n| n.try_into().unwrap());
    println!("INFINIZATION_PACKET_SEED={seed} INFINIZATION_PACKET_CASES={count}");
    let (firewall, kernel) = service().await;
    let mut matrix = Matrix::new(Site::new().await, firewall, kernel);
    for case in cases::cases(seed, count) {
        matrix.try_case(&case).await;
    }
    println!("{count} rule sets, {} packets, {kernel:?}", matrix.packets);
    matrix.finish();
}

#[test]
fn f1_f2_f13_every_packet_goes_where_the_rules_say() {
    in_private_network(|| async {
        call_iptables(false);
        try_cases(208).await;
    });
}

/// Docker and others load br_netfilter, whose default is to have the IP hooks called.
#[test]
fn f1_the_rules_hold_while_bridged_frames_pass_the_ip_hooks() {
    in_private_network(|| async {
        if call_iptables(true) {
            try_cases(60).await;
        } else {
            println!("br_netfilter is not loaded here: scripts/full-kernel tries it");
        }
    });
}
