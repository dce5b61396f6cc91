//! The Node.js bindings of `infinization-core`: they convert arguments, call the core and convert
//! what comes back. No behaviour lives here.
//!
//! What JavaScript hands in is read by [`argument`]; what it gets back is made by [`outcome`] in the
//! caller's own realm, and of the many small monitor calls by [`answers`]; facts travel up through
//! [`events`], what is logged through [`log`]; the caller's database is asked through [`js_port`].
//! `classes/` has one file per exported class.
//! The public face (`index.js`, `index.d.ts`) is written by hand over these.
#![allow(
    clippy::needless_pass_by_value,
    clippy::trivially_copy_pass_by_ref,
    clippy::unused_async,
    unreachable_pub,
    reason = "N-API dictates the signatures and the visibility of what is exported"
)]
#![cfg_attr(
    test,
    allow(dead_code, reason = "without Node nothing registers what is exported")
)]

mod answers;
mod argument;
mod classes;
mod errors;
mod events;
mod js_port;
mod js_value;
mod log;
mod monitor_events;
mod outcome;
mod panics;
mod runtime;

/// Runs once, when the addon is loaded into the process.
#[cfg(not(test))]
#[napi_derive::module_init]
fn load() {
    log::open();
    panics::quiet();
}
