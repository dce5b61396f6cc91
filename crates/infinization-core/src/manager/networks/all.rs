//! All networks of a state directory: which there are, and what they share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::MutexGuard as Turn;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::closed;
use super::error::NetworksError;
use super::one::Network;
use crate::config::{NetworkName, VirtualNetwork};
use crate::error::{ErrorCode, Failure};
use crate::events::EventBus;
use crate::host::blocking::file_call;
use crate::host::bridge;
use crate::host::cgroup::Cgroups;
use crate::host::link::Links;
use crate::host::net_guard::NetGuard;
use crate::host::nft::{Nft, NftError};
use crate::host::state_file::{self, Durability};
use crate::network::{guard_removal, guard_table, guard_text, overlapping, overlapping_host};
use crate::types::Ipv4Subnet;
use crate::vm::{Pins, Services};

const RECORD: &str = "network.json";

/// The networks of a state directory.
#[derive(Debug)]
pub(in crate::manager) struct Networks {
    pub(super) state_dir: PathBuf,
    pub(super) links: Links,
    pub(super) nft: Nft,
    pub(super) events: EventBus,
    pub(super) guard: NetGuard,
    pub(super) pins: Pins,
    pub(super) cgroups: Cgroups,
    /// Cancelled when nobody looks after them any more.
    pub(super) closing: CancellationToken,
    /// What is under way.
    pub(super) work: TaskTracker,
    /// Whether the guard is watched.
    pub(super) is_watched: AtomicBool,
    all: Mutex<BTreeMap<NetworkName, Arc<Network>>>,
    /// Held while one is made, changed or removed: what it must not overlap does not change meanwhile.
    pub(super) changing: tokio::sync::Mutex<()>,
}

