//! Opening a manager: settings, state directory, database, kernel, and the VMs that still run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, Weak};

use futures_util::future::join_all;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::database::Theirs;
use super::networks::{Networks, follow_pins};
use super::outage::follow;
use super::reload::Turns;
use super::restores::CutShort;
use super::{Inner, Open, TRANSIENT, ports, repair, saved};
use crate::config::{BridgeConntrackMode, Environment, HostFacts, ManagerConfig, Parsed};
use crate::db::outbox::Outbox;
use crate::db::sqlite::SqliteDatabase;
use crate::db::{Database, DbError};
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::firewall::Capabilities;
use crate::host::accelerator;
use crate::host::blocking::{blocking, file_call};
use crate::host::cgroup::Cgroups;
use crate::host::dir_lock::DirLock;
use crate::host::display_port::DisplayPorts;
use crate::host::link::Links;
use crate::host::nft::{Nft, NftError};
use crate::host::qemu_img;
use crate::monitor::{HealthMonitor, Watched};
use crate::storage::Pools;
use crate::types::VmId;
use crate::vm::{
    Arrival, InstallationFiles, Journals, MacClaims, Marks, NetworkDiskClaims, Pins, Services,
};

/// Everything an initialized manager has, except its VMs.
pub(super) async fn open(inner: &Inner) -> Result<Arc<Open>, Failure> {
    let config = configuration(inner)?;
    let theirs = inner.database.open(&config).await?;
    if theirs.is_some() && config.secrets_key.is_some() {
        return Err(no_store_to_encrypt());
    }
    let lock = prepare_state_dir(config.state_dir.as_path()).await?;
    let (nft, capabilities) = prepare_firewall(&config).await?;
    let facts = host_facts()?;
    let journals = Journals::start(config.state_dir.as_path())?;
    let rows = match theirs {
        Some(theirs) => Rows::of(theirs),
        None => Rows::embedded(&config).await?,
    };
    let database = match &inner.wrap_database {
        Some(wrap) => wrap(rows.database),
        None => rows.database,
    };
    let (outbox, notices) = Outbox::new(database);
    if let Some(error) = &rows.away {
        outbox.nobody_answers(error);
    }
    let installation_files = InstallationFiles::under(config.state_dir.as_path());
    let (marks, installation_files) = blocking(move || with_marks(installation_files)).await?;
    let (arrivals, arrived) = mpsc::unbounded_channel();
    let services = Arc::new(Services {
        database: Arc::<Outbox>::clone(&outbox),
        outbox,
        embedded: rows.embedded,
        sees_every_row: rows.every_one,
        shares_rows: rows.shared,
        events: inner.events.clone(),
        links: Links::new(),
        nft,
        capabilities,
        display_ports: DisplayPorts::default(),
        macs: MacClaims::default(),
        network_disks: NetworkDiskClaims::default(),
        pins: Pins::default(),
        restores: Arc::new(CutShort {
            machines: config.state_dir.as_path().join("vms"),
        }),
        arrivals,
        cgroups: Cgroups::host(),
        journals,
        parser: config.context(facts),
        closing: CancellationToken::new(),
        marks,
        installation_files,
        wrap_effects: inner.wrap_effects.clone(),
        config,
    });
    let alive = services.closing.child_token();
    let open = opened(services, &alive, lock);
    tokio::spawn(follow(Arc::downgrade(&open), inner.events.clone(), notices));
    work_behind(&open, arrived, &alive);
    Ok(open)
}

fn configuration(inner: &Inner) -> Result<ManagerConfig, Failure> {
    let environment = Environment::read(|name| std::env::var(name).ok());
    let Parsed { config, warnings } = ManagerConfig::parse(&inner.given, &environment)?;
    for warning in warnings {
        tracing::warn!("{} {}", warning.path, warning.message);
    }
    Ok(config)
}

/// Probes the kernel, which must be able to do what is asked of it, and sets the table up.
async fn prepare_firewall(config: &ManagerConfig) -> Result<(Nft, Capabilities), Failure> {
    let nft = Nft::new();
    let capabilities = nft.capabilities_now().await?;
    if !capabilities.conntrack && config.bridge_conntrack_mode == BridgeConntrackMode::Fail {
        return Err(NftError::ConntrackUnavailable.into());
    }
    nft.prepare().await?;
    Ok((nft, capabilities))
}

