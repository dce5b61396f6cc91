//! Putting back what another program takes out of the firewall.
//!
//! Nothing runs here until nftables tells of somebody else's commit to a table of ours. What one
//! commit, or a storm of them, has damaged is then put back in one transaction, and told. The rules are
//! those that were in force; those of an earlier process are loaded by the VM's own task from the
//! database.

use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Open;
use crate::error::Failure;
use crate::events::{Source, now_ms};
use crate::firewall::ChainNames;
use crate::host::nft::{Damage, Nft, Part, Repair};
use crate::types::LinkName;
use crate::vm::VmHandle;

/// Between two looks, so that a storm of commits costs a few programs a second and not all of one's
/// time.
const BREATH: Duration = Duration::from_millis(200);
/// After repairs that failed, the longest pause before the next try.
const LONGEST: Duration = Duration::from_secs(60);
/// A VM's task may be busy with another verb; what it has been asked, it does when it is free.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks after the firewall for as long as there is a manager.
pub(super) async fn watch(open: Weak<Open>, nft: Nft) {
    let mut pause = BREATH;
    loop {
        if let Err(error) = nft.meddled().await {
            tracing::warn!(%error, "what others do to the firewall will not be noticed");
            return;
        }
        let Some(open) = open.upgrade() else { return };
        pause = match open.look_after_firewall().await {
            Ok(()) => BREATH,
            Err(error) => {
                open.tell_failed(&error);
                (pause * 2).min(LONGEST)
            }
        };
        drop(open);
        sleep(pause).await;
    }
}

impl Open {
    /// After a repair, the next look finds everything sound, unless somebody was there again.
    async fn look_after_firewall(&self) -> Result<(), Failure> {
        let nft = &self.services.nft;
        let Repair {
            damages, unknown, ..
        } = nft.repair().await?;
        let bridges = nft.repair_nat().await?;
        if damages.is_empty() && bridges.is_empty() {
            return Ok(());
        }
        let reloads = unknown.iter().map(|names| self.reload(names));
        let failed: Vec<Value> = join_all(reloads).await.into_iter().flatten().collect();
        self.tell_repaired(&damages, &bridges, &failed);
        Ok(())
    }

    /// Has the machine load its rules; answers what went wrong.
    async fn reload(&self, names: &ChainNames) -> Option<Value> {
        let failed = |error: &str| json!({ "vmId": self.id_of(names), "error": error });
        let Some(handle) = self.owner_of(names) else {
            // Its chains were made by hand, and are made again by hand.
            self.services.nft.abandon_vm(names);
            return Some(failed("its rules are not known"));
        };
        let reloading = tokio::spawn(async move { handle.reload_firewall().await });
        match tokio::time::timeout(PATIENCE, reloading).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(failed(&error.to_string())),
            Ok(Err(_)) => Some(failed("its task ended")),
            Err(_) => Some(failed("it is busy; its rules follow")),
        }
    }

    fn tell_repaired(&self, damages: &[Damage], bridges: &[LinkName], failed: &[Value]) {
        let of_filter = damages.iter().map(|damage| {
            let vm_id = damage.machine.as_ref().and_then(|names| self.id_of(names));
            json!({ "vmId": vm_id, "part": damage.part, "name": damage.name })
        });
        let of_nat = bridges
            .iter()
            .map(|bridge| json!({ "vmId": null, "part": Part::Masquerade, "name": bridge }));
        let missing: Vec<Value> = of_filter.chain(of_nat).collect();
        tracing::warn!(
            missing = missing.len(),
            failed = failed.len(),
            "another program changed the firewall; what it took was put back"
        );
        let data = json!({ "missing": missing, "failed": failed, "timestamp": now_ms() });
        let events = &self.services.events;
        events.publish(Source::HealthMonitor, "firewall-repaired", None, data);
    }

    fn tell_failed(&self, error: &Failure) {
        tracing::error!(%error, "what another program did to the firewall could not be repaired");
        let message = format!("the firewall could not be repaired: {error}");
        let data = json!({ "message": message, "timestamp": now_ms() });
        let events = &self.services.events;
        events.publish(Source::HealthMonitor, "error", None, data);
    }

    fn owner_of(&self, names: &ChainNames) -> Option<VmHandle> {
        let vms = self.vms();
        let found = vms
            .iter()
            .find(|(vm_id, _)| ChainNames::of(vm_id) == *names);
        found.map(|(_, handle)| handle.clone())
    }

    fn id_of(&self, names: &ChainNames) -> Option<String> {
        Some(self.owner_of(names)?.context().vm_id.to_string())
    }
}
