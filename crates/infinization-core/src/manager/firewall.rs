//! The firewall of one machine at a time, for users who drive it themselves (`NftablesService`).
//!
//! It compiles rules exactly as the verbs do. What the rules must know of a machine, its MAC address
//! and its bridge, is in its spec file; a machine without one has the MAC derived from its id.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use serde_json::Value;

use super::{Manager, saved};
use crate::config::{
    BridgeConntrackMode, Environment, ManagerConfig, Parsed, Transport, VmConfig, Warning,
};
use crate::db::RuleSplit;
use crate::error::Failure;
use crate::firewall::{
    self, ChainNames, ChainText, Compiled, HostService, Transaction, Verdict, VmFirewall,
};
use crate::host::bridge;
use crate::host::link::Links;
use crate::host::nft::Nft;
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

/// `FirewallApplyResult`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Rules after merging; one for both directions counts once.
    pub total_rules: usize,
    /// Those in force.
    pub applied_rules: usize,
    /// Those that are not: the machine is not protected as asked.
    pub failed_rules: usize,
    /// The machine's visible chain.
    pub chain_name: String,
    /// Why each failed.
    pub failures: Vec<FailedRule>,
    /// Those in force in a weaker form, which the kernel forces on them.
    pub degraded: Vec<DegradedRule>,
}

/// A rule that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedRule {
    /// Its name.
    pub rule_name: String,
    /// Why.
    pub error: String,
}

/// A rule that does less than it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DegradedRule {
    /// Its name.
    pub rule_name: String,
    /// In what way.
    pub reason: String,
}

/// `FirewallPlan`: what would be loaded for a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FirewallPlan {
    /// The machine.
    pub vm_id: VmId,
    /// The port its frames pass.
    pub tap_name: LinkName,
    /// What happens to a packet no rule decides.
    pub default_action: FirewallDefaultAction,
    /// What would become of the rules.
    #[serde(flatten)]
    pub applied: Applied,
    /// The chains its packets pass.
    pub chains: Vec<ChainText>,
    /// The table with this machine alone, in nft's syntax.
    pub text: String,
    /// The transaction, as `nft -j` would be given it.
    pub json: Value,
}

impl FirewallPlan {
    pub(super) fn of(vm_id: &VmId, compiled: &Compiled) -> Self {
        let last = compiled.ruleset.vm.last();
        Self {
            vm_id: vm_id.clone(),
            tap_name: compiled.ruleset.tap.clone(),
            default_action: match last.map(|rule| &rule.verdict) {
                Some(Verdict::Accept) => FirewallDefaultAction::Accept,
                _ => FirewallDefaultAction::Drop,
            },
            applied: applied(compiled),
            chains: firewall::chain_texts(compiled),
            text: firewall::table_text(compiled),
            json: firewall::document(&Transaction::ensure_vm(compiled)),
        }
    }
}

/// `applyRulesIfChanged`'s answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Whether the kernel did not hold the rules yet.
    pub changed: bool,
    /// What was loaded, if anything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Applied>,
}

