//! Freezing a guest's file systems around a moment, and thawing them whatever happens.

use std::time::Duration;

use tokio::time::timeout;

use super::machine::Machine;

/// A guest that has not frozen by then is copied as it is. Flushing takes longest here.
const FREEZE: Duration = Duration::from_secs(30);
const THAW: Duration = Duration::from_secs(15);
const THAW_ATTEMPTS: u32 = 3;

/// Does `work` while the guest's file systems are frozen, if they can be, and says whether they were.
/// They are thawed as soon as `work` ends, and also where freezing failed: it may have taken effect.
pub(super) async fn around<T>(machine: &dyn Machine, work: impl Future<Output = T>) -> (T, bool) {
    let frozen = match timeout(FREEZE, machine.freeze()).await {
        Ok(Ok(frozen)) => frozen,
        Ok(Err(why)) => {
            tracing::warn!(why, "a guest could not be frozen; it is copied as it is");
            Some(0)
        }
        Err(_elapsed) => {
            tracing::warn!("a guest did not freeze in time; it is copied as it is");
            Some(0)
        }
    };
    let done = work.await;
    if frozen.is_some() {
        thaw(machine).await;
    }
    (done, frozen.is_some_and(|count| count > 0))
}

async fn thaw(machine: &dyn Machine) {
    for attempt in 1..=THAW_ATTEMPTS {
        match timeout(THAW, machine.thaw()).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => tracing::warn!(attempt, why, "a guest could not be thawed"),
            Err(_elapsed) => tracing::warn!(attempt, "a guest did not thaw in time"),
        }
    }
    tracing::error!("a guest's file systems may still be frozen");
}
