//! The firewall's file, and the chains in the kernel that are no machine's.
//!
//! Invariant: nothing is written where nobody has named a directory. Neighbours:
//! [`crate::host::nft_file`] does the work, [`super::firewall`] is the service this belongs to.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;

use serde_json::json;

use super::Open;
use super::firewall::Firewall;
use crate::db::KNOWN_STATUSES;
use crate::error::{ErrorCode, Failure};
use crate::events::{EventBus, Source, now_ms};
use crate::firewall::ChainNames;
use crate::host::nft_file::{Keeper, NftFileError, NftFileOptions, NftFiles, PERSISTENCE_DIR};
use crate::types::{HostPath, VmId};
use crate::vm::Services;

/// What a row said of a machine that was being made, before the words that are known now.
const BEING_MADE: &str = "building";

/// Keeps the file of a manager that is to have one.
pub(super) fn keeper(services: &Services) -> Option<Keeper> {
    let dir = services.config.firewall_persistence_dir.clone()?;
    let files = NftFiles::new(NftFileOptions::new(dir), services.nft.clone());
    let events = services.events.clone();
    Some(Keeper::start(
        files,
        Box::new(move |error| tell(&events, error)),
    ))
}

fn tell(events: &EventBus, error: &NftFileError) {
    log(error);
    let message = format!("the firewall could not be saved: {error}");
    let data = json!({ "message": message, "timestamp": now_ms() });
    events.publish(Source::HealthMonitor, "error", None, data);
}

/// Of a firewall without a manager.
pub(super) fn log(error: &NftFileError) {
    tracing::error!(%error, "the firewall could not be saved");
}

fn usual_dir() -> Result<HostPath, Failure> {
    HostPath::parse(PERSISTENCE_DIR)
        .map_err(|why| Failure::new(ErrorCode::Internal, format!("{PERSISTENCE_DIR} {why}")))
}

impl Firewall {
    /// The files: where they are kept, else where they usually are.
    pub fn files(&self) -> Result<NftFiles, Failure> {
        let dir = match self
            .settings()
            .map(|config| config.firewall_persistence_dir)
        {
            Ok(Some(dir)) => dir,
            // Of a manager that is not open, nothing is known.
            Ok(None) | Err(_) => usual_dir()?,
        };
        Ok(NftFiles::new(NftFileOptions::new(dir), self.nft.clone()))
    }

    /// Writes the file now. `INVALID_STATE` where none is kept.
    pub async fn save(&self) -> Result<(), Failure> {
        if self.settings()?.firewall_persistence_dir.is_none() {
            let message = "the firewall is not kept: firewallPersistenceDir names no directory";
            return Err(Failure::new(ErrorCode::InvalidState, message));
        }
        Ok(self.files()?.write().await?)
    }

    /// The next look at what is in force asks the kernel.
    pub fn distrust(&self) {
        self.nft.distrust();
    }

    /// The visible chains of no machine the manager knows. `INVALID_STATE` without a manager.
    pub async fn orphaned_chains(&self) -> Result<Vec<String>, Failure> {
        let manager = self.manager().ok_or_else(|| {
            let message = "only an instance knows which machines there are";
            Failure::new(ErrorCode::InvalidState, message)
        })?;
        manager.open()?.orphaned_chains().await
    }
}

impl Open {
    /// Whoever made them, their machines are gone: removing them is left to the user. The caller has the turn of
    /// those who make rows true.
    pub(super) async fn tell_orphaned_chains(&self) {
        let chains = match self.orphaned_chains().await {
            Ok(chains) => chains,
            Err(error) => {
                tracing::warn!(%error, "chains of no machine were not looked for");
                return;
            }
        };
        self.has_told_orphans.store(true, SeqCst);
        if chains.is_empty() {
            return;
        }
        // No warning: they may be those of another manager of this host.
        tracing::info!(?chains, "the firewall has chains of no machine");
        let data = json!({ "chains": chains, "timestamp": now_ms() });
        let events = &self.services.events;
        events.publish(Source::HealthMonitor, "firewall-orphans", None, data);
    }

    async fn orphaned_chains(&self) -> Result<Vec<String>, Failure> {
        let mut chains = self.services.nft.list_chains().await?;
        chains.retain(|chain| ChainNames::parse(chain).is_some());
        if chains.is_empty() {
            return Ok(chains);
        }
        let known = self.known_chains().await?;
        chains.retain(|chain| !known.contains(chain));
        chains.sort_unstable();
        Ok(chains)
    }

    /// Of machines that left something here, and of those that have a row.
    async fn known_chains(&self) -> Result<BTreeSet<String>, Failure> {
        let mut statuses = KNOWN_STATUSES.to_vec();
        statuses.push(BEING_MADE);
        let database = &self.services.database;
        let rows = database.find_machines_by_statuses(&statuses).await?;
        let of_rows = rows
            .iter()
            .filter_map(|row| VmId::parse(row.id.as_str()).ok());
        let here = self.left_behind().await?.into_iter();
        let in_memory: Vec<VmId> = self.vms().keys().cloned().collect();
        let all = of_rows.chain(here).chain(in_memory);
        Ok(all.map(|vm_id| ChainNames::of(&vm_id).vm).collect())
    }
}
