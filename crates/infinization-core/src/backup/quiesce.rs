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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::qmp::QmpClient;

    /// A guest whose agent died while freezing, and comes back for the last thaw.
    #[derive(Default)]
    struct Hangs {
        thaws: AtomicU32,
    }

    #[async_trait]
    impl Machine for Hangs {
        async fn is_running(&self) -> Option<bool> {
            Some(true)
        }

        fn monitor(&self) -> Option<QmpClient> {
            None
        }

        async fn freeze(&self) -> Result<Option<u64>, String> {
            std::future::pending().await
        }

        async fn thaw(&self) -> Result<(), String> {
            if self.thaws.fetch_add(1, Ordering::AcqRel) + 1 == THAW_ATTEMPTS {
                return Ok(());
            }
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn f39_a_freeze_that_hangs_ends_and_is_thawed() {
        let guest = Hangs::default();
        let (done, frozen) = around(&guest, async { 7 }).await;
        assert_eq!((done, frozen), (7, false));
        assert_eq!(guest.thaws.load(Ordering::Acquire), THAW_ATTEMPTS);
    }
}
