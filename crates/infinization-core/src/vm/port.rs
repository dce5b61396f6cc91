//! The TAP of a living VM as a port of its bridge, for when the bridge goes and is there again.
//!
//! Invariant: only a VM that is to go on is put back: whoever takes its TAP off for good has said so before
//! (it is dark, or leaving), and both hold its port while they are at it. It does not go through the VM's task, which may be
//! waiting for the guest for minutes. Neighbours: the manager notices, [`super::effects`] does the rest.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use tokio::sync::watch;

use super::condition::{Ailment, NetworkLoss};
use super::context::VmContext;
use super::ledger::Seat;
use super::live::LiveView;
use super::machine::View;
use super::task::VmHandle;
use crate::error::Failure;
use crate::types::{LinkName, VmId};

/// The TAP of a VM that had a QEMU when it was asked for. It is no handle: the VM's task may end.
#[derive(Debug, Clone)]
pub struct Port {
    context: Arc<VmContext>,
    view: watch::Receiver<View>,
    live: Arc<LiveView>,
    bridge: LinkName,
}

impl VmHandle {
    /// Its port; none without a QEMU, or where it is not known which bridge that was started on.
    pub fn port(&self) -> Option<Port> {
        let (context, view) = self.surroundings();
        let live = view.borrow().live.clone()?;
        let bridge = live.bridge.clone()?;
        Some(Port {
            context,
            view,
            live,
            bridge,
        })
    }
}

impl Port {
    /// Whose it is.
    pub fn vm_id(&self) -> &VmId {
        &self.context.vm_id
    }

    /// The TAP.
    pub fn tap(&self) -> &LinkName {
        &self.live.tap
    }

    /// The bridge the VM was started on.
    pub fn bridge(&self) -> &LinkName {
        &self.bridge
    }

    /// Where the TAP was seen last, by this process or an earlier one.
    pub fn seat(&self) -> Option<Seat> {
        self.context.ledger.seat()
    }

    /// Notes for the next process where the TAP is.
    pub fn sits_on(&self, seat: &Seat) {
        if let Err(error) = self.context.ledger.sits_on(seat) {
            tracing::warn!(vm = %self.vm_id(), %error, "the ledger could not be written");
        }
    }

    /// Whether it was told that the TAP is on no bridge.
    pub fn is_off_network(&self) -> bool {
        self.live.health.is_off_network()
    }

    /// Tells that the TAP is on a bridge.
    pub fn is_on_network(&self) {
        self.context.network_is(&self.live, None);
    }

    /// Tells that the TAP is on no bridge, unless that is how its VM's end has left it.
    pub fn is_lost(&self, reason: NetworkLoss, bridge: &str) {
        if !self.is_alive() {
            return;
        }
        let bridge = bridge.to_owned();
        let ailment = Ailment::NetworkLost { reason, bridge };
        self.context.network_is(&self.live, Some(ailment));
    }

    /// Puts the TAP on `bridge`, and up, once the VM's rules guard the addresses that are there. False when the VM's
    /// QEMU is gone, or about to go.
    pub async fn rejoin(&self, bridge: &LinkName) -> Result<bool, Failure> {
        let _turn = self.context.port.lock().await;
        if !self.is_alive() {
            return Ok(false);
        }
        let stays = || self.is_alive();
        let guarding = self
            .context
            .guard_before_joining(bridge, &self.bridge, stays);
        if !guarding.await? || !self.is_alive() {
            return Ok(false);
        }
        let links = &self.context.services.links;
        links.set_master(self.tap(), bridge).await?;
        links.set_up(self.tap()).await?;
        Ok(true)
    }

    /// Whether the VM has the QEMU still that it had, and is to keep it.
    fn is_alive(&self) -> bool {
        let is_same = |live: &Arc<LiveView>| Arc::ptr_eq(live, &self.live);
        let has_it = self.view.borrow().live.as_ref().is_some_and(is_same);
        has_it && !self.live.leaving.load(SeqCst)
    }
}
