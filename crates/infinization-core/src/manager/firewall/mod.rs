//! The firewall of one machine at a time, for users who drive it themselves (`NftablesService`).
//!
//! It compiles rules exactly as the verbs do. What the rules must know of a machine, its MAC address
//! and its bridge, is in its spec file; a machine without one has the MAC derived from its id.

mod answers;
mod wanted;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use answers::applied;
pub use answers::{
    Applied, Change, DegradedRule, DepartmentApplied, FailedRule, FirewallPlan, Refused,
};
pub use wanted::{Department, Member, Wanted};

use super::networks::stored_pins;
use super::{Manager, saved};
use crate::config::{
    BridgeConntrackMode, Environment, MachineAddresses, ManagerConfig, Parsed, Transport, VmConfig,
    Warning,
};
use crate::error::Failure;
use crate::firewall::{self, ChainNames, Compiled, HostService, Network, VmFirewall};
use crate::host::bridge;
use crate::host::link::Links;
use crate::host::nft::{Nft, NftError};
use crate::host::nft_file::Keeper;
use crate::host::state_file;
use crate::types::{FirewallDefaultAction, LinkName, VmId, VmNames};

/// Where the firewall's settings come from.
#[derive(Debug, Clone)]
enum Owner {
    /// A manager, while it is open.
    Manager(Manager),
    /// Nobody: what was given, else the environment, else the defaults.
    Nobody(Box<ManagerConfig>),
}

/// The firewall service. Clones share what was probed of the kernel.
#[derive(Debug, Clone)]
pub struct Firewall {
    owner: Owner,
    pub(super) nft: Nft,
    links: Links,
    /// Without a manager, whoever keeps the file.
    keeper: Arc<OnceLock<Keeper>>,
}

/// A change that was asked for: its place in the machine's line is taken, and it is made when it is
/// waited for.
pub trait Asked<T>: Future<Output = Result<T, Failure>> + Send + 'static {}

impl<T, F: Future<Output = Result<T, Failure>> + Send + 'static> Asked<T> for F {}

impl Manager {
    /// The firewall with this manager's settings; it works while the manager is open.
    pub fn firewall(&self) -> Firewall {
        Firewall::of(Owner::Manager(self.clone()))
    }
}

impl Firewall {
    /// A firewall without a manager. `settings` may hold `bridgeConntrackMode`, `hostServices` and
    /// `firewallPersistenceDir`.
    pub fn alone(settings: &Value) -> Result<Self, Failure> {
        let environment = Environment::read(|name| std::env::var(name).ok());
        let Parsed { config, warnings } = ManagerConfig::parse(settings, &environment)?;
        for Warning { path, message } in warnings {
            tracing::warn!("{path} {message}");
        }
        Ok(Self::of(Owner::Nobody(Box::new(config))))
    }

    /// The same, which keeps no file whatever the environment says.
    #[must_use]
    pub fn unsaved(mut self) -> Self {
        if let Owner::Nobody(config) = &mut self.owner {
            config.firewall_persistence_dir = None;
        }
        self
    }

    fn of(owner: Owner) -> Self {
        Self {
            owner,
            nft: Nft::new(),
            links: Links::new(),
            keeper: Arc::default(),
        }
    }

    /// The settings of whoever is to do something.
    fn config(&self) -> Result<ManagerConfig, Failure> {
        let config = self.settings()?;
        if self.manager().is_none() && config.firewall_persistence_dir.is_some() {
            let files = self.files()?;
            let keeper = || Keeper::start(files, Box::new(saved::log));
            self.keeper.get_or_init(keeper);
        }
        Ok(config)
    }

    pub(super) fn settings(&self) -> Result<ManagerConfig, Failure> {
        match &self.owner {
            Owner::Manager(manager) => Ok(manager.open()?.services.config.clone()),
            Owner::Nobody(config) => Ok((**config).clone()),
        }
    }

