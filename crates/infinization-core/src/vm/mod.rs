//! One VM's life: its task, its states, its plans, and the list of what it holds.
//!
//! ```text
//!            create                         stop, guest shutdown, crash
//!   (no row) ──────► starting ──► running ─────────────────────────────► off ──► starting (start)
//!                       │            │ ▲
//!                       ▼    suspend ▼ │ resume
//!              error (create)      suspended
//!              off   (start)
//! ```
//!
//! | file | what it holds |
//! | --- | --- |
//! | `status` | the status column's words (pure) |
//! | `action`, `plan`, `planner` | what an operation will do, as data (pure) |
//! | `facts` | what planning must know of the host: reads only |
//! | `run`, `ledger`, `bench`, `cleanup`, `salvage` | executing a plan, writing ahead what it holds, giving it back |
//! | `effects` | performing one action on the real host |
//! | `port` | putting the TAP of a living VM back on its bridge |
//! | `boot` | waiting for the guest's agent |
//! | `machine`, `launch`, `stop`, `guest`, `destroy`, `retry`, `recover`, `undo`, `reconcile` | what one VM does, verb by verb |
//! | `heed`, `condition`, `found`, `ending` | what QEMU reports, what ails a living VM, what was found of one, why one ended |
//! | `snapshot/` | internal snapshots of all disks of a VM, running or not |
//! | `journal` | who did what, for people |
//! | `request` | what can be asked of a VM |
//! | `task` | the loop that owns one VM, and the handle to it |
//!
//! Invariant: only a VM's own task writes that VM's status.

mod action;
mod bench;
mod boot;
mod change_key;
mod cleanup;
mod condition;
mod context;
mod destroy;
mod disk_keys;
mod disk_uses;
mod effects;
mod ending;
mod facts;
mod firewall;
mod found;
mod guest;
mod heed;
mod journal;
mod launch;
mod ledger;
mod live;
mod machine;
mod marks;
mod outcome;
mod pins;
mod plan;
mod planner;
mod port;
mod reconcile;
mod recover;
mod request;
mod resize;
mod restores;
mod retry;
mod run;
mod salvage;
mod services;
mod snapshot;
mod spec;
pub mod status;
mod stop;
mod task;
mod undo;

pub use action::{Action, Release, RowValues, Slot, Spawn};
pub use bench::Bench;
pub use change_key::DiskKeyChange;
pub use cleanup::{Cleanup, Resource};
pub use condition::{Ailment, Condition, Health, IoErrorReason, NetworkLoss};
pub use context::VmContext;
pub use disk_uses::{disk_uses, frozen_layers, row_uses};
pub use effects::HostEffects;
pub use facts::{MacClaims, NetworkDiskClaims};
pub use journal::{Actor, Journal, JournalEntry, JournalReader, Journals, Kind, Note, Phase};
pub use ledger::{Contents, Entry, Ledger, Lived, Seat};
pub use live::{LiveView, RunKeys};
pub use machine::View;
pub use marks::{InstallationFiles, Installing, Marked, Marks, is_installed_by_anybody};
pub use outcome::{CreateResult, EndCause, OperationResult, ReconcileSummary, StatusResult};
pub use pins::{Changed, Pinned, Pins};
pub use plan::{Lifetime, Operation, Plan, Step, Undo};
pub use planner::{Facts, RowClaim, TapState};
pub use port::Port;
pub use reconcile::{ReconcileAction, ReconcileResult};
pub use recover::{Recovered, found_status};
pub use request::Verb;
pub use restores::Restores;
pub use run::{Desk, Effects, Run, Undone};
pub use services::{Arrival, DatabaseWrapper, EffectsWrapper, Services};
pub use snapshot::{NotedFreeze, ShownLayer, ShownNode, Snapshot, SnapshotTree};
pub use task::VmHandle;

/// QEMU's standard error, in the VM's state directory.
const QEMU_LOG: &str = "qemu.log";
/// What the guest writes to its serial console, in the VM's state directory.
const SERIAL_LOG: &str = "serial.log";
