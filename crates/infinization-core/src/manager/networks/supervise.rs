//! Looking after dnsmasq and the guard, for as long as there is a manager.
//!
//! dnsmasq's end is an event of its pidfd; it is started again after a pause that grows while it ends at once.
//! Its leases are in its file, so they stay. Another program's change of the guard is heard of, and undone.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::all::Networks;
use super::one::Network;
use crate::error::Failure;
use crate::events::{Source, now_ms};
use crate::host::nft::{Commits, NftError};
use crate::host::process::ProcessHandle;

/// Before the first try to start it again.
const SOON: Duration = Duration::from_millis(200);
/// Before a further one, at most.
const LATEST: Duration = Duration::from_secs(30);
/// One that ran for so long had started well.
const WELL: Duration = Duration::from_secs(60);
/// Between two looks at the guard, so that a storm of commits costs a few programs a second.
const BREATH: Duration = Duration::from_millis(200);

impl Networks {
    /// Has dnsmasq started again when it ends; without one, the network is not whole, and is furnished again. The caller holds the network's turn.
    pub(super) fn look_after(
        self: &Arc<Self>,
        network: &Arc<Network>,
        process: Option<ProcessHandle>,
    ) {
        let ending = self.closing.child_token();
        let mut status = network.status();
        if process.is_some() {
            status.process.clone_from(&process);
        }
        status.watch = Some(ending.clone().drop_guard());
        drop(status);
        let (networks, network) = (Arc::downgrade(self), Arc::clone(network));
        self.work
            .spawn(supervise(networks, network, process, ending));
    }

    /// Hears of what others do to the guard, from the first network on.
    pub(super) fn watch_guard(self: &Arc<Self>) {
        if self
            .is_watched
            .swap(true, std::sync::atomic::Ordering::Relaxed)
        {
            return;
        }
        let (networks, ending) = (Arc::downgrade(self), self.closing.clone());
        let commits = Commits::to_inet(self.guard.table());
        tokio::spawn(async move {
            let watching = async {
                match commits {
                    Ok(commits) => watch(networks, commits).await,
                    Err(error) => tracing::error!(%error, "virtual networks' guard is not watched"),
                }
            };
            ending.run_until_cancelled(watching).await
        });
    }

    fn tell(&self, kind: &str, network: &Network, more: &[(&str, Value)]) {
        let mut data = json!({ "network": network.name, "timestamp": now_ms() });
        for (key, value) in more {
            data[*key] = value.clone();
        }
        self.events.publish(Source::HealthMonitor, kind, None, data);
    }

    /// Starts dnsmasq again, or furnishes a network that is not whole, unless somebody takes it down.
    async fn try_again(
        &self,
        network: &Network,
        is_whole: bool,
        ending: &CancellationToken,
    ) -> Option<Result<Option<ProcessHandle>, Failure>> {
        let _turn = network.turn.lock().await;
        if ending.is_cancelled() {
            return None;
        }
        Some(if is_whole {
            self.serve(network).await.map(Some)
        } else {
            self.furnish_again(network).await
        })
    }

    fn is_back(&self, network: &Network, process: Option<&ProcessHandle>) {
        let mut status = network.status();
        (status.process, status.error) = (process.cloned(), None);
        let restarts = status.restarts;
        drop(status);
        tracing::info!(network = %network.name, "it is whole again");
        let mut more = vec![("restarts", json!(restarts))];
        more.extend(process.map(|process| ("pid", json!(process.pid()))));
        self.tell("network-restarted", network, &more);
    }

    fn has_failed(&self, network: &Network, error: String) {
        tracing::error!(network = %network.name, error, "it is not whole");
        self.tell("network-failed", network, &[("error", json!(error))]);
        network.status().error = Some(error);
    }
}

/// None when nobody is to look after it any more.
async fn supervise(
    networks: Weak<Networks>,
    network: Arc<Network>,
    mut running: Option<ProcessHandle>,
    ending: CancellationToken,
) -> Option<()> {
    let mut is_whole = running.is_some();
    let mut pause = SOON;
    loop {
        if let Some(process) = running.take() {
            let since = Instant::now();
            let exit = ending.run_until_cancelled(process.exited()).await?;
            network.status().restarts += 1;
            let of_all = networks.upgrade()?;
            of_all.has_failed(&network, format!("dnsmasq ended by {exit}"));
            if since.elapsed() > WELL {
                pause = SOON;
            }
        }
        ending.run_until_cancelled(sleep(pause)).await?;
        pause = (pause * 2).min(LATEST);
        let of_all = networks.upgrade()?;
        match of_all.try_again(&network, is_whole, &ending).await? {
            Ok(process) => {
                of_all.is_back(&network, process.as_ref());
                running = Some(process?);
                is_whole = true;
            }
            Err(error) => of_all.has_failed(&network, error.to_string()),
        }
    }
}

async fn watch(networks: Weak<Networks>, mut commits: Commits) {
    loop {
        if let Err(error) = commits.next().await {
            tracing::error!(%error, "virtual networks' guard is not watched any more");
            return;
        }
        if put_back(&networks).await.is_none() {
            return;
        }
        sleep(BREATH).await;
    }
}

/// Has the guard be as it is to be, which is tried until it succeeds; that it failed is told once. None when
/// there is no manager any more.
async fn put_back(networks: &Weak<Networks>) -> Option<()> {
    let (mut pause, mut told) = (SOON, false);
    loop {
        let of_all = networks.upgrade()?;
        match of_all.guard.repair(|| of_all.guarding()).await {
            Ok(false) => return Some(()),
            Ok(true) => {
                of_all.tell_guarded();
                return Some(());
            }
            Err(error) if told => tracing::warn!(%error, "virtual networks are not guarded yet"),
            Err(error) => of_all.tell_unguarded(&error),
        }
        told = true;
        drop(of_all);
        sleep(pause).await;
        pause = (pause * 2).min(LATEST);
    }
}

impl Networks {
    fn tell_guarded(&self) {
        tracing::warn!("another program changed the guard of virtual networks; it was put back");
        let missing = json!({ "vmId": null, "part": "guard", "name": self.guard.table() });
        let data = json!({ "missing": [missing], "failed": [], "timestamp": now_ms() });
        self.events
            .publish(Source::HealthMonitor, "firewall-repaired", None, data);
    }

    fn tell_unguarded(&self, error: &NftError) {
        tracing::error!(%error, "virtual networks are not guarded");
        let message = format!("the guard of virtual networks could not be put back yet: {error}");
        let data = json!({ "message": message, "timestamp": now_ms() });
        self.events
            .publish(Source::HealthMonitor, "error", None, data);
    }
}
