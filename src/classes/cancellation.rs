//! An `AbortSignal` on this side of the boundary.

use napi_derive::napi;
use tokio_util::sync::CancellationToken;

/// What an `AbortSignal` pulls: the façade makes one per call that was given a signal.
#[napi]
#[derive(Debug, Default)]
pub struct Cancellation(CancellationToken);

#[napi]
impl Cancellation {
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the call this was given to; idempotent.
    #[napi]
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// The token of a call: one that never fires when the caller gave no signal.
    pub(crate) fn token(given: Option<&Self>) -> CancellationToken {
        given.map(|it| it.0.clone()).unwrap_or_default()
    }
}
