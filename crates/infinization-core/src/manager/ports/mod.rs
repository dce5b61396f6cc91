//! Machines whose bridge goes away, and comes back (F24).
//!
//! A guest whose TAP is on no bridge goes on, and nobody would know: its condition tells. When there is a
//! bridge of that name again, the TAP joins it. The bridge's addresses, which the machine's rules guard, are read
//! anew then, and whenever they change or the TAP goes to another bridge. Where somebody took the TAP off a bridge that is still
//! there, it is left where it is.
//!
//! Nothing runs here until the kernel tells of a link, or a machine has a QEMU. What counts is what the
//! kernel then answers. Neighbours: [`standing`] decides, [`super::reload`] loads rules.

mod joining;
mod standing;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until};

use self::joining::{Attempt, Joining};
use self::standing::{Seats, Standing};
use super::Open;
use crate::error::Failure;
use crate::events::{Source, now_ms};
use crate::firewall::{ChainNames, Network};
use crate::host::bridge::{InterfaceAddress, all_addresses};
use crate::host::link::{LinkError, LinkEvent, LinkWatch, Links};
use crate::types::{VmId, VmNames};
use crate::vm::{Arrival, NetworkLoss, Port, VmHandle};

/// Before the first try again of what failed.
const SOON: Duration = Duration::from_millis(200);
/// Before a further one, at most.
const LATEST: Duration = Duration::from_secs(60);

/// What is to be looked at.
#[derive(Debug, Default)]
struct Concerns {
    /// Everything: nothing was heard yet, or announcements were lost.
    all: bool,
    /// Links that have changed or are gone.
    links: HashSet<String>,
    /// Whether the addresses of some link may have changed.
    addresses: bool,
    /// Machines that were given a QEMU, or could not be put back.
    machines: HashSet<VmId>,
    /// Bridges that have got machines back.
    returned: HashSet<u32>,
}

impl Concerns {
    fn everything() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }
}

/// The addresses of each link that has any.
type Addresses = HashMap<u32, HashSet<InterfaceAddress>>;

/// What is known between two looks.
struct Ports {
    open: Weak<Open>,
    links: Links,
    seats: Seats,
    /// None before the first look.
    addresses: Option<Addresses>,
    /// TAPs whose machines may guard other addresses than those that count now: they went to another bridge, or
    /// something was changed while they were launched.
    outdated: HashSet<String>,
    /// Machines that could not be put back, which was told.
    failed: HashSet<VmId>,
    /// Machines that are being put back.
    joining: Joining,
    /// Before they are tried again.
    pause: Duration,
    /// When that is, whatever is heard meanwhile; none if there are none.
    due: Option<Instant>,
}

/// Looks after machines' TAPs for as long as there is a manager.
pub(super) async fn watch(open: Weak<Open>, mut arrived: UnboundedReceiver<Arrival>) {
    let Some(links) = open.upgrade().map(|open| open.services.links.clone()) else {
        return;
    };
    let mut ports = Ports {
        open,
        links,
        seats: Seats::default(),
        addresses: None,
        outdated: HashSet::new(),
        failed: HashSet::new(),
        joining: Joining::default(),
        pause: SOON,
        due: None,
    };
    let mut pause = SOON;
    loop {
        let since = Instant::now();
        let Err(error) = ports.listen(&mut arrived).await else {
            return;
        };
        ports.tell_deaf(&error);
        if since.elapsed() > LATEST {
            pause = SOON;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LATEST);
    }
}

impl Ports {
    /// Until something fails: whoever listens again looks at everything. Returns when there is no manager
    /// any more.
    async fn listen(&mut self, arrived: &mut UnboundedReceiver<Arrival>) -> Result<(), Failure> {
        let mut watch = self.links.watch()?;
        let mut concerns = Concerns::everything();
        while let Some(running) = self.open.upgrade().map(|open| open.running()) {
            self.look(&running, &concerns).await?;
            concerns = self.hear(&mut watch, arrived).await?;
        }
        Ok(())
    }

