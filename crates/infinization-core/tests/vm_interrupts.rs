//! A forced stop that waits behind another request does not wait for what hangs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::pin::pin;

use infinization_core::ErrorCode;
use infinization_test_kit as kit;
use kit::machine::{Host, consistent_status, delete, forced, never};
use kit::meddler::{Deed, Meddler};
use serde_json::Value;

#[test]
fn f35_a_forced_stop_ends_the_start_before_it_at_whatever_step_that_hangs() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Hang);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        let machine = host.machine("hang-1");
        manager.create_vm(machine, never()).await.unwrap();
        let stop = || manager.stop_vm("hang-1".into(), forced(), never());
        stop().await.unwrap();
        let start = || manager.start_vm("hang-1".into(), Value::Null, never());
        let stopped = async |what: &str| {
            let status = consistent_status(&manager, "hang-1").await;
            assert_eq!(status["status"], "off", "{what}");
        };
        let mut steps = 0;
        loop {
            meddler.arm(steps);
            let mut starting = pin!(start());
            tokio::select! {
                started = &mut starting => {
                    // Every step has hung once.
                    started.unwrap();
                    meddler.disarm();
                    break;
                }
                () = meddler.hits() => {}
            }
            let (started, forced) = tokio::join!(starting, stop());
            forced.unwrap();
            let step = meddler.took_hit().unwrap();
            stopped(step).await;
            let failure = started.unwrap_err();
            assert_eq!(failure.code(), ErrorCode::Aborted, "{step}: {failure}");
            steps += 1;
        }
        stop().await.unwrap();

        // One that waits before anything hangs, which is let through to the first step, or the last.
        for step in [0, steps - 1] {
            meddler.arm(step);
            let (started, forced) = tokio::join!(start(), stop());
            meddler.disarm();
            forced.unwrap();
            stopped("it waited").await;
            // On a busy host another step takes as long as one that hangs.
            assert_eq!(started.unwrap_err().code(), ErrorCode::Aborted);
        }
        delete(&manager, "hang-1").await;
        host.is_clean().await;
    });
}