impl Networks {
    /// Touches nothing.
    pub(in crate::manager) fn new(services: &Services, closing: CancellationToken) -> Arc<Self> {
        let state_dir = services.config.state_dir.as_path().to_owned();
        let table = guard_table(&state_dir);
        let removal = guard_removal(&table);
        Arc::new(Self {
            guard: NetGuard::new(table, removal),
            state_dir,
            links: services.links.clone(),
            nft: services.nft.clone(),
            events: services.events.clone(),
            pins: services.pins.clone(),
            cgroups: services.cgroups.clone(),
            closing,
            work: TaskTracker::new(),
            is_watched: AtomicBool::new(false),
            all: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Reads which networks there are; looks after those that run, and starts those that are to. What fails of
    /// one is its own state.
    pub(in crate::manager) async fn take_back(self: &Arc<Self>) {
        match self.read_all().await {
            Ok(stored) => *self.map() = stored,
            Err(error) => tracing::error!(%error, "the virtual networks could not be read"),
        }
        let mut wanted = Vec::new();
        for network in self.all() {
            self.hold(&network).await;
            let has_bridge = self.has_bridge(&network).await;
            network.status().up = has_bridge;
            if has_bridge || network.config().autostart {
                wanted.push(network);
            } else if self.has_nobody(&network).await {
                self.pins.forget(&network.config().bridge);
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.watch_guard();
        // Before any of them: none that is there is open while another is set up.
        if let Err(error) = self.load_guard().await {
            tracing::error!(%error, "virtual networks are not guarded");
        }
        let back = wanted.iter().map(|network| async {
            let _turn = network.turn.lock().await;
            self.set_up(network).await
        });
        for (network, outcome) in wanted.iter().zip(join_all(back).await) {
            if let Err(error) = outcome {
                tracing::error!(network = %network.name, %error, "a network was not started");
            }
        }
    }

    async fn has_bridge(&self, network: &Network) -> bool {
        match self.our_bridge(network).await {
            Ok(bridge) => bridge.is_some(),
            Err(error) => {
                tracing::warn!(network = %network.name, %error, "its bridge is not known");
                false
            }
        }
    }

    /// Waits for what is under way when nobody looks after them any more; what has not begun is refused.
    pub(in crate::manager) async fn rest(&self, deadline: Duration) {
        self.work.close();
        if timeout(deadline, self.work.wait()).await.is_err() {
            tracing::warn!("a network was still being worked on at shutdown");
        }
    }

    /// The caller's turn of what calls wait for each other with.
    pub(super) async fn turn<'a>(
        &self,
        of: &'a tokio::sync::Mutex<()>,
    ) -> Result<Turn<'a, ()>, Failure> {
        let turn = of.lock().await;
        if self.closing.is_cancelled() {
            return Err(closed());
        }
        Ok(turn)
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        config: VirtualNetwork,
    ) -> Result<Arc<Network>, Failure> {
        let _changing = self.turn(&self.changing).await?;
        self.check_new(&config).await?;
        let dir = self.dir().join(config.name.as_str());
        let network = Arc::new(Network::new(config, dir));
        self.write(&network).await?;
        let _turn = network.turn.lock().await;
        self.map()
            .insert(network.name.clone(), Arc::clone(&network));
        self.watch_guard();
        if let Err(error) = self.set_up(&network).await {
            return Err(match self.forget(&network).await {
                Ok(()) => error,
                Err(why) => error.noting(&format!("the network {} stays: {why}", network.name)),
            });
        }
        Ok(Arc::clone(&network))
    }

    /// What can be refused is refused before anything is touched.
    async fn check_new(&self, config: &VirtualNetwork) -> Result<(), Failure> {
        let all = self.configs();
        if all.iter().any(|other| other.name == config.name) {
            return Err(NetworksError::AlreadyExists(config.name.clone()).into());
        }
        self.check_networks(config)?;
        if let Some(other) = all.iter().find(|other| other.bridge == config.bridge) {
            return Err(NetworksError::BridgeTaken {
                bridge: config.bridge.clone(),
                network: other.name.clone(),
            }
            .into());
        }
        if self.links.find(&config.bridge).await?.is_some() {
            return Err(NetworksError::NotOurs(config.bridge.clone()).into());
        }
        self.check_host(config, None).await
    }

    /// No other network has addresses of its subnet.
    pub(super) fn check_networks(&self, config: &VirtualNetwork) -> Result<(), Failure> {
        let all = self.configs();
        match overlapping(config, all.iter().map(|other| &**other)) {
            None => Ok(()),
            Some(other) => Err(NetworksError::Overlaps {
                subnet: config.subnet,
                other: other.subnet,
                whose: format!("the network {}'s", other.name),
            }
            .into()),
        }
    }

    /// An address of the host in the subnet, but on the bridge of this index, would be answered by the host, or
    /// be unreachable.
    pub(super) async fn check_host(
        &self,
        config: &VirtualNetwork,
        bridge: Option<u32>,
    ) -> Result<(), Failure> {
        let all = bridge::all_addresses(&self.links).await?.into_iter();
        let subnets: Vec<Ipv4Subnet> = all
            .filter(|(link, _)| Some(*link) != bridge)
            .filter_map(|(_, found)| match found.address {
                IpAddr::V4(address) => Some(Ipv4Subnet::around(address, found.prefix)),
                IpAddr::V6(_) => None,
            })
            .collect();
        match overlapping_host(config, &subnets) {
            None => Ok(()),
            Some(other) => Err(NetworksError::Overlaps {
                subnet: config.subnet,
                other,
                whose: "the host's own".to_owned(),
            }
            .into()),
        }
    }

    pub(super) async fn start(
        self: &Arc<Self>,
        name: &NetworkName,
    ) -> Result<Arc<Network>, Failure> {
        let network = self.find(name)?;
        let turn = self.turn(&network.turn).await?;
        self.watch_guard();
        self.set_up(&network).await?;
        drop(turn);
        Ok(network)
    }

    pub(super) async fn stop(
        self: &Arc<Self>,
        name: &NetworkName,
    ) -> Result<Arc<Network>, Failure> {
        let network = self.find(name)?;
        let turn = self.turn(&network.turn).await?;
        self.take_down_unused(&network).await?;
        drop(turn);
        Ok(network)
    }

    pub(super) async fn remove(self: &Arc<Self>, name: &NetworkName) -> Result<(), Failure> {
        let _changing = self.turn(&self.changing).await?;
        let Some(network) = self.map().get(name).cloned() else {
            return Ok(());
        };
        let _turn = self.turn(&network.turn).await?;
        self.take_down_unused(&network).await?;
        self.erase(&network).await?;
        self.map().remove(name);
        Ok(())
    }

    /// Of one whose making has failed, nothing is left. What cannot be removed, and what machines are on, stays
    /// listed; the latter is looked after.
    async fn forget(self: &Arc<Self>, network: &Arc<Network>) -> Result<(), Failure> {
        self.take_down_unused(network).await?;
        self.erase(network).await?;
        self.map().remove(&network.name);
        Ok(())
    }

    pub(super) fn find(&self, name: &NetworkName) -> Result<Arc<Network>, Failure> {
        let found = self.map().get(name).cloned();
        Ok(found.ok_or_else(|| NetworksError::NotFound(name.clone()))?)
    }

    pub(super) fn all(&self) -> Vec<Arc<Network>> {
        self.map().values().cloned().collect()
    }

    fn configs(&self) -> Vec<Arc<VirtualNetwork>> {
        let all = self.map();
        all.values().map(|network| network.config()).collect()
    }

    /// The guard for those that are up; none where none is.
    pub(super) async fn load_guard(&self) -> Result<(), NftError> {
        self.guard.load(|| self.guarding()).await
    }

    pub(super) fn guarding(&self) -> Option<String> {
        let up = self.all().into_iter().filter(|network| network.status().up);
        let up: Vec<_> = up.map(|network| network.config()).collect();
        let text = guard_text(self.guard.table(), up.iter().map(|config| &**config));
        (!up.is_empty()).then_some(text)
    }

    fn dir(&self) -> PathBuf {
        dir_in(&self.state_dir)
    }

    pub(super) async fn write(&self, network: &Network) -> Result<(), Failure> {
        let body = serde_json::to_vec_pretty(&*network.config()).map_err(|error| {
            Failure::new(
                ErrorCode::Internal,
                format!("a network is no JSON: {error}"),
            )
        })?;
        let dir = network.dir.clone();
        let made = file_call({
            let dir = dir.clone();
            move || std::fs::create_dir_all(dir)
        });
        made.await.map_err(|error| failed(&dir, &error))?;
        let path = dir.join(RECORD);
        let written = file_call(move || Ok(state_file::write(&path, &body, Durability::HostCrash)));
        written.await.map_err(|error| failed(&dir, &error))??;
        Ok(())
    }

    async fn erase(&self, network: &Network) -> Result<(), Failure> {
        let dir = network.dir.clone();
        let removed = file_call(move || match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        });
        removed.await.map_err(|error| failed(&network.dir, &error))
    }

    async fn read_all(&self) -> Result<BTreeMap<NetworkName, Arc<Network>>, Failure> {
        let all = stored(&self.state_dir).await?.into_iter();
        Ok(all
            .map(|network| (network.name.clone(), Arc::new(network)))
            .collect())
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<NetworkName, Arc<Network>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dir_in(state_dir: &Path) -> PathBuf {
    state_dir.join("networks")
}

/// The networks that are kept in this directory, as far as they can be read.
pub(super) async fn stored(state_dir: &Path) -> Result<Vec<Network>, Failure> {
    let dir = dir_in(state_dir);
    let read = file_call({
        let dir = dir.clone();
        move || read_all(&dir)
    });
    let all = read
        .await
        .map_err(|error| failed(&dir, &error))?
        .into_iter();
    Ok(all.map(|(config, dir)| Network::new(config, dir)).collect())
}

/// Every network that can be read; one that cannot is left alone, and told.
fn read_all(dir: &Path) -> std::io::Result<Vec<(VirtualNetwork, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let dir = entry?.path();
        match read_one(&dir) {
            Ok(Some(config)) => all.push((config, dir)),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "a network cannot be read; it is left alone");
            }
        }
    }
    Ok(all)
}

fn read_one(dir: &Path) -> Result<Option<VirtualNetwork>, Failure> {
    let Some(body) = state_file::read(&dir.join(RECORD))? else {
        return Ok(None);
    };
    let config = serde_json::from_slice(&body).map_err(|error| {
        Failure::new(ErrorCode::StateFile, format!("it makes no sense: {error}"))
    })?;
    Ok(Some(config))
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display().to_string();
    Failure::new(
        ErrorCode::StateFile,
        format!("{path} cannot be used: {error}"),
    )
    .with("path", path)
}