    /// What is to be looked at next. What has been heard by then is one look.
    async fn hear(
        &mut self,
        watch: &mut LinkWatch,
        arrived: &mut UnboundedReceiver<Arrival>,
    ) -> Result<Concerns, LinkError> {
        let mut concerns = Concerns::default();
        tokio::select! {
            event = watch.next() => self.take_in(event?, &mut concerns),
            Some(arrival) = arrived.recv() => self.take_in_arrival(arrival, &mut concerns),
            Some(attempt) = self.joining.next() => self.take_in_attempt(attempt, &mut concerns),
            () = sleep_until(self.due.unwrap_or_else(Instant::now)), if self.due.is_some() => {
                self.due = None;
                self.pause = (self.pause * 2).min(LATEST);
                concerns.machines.extend(self.waiting().cloned());
            }
        }
        while let Some(event) = watch.next().now_or_never() {
            self.take_in(event?, &mut concerns);
        }
        while let Ok(arrival) = arrived.try_recv() {
            self.take_in_arrival(arrival, &mut concerns);
        }
        while let Some(attempt) = self.joining.try_next() {
            self.take_in_attempt(attempt, &mut concerns);
        }
        Ok(concerns)
    }

    fn take_in(&mut self, event: LinkEvent, concerns: &mut Concerns) {
        match event {
            LinkEvent::Changed(link) => {
                let has_moved = self.seats.changed(&link);
                if has_moved && !self.joining.has(&link.name) {
                    self.outdated.insert(link.name.clone());
                }
                concerns.links.insert(link.name);
            }
            LinkEvent::Gone(link) => {
                self.seats.gone(&link);
                concerns.links.insert(link.name);
            }
            LinkEvent::Addresses(_) => concerns.addresses = true,
            LinkEvent::Missed => concerns.all = true,
        }
    }

    fn take_in_arrival(&mut self, arrival: Arrival, concerns: &mut Concerns) {
        match arrival {
            Arrival::Live(vm_id) => concerns.machines.insert(vm_id),
            Arrival::Outdated(vm_id) => {
                let tap = VmNames::of(&vm_id).tap;
                self.outdated.insert(tap.to_string())
            }
        };
    }

    /// That it failed is told once.
    fn take_in_attempt(&mut self, attempt: Attempt, concerns: &mut Concerns) {
        let (port, bridge, index) = (attempt.port, attempt.bridge, attempt.index);
        let vm_id = port.vm_id();
        if attempt.was_heard_of {
            concerns.machines.insert(vm_id.clone());
        }
        match attempt.outcome {
            Ok(true) => {
                tracing::info!(vm = %vm_id, %bridge, "its bridge is there again, and its TAP is on it");
                self.failed.remove(vm_id);
                self.seats.seated(port.tap(), index, &bridge);
                port.is_on_network();
                concerns.returned.insert(index);
                concerns.machines.insert(vm_id.clone());
            }
            Ok(false) => {}
            Err(error) if self.failed.insert(vm_id.clone()) => self.tell_failed(vm_id, &error),
            Err(error) => tracing::debug!(vm = %vm_id, %error, "it is not back on its bridge yet"),
        }
    }

    /// Machines that could not be put back, and are not being put back now.
    fn waiting(&self) -> impl Iterator<Item = &VmId> {
        let is_tried = |vm_id: &VmId| self.joining.has(VmNames::of(vm_id).tap.as_str());
        self.failed.iter().filter(move |vm_id| !is_tried(vm_id))
    }

    /// The manager is not held meanwhile: its state directory is free as soon as it is shut down.
    async fn look(&mut self, running: &[Port], concerns: &Concerns) -> Result<(), Failure> {
        if concerns.all {
            let moved = self.seats.learn(&self.links.list().await?);
            let moved = moved.into_iter().filter(|tap| !self.joining.has(tap));
            self.outdated.extend(moved);
        }
        let is_there = |vm_id: &VmId| running.iter().any(|port| port.vm_id() == vm_id);
        self.failed.retain(is_there);
        let mut concerned: Vec<&Port> = running
            .iter()
            .filter(|port| self.is_concerned(port, concerns))
            .collect();
        concerned.retain(|port| !self.joining.hears_of(port.tap()));
        for port in &concerned {
            if let Some(seat) = port.seat() {
                self.seats.recall(port.tap(), seat);
            }
        }
        let astray = self.astray(&concerned).await?;
        self.put_back(&astray).await?;
        for port in &concerned {
            if let Some(seat) = self.seats.of(port.tap()) {
                port.sits_on(seat);
            }
        }
        if self.failed.is_empty() {
            (self.pause, self.due) = (SOON, None);
        } else if self.due.is_none() && self.waiting().next().is_some() {
            self.due = Some(Instant::now() + self.pause);
        }
        if concerns.all || concerns.addresses || !concerns.returned.is_empty() {
            let changed = self.read_addresses(&concerns.returned).await?;
            self.guard_anew(running.iter().filter(|port| self.is_on(port, &changed)));
        }
        let outdated = std::mem::take(&mut self.outdated);
        let is_outdated = |port: &&Port| outdated.contains(port.tap().as_str());
        self.guard_anew(running.iter().filter(is_outdated));
        Ok(())
    }

