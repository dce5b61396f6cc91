//! Machines that are being put back on a bridge.
//!
//! Invariant: each has one attempt at a time, and none waits for another's rules. What is heard of one meanwhile is
//! kept, and looked at when its attempt is over. Neighbour: [`super::standing`] has decided that it returns.

use std::collections::HashMap;

use tokio::task::{JoinError, JoinSet};

use crate::error::Failure;
use crate::types::LinkName;
use crate::vm::Port;

/// What became of an attempt.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) port: Port,
    pub(super) bridge: LinkName,
    /// The bridge's, when the attempt began.
    pub(super) index: u32,
    pub(super) outcome: Result<bool, Failure>,
    /// Whether something was heard meanwhile that concerns it.
    pub(super) was_heard_of: bool,
}

/// The attempts under way. Dropped, they are given up.
#[derive(Debug, Default)]
pub(super) struct Joining {
    attempts: JoinSet<Attempt>,
    /// Their TAPs, and whether something was heard of each.
    heard: HashMap<LinkName, bool>,
}

impl Joining {
    /// Begins to put the TAP on the bridge, which has this index.
    pub(super) fn begin(&mut self, port: Port, bridge: LinkName, index: u32) {
        self.heard.insert(port.tap().clone(), false);
        self.attempts.spawn(async move {
            let outcome = port.rejoin(&bridge).await;
            Attempt {
                port,
                bridge,
                index,
                outcome,
                was_heard_of: false,
            }
        });
    }

    /// The next attempt that is over; none if there are none under way.
    pub(super) async fn next(&mut self) -> Option<Attempt> {
        let over = self.attempts.join_next().await?;
        Some(self.take(over))
    }

    /// The next attempt that is over already.
    pub(super) fn try_next(&mut self) -> Option<Attempt> {
        let over = self.attempts.try_join_next()?;
        Some(self.take(over))
    }

    fn take(&mut self, over: Result<Attempt, JoinError>) -> Attempt {
        let mut attempt = match over {
            Ok(attempt) => attempt,
            Err(defect) => std::panic::resume_unwind(defect.into_panic()),
        };
        attempt.was_heard_of = self.heard.remove(attempt.port.tap()) == Some(true);
        attempt
    }

    /// Whether the TAP of this name is being put on a bridge.
    pub(super) fn has(&self, tap: &str) -> bool {
        self.heard.keys().any(|joining| joining.as_str() == tap)
    }

    /// Keeps that something was heard of the TAP, if it is being put on a bridge; whether it is.
    pub(super) fn hears_of(&mut self, tap: &LinkName) -> bool {
        let heard = self.heard.get_mut(tap);
        heard.map(|heard| *heard = true).is_some()
    }
}