    pub(super) fn manager(&self) -> Option<&Manager> {
        match &self.owner {
            Owner::Manager(manager) => Some(manager),
            Owner::Nobody(_) => None,
        }
    }

    /// Sets up the table and its hooks; idempotent. `CONNTRACK_UNAVAILABLE` where the kernel cannot
    /// track connections on bridges and the mode is `fail`.
    pub async fn initialize(&self) -> Result<(), Failure> {
        self.nft.conntrack(mode(&self.config()?)).await?;
        Ok(self.nft.prepare().await?)
    }

    /// Makes the machine's chains, closed, unless it has some. Answers the visible one's name.
    pub fn ensure_chain(&self, vm_id: &VmId) -> impl Asked<String> + use<> {
        let names = ChainNames::of(vm_id);
        self.in_line(&names.clone(), |its| async move {
            its.ensure_chain_now(names).await
        })
    }

    async fn ensure_chain_now(&self, names: ChainNames) -> Result<String, Failure> {
        self.config()?;
        self.nft.create_chains(&names).await?;
        Ok(names.vm)
    }

    /// [`Firewall::ensure_chain`], then [`Firewall::attach`].
    pub fn create_chain(&self, vm_id: &VmId, tap: &LinkName) -> impl Asked<String> + use<> {
        let (names, tap) = (ChainNames::of(vm_id), tap.clone());
        self.in_line(&names.clone(), move |its| async move {
            let name = its.ensure_chain_now(names.clone()).await?;
            its.nft.attach(&names, &tap).await?;
            Ok(name)
        })
    }

    /// Sends the port's frames through the machine's chains, which must exist.
    pub fn attach(&self, vm_id: &VmId, tap: &LinkName) -> impl Asked<()> + use<> {
        let (names, tap) = (ChainNames::of(vm_id), tap.clone());
        self.in_line(&names.clone(), move |its| async move {
            its.config()?;
            Ok(its.nft.attach(&names, &tap).await?)
        })
    }

    /// Closes every port that leads to the machine's chains; the chains stay, and so do their rules for
    /// the day it is attached again.
    pub fn detach(&self, vm_id: &VmId) -> impl Asked<()> + use<> {
        let names = ChainNames::of(vm_id);
        self.in_line(&names.clone(), move |its| async move {
            its.config()?;
            its.detach_now(&names).await
        })
    }

    async fn detach_now(&self, names: &ChainNames) -> Result<(), Failure> {
        let loaded = self.nft.read_vm(names).await?;
        let taps: BTreeSet<_> = loaded
            .elements
            .into_iter()
            .map(|element| element.tap)
            .collect();
        for tap in taps.into_iter().filter_map(|tap| LinkName::parse(tap).ok()) {
            self.nft.detach(&tap).await?;
        }
        Ok(())
    }

    /// Loads everything of the machine in one transaction, which machines that are loaded meanwhile
    /// share. On an error the old rules are in force.
    pub fn apply(&self, wanted: Wanted) -> impl Asked<Applied> + use<> {
        let names = ChainNames::of(&wanted.vm_id);
        self.in_line(&names, move |its| async move {
            let compiled = its.compile(&wanted).await?;
            its.nft.ensure_vm(&compiled).await?;
            Ok(applied(&compiled))
        })
    }

    /// [`Firewall::apply`], unless the kernel holds these rules already.
    pub fn apply_if_changed(&self, wanted: Wanted) -> impl Asked<Change> + use<> {
        let names = ChainNames::of(&wanted.vm_id);
        self.in_line(&names, move |its| async move {
            let compiled = its.compile(&wanted).await?;
            let changed = its.nft.ensure_vm_if_changed(&compiled).await?;
            let result = changed.then(|| applied(&compiled));
            Ok(Change { changed, result })
        })
    }

