//! Memory that bursts of work leave behind.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "malloc_trim has no safe wrapper")
)]

use super::blocking::blocking;
use super::own_code;

/// Gives the system back what the allocator keeps for nobody, and the code that does not run. glibc gives each
/// thread an arena, and returns only what is free at an arena's end: taking a hundred machines back left tens of
/// MiB so.
pub(crate) async fn give_back() {
    // Where there is no thread for it, it can wait.
    let _not_now = blocking(|| {
        trim();
        if let Err(error) = own_code::let_go() {
            tracing::debug!(%error, "the code that does not run stays in memory");
        }
    })
    .await;
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it may be called at any time, from any thread (glibc 2.8 and later trim all arenas).
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no such call, and no arenas.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
