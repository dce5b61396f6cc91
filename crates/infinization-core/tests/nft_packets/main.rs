//! What becomes of real packets: a matrix of rule sets and traffic against an independent model, and
//! the ways around a firewall.
//!
//! `INFINIZATION_PACKET_SEED` and `INFINIZATION_PACKET_CASES` choose other rule sets.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

mod cases;
#[path = "../kit/firewall.rs"]
mod firewall;
mod flows;
#[path = "../kit/mod.rs"]
mod kit;
mod matrix;
mod model;
#[path = "../packet_kit/mod.rs"]
mod packet_kit;
mod random;
mod rule;

use infinization_core::host::nft::Nft;
use infinization_core::manager::Firewall;
use serde_json::json;

use kit::in_private_network;
use matrix::Matrix;
use model::Kernel;
use packet_kit::Site;

const SEED: u64 = 2026;
const CASES: usize = 208;

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
    let kernel = Kernel {
        tracks: capabilities.conntrack,
        rejects: capabilities.reject,
    };
    (firewall, kernel)
}

#[test]
fn f1_f2_f13_every_packet_goes_where_the_rules_say() {
    in_private_network(|| async {
        let seed = setting("INFINIZATION_PACKET_SEED").unwrap_or(SEED);
        let count = setting("INFINIZATION_PACKET_CASES").map_or(CASES, |n| n.try_into().unwrap());
        println!("INFINIZATION_PACKET_SEED={seed} INFINIZATION_PACKET_CASES={count}");
        let (firewall, kernel) = service().await;
        let mut matrix = Matrix::new(Site::new().await, firewall, kernel);
        for case in cases::cases(seed, count) {
            matrix.try_case(&case).await;
        }
        println!("{count} rule sets, {} packets, {kernel:?}", matrix.packets);
        matrix.finish();
    });
}
