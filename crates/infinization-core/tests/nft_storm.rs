//! A storm of foreign commits: programs are counted, so this is the one test of its process.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use std::time::{Duration, Instant};

use infinization_core::host::program::programs_started;
use infinization_test_kit::{self as kit, firewall};

use firewall::{ruleset, run};
use kit::in_private_network;
use kit::machine::Host;

/// Between two looks of a manager.
const BREATH: Duration = Duration::from_millis(200);
/// A listing of the filter, a load, a listing of the NAT table.
const PROGRAMS_OF_A_LOOK: u128 = 3;

#[test]
fn f28_a_storm_of_meddling_costs_a_few_programs_a_second_and_ends_sound() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let good = ruleset();
        let (before, began) = (programs_started(), Instant::now());
        for _ in 0..100 {
            run("nft delete table bridge infinization");
            run("nft add table bridge infinization");
        }
        let restored = async {
            while ruleset() != good {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, restored).await.unwrap();
        let looks = began.elapsed().as_millis() / BREATH.as_millis() + 2;
        let started = u128::from(programs_started() - before);
        assert!(started >= 2, "it was read and repaired");
        assert!(
            started <= looks * PROGRAMS_OF_A_LOOK,
            "{started} programs in {looks} looks"
        );

        // Afterwards it is quiet.
        tokio::time::sleep(2 * BREATH).await;
        let calm = programs_started();
        tokio::time::sleep(3 * BREATH).await;
        assert_eq!(programs_started(), calm);
        manager.shutdown().await.unwrap();
    });
}