/// A manager that knows no VM yet. It lets go of `alive` as it goes.
fn opened(services: Arc<Services>, alive: &CancellationToken, lock: DirLock) -> Arc<Open> {
    let allowed = services.config.path_rules.allowed.clone();
    let pools = Pools::new(&services.config.state_dir, allowed.unwrap_or_default());
    let (every, events) = (
        services.config.health_monitor_interval,
        services.events.clone(),
    );
    let keeper = saved::keeper(&services);
    let networks = Networks::new(&services, alive.clone());
    Arc::new_cyclic(|open: &Weak<Open>| {
        let watched: Weak<dyn Watched> = Weak::<Open>::clone(open);
        Open {
            monitor: HealthMonitor::new(watched, every, events),
            services,
            vms: Mutex::new(HashMap::new()),
            strays: Mutex::default(),
            pools,
            transfers: TaskTracker::new(),
            reloading: Mutex::default(),
            turns: Turns::default(),
            looking: tokio::sync::Mutex::default(),
            restoring: tokio::sync::Mutex::default(),
            will_catch_up: AtomicBool::new(false),
            since: now_ms(),
            has_settled: AtomicBool::new(false),
            has_told_orphans: AtomicBool::new(false),
            networks,
            keeper,
            _alive: alive.clone().drop_guard(),
            _lock: lock,
        }
    })
}

/// Looks after the firewall, machines' addresses and their ports, until `alive` ends.
fn work_behind(open: &Arc<Open>, arrived: UnboundedReceiver<Arrival>, alive: &CancellationToken) {
    let watch = repair::watch(Arc::downgrade(open), open.services.nft.clone());
    spawn_until(alive, watch);
    spawn_until(alive, follow_pins(Arc::downgrade(open)));
    spawn_until(alive, ports::watch(Arc::downgrade(open), arrived));
}

fn spawn_until(end: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let end = end.clone();
    tokio::spawn(async move { end.run_until_cancelled_owned(work).await });
}

fn host_facts() -> Result<HostFacts, Failure> {
    let host = accelerator::host_size()?;
    let highest = host.online_cpus.last().copied().unwrap_or_default();
    Ok(HostFacts {
        cpus: highest + 1,
        memory: host.memory,
        hugepage_size: accelerator::default_hugepage_size()?,
    })
}

/// With the marks of installations that an earlier process has left.
fn with_marks(files: InstallationFiles) -> (Marks, InstallationFiles) {
    let marks = Marks::default();
    match files.marked() {
        Ok(marked) => marked
            .iter()
            .for_each(|vm_id| marks.installing.insert(vm_id)),
        Err(error) => tracing::warn!(%error, "which machines are being installed was not found"),
    }
    (marks, files)
}

fn no_store_to_encrypt() -> Failure {
    let message =
        "is for the embedded store: the secrets of your own database are yours to encrypt";
    let issue = serde_json::json!({
        "path": "secretsKey",
        "message": message,
        "code": ErrorCode::InvalidConfig.as_str(),
    });
    Failure::new(ErrorCode::InvalidConfig, format!("secretsKey {message}"))
        .with("issues", vec![issue])
}

/// Where the rows are.
struct Rows {
    database: Arc<dyn Database>,
    embedded: Option<Arc<SqliteDatabase>>,
    every_one: bool,
    shared: bool,
    away: Option<DbError>,
}

impl Rows {
    fn of(theirs: Theirs) -> Self {
        Self {
            database: theirs.database,
            away: theirs.away,
            embedded: None,
            every_one: theirs.is_whole,
            shared: theirs.is_shared,
        }
    }

    async fn embedded(config: &ManagerConfig) -> Result<Self, Failure> {
        let path = config.state_dir.as_path().join("infinization.db");
        let store = SqliteDatabase::open_with_key(&path, config.secrets_key.clone()).await?;
        Ok(Self {
            database: Arc::<SqliteDatabase>::clone(&store),
            embedded: Some(store),
            every_one: true,
            shared: false,
            away: None,
        })
    }
}

async fn prepare_state_dir(state_dir: &Path) -> Result<DirLock, Failure> {
    let dir = state_dir.to_owned();
    let prepared = blocking(move || {
        let vms = dir.join("vms");
        std::fs::create_dir_all(&vms).map_err(|error| directory_failure(&vms, &error))?;
        let lock = DirLock::acquire(&dir)?;
        lock.sweep(&vms)
            .map_err(|error| directory_failure(&vms, &error))?;
        Ok(lock)
    });
    prepared.await?
}