    fn guard_anew<'a>(&self, ports: impl Iterator<Item = &'a Port>) {
        if let Some(open) = self.open.upgrade() {
            open.guard_anew(ports);
        }
    }

    fn is_concerned(&self, port: &Port, concerns: &Concerns) -> bool {
        let awaited = || self.seats.awaited(port.tap(), port.bridge());
        concerns.all
            || concerns.machines.contains(port.vm_id())
            || concerns.links.contains(port.tap().as_str())
            || port.is_off_network() && concerns.links.contains(awaited())
    }

    /// Those whose TAP is on no bridge. A TAP that was on none, and that somebody has put on one, has moved.
    async fn astray<'a>(&mut self, ports: &[&'a Port]) -> Result<Vec<&'a Port>, LinkError> {
        let mut astray = Vec::new();
        for port in ports {
            match self.links.find(port.tap()).await? {
                Some(link) if link.master.is_some() => {
                    if self.seats.changed(&link) || port.is_off_network() {
                        self.outdated.insert(link.name);
                    }
                    self.failed.remove(port.vm_id());
                    port.is_on_network();
                }
                _ => astray.push(*port),
            }
        }
        Ok(astray)
    }

    /// Begins to put back whose bridge is there again, and tells where each stands.
    async fn put_back(&mut self, astray: &[&Port]) -> Result<(), LinkError> {
        if astray.is_empty() {
            return Ok(());
        }
        let links = self.links.list().await?;
        for port in astray {
            match self.seats.standing(port.tap(), port.bridge(), &links) {
                Standing::Seated => port.is_on_network(),
                Standing::Lost { reason, bridge } => port.is_lost(reason, &bridge),
                Standing::Returns { bridge, index } => {
                    port.is_lost(NetworkLoss::BridgeGone, bridge.as_str());
                    self.joining.begin((*port).clone(), bridge, index);
                }
            }
        }
        Ok(())
    }

    /// Reads all addresses. Answers the links whose addresses have changed, and which of `returned` have any:
    /// one that has none yet is guarded as before, since it will most likely have the same. What a bridge
    /// gives itself with its first port is left to the next load.
    async fn read_addresses(&mut self, returned: &HashSet<u32>) -> Result<HashSet<u32>, Failure> {
        let mut now = Addresses::new();
        for (index, address) in all_addresses(&self.links).await? {
            if !Network::from(address).is_link_local() {
                now.entry(index).or_default().insert(address);
            }
        }
        let before = self.addresses.as_ref().unwrap_or(&now);
        let is_new = |index: &&u32| now.get(index) != before.get(index);
        let mut changed: HashSet<u32> = now
            .keys()
            .chain(before.keys())
            .filter(is_new)
            .copied()
            .collect();
        changed.extend(returned.iter().filter(|index| now.contains_key(index)));
        self.addresses = Some(now);
        Ok(changed)
    }

    /// A machine whose bridge is gone guards the addresses that had.
    fn is_on(&self, port: &Port, bridges: &HashSet<u32>) -> bool {
        let mut bridges = bridges.iter();
        !port.is_off_network() && bridges.any(|bridge| self.seats.is_on(port.tap(), *bridge))
    }

    fn tell_failed(&self, vm_id: &VmId, error: &Failure) {
        tracing::error!(vm = %vm_id, %error, "it could not be put back on its bridge");
        let message = format!("its TAP could not be put back on its bridge yet: {error}");
        let data = json!({ "vmId": vm_id, "event": "network-lost", "error": message });
        self.tell(Source::EventHandler, Some(vm_id), data);
    }

    fn tell_deaf(&self, error: &Failure) {
        tracing::error!(%error, "machines' bridges are not watched");
        let message = format!("machines' bridges are not watched: {error}");
        let data = json!({ "message": message, "timestamp": now_ms() });
        self.tell(Source::HealthMonitor, None, data);
    }

    fn tell(&self, source: Source, vm_id: Option<&VmId>, data: Value) {
        if let Some(open) = self.open.upgrade() {
            open.services.events.publish(source, "error", vm_id, data);
        }
    }
}

impl Open {
    /// The ports of the machines that have a QEMU.
    fn running(&self) -> Vec<Port> {
        self.vms().values().filter_map(VmHandle::port).collect()
    }

    /// Has machines guard their bridge's addresses as they are now.
    fn guard_anew<'a>(self: &Arc<Self>, ports: impl Iterator<Item = &'a Port>) {
        for port in ports {
            self.load_again(ChainNames::of(port.vm_id()), Vec::new());
        }
    }
}