    /// [`Firewall::apply`] of a department's machines with the department's rules, in one transaction. If
    /// the kernel refuses it, machine by machine. Answers in the order of the machines.
    pub fn apply_department(
        &self,
        department: Department,
    ) -> impl Asked<Vec<DepartmentApplied>> + use<> {
        let names = department
            .machines
            .iter()
            .map(|it| ChainNames::of(&it.vm_id));
        let names: Vec<_> = names.collect();
        let (its, places) = (self.clone(), self.nft.line_up_all(&names));
        async move {
            for place in &places {
                place.reached().await;
            }
            its.apply_department_now(department).await
        }
    }

    async fn apply_department_now(
        &self,
        department: Department,
    ) -> Result<Vec<DepartmentApplied>, Failure> {
        let Department { rules, machines } = department;
        let mut all = Vec::new();
        for machine in machines {
            let wanted = machine.under(&rules);
            // One machine's own fault leaves the others their rules.
            all.push((self.compile(&wanted).await, wanted.vm_id));
        }
        let sound = all
            .iter()
            .filter_map(|(compiled, _)| compiled.as_ref().ok());
        let sound: Vec<_> = sound.cloned().collect();
        let mut outcomes = self.nft.ensure_vms(&sound).await.into_iter();
        let answers = all.into_iter().map(|(compiled, vm_id)| {
            let loaded = compiled.and_then(|compiled| match outcomes.next() {
                Some(Err(error)) => Err(Failure::from(error)),
                _ => Ok(applied(&compiled)),
            });
            let (result, error) = match loaded {
                Ok(result) => (Some(result), None),
                Err(failure) => (None, Some(Refused::from(failure))),
            };
            DepartmentApplied {
                vm_id,
                result,
                error,
            }
        });
        Ok(answers.collect())
    }

    /// What [`Firewall::apply`] would load.
    pub async fn plan(&self, wanted: &Wanted) -> Result<FirewallPlan, Failure> {
        let compiled = self.compile(wanted).await?;
        Ok(FirewallPlan::of(&wanted.vm_id, &compiled))
    }

    /// Removes the user's rules; the machine is closed then, but for the allowances every one has.
    pub fn flush(&self, vm_id: &VmId) -> impl Asked<()> + use<> {
        let names = ChainNames::of(vm_id);
        self.in_line(&names.clone(), move |its| async move {
            its.config()?;
            let drop = FirewallDefaultAction::Drop;
            Ok(its.nft.flush_vm(&names, drop).await?)
        })
    }

    /// Removes the machine's chains and what leads to them; fine if there is nothing.
    pub fn remove(&self, vm_id: &VmId) -> impl Asked<()> + use<> {
        self.remove_chains(ChainNames::of(vm_id))
    }

    /// [`Firewall::remove`] by the visible chain's name. `CHAIN_NOT_FOUND` if no machine's chain is called
    /// so.
    pub fn remove_by_name(&self, chain: &str) -> Result<impl Asked<()> + use<>, Failure> {
        let names = ChainNames::parse(chain);
        let names = names.ok_or_else(|| NftError::NotAVmChain(chain.to_owned()))?;
        Ok(self.remove_chains(names))
    }

    fn remove_chains(&self, names: ChainNames) -> impl Asked<()> + use<> {
        self.in_line(&names.clone(), move |its| async move {
            its.config()?;
            Ok(its.nft.remove_vm(&names).await?)
        })
    }

    /// Works when everybody who asked before for something of the machine is done. The place is taken
    /// now, whenever the future is polled.
    fn in_line<T: 'static, W: Asked<T>, F: FnOnce(Self) -> W + Send + 'static>(
        &self,
        names: &ChainNames,
        work: F,
    ) -> impl Asked<T> + use<T, W, F> {
        let (its, place) = (self.clone(), self.nft.line_up(names));
        async move {
            place.reached().await;
            work(its).await
        }
    }

    /// The names of all chains in the table; none if there is no table.
    pub async fn chains(&self) -> Result<Vec<String>, Failure> {
        self.config()?;
        Ok(self.nft.list_chains().await?)
    }

