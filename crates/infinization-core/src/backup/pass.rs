//! What a pass over files heeds, which is whether it is still wanted, and tells: the bytes it is through with.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::progress::Step;

/// One pass, by as many threads as share it.
pub(super) struct Pass {
    cancel: CancellationToken,
    told: Option<Step>,
    /// Bytes in all.
    whole: u64,
    through: AtomicU64,
}

impl Pass {
    /// Over `whole` bytes, as the step of some work, which begins.
    pub(super) fn told(step: Step, whole: u64, cancel: &CancellationToken) -> Self {
        step.is_at(0.0);
        Self {
            cancel: cancel.clone(),
            told: Some(step),
            whole,
            through: AtomicU64::new(0),
        }
    }

    /// Nobody wants to know how far it is.
    #[cfg(test)]
    pub(super) fn untold(cancel: &CancellationToken) -> Self {
        Self {
            cancel: cancel.clone(),
            told: None,
            whole: 0,
            through: AtomicU64::new(0),
        }
    }

    /// Fails once it is cancelled.
    pub(super) fn go_on(&self) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }

    /// Says that so many more bytes are done.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a fraction needs no 53 bits of it"
    )]
    pub(super) fn advance(&self, bytes: u64) {
        let Some(step) = &self.told else {
            return;
        };
        let through = self.through.fetch_add(bytes, Ordering::Relaxed) + bytes;
        step.is_at(through as f64 / self.whole.max(1) as f64);
    }
}