fn directory_failure(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display().to_string();
    Failure::new(
        ErrorCode::StateFile,
        format!("{path} cannot be used: {error}"),
    )
    .with("path", path)
}

impl Open {
    /// What an earlier process left. Where the database comes back meanwhile, the look after that outage waits.
    pub(super) async fn look_at_everything(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.restoring.lock().await;
        self.take_back_all().await?;
        self.tell_orphaned_chains().await;
        Ok(())
    }

    /// Every VM that left something in the state directory, at once: one that hangs delays no
    /// other.
    async fn take_back_all(&self) -> Result<(), Failure> {
        if let Err(error) = self.sweep_half_made_images().await {
            tracing::warn!(%error, "half-made images were not looked for");
        }
        if let Err(error) = self.pools.sweep().await {
            tracing::warn!(%error, "half-made volumes were not looked for");
        }
        self.find_out().await?;
        self.services.cgroups.remove_empty_scopes().await;
        Ok(())
    }

    /// What became of each VM, and then the rows: those between two states, and those of VMs of this
    /// state directory that claim a QEMU. Whoever was killed while the database was away could not
    /// write that one had ended.
    async fn find_out(&self) -> Result<(), Failure> {
        let left = self.left_behind().await?;
        join_all(left.iter().map(|vm_id| self.take_back(vm_id))).await;
        // Without a database there is no row to settle; when it is back they are looked at again.
        if !self.services.outbox.is_away() {
            self.find_out_rows(left).await;
        }
        self.services.journals.prune();
        Ok(())
    }

    async fn find_out_rows(&self, left: Vec<VmId>) {
        if let Err(error) = self.settle_transient(&left).await {
            tracing::warn!(%error, "rows between two states were not reconciled");
        }
        // What was taken back has told its row just now.
        let is_live = |vm_id: &VmId| {
            let vms = self.vms();
            vms.get(vm_id).is_some_and(|vm| vm.view().live.is_some())
        };
        let dark: Vec<VmId> = left.into_iter().filter(|vm_id| !is_live(vm_id)).collect();
        if let Err(error) = self.check_claims(&dark).await {
            tracing::warn!(%error, "rows that claim a QEMU were not checked");
        }
    }

    /// Settles what an earlier process left between two states: once in this one's life.
    async fn settle_transient(&self, left: &[VmId]) -> Result<(), Failure> {
        let database = &self.services.database;
        let mut rows = database.find_machines_by_statuses(&TRANSIENT).await?;
        rows.retain(|row| self.settles(row, left));
        self.reconcile_rows(&rows).await;
        self.has_settled.store(true, SeqCst);
        Ok(())
    }

    /// No create is under way yet, so what looks half made was left by a process that was killed.
    async fn sweep_half_made_images(&self) -> Result<(), Failure> {
        let disks = &self.services.config.disk_dir;
        if !disks.as_path().is_dir() {
            return Ok(());
        }
        let swept = qemu_img::sweep_partials(disks).await?;
        if !swept.is_empty() {
            tracing::info!(?swept, "removed half-made images");
        }
        Ok(())
    }

    pub(super) async fn take_back(&self, vm_id: &VmId) {
        let handle = match self.handle(vm_id) {
            Ok(handle) => handle,
            Err(error) => {
                tracing::error!(vm = %vm_id, %error, "its ledger cannot be read; it is left alone");
                return;
            }
        };
        if handle.view().live.is_some() {
            return;
        }
        match handle.recover().await {
            Ok(found) => tracing::debug!(vm = %vm_id, ?found, "looked after"),
            Err(error) => tracing::error!(vm = %vm_id, %error, "could not be looked after"),
        }
        self.drop_if_empty(&handle);
    }

    pub(super) async fn left_behind(&self) -> Result<Vec<VmId>, Failure> {
        let vms = self.services.config.state_dir.as_path().join("vms");
        let listed = vms.clone();
        let names = file_call(move || {
            let entries = std::fs::read_dir(listed)?.flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names.collect::<Vec<String>>())
        });
        let names = names
            .await
            .map_err(|error| directory_failure(&vms, &error))?;
        let ids = names.into_iter().map(VmId::parse);
        Ok(ids.filter_map(Result::ok).collect())
    }

    pub(super) async fn start_monitor(self: &Arc<Self>) {
        if self.services.config.auto_start_health_monitor {
            self.monitor.start().await;
        }
    }
}
