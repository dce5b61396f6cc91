//! A forced stop that waits behind another request does not wait for what hangs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use infinization_core::ErrorCode;
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
        for step in 0.. {
            meddler.arm(step);
            let start = manager.start_vm("hang-1".into(), Value::Null, never());
            let (started, stopped) = tokio::join!(start, stop());
            meddler.disarm();
            stopped.unwrap();
            let status = consistent_status(&manager, "hang-1").await;
            assert_eq!(status["status"], "off", "step {step}");
            let Some(name) = meddler.took_hit() else {
                // Every step has hung once.
                started.unwrap();
                break;
            };
            let failure = started.unwrap_err();
            assert_eq!(failure.code(), ErrorCode::Aborted, "{name}: {failure}");
        }
        delete(&manager, "hang-1").await;
        host.is_clean().await;
    });
}
