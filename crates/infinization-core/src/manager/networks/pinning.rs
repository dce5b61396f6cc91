//! Machines may only use the address their network gave them, where that was asked for.
//!
//! A static address counts from the start, another one with its lease; until then the machine may only ask for one. A
//! machine that is given a static address has both until its lease ends. A machine whose address has changed has its firewall loaded again, by its own task.

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::all::{Networks, stored};
use super::one::Network;
use crate::error::Failure;
use crate::events::{Source, now_ms};
use crate::firewall::ChainNames;
use crate::host::blocking::{NotDone, blocking};
use crate::host::dir_watch::DirWatch;
use crate::manager::{Open, firewall};
use crate::types::{LinkName, VmId};
use crate::vm::{Changed, Pins};

/// dnsmasq writes its leases line by line, without closing the file: each line is heard, none is the last. So
/// that a file is not read once per line, there is a pause before the look; what is written after the look is
/// heard again.
const WRITTEN: Duration = Duration::from_millis(20);
/// Before it is tried again where the host gives no thread to read with, or no watch: nobody tells when it does.
const AGAIN: Duration = Duration::from_secs(1);

impl Networks {
    /// Pins what was given until now, and what will be, whether or not dnsmasq runs; or nothing, if the network is
    /// not to. The caller holds the network's turn.
    pub(super) async fn start_pinning(
        self: &Arc<Self>,
        network: &Arc<Network>,
    ) -> Result<(), Failure> {
        drop(network.status().pinning.take());
        let config = network.config();
        if !config.pin_addresses {
            self.pins.forget(&config.bridge);
            return Ok(());
        }
        self.pins.hold(&config.bridge);
        let pinned = self.pin(network).await;
        let ending = self.closing.child_token();
        network.status().pinning = Some(ending.clone().drop_guard());
        let pinning = Self::keep_pinning(Arc::downgrade(self), Arc::clone(network));
        tokio::spawn(async move { ending.run_until_cancelled_owned(pinning).await });
        pinned
    }

    /// Before any machine is looked at: none on its bridge is free until it is set up. What is given is all that
    /// counts, also where that cannot be read.
    pub(super) async fn hold(&self, network: &Network) {
        let config = network.config();
        if !config.pin_addresses {
            return;
        }
        self.pins.hold(&config.bridge);
        if let Err(error) = self.pin(network).await {
            tracing::error!(network = %network.name, %error, "leases cannot be read");
        }
    }

    /// Pins what was given until now. Does nothing unless the network is to.
    async fn pin(&self, network: &Network) -> Result<(), Failure> {
        learn(&self.pins, network).await
    }

    /// Pins what will be given. Where nobody tells of it, which is told once, leases are read again and again: a
    /// machine that is given an address and not let use it is cut off.
    async fn keep_pinning(networks: Weak<Self>, network: Arc<Network>) {
        let mut told = false;
        loop {
            let watch = DirWatch::on(&network.dir);
            told &= watch.is_err();
            let Err(error) = Self::pin_as_written(&networks, &network, watch).await else {
                return;
            };
            let Some(of_all) = networks.upgrade() else {
                return;
            };
            if !told {
                of_all.tell_unwatched(&network, &error);
            }
            told = true;
            drop(of_all);
            sleep(AGAIN).await;
        }
    }

    /// Until there is nobody who looks after networks, or an error where it is not heard what is written.
    async fn pin_as_written(
        networks: &Weak<Self>,
        network: &Network,
        mut watch: io::Result<DirWatch>,
    ) -> io::Result<()> {
        // What was written before the watch was there, too.
        while let Some(of_all) = networks.upgrade() {
            if let Err(error) = of_all.pin(network).await {
                tracing::error!(network = %network.name, %error, "leases cannot be read");
            }
            drop(of_all);
            match &mut watch {
                Ok(watch) => watch.changed().await?,
                Err(_) => return watch.map(drop),
            }
            sleep(WRITTEN).await;
        }
        Ok(())
    }

    fn tell_unwatched(&self, network: &Network, error: &io::Error) {
        tracing::error!(network = %network.name, %error, "leases are not watched");
        let message = format!(
            "leases of the network {} are not watched, and machines are let use them late: {error}",
            network.name
        );
        let data = json!({ "message": message, "timestamp": now_ms() });
        self.events
            .publish(Source::HealthMonitor, "error", None, data);
    }
}

async fn learn(pins: &Pins, network: &Network) -> Result<(), Failure> {
    let config = network.config();
    let Some(dhcp) = config.dhcp.as_ref().filter(|_| config.pin_addresses) else {
        return Ok(());
    };
    let leases = network.leases().await?.into_iter();
    let leased = leases.map(|lease| (lease.mac, lease.ip));
    // What is static is nobody else's: it counts, and so comes last.
    let fixed = dhcp.hosts.iter().map(|host| (host.mac, host.ip));
    pins.learn(&config.bridge, leased.chain(fixed));
    Ok(())
}

/// What holds on this bridge for who has no manager, as its network's files say.
pub(in crate::manager) async fn stored_pins(
    state_dir: &Path,
    bridge: &LinkName,
) -> Result<Pins, Failure> {
    let pins = Pins::default();
    let all = stored(state_dir).await?;
    for network in all.iter().filter(|it| it.config().bridge == *bridge) {
        if network.config().pin_addresses {
            pins.hold(bridge);
            learn(&pins, network).await?;
        }
    }
    Ok(pins)
}

/// Has machines whose address has changed load their firewall again, for as long as there is a manager.
pub(in crate::manager) async fn follow_pins(manager: Weak<Open>) {
    let Some(pins) = manager.upgrade().map(|open| open.services.pins.clone()) else {
        return;
    };
    loop {
        let changed = Arc::new(pins.changed().await);
        loop {
            let Some(open) = manager.upgrade() else {
                return;
            };
            let Err(error) = open.reload_pinned(&changed).await else {
                break;
            };
            tracing::error!(%error, "machines' new addresses do not count yet");
            drop(open);
            sleep(AGAIN).await;
        }
    }
}

impl Open {
    /// A machine that does not run is compiled anew when it starts.
    async fn reload_pinned(self: &Arc<Self>, changed: &Arc<Changed>) -> Result<(), NotDone> {
        let running: Vec<_> = {
            let vms = self.vms();
            let running = vms
                .iter()
                .filter(|(_, handle)| handle.view().live.is_some());
            running.map(|(vm_id, _)| vm_id.clone()).collect()
        };
        let (services, changed) = (Arc::clone(&self.services), Arc::clone(changed));
        let is_concerned = move |vm_id: &VmId| {
            let spec = firewall::spec(&services.config, vm_id);
            let spec = spec.ok().flatten();
            spec.is_some_and(|spec| changed.concerns(&spec.network))
        };
        let concerned =
            blocking(move || running.into_iter().filter(is_concerned).collect::<Vec<_>>());
        for vm_id in concerned.await? {
            self.load_again(ChainNames::of(&vm_id), Vec::new());
        }
        Ok(())
    }
}
