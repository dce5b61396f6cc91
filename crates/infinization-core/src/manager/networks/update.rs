//! Changing a network, also while machines are on it: all that was asked for, or nothing.
//!
//! Where addresses stay, it is changed in place: guard, NAT and pins follow at once, and where dnsmasq was told
//! other things, one that was told these takes its place, over the same file of leases. Another subnet or gateway
//! is a network that is taken down and set up again, which nobody may be on. What has failed is put back.

use std::sync::Arc;

use serde_json::Value;

use super::all::Networks;
use super::one::Network;
use crate::config::{NetworkName, VirtualNetwork};
use crate::error::Failure;
use crate::vm::Pinned;

impl Networks {
    pub(super) async fn update(
        self: &Arc<Self>,
        name: &NetworkName,
        changes: &Value,
    ) -> Result<Arc<Network>, Failure> {
        let _changing = self.turn(&self.changing).await?;
        let network = self.find(name)?;
        let turn = self.turn(&network.turn).await?;
        let was = network.config();
        let wanted = Arc::new(was.changed(changes)?);
        if wanted != was {
            self.check_change(&network, &was, &wanted).await?;
            self.change(&network, was, wanted).await?;
        }
        drop(turn);
        Ok(network)
    }

    /// What can be refused is refused before anything is touched.
    async fn check_change(
        &self,
        network: &Network,
        was: &VirtualNetwork,
        wanted: &VirtualNetwork,
    ) -> Result<(), Failure> {
        let is_up = network.status().up;
        let bridge = if is_up {
            self.our_bridge(network).await?
        } else {
            None
        };
        if !moves(was, wanted) {
            return Ok(());
        }
        self.refuse_ports(network).await?;
        self.check_networks(wanted)?;
        self.check_host(wanted, bridge.map(|bridge| bridge.index))
            .await
    }

    async fn change(
        self: &Arc<Self>,
        network: &Arc<Network>,
        was: Arc<VirtualNetwork>,
        wanted: Arc<VirtualNetwork>,
    ) -> Result<(), Failure> {
        let is_up = network.status().up;
        let pinned = self.pins.on(&was.bridge);
        let changed = if is_up && moves(&was, &wanted) {
            self.move_to(network, wanted).await
        } else {
            self.change_in_place(network, wanted).await
        };
        if changed.is_err()
            && let Err(error) = self.change_back(network, was, is_up, pinned).await
        {
            tracing::error!(network = %network.name, %error, "a change could not be undone");
        }
        changed
    }

    async fn change_in_place(
        self: &Arc<Self>,
        network: &Arc<Network>,
        wanted: Arc<VirtualNetwork>,
    ) -> Result<(), Failure> {
        network.shall_be(wanted);
        if network.status().up {
            self.set_up(network).await?;
        }
        self.write(network).await
    }

    async fn move_to(
        self: &Arc<Self>,
        network: &Arc<Network>,
        wanted: Arc<VirtualNetwork>,
    ) -> Result<(), Failure> {
        self.take_down_unused(network).await?;
        network.shall_be(wanted);
        self.write(network).await?;
        self.set_up(network).await
    }

    async fn change_back(
        self: &Arc<Self>,
        network: &Arc<Network>,
        was: Arc<VirtualNetwork>,
        was_up: bool,
        pinned: Pinned,
    ) -> Result<(), Failure> {
        let bridge = was.bridge.clone();
        network.shall_be(was);
        self.pins.put_back(&bridge, pinned);
        let written = self.write(network).await;
        if was_up {
            self.set_up(network).await?;
        }
        written
    }
}

/// Whether machines would have to be told another network.
fn moves(was: &VirtualNetwork, wanted: &VirtualNetwork) -> bool {
    (was.subnet, was.gateway) != (wanted.subnet, wanted.gateway)
}
