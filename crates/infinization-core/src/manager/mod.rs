//! The manager: every public verb, one method each.
//!
//! It parses what the verbs are given, knows the VMs' tasks and hands requests to them. It holds no
//! VM state of its own: what a VM is, its task knows and its ledger says.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | construction, `initialize`, `shutdown` |
//! | `machines` | the verbs on one VM |
//! | `tasks` | the VMs' tasks, and what rows are settled by them |
//! | `startup` | opening the database, probing the host, taking VMs back |
//! | `outage` | what is told and done when the database is away and when it is back |
//! | `journal` | what was done with the VMs |
//! | `status` | `getVMStatus`, `getActiveVMs` |
//! | `store` | `listVMs`, `getVM`, `deleteVM`, `setFirewallRules` (embedded store) |
//! | `storage` | pools and volumes |
//! | `transfers` | volumes that come and go as bytes |
//! | `snapshots` | snapshots of a VM's disks and memory |
//! | `health` | what the health monitor looks at |
//! | `observe` | the health monitor's switch, which VMs are attached |
//! | `networks` | virtual networks |
//! | `saved` | the firewall's file, chains that are nobody's |
//! | `repair`, `reload` | what other programs take out of the firewall, put back |
//! | `ports` | machines whose bridge goes away and comes back |
//! | `database` | which database, and the database itself |
//! | `firewall` | what is below the verbs, for users who drive it themselves |
//! | `guest_access` | block devices, CD-ROMs, raw QMP, the guest agent |

mod database;
mod firewall;
mod guest_access;
mod health;
mod journal;
mod machines;
mod networks;
mod observe;
mod outage;
mod ports;
mod reload;
mod repair;
mod restores;
mod saved;
mod snapshots;
mod startup;
mod status;
mod storage;
mod store;
mod tasks;
mod transfers;

pub use database::DatabaseChoice;
pub use firewall::{
    Applied, Asked, Change, DegradedRule, Department, DepartmentApplied, FailedRule, Firewall,
    FirewallPlan, Member, Refused, Wanted,
};
pub use journal::{JournalCursor, JournalPage};
use networks::Networks;
pub use transfers::{VolumeDownload, VolumeUpload};

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use crate::error::{ErrorCode, Failure};
use crate::events::{Event, EventBus};
use crate::firewall::ChainNames;
use crate::host::nft_file::Keeper;
use crate::host::process::ProcessId;
use crate::monitor::HealthMonitor;
use crate::storage::Pools;
use crate::types::VmId;
use crate::vm::{DatabaseWrapper, EffectsWrapper, Services, VmHandle};

/// How long `shutdown` waits for what is under way.
const REST_DEADLINE: Duration = Duration::from_secs(60);
/// How long `shutdown` tries to write what the database has not taken.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// The statuses `reconcileStartupState` looks at unless told otherwise.
pub const TRANSIENT: [&str; 3] = ["starting", "powering_off_update", "rebuilding"];

/// Manages the VMs of one state directory. Clones share it.
#[derive(Debug, Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

struct Inner {
    given: Value,
    database: DatabaseChoice,
    events: EventBus,
    wrap_effects: Option<EffectsWrapper>,
    wrap_database: Option<DatabaseWrapper>,
    phase: Mutex<Phase>,
    starting: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

/// Where the manager is in its life.
enum Phase {
    New,
    Open(Arc<Open>),
    Closed,
}

/// An initialized manager.
struct Open {
    services: Arc<Services>,
    vms: Mutex<HashMap<VmId, VmHandle>>,
    monitor: HealthMonitor,
    /// The processes the last orphan scan found without an owner.
    strays: Mutex<HashMap<ProcessId, health::Sighting>>,
    /// Held by an orphan scan.
    looking: tokio::sync::Mutex<()>,
    /// Held while rows are made true, by `initialize` or after an outage.
    restoring: tokio::sync::Mutex<()>,
    /// Machines whose firewall is being loaded again.
    reloading: Mutex<HashMap<ChainNames, reload::Pending>>,
    /// Which of them does so next.
    turns: reload::Turns,
    /// A look after an outage waits for its turn.
    will_catch_up: AtomicBool,
    /// Since when it looks after machines, in milliseconds since 1970.
    since: u64,
    /// The rows that an earlier process left between two states were looked at.
    has_settled: AtomicBool,
    /// Chains of no machine were looked for.
    has_told_orphans: AtomicBool,
    /// Virtual networks.
    networks: Arc<Networks>,
    /// Keeps the firewall's file, where there is to be one.
    keeper: Option<Keeper>,
    /// Ends what works for it in the background.
    _alive: DropGuard,
    /// Storage pools and their volumes.
    pools: Pools,
    /// What watches over transfers of volumes.
    transfers: TaskTracker,
    _lock: crate::host::dir_lock::DirLock,
}

impl Manager {
    /// Takes `InfinizationConfig`'s plain data. Does nothing yet; `initialize` checks it.
    pub fn new(config: Value) -> Self {
        Self::with_effects(config, None)
    }

