//! Setting a network up, and taking it down. Both may be repeated: what is there already is left as it is.
//!
//! Up: bridge, guard, address, NAT, dnsmasq: the bridge is down until it is guarded, so that nothing is forwarded
//! unguarded, and the guard names no link that is not ours. Down is the other way round. The caller holds the
//! network's turn.

use std::path::PathBuf;
use std::sync::Arc;

use super::all::Networks;
use super::error::NetworksError;
use super::one::Network;
use crate::config::NetworkMode;
use crate::error::{ErrorCode, Failure};
use crate::firewall::{Masquerade, Subnet};
use crate::host::bridge::{self, Ipv4Cidr};
use crate::host::cgroup::{self, Placement};
use crate::host::dnsmasq::Dnsmasq;
use crate::host::link::Link;
use crate::host::process::ProcessHandle;
use crate::network::{bridge_mac, dnsmasq_conf};
use crate::types::LinkName;

impl Networks {
    /// Sets up what is missing, and looks after it. Where that fails, what this attempt has made is undone, unless
    /// machines have come onto it meanwhile; and the network says why.
    pub(super) async fn set_up(self: &Arc<Self>, network: &Arc<Network>) -> Result<(), Failure> {
        let outcome = match self.our_bridge(network).await {
            Err(error) => {
                self.let_go_of_foreign(network, &error).await;
                Err(error)
            }
            Ok(Some(_)) => self.furnish(network).await,
            Ok(None) => match self.furnish(network).await {
                Err(error) => self.undo_unused(network, error).await,
                Ok(()) => Ok(()),
            },
        };
        network.status().error = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    async fn furnish(self: &Arc<Self>, network: &Arc<Network>) -> Result<(), Failure> {
        self.ensure_bridge(network).await?;
        network.status().up = true;
        // Machines may be on it already: whatever else fails, they are held to their addresses.
        let pinned = self.start_pinning(network).await;
        // Whoever looks after it as it was does so no longer.
        drop(network.status().watch.take());
        let served = self.complete(network).await;
        // Where that failed and the network stays all the same, it is tried again.
        let process = served.as_ref().ok().cloned().flatten();
        if served.is_err() || process.is_some() {
            self.look_after(network, process);
        }
        served.map(drop).and(pinned)
    }

    /// As [`Networks::furnish`], for who looks after it.
    pub(super) async fn furnish_again(
        &self,
        network: &Network,
    ) -> Result<Option<ProcessHandle>, Failure> {
        self.ensure_bridge(network).await?;
        network.status().up = true;
        self.complete(network).await
    }

    /// All that a network is beside its bridge. Answers its dnsmasq, if it is to have one.
    async fn complete(&self, network: &Network) -> Result<Option<ProcessHandle>, Failure> {
        let config = network.config();
        self.load_guard().await?;
        self.open_bridge(network).await?;
        match config.mode {
            NetworkMode::Nat => self.nft.masquerade(masquerade(network)?).await?,
            NetworkMode::Routed => {
                self.nft.stop_masquerading(&config.bridge).await?;
                self.nft.forward().await?;
            }
            NetworkMode::Isolated => self.nft.stop_masquerading(&config.bridge).await?,
        }
        if network.is_served() {
            return self.serve(network).await.map(Some);
        }
        self.stop_serving(network).await.map(|()| None)
    }

    async fn stop_serving(&self, network: &Network) -> Result<(), Failure> {
        network.dnsmasq.end().await?;
        network.status().process = None;
        Ok(cgroup::remove(&self.scope_of(network)).await?)
    }

    async fn ensure_bridge(&self, network: &Network) -> Result<(), Failure> {
        let config = network.config();
        if self.our_bridge(network).await?.is_none() {
            self.check_host(&config, None).await?;
            let mac = bridge_mac(&self.state_dir, &config);
            bridge::create_down_with_mac(&self.links, &config.bridge, mac).await?;
        }
        Ok(())
    }

    async fn open_bridge(&self, network: &Network) -> Result<(), Failure> {
        let config = network.config();
        let address = format!("{}/{}", config.gateway, config.subnet.prefix());
        let address = Ipv4Cidr::parse(&address).map_err(|why| super::invalid(&why))?;
        bridge::assign_address(&self.links, &config.bridge, address).await?;
        Ok(self.links.set_up(&config.bridge).await?)
    }

    /// The network's bridge, if it is there. A link of its name that is not ours is an error.
    pub(super) async fn our_bridge(&self, network: &Network) -> Result<Option<Link>, Failure> {
        let config = network.config();
        let Some(link) = self.links.find(&config.bridge).await? else {
            return Ok(None);
        };
        let mac = bridge_mac(&self.state_dir, &config);
        if link.is_bridge() && link.mac == Some(mac.octets()) {
            return Ok(Some(link));
        }
        Err(NetworksError::NotOurs(config.bridge.clone()).into())
    }

    /// Where somebody has put a link of his own in the bridge's place, nothing of ours works on that.
    async fn let_go_of_foreign(self: &Arc<Self>, network: &Network, error: &Failure) {
        if is_foreign(error) && network.status().up {
            self.undo(network).await;
        }
    }

    /// The network's dnsmasq: the one that runs, unless it was told other things.
    pub(super) async fn serve(&self, network: &Network) -> Result<ProcessHandle, Failure> {
        let conf = dnsmasq_conf(&network.config(), Dnsmasq::user());
        if let Some(process) = network.dnsmasq.find().await? {
            if network.dnsmasq.has_conf(&conf).await {
                // Whoever started it may have been killed before he placed it.
                self.place(network, &process).await;
                return Ok(process);
            }
            network.dnsmasq.end().await?;
        }
        let process = network.dnsmasq.start(conf).await?;
        self.place(network, &process).await;
        Ok(process)
    }

    /// So that the end of our own service is not dnsmasq's end.
    async fn place(&self, network: &Network, process: &ProcessHandle) {
        let scope = self.scope_of(network);
        if let Placement::Unavailable(why) = self.cgroups.place_at(process.pid(), scope).await {
            tracing::debug!(network = %network.name, why, "dnsmasq has no cgroup of its own");
        }
    }

    fn scope_of(&self, network: &Network) -> PathBuf {
        self.cgroups
            .scope_of_network(&self.state_dir, &network.name)
    }

    async fn undo(self: &Arc<Self>, network: &Network) {
        if let Err(error) = self.take_down(network).await {
            tracing::error!(network = %network.name, %error, "it could not be undone");
        }
    }

    /// A network that machines are on stays as far as it could be set up, and is looked after: without it they were
    /// cut off. TAPs join a bridge of its name as soon as there is one. Answers what is wrong with it then.
    async fn undo_unused(
        self: &Arc<Self>,
        network: &Arc<Network>,
        failure: Failure,
    ) -> Result<(), Failure> {
        if matches!(&self.refuse_ports(network).await, Err(error) if is_in_use(error)) {
            tracing::warn!(network = %network.name, "machines are on it: it is not undone");
            return Err(failure);
        }
        match self.take_down(network).await {
            Err(error) if is_in_use(&error) => return self.furnish(network).await,
            Err(error) => {
                tracing::error!(network = %network.name, %error, "it could not be undone");
            }
            Ok(()) => {}
        }
        Err(failure)
    }

    /// Takes it down as far as it is there; what fails keeps nothing else from going, and is told then.
    pub(super) async fn take_down(&self, network: &Network) -> Result<(), Failure> {
        let config = network.config();
        drop(network.status().watch.take());
        drop(network.status().pinning.take());
        let mut outcomes = vec![self.stop_serving(network).await];
        if config.mode == NetworkMode::Nat {
            outcomes.push(self.stop_masquerading(network).await);
        }
        let gone = self.remove_bridge(network).await;
        {
            let mut status = network.status();
            status.error = gone.as_ref().err().map(ToString::to_string);
            // For as long as there are machines on it, they are guarded and held to their addresses.
            status.up &= gone.is_err();
        }
        if gone.is_ok() {
            self.pins.forget(&config.bridge);
        }
        outcomes.push(self.load_guard().await.map_err(Failure::from));
        gone.and(outcomes.into_iter().collect())
    }

    /// The rule is known by the bridge's name: of a link that is not ours it goes only if it is the network's own.
    async fn stop_masquerading(&self, network: &Network) -> Result<(), Failure> {
        let ours = masquerade(network)?;
        let found = self.our_bridge(network).await;
        if found.as_ref().is_err_and(is_foreign) && !self.nft.read_nat().await?.holds(&ours) {
            return Ok(());
        }
        Ok(self.nft.stop_masquerading(&ours.bridge).await?)
    }

    /// Afterwards there is no bridge of ours. A link that is not ours is none, and stays.
    async fn remove_bridge(&self, network: &Network) -> Result<(), Failure> {
        match self.our_bridge(network).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                let bridge = &network.config().bridge;
                self.refuse_ports_of(bridge).await?;
                Ok(bridge::destroy(&self.links, bridge).await?)
            }
            Err(error) if is_foreign(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether no machine can be on it: its bridge is not there, or is not ours.
    pub(super) async fn has_nobody(&self, network: &Network) -> bool {
        match self.our_bridge(network).await {
            Ok(bridge) => bridge.is_none(),
            Err(error) => is_foreign(&error),
        }
    }

    /// Takes it down unless somebody is on it. Who comes meanwhile finds it as it was.
    pub(super) async fn take_down_unused(
        self: &Arc<Self>,
        network: &Arc<Network>,
    ) -> Result<(), Failure> {
        self.refuse_ports(network).await?;
        let outcome = self.take_down(network).await;
        if outcome.as_ref().is_err_and(is_in_use)
            && let Err(error) = self.set_up(network).await
        {
            tracing::error!(network = %network.name, %error, "it is in use, and not whole");
        }
        outcome
    }

    /// Machines on the bridge would be cut off without knowing.
    pub(super) async fn refuse_ports(&self, network: &Network) -> Result<(), Failure> {
        match self.our_bridge(network).await {
            Ok(Some(_)) => self.refuse_ports_of(&network.config().bridge).await,
            Ok(None) => Ok(()),
            Err(error) if is_foreign(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn refuse_ports_of(&self, bridge: &LinkName) -> Result<(), Failure> {
        let bridge = bridge.clone();
        match bridge::ports(&self.links, &bridge).await? {
            ports if ports.is_empty() => Ok(()),
            ports => Err(NetworksError::InUse { bridge, ports }.into()),
        }
    }
}

/// Whether it says that the link of the bridge's name is somebody else's.
fn is_foreign(error: &Failure) -> bool {
    error.code() == ErrorCode::BridgeAlreadyExists
}

/// Whether it says that machines are on the bridge.
fn is_in_use(error: &Failure) -> bool {
    error.code() == ErrorCode::NetworkInUse
}

fn masquerade(network: &Network) -> Result<Masquerade, Failure> {
    let config = network.config();
    let subnet = Subnet::parse(&config.subnet.to_string()).map_err(|why| super::invalid(&why))?;
    Ok(Masquerade {
        subnet,
        bridge: network.config().bridge.clone(),
    })
}
