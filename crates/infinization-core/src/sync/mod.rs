//! Rows kept in step with QEMUs, for users who drive the machines themselves: the public classes
//! `StateSync`, `EventHandler` and `HealthMonitor` over a database of theirs.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `reaction` | what an event, a run state, a pidfile means (pure) |
//! | `turns` | the lock per VM, which the user may share with code of his |
//! | `state` | [`StateSync`]: one row, one question |
//! | `handler`, `watch` | [`EventHandler`]: which VMs are attached; following one of them |
//! | `health`, `orphans` | [`HealthMonitor`]: rows against processes; pidfiles against rows |
//! | `processes` | which process is which machine's, where nothing but a pid was recorded |
//! | `cleanup` | giving back what a QEMU that is gone held on the host |
//!
//! Invariants: what is derived is written with a guard, never over `error` or a claim of the user's;
//! a row is written before anybody is told; no process is signalled that is not proven to be the one
//! meant. Neighbours: [`crate::vm`] does the same for the machines of a manager, where it knows more:
//! their ledgers and the identity of their processes.

mod cleanup;
mod handler;
mod health;
mod orphans;
mod processes;
mod reaction;
mod state;
mod turns;
mod watch;

pub use cleanup::{CleanupResourceState, CleanupResult};
pub use handler::{EventHandler, Watching};
pub use health::HealthMonitor;
pub use state::{StateSync, SyncResult};
pub use turns::Turns;