    /// As [`Manager::new`], with a database of the user's own.
    pub fn with_database(config: Value, database: DatabaseChoice) -> Self {
        Self::with(config, database, None, None)
    }

    /// As [`Manager::new`], with something put between the operations and the host.
    pub fn with_effects(config: Value, wrap_effects: Option<EffectsWrapper>) -> Self {
        Self::with_wrappers(config, wrap_effects, None)
    }

    /// As [`Manager::with_effects`], with something put before the database too.
    pub fn with_wrappers(
        config: Value,
        wrap_effects: Option<EffectsWrapper>,
        wrap_database: Option<DatabaseWrapper>,
    ) -> Self {
        Self::with(
            config,
            DatabaseChoice::Embedded,
            wrap_effects,
            wrap_database,
        )
    }

    fn with(
        config: Value,
        database: DatabaseChoice,
        wrap_effects: Option<EffectsWrapper>,
        wrap_database: Option<DatabaseWrapper>,
    ) -> Self {
        let inner = Inner {
            given: config,
            database,
            events: EventBus::default(),
            wrap_effects,
            wrap_database,
            phase: Mutex::new(Phase::New),
            starting: tokio::sync::Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.inner.events.subscribe()
    }

    /// Whether `initialize` has succeeded and `shutdown` was not called.
    pub fn is_initialized(&self) -> bool {
        matches!(*self.phase(), Phase::Open(_))
    }

    /// Opens the database, probes the host and takes running VMs back. Idempotent once it
    /// succeeded; after a failure it may be called again.
    pub async fn initialize(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.inner.starting.lock().await;
        match &*self.phase() {
            Phase::Open(_) => return Ok(()),
            Phase::Closed => {
                return Err(Failure::new(
                    ErrorCode::Closed,
                    "the instance was shut down",
                ));
            }
            Phase::New => {}
        }
        let open = startup::open(&self.inner).await?;
        open.networks.take_back().await;
        open.look_at_everything().await?;
        open.start_monitor().await;
        *self.phase() = Phase::Open(open);
        Ok(())
    }

    /// Stops watching, after what is under way has come to its end; waiting for guests is given up, and
    /// backups of running VMs are cancelled. VMs go on; the next instance takes them back.
    pub async fn shutdown(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.inner.starting.lock().await;
        let phase = std::mem::replace(&mut *self.phase(), Phase::Closed);
        if let Phase::Open(open) = phase {
            open.monitor.stop();
            open.services.closing.cancel();
            let handles: Vec<VmHandle> = open.vms().drain().map(|(_, handle)| handle).collect();
            let machines = join_all(handles.iter().map(Open::let_go));
            tokio::join!(machines, open.networks.rest(REST_DEADLINE));
            open.let_go_of_transfers().await;
            open.services.outbox.close(LAST_WORDS).await;
            open.services.journals.written().await;
            if let Some(keeper) = &open.keeper {
                keeper.close().await;
            }
        }
        Ok(())
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.inner
            .phase
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Arc<Open>, Failure> {
        match &*self.phase() {
            Phase::Open(open) => Ok(Arc::clone(open)),
            Phase::New => Err(Failure::new(
                ErrorCode::InvalidState,
                "initialize() has not succeeded yet",
            )),
            Phase::Closed => Err(Failure::new(
                ErrorCode::Closed,
                "the instance was shut down",
            )),
        }
    }
}

fn parse_id(vm_id: &str) -> Result<VmId, Failure> {
    VmId::parse(vm_id).map_err(|error| {
        let issue = json!({ "path": "vmId", "message": error.to_string() });
        Failure::new(ErrorCode::InvalidConfig, format!("vmId {error}")).with("issues", vec![issue])
    })
}

fn not_found(vm_id: &VmId) -> Failure {
    Failure::new(ErrorCode::VmNotFound, format!("VM {vm_id} not found")).of_vm(vm_id)
}

fn to_value(answer: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(answer).map_err(|error| {
        Failure::new(
            ErrorCode::Internal,
            format!("an answer is no JSON: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_none_is_refused_by_its_name() {
        for bad in ["", "a b", "../x"] {
            let failure = parse_id(bad).unwrap_err();
            assert_eq!(failure.code(), ErrorCode::InvalidConfig, "{bad:?}");
            assert_eq!(failure.context()["issues"][0]["path"], "vmId", "{bad:?}");
        }
    }
}