    async fn compile(&self, wanted: &Wanted) -> Result<Compiled, Failure> {
        let config = self.config()?;
        let conntrack = self.nft.conntrack(mode(&config)).await?;
        let capabilities = self.nft.capabilities().await?;
        let spec = spec(&config, &wanted.vm_id)?;
        let derived = VmNames::of(&wanted.vm_id).mac;
        let bridge_addresses = self.bridge_addresses(spec.as_ref(), wanted).await?;
        let given = wanted.addresses.as_ref();
        let known_addresses = self.known_addresses(&config, spec.as_ref(), given).await?;
        Ok(firewall::compile(&VmFirewall {
            vm_id: wanted.vm_id.clone(),
            tap: wanted.tap.clone(),
            mac: spec.map_or(derived, |spec| spec.network.mac),
            known_addresses,
            bridge_addresses,
            host_services: config
                .host_services
                .iter()
                .copied()
                .map(host_service)
                .collect(),
            department_rules: wanted.rules.department_rules.clone(),
            vm_rules: wanted.rules.vm_rules.clone(),
            default_action: wanted.default_action,
            conntrack,
            reject: capabilities.reject,
        })?)
    }

    /// All addresses the machine is held to: those it is given here or was created with, and those that a network
    /// of ours gave it.
    async fn known_addresses(
        &self,
        config: &ManagerConfig,
        spec: Option<&VmConfig>,
        given: Option<&MachineAddresses>,
    ) -> Result<Vec<IpAddr>, Failure> {
        let Some(network) = spec.map(|spec| &spec.network) else {
            return Ok(given.map_or_else(Vec::new, |own| own.as_slice().to_vec()));
        };
        let pins = match self.manager() {
            Some(manager) => manager.open()?.services.pins.clone(),
            None => stored_pins(config.state_dir.as_path(), &network.bridge).await?,
        };
        let own = given.unwrap_or(&network.addresses);
        Ok(pins.beside(own.as_slice(), network))
    }

    /// The addresses of the bridge that the machine was made with, and of the one its port is on; while there is
    /// neither, those that are guarded now.
    async fn bridge_addresses(
        &self,
        spec: Option<&VmConfig>,
        wanted: &Wanted,
    ) -> Result<Vec<Network>, Failure> {
        let bridges = Vec::from_iter(spec.map(|spec| &spec.network.bridge));
        let addresses = bridge::addresses_beside(&self.links, &wanted.tap, &bridges).await?;
        let loaded = || self.nft.loaded(&ChainNames::of(&wanted.vm_id));
        Ok(match addresses {
            Some(addresses) => addresses.into_iter().map(Network::from).collect(),
            None => loaded().map_or_else(Vec::new, |it| it.bridge_addresses.clone()),
        })
    }
}

/// The machine's configuration as it was created, if this host knows it.
pub(super) fn spec(config: &ManagerConfig, vm_id: &VmId) -> Result<Option<VmConfig>, Failure> {
    let path = config
        .state_dir
        .as_path()
        .join("vms")
        .join(vm_id.as_str())
        .join("spec.json");
    let body = state_file::read(&path)?;
    // One of a release that wrote it differently is as good as none.
    Ok(body.and_then(|body| serde_json::from_slice(&body).ok()))
}

fn mode(config: &ManagerConfig) -> firewall::BridgeConntrackMode {
    match config.bridge_conntrack_mode {
        BridgeConntrackMode::Fail => firewall::BridgeConntrackMode::Fail,
        BridgeConntrackMode::Degrade => firewall::BridgeConntrackMode::Degrade,
    }
}

fn host_service(service: crate::config::HostService) -> HostService {
    HostService {
        protocol: match service.protocol {
            Transport::Tcp => firewall::Transport::Tcp,
            Transport::Udp => firewall::Transport::Udp,
        },
        port: service.port,
    }
}
