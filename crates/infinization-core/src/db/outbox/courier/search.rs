//! Looks for a database that is away: one task tries again, with growing pauses; whoever else hears
//! from the database wakes it at once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::Courier;
use crate::db::outbox::cause::Cause;

/// Before the first attempt after a failure; doubled with each that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Between attempts at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Courier {
    pub(super) fn begin_to_look(&self) {
        let (me, wake) = (Weak::clone(&self.me), Arc::clone(&self.wake));
        tokio::spawn(look_for_it(me, wake));
    }

    /// One attempt to find the database, or to deliver what it has not taken; whether that is done.
    async fn look(&self) -> bool {
        if !self.lock().lanes.is_empty() {
            let patience = self.lock().longest_answer();
            let settled = self.settle_all(patience).await;
            return settled.is_ok_and(|behind| behind.is_empty());
        }
        // To its own deadline: one that has become slow is found all the same.
        let began = Instant::now();
        match self.inner.find_machines_by_statuses(&["starting"]).await {
            Err(error) if matches!(Cause::of(&error), Cause::Unreachable | Cause::Trouble) => false,
            // Whatever it says, it answers.
            _ => {
                self.lock().answered_since(began);
                true
            }
        }
    }

    /// Whether there is nothing to look for any more.
    fn has_found(&self) -> bool {
        let mut state = self.lock();
        let found = state.away.is_none() || state.closed;
        state.looking = !found;
        found
    }
}

/// Looks for the database until it has taken everything.
async fn look_for_it(courier: Weak<Courier>, wake: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let _woken = timeout(pause, wake.notified()).await;
        let Some(courier) = courier.upgrade() else {
            return;
        };
        let looked = courier.look().await;
        if courier.has_found() {
            return;
        }
        pause = if looked {
            FIRST_PAUSE
        } else {
            LONGEST_PAUSE.min(pause * 2)
        };
    }
}