/// What to filter, and where.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The machine.
    pub vm_id: VmId,
    /// The port its frames pass.
    pub tap: LinkName,
    /// The rules.
    pub rules: RuleSplit,
    /// What happens to a packet no rule decides.
    pub default_action: FirewallDefaultAction,
}

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
    pub async fn ensure_chain(&self, vm_id: &VmId) -> Result<String, Failure> {
        self.config()?;
        let names = ChainNames::of(vm_id);
        self.nft.create_chains(&names).await?;
        Ok(names.vm)
    }

    /// [`Firewall::ensure_chain`], then [`Firewall::attach`].
    pub async fn create_chain(&self, vm_id: &VmId, tap: &LinkName) -> Result<String, Failure> {
        let name = self.ensure_chain(vm_id).await?;
        self.attach(vm_id, tap).await?;
        Ok(name)
    }

    /// Sends the port's frames through the machine's chains, which must exist.
    pub async fn attach(&self, vm_id: &VmId, tap: &LinkName) -> Result<(), Failure> {
        self.config()?;
        Ok(self.nft.attach(&ChainNames::of(vm_id), tap).await?)
    }

    /// Closes every port that leads to the machine's chains; the chains stay.
    pub async fn detach(&self, vm_id: &VmId) -> Result<(), Failure> {
        self.config()?;
        let loaded = self.nft.read_vm(&ChainNames::of(vm_id)).await?;
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

    /// Loads everything of the machine in one transaction. On an error the old rules are in force.
    pub async fn apply(&self, wanted: &Wanted) -> Result<Applied, Failure> {
        let compiled = self.compile(wanted).await?;
        self.nft.ensure_vm(&compiled).await?;
        Ok(applied(&compiled))
    }

    /// [`Firewall::apply`], unless the kernel holds these rules already.
    pub async fn apply_if_changed(&self, wanted: &Wanted) -> Result<Change, Failure> {
        let compiled = self.compile(wanted).await?;
        let changed = self.nft.ensure_vm_if_changed(&compiled).await?;
        let result = changed.then(|| applied(&compiled));
        Ok(Change { changed, result })
    }

    /// What [`Firewall::apply`] would load.
    pub async fn plan(&self, wanted: &Wanted) -> Result<FirewallPlan, Failure> {
        let compiled = self.compile(wanted).await?;
        Ok(FirewallPlan::of(&wanted.vm_id, &compiled))
    }

    /// Removes the user's rules; the machine is closed then, but for the allowances every one has.
    pub async fn flush(&self, vm_id: &VmId) -> Result<(), Failure> {
        self.config()?;
        let names = ChainNames::of(vm_id);
        Ok(self
            .nft
            .flush_vm(&names, FirewallDefaultAction::Drop)
            .await?)
    }

    /// Removes the machine's chains and what leads to them; fine if there is nothing.
    pub async fn remove(&self, vm_id: &VmId) -> Result<(), Failure> {
        self.config()?;
        Ok(self.nft.remove_vm(&ChainNames::of(vm_id)).await?)
    }

    /// [`Firewall::remove`] by the visible chain's name.
    pub async fn remove_by_name(&self, chain: &str) -> Result<(), Failure> {
        self.config()?;
        Ok(self.nft.remove_chain_by_name(chain).await?)
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
        let bridge_addresses = self.bridge_addresses(spec.as_ref(), &wanted.tap).await?;
        let known_addresses = self.pinned(spec.as_ref());
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

    /// The address a network of the manager's has given the machine.
    fn pinned(&self, spec: Option<&VmConfig>) -> Vec<IpAddr> {
        let open = self.manager().and_then(|manager| manager.open().ok());
        let network = spec.map(|spec| &spec.network);
        let pinned = open.zip(network).map(|(open, network)| {
            let pins = &open.services.pins;
            pins.of(&network.bridge, network.mac)
        });
        pinned.unwrap_or_default()
    }

    /// The addresses of the machine's bridge: the one it was made with, else the one its port is on.
    async fn bridge_addresses(
        &self,
        spec: Option<&VmConfig>,
        tap: &LinkName,
    ) -> Result<Vec<IpAddr>, Failure> {
        let bridge = match spec {
            Some(spec) => Some(spec.network.bridge.clone()),
            None => self.bridge_of(tap).await?,
        };
        let Some(bridge) = bridge else {
            return Ok(Vec::new());
        };
        if !bridge::exists(&self.links, &bridge).await? {
            return Ok(Vec::new());
        }
        let addresses = bridge::addresses(&self.links, &bridge).await?;
        Ok(addresses.into_iter().map(|found| found.address).collect())
    }

    async fn bridge_of(&self, tap: &LinkName) -> Result<Option<LinkName>, Failure> {
        let all = self.links.list().await?;
        let port = all.iter().find(|link| link.name == tap.as_str());
        let master = port.and_then(|port| port.master);
        let bridge = all
            .iter()
            .find(|link| Some(link.index) == master && link.is_bridge());
        Ok(bridge.and_then(|bridge| LinkName::parse(bridge.name.as_str()).ok()))
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

fn applied(compiled: &Compiled) -> Applied {
    Applied {
        total_rules: compiled.total,
        applied_rules: compiled.applied,
        failed_rules: compiled.failures.len(),
        chain_name: compiled.ruleset.names.vm.clone(),
        failures: compiled.failures.iter().map(FailedRule::from).collect(),
        degraded: compiled.degraded.iter().map(DegradedRule::from).collect(),
    }
}

impl From<&firewall::FailedRule> for FailedRule {
    fn from(rule: &firewall::FailedRule) -> Self {
        Self {
            rule_name: rule.rule_name.clone(),
            error: rule.error.to_string(),
        }
    }
}

impl From<&firewall::DegradedRule> for DegradedRule {
    fn from(rule: &firewall::DegradedRule) -> Self {
        Self {
            rule_name: rule.rule_name.clone(),
            reason: rule.degradation.to_string(),
        }
    }
}
