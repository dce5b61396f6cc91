//! Thawing is not given up at the first failure: a guest that stays frozen hangs.

use std::fmt::Display;

const ATTEMPTS: u32 = 3;

/// Asks a guest to thaw, up to three times. `ask` has its own deadline. Why it was not thawed in the end.
pub async fn ask_to_thaw<T, E: Display, F: Future<Output = Result<T, E>>>(
    ask: impl Fn() -> F,
) -> Result<T, E> {
    let mut attempt = 1;
    loop {
        match ask().await {
            Err(error) if attempt < ATTEMPTS => {
                tracing::warn!(attempt, %error, "a guest could not be thawed");
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}
