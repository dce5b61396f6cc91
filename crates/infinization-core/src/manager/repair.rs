//! Putting back what another program takes out of the firewall.
//!
//! Nothing runs here until nftables tells of somebody else's commit to a table of ours. What one
//! commit, or a storm of them, has damaged is then put back in one transaction, and told. Where the table
//! itself is gone, every port is closed before anything is read. The rules are
//! those that were in force; a machine whose rules are an earlier process' is closed meanwhile. The two
//! tables are looked after each by itself. Neighbour: [`super::reload`] has machines load their rules
//! from the database.

use std::future::pending;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::Open;
use crate::error::Failure;
use crate::events::{Source, now_ms};
use crate::firewall::ChainNames;
use crate::host::nft::{Damage, Mark, Nft, NftError, OurTable, Part, Repair};
use crate::types::LinkName;

/// Between two looks, so that a storm of commits costs a few programs a second and not all of one's
/// time.
pub(super) const BREATH: Duration = Duration::from_millis(200);
/// After repairs that failed, the longest pause before the next try.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// Looks after the firewall for as long as there is a manager.
pub(super) async fn watch(open: Weak<Open>, nft: Nft) {
    tokio::join!(
        watch_table(&open, &nft, OurTable::Filter),
        watch_table(&open, &nft, OurTable::Nat)
    );
}

async fn watch_table(open: &Weak<Open>, nft: &Nft, table: OurTable) {
    let mut pause = BREATH;
    loop {
        let heard = nft.meddled(table).await;
        let Some(open) = open.upgrade() else { return };
        let outcome = match heard {
            Ok(()) => open.look_after(table).await,
            Err(error) => Err(NftError::Netlink(error).into()),
        };
        if let Err(error) = &outcome {
            open.tell_failed(error);
        }
        drop(open);
        // A repair that fails may leave doubts of its own: those do not count.
        let mark = nft.doubts(table);
        breathe(nft, mark, table).await;
        pause = if outcome.is_ok() {
            BREATH
        } else {
            tokio::select! {
                () = sleep(pause) => {}
                // Somebody meddles again. Who cannot listen waits.
                Ok(()) = nft.meddled_since(table, mark) => {}
            }
            (pause * 2).min(LONGEST)
        };
    }
}

/// What others do meanwhile waits, unless they take the whole table: without it every port is open, and
/// closing them costs no program.
async fn breathe(nft: &Nft, since: Mark, table: OurTable) {
    let mut mark = since;
    let watching = async {
        while nft.meddled_since(table, mark).await.is_ok() {
            mark = nft.doubts(table);
            if let Err(error) = nft.close_if_gone().await {
                tracing::warn!(%error, "the firewall's table is gone, and ports are not closed yet");
            }
        }
        pending::<()>().await;
    };
    let _over = timeout(BREATH, watching).await;
}

impl Open {
    /// After a repair, the next look finds everything sound, unless somebody was there again.
    async fn look_after(self: &Arc<Self>, table: OurTable) -> Result<(), Failure> {
        match table {
            OurTable::Filter => self.look_after_filter().await,
            OurTable::Nat => self.look_after_nat().await,
        }
    }

    async fn look_after_nat(&self) -> Result<(), Failure> {
        let bridges = self.services.nft.repair_nat().await?;
        let missing =
            |bridge: &LinkName| json!({ "vmId": null, "part": Part::Masquerade, "name": bridge });
        self.tell_repaired(&bridges.iter().map(missing).collect::<Vec<_>>(), None);
        Ok(())
    }

    /// What concerns a machine that has yet to load its rules is told when it has tried.
    async fn look_after_filter(self: &Arc<Self>) -> Result<(), Failure> {
        let Repair {
            damages,
            unknown,
            unconfirmed,
        } = self.services.nft.repair().await?;
        let waits = |damage: &Damage| {
            damage
                .machine
                .as_ref()
                .is_some_and(|it| unknown.contains(it))
        };
        let (waiting, repaired): (Vec<_>, Vec<_>) = damages.iter().partition(|it| waits(it));
        let missing = repaired.iter().map(|it| self.missing(it));
        self.tell_repaired(&missing.collect::<Vec<_>>(), None);
        for names in unknown {
            let its = waiting
                .iter()
                .filter(|it| it.machine.as_ref() == Some(&names));
            let missing = its.map(|it| self.missing(it)).collect();
            self.load_again(names, missing);
        }
        for names in unconfirmed {
            self.load_again(names, Vec::new());
        }
        Ok(())
    }

    fn missing(&self, damage: &Damage) -> Value {
        let vm_id = damage.machine.as_ref().and_then(|names| self.id_of(names));
        json!({ "vmId": vm_id, "part": damage.part, "name": damage.name })
    }

    /// Tells what was missing and is there again, and what still is not.
    pub(super) fn tell_repaired(&self, missing: &[Value], failed: Option<Value>) {
        if missing.is_empty() && failed.is_none() {
            return;
        }
        tracing::warn!(
            missing = missing.len(),
            failed = failed.is_some(),
            "another program changed the firewall; what it took was put back"
        );
        let failed = Vec::from_iter(failed);
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

    pub(super) fn id_of(&self, names: &ChainNames) -> Option<String> {
        Some(self.owner_of(names)?.context().vm_id.to_string())
    }
}
