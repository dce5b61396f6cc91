//! Freezing a guest's file systems around a moment, and thawing them whatever happens. That it may be frozen
//! is noted from before until after, so that a kill in between is followed up.

use std::time::Duration;

use tokio::time::timeout;

use super::machine::Machine;
use crate::qmp::ask_to_thaw;

/// A guest that has not frozen by then is copied as it is. Flushing takes longest here.
const FREEZE: Duration = Duration::from_secs(30);
const THAW: Duration = Duration::from_secs(15);

/// Does `work` while the guest's file systems are frozen, if they can be, and says whether they were.
/// They are thawed as soon as `work` ends, and also where freezing failed: it may have taken effect.
pub(super) async fn around<T>(machine: &dyn Machine, work: impl Future<Output = T>) -> (T, bool) {
    let frozen = freeze(machine).await;
    let done = work.await;
    match frozen {
        Some(_any) => thaw(machine).await,
        None => machine.forget_freeze().await,
    }
    (done, frozen.is_some_and(|count| count > 0))
}

/// `None` where it certainly is not frozen.
async fn freeze(machine: &dyn Machine) -> Option<u64> {
    if let Err(why) = machine.note_freeze().await {
        tracing::warn!(
            why,
            "no note could be made of a guest to thaw; it is copied as it is"
        );
        return None;
    }
    match timeout(FREEZE, machine.freeze()).await {
        Ok(Ok(frozen)) => frozen,
        Ok(Err(why)) => {
            tracing::warn!(why, "a guest could not be frozen; it is copied as it is");
            Some(0)
        }
        Err(_elapsed) => {
            tracing::warn!("a guest did not freeze in time; it is copied as it is");
            Some(0)
        }
    }
}

async fn thaw(machine: &dyn Machine) {
    let ask = || async {
        let late = |_elapsed| Err("it did not answer in time".to_owned());
        timeout(THAW, machine.thaw()).await.unwrap_or_else(late)
    };
    match ask_to_thaw(ask).await {
        Ok(()) => machine.forget_freeze().await,
        Err(why) => tracing::error!(why, "a guest's file systems may still be frozen"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::qmp::QmpClient;

    #[derive(Clone, Copy)]
    enum Freezing {
        Works,
        Hangs,
        /// There is no agent.
        Nobody,
    }

    /// A guest of which all that is asked is noted down.
    struct Guest {
        asked: Mutex<Vec<&'static str>>,
        can_note: bool,
        freezing: Freezing,
        /// Which attempt to thaw does not hang.
        thaws_at: usize,
    }

    impl Guest {
        fn note_down(&self, asked: &'static str) -> usize {
            let mut all = self.asked.lock().unwrap();
            all.push(asked);
            all.iter().filter(|one| **one == asked).count()
        }
    }

    #[async_trait]
    impl Machine for Guest {
        async fn is_running(&self) -> Option<bool> {
            Some(true)
        }

        fn monitor(&self) -> Option<QmpClient> {
            None
        }

        async fn note_freeze(&self) -> Result<(), String> {
            self.note_down("note");
            self.can_note.then_some(()).ok_or("full".to_owned())
        }

        async fn forget_freeze(&self) {
            self.note_down("forget");
        }

        async fn freeze(&self) -> Result<Option<u64>, String> {
            self.note_down("freeze");
            match self.freezing {
                Freezing::Works => Ok(Some(1)),
                Freezing::Nobody => Ok(None),
                Freezing::Hangs => std::future::pending().await,
            }
        }

        async fn thaw(&self) -> Result<(), String> {
            if self.note_down("thaw") == self.thaws_at {
                return Ok(());
            }
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn f39_a_guest_is_thawed_and_only_then_forgotten() {
        use Freezing::{Hangs, Nobody, Works};
        for (expected, consistent, can_note, freezing, thaws_at) in [
            ("note freeze work thaw forget", true, true, Works, 1),
            (
                "note freeze work thaw thaw thaw forget",
                false,
                true,
                Hangs,
                3,
            ),
            ("note freeze work thaw thaw thaw", true, true, Works, 4),
            ("note freeze work forget", false, true, Nobody, 1),
            ("note work forget", false, false, Works, 1),
        ] {
            let guest = Guest {
                asked: Mutex::default(),
                can_note,
                freezing,
                thaws_at,
            };
            let work = async { guest.note_down("work") };
            let (_, frozen) = around(&guest, work).await;
            assert_eq!(guest.asked.lock().unwrap().join(" "), expected);
            assert_eq!(frozen, consistent, "{expected}");
        }
    }
}
