//! What all VMs of one manager share.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use crate::config::{Context, ManagerConfig, NetworkConfig, Transport};
use crate::db::outbox::Outbox;
use crate::db::sqlite::SqliteDatabase;
use crate::db::{Database, RuleSplit};
use crate::error::{ErrorCode, Failure};
use crate::events::EventBus;
use crate::firewall::{self, Capabilities, Compiled, Conntrack, HostService, Network, VmFirewall};
use crate::host::blocking::promptly;
use crate::host::cgroup::Cgroups;
use crate::host::display_port::DisplayPorts;
use crate::host::link::Links;
use crate::host::nft::Nft;
use crate::types::{FirewallDefaultAction, VmId, VmNames};

use super::context::VmContext;
use super::effects::HostEffects;
use super::facts::{MacClaims, NetworkDiskClaims};
use super::journal::Journals;
use super::marks::{InstallationFiles, Marks};
use super::pins::Pins;
use super::restores::Restores;
use super::run::Effects;
use super::salvage::open_ledger;

/// How long a caller who must go on waits for a small file.
const DISK_PATIENCE: Duration = Duration::from_millis(100);

/// Puts something between the operations and the host: how a test fails or kills at step *n*.
pub type EffectsWrapper = Arc<dyn Fn(Arc<dyn Effects>) -> Arc<dyn Effects> + Send + Sync>;

/// Puts something between the library and its database: how a test makes one that is away.
pub type DatabaseWrapper = Arc<dyn Fn(Arc<dyn Database>) -> Arc<dyn Database> + Send + Sync>;

/// The manager's settings and its connections to the host and the database.
pub struct Services {
    /// Directories and defaults.
    pub config: ManagerConfig,
    /// The user's database, or the embedded one, behind [`Services::outbox`]: a write that records what
    /// already happened is kept while it is away.
    pub database: Arc<dyn Database>,
    /// What stands before the database.
    pub outbox: Arc<Outbox>,
    /// The embedded one, when it is in use: rows are then made and deleted by us.
    pub embedded: Option<Arc<SqliteDatabase>>,
    /// Whether a machine that is not found by its internal name has no row anywhere. Not so where
    /// several nodes share a database and each sees its own machines.
    pub sees_every_row: bool,
    /// Whether rows of machines that have left nothing in the state directory are for other engines to settle.
    pub shares_rows: bool,
    /// Tells listeners.
    pub events: EventBus,
    /// Netlink.
    pub links: Links,
    /// nftables.
    pub nft: Nft,
    /// What the kernel's bridge family can do.
    pub capabilities: Capabilities,
    /// Display ports of this process' VMs.
    pub display_ports: DisplayPorts,
    /// The MAC addresses of machines that are being created.
    pub macs: MacClaims,
    /// Their disks on the network.
    pub network_disks: NetworkDiskClaims,
    /// The addresses machines were given and may not leave.
    pub pins: Pins,
    /// Ends restores of disks that were cut short.
    pub restores: Arc<dyn Restores>,
    /// Is told of machines that have got a QEMU.
    pub arrivals: UnboundedSender<Arrival>,
    /// What was done with each VM.
    pub journals: Journals,
    /// QEMU's own cgroups.
    pub cgroups: Cgroups,
    /// What parsing a VM's configuration needs to know.
    pub parser: Context,
    /// Cancelled when the manager is shut down: nothing is waited for any more.
    pub closing: CancellationToken,
    /// What the user said of machines.
    pub marks: Marks,
    /// Which of them are being installed, for the next process.
    pub installation_files: InstallationFiles,
    /// Put around every VM's effects.
    pub wrap_effects: Option<EffectsWrapper>,
}

/// A machine has got a QEMU.
#[derive(Debug)]
pub enum Arrival {
    /// From then on its TAP is to be on its bridge.
    Live(VmId),
    /// And its addresses, or those of its bridge, are not any more what it was launched with. Nobody has loaded its
    /// rules for that, as it had no QEMU then.
    Outdated(VmId),
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Services {
    /// Where each VM has a directory.
    pub fn machines_directory(&self) -> PathBuf {
        self.config.state_dir.as_path().join("vms")
    }

    /// Where a VM's spec, ledger and logs are.
    pub fn directory_of(&self, vm_id: &VmId) -> PathBuf {
        self.machines_directory().join(vm_id.as_str())
    }

    /// Keeps for the next process whether the machine is being installed. A disk that hangs is not
    /// waited for, and one that fails is told: the mark holds in this process.
    pub fn keep_installation_mark(self: &Arc<Self>, vm_id: &VmId) {
        let (services, id) = (Arc::clone(self), vm_id.clone());
        let kept = promptly(DISK_PATIENCE, move || {
            services
                .installation_files
                .follow(&services.marks.installing, &id)
        });
        match kept {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(vm = %vm_id, %error, "that it is being installed could not be noted");
            }
            None => tracing::warn!(vm = %vm_id, "that it is being installed is not noted yet"),
        }
    }

    /// One VM's surroundings; reads its ledger.
    pub fn context_of(self: &Arc<Self>, vm_id: &VmId) -> Result<VmContext, Failure> {
        let (names, directory) = (VmNames::of(vm_id), self.directory_of(vm_id));
        let ledger = Arc::new(open_ledger(&directory, &names)?);
        let port = Arc::new(tokio::sync::Mutex::new(()));
        let host: Arc<dyn Effects> = Arc::new(HostEffects::new(
            vm_id.clone(),
            names.clone(),
            directory.clone(),
            Arc::clone(&ledger),
            Arc::clone(&port),
            Arc::clone(self),
        ));
        let effects = match &self.wrap_effects {
            Some(wrap) => wrap(host),
            None => host,
        };
        let services = Arc::clone(self);
        let journal = self.journals.of(vm_id);
        Ok(VmContext {
            vm_id: vm_id.clone(),
            names,
            directory,
            ledger,
            port,
            journal,
            effects,
            services,
            elsewhere: AtomicBool::default(),
        })
    }

    /// Compiles one VM's rules for this kernel.
    pub(super) fn compile_firewall(
        &self,
        vm_id: &VmId,
        network: &NetworkConfig,
        bridge_addresses: Vec<Network>,
        rules: &RuleSplit,
        default_action: FirewallDefaultAction,
    ) -> Result<Compiled, Failure> {
        let host_services = self.config.host_services.iter().map(|service| HostService {
            protocol: match service.protocol {
                Transport::Tcp => firewall::Transport::Tcp,
                Transport::Udp => firewall::Transport::Udp,
            },
            port: service.port,
        });
        let conntrack = if self.capabilities.conntrack {
            Conntrack::Stateful
        } else {
            Conntrack::Stateless
        };
        Ok(firewall::compile(&VmFirewall {
            vm_id: vm_id.clone(),
            tap: VmNames::of(vm_id).tap,
            mac: network.mac,
            known_addresses: self.pins.known_to(network),
            bridge_addresses,
            host_services: host_services.collect(),
            department_rules: rules.department_rules.clone(),
            vm_rules: rules.vm_rules.clone(),
            default_action,
            conntrack,
            reject: self.capabilities.reject,
        })?)
    }
}

/// This host's own addresses. Asks the kernel, so it may block.
pub(super) fn local_addresses() -> Result<Vec<IpAddr>, Failure> {
    let addresses = nix::ifaddrs::getifaddrs().map_err(|error| {
        let message = format!("the host's addresses could not be read: {error}");
        Failure::new(ErrorCode::NetlinkFailed, message)
    })?;
    Ok(addresses
        .filter_map(|found| ip_of(found.address.as_ref()?))
        .collect())
}

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}
