//! The embedded store: one SQLite file, for users without a database of their own.
//!
//! A thread of its own owns the connection (`worker`); every operation is one closure it runs,
//! and one transaction where it has more than one statement. So nothing here blocks its caller,
//! and two operations never interleave. Once sent, an operation runs to its end even if the caller
//! stops waiting.
//!
//! Passwords and keys of disks are encrypted where the store is given a key (`vault`).
//!
//! The store knows one host and no departments: it is not scoped by node, and a machine's rules are
//! its own. Its schema (`schema`) is ours and migrates itself.

mod configuration;
mod failure;
mod machines;
mod rules;
mod schema;
mod vault;
mod worker;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

pub use machines::{MachineSummary, NewMachine, StoredMachine};
pub use vault::{KeyChange, StoredKeys};

use super::{
    ConfigurationUpdate, Database, DbError, MachineDisks, MachineRecord, RuleSplit, RunningVm,
    Transition, VmRecord, legacy_disk_path,
};
use crate::config::DiskKeys;
use crate::secrets::SecretsKey;
use crate::types::{DiskKey, FirewallRuleInput, HostPath, InternalName, VmId, iso_date_ms};
use vault::Vault;
use worker::Worker;

/// A handle on the store. The connection closes, and its thread ends, with the last one.
#[derive(Debug)]
pub struct SqliteDatabase {
    worker: Worker,
    vault: Arc<Vault>,
}

impl SqliteDatabase {
    /// Opens the file, or makes it (readable by its owner alone), and brings its schema up to date.
    ///
    /// A file that a newer release wrote, or that is not ours, is refused and left as it is
    /// (`DB_CONNECTION_ERROR`). The directory must exist.
    ///
    /// Secrets are stored as they are: see [`open_with_key`](Self::open_with_key).
    pub async fn open(path: &Path) -> Result<Arc<Self>, DbError> {
        Self::open_with_key(path, None).await
    }

    /// [`open`](Self::open), with a key that secrets are encrypted with. What was stored before without is
    /// encrypted now. `SECRET_UNREADABLE` if there are secrets and the key opens none of them.
    pub async fn open_with_key(path: &Path, key: Option<SecretsKey>) -> Result<Arc<Self>, DbError> {
        let worker = Worker::start(path.to_owned()).await?;
        let vault = Arc::new(Vault::new(key));
        let prepared = Arc::clone(&vault);
        worker.run(move |db| prepared.prepare(db)).await?;
        Ok(Arc::new(Self { worker, vault }))
    }

    /// Encrypts all secrets with another key, or none. Answers how many there are, once that is on the disk,
    /// however long it takes: who is told of a failure keeps using the old key. `SECRET_UNREADABLE` if one
    /// cannot be read with the key there is.
    pub async fn rotate_key(&self, new: SecretsKey) -> Result<usize, DbError> {
        let vault = Arc::clone(&self.vault);
        self.worker.finish(move |db| vault.rotate(db, new)).await
    }

    /// The keys of a machine's disks that are kept. One that cannot be read (`SECRET_UNREADABLE`) matters to
    /// whoever needs it.
    pub async fn disk_keys(&self, id: &VmId) -> Result<StoredKeys, DbError> {
        let (vault, id) = (Arc::clone(&self.vault), id.clone());
        self.worker.run(move |db| vault.disk_keys(db, &id)).await
    }

    /// Keeps the keys of a machine's disks, beside those it keeps already. A store without a key keeps none.
    pub async fn keep_disk_keys(&self, id: &VmId, keys: DiskKeys) -> Result<(), DbError> {
        let (vault, id) = (Arc::clone(&self.vault), id.clone());
        self.worker
            .run(move |db| vault.keep_disk_keys(db, &id, &keys))
            .await
    }

    /// The keys that changes which were cut short may have left in a machine's disks, by their paths.
    /// `SECRET_UNREADABLE` if one cannot be read.
    pub async fn left_disk_keys(
        &self,
        id: &VmId,
    ) -> Result<BTreeMap<HostPath, Vec<DiskKey>>, DbError> {
        let (vault, id) = (Arc::clone(&self.vault), id.clone());
        self.worker
            .run(move |db| vault.left_disk_keys(db, &id))
            .await
    }

    /// Notes how far a change of a disk's key has come. A store without a key notes nothing.
    pub async fn note_disk_keys(&self, id: &VmId, change: KeyChange) -> Result<(), DbError> {
        let (vault, id) = (Arc::clone(&self.vault), id.clone());
        self.worker
            .run(move |db| vault.note_disk_keys(db, &id, &change))
            .await
    }

    /// Forgets the keys of these disks of a machine.
    pub async fn forget_disk_keys(&self, id: &VmId, disks: Vec<HostPath>) -> Result<(), DbError> {
        let id = id.clone();
        self.worker
            .run(move |db| vault::forget_disk_keys(db, &id, &disks))
            .await
    }

    /// Adds a machine with its rules. `CONSTRAINT_VIOLATION` if its id or internal name is taken, or
    /// two rules have the same id.
    pub async fn insert_machine(&self, machine: NewMachine) -> Result<(), DbError> {
        self.worker
            .run(move |db| machines::insert(db, machine))
            .await
    }

    /// Makes another machine of a row that is `off` or `error`. Says whether it was.
    pub async fn replace_machine(&self, machine: NewMachine) -> Result<bool, DbError> {
        self.worker
            .run(move |db| machines::replace(db, machine))
            .await
    }

    /// All machines, oldest first.
    pub async fn list_machines(&self) -> Result<Vec<MachineSummary>, DbError> {
        self.worker.run(|db| machines::list(db)).await
    }

    /// One machine with its configuration, without its password, and its rules.
    pub async fn get_machine(&self, id: &VmId) -> Result<Option<StoredMachine>, DbError> {
        let id = id.clone();
        self.worker.run(move |db| machines::get(db, &id)).await
    }

    /// Removes a machine, its configuration and its rules. Says whether there was one.
    pub async fn delete_machine(&self, id: &VmId) -> Result<bool, DbError> {
        let id = id.clone();
        self.worker.run(move |db| machines::delete(db, &id)).await
    }

    /// Puts `rules` in the place of the machine's rules; one without an id gets one.
    /// `CONSTRAINT_VIOLATION` if two have the same id.
    pub async fn set_firewall_rules(
        &self,
        id: &VmId,
        rules: Vec<FirewallRuleInput>,
    ) -> Result<(), DbError> {
        let id = id.clone();
        self.worker
            .run(move |db| rules::replace(db, &id, rules))
            .await
    }
}

#[async_trait]
impl Database for SqliteDatabase {
    async fn find_machine(&self, id: &VmId) -> Result<Option<MachineRecord>, DbError> {
        let id = id.clone();
        self.worker.run(move |db| machines::find(db, &id)).await
    }

    async fn find_machine_by_internal_name(
        &self,
        name: &InternalName,
    ) -> Result<Option<RunningVm>, DbError> {
        let name = name.clone();
        self.worker
            .run(move |db| machines::find_by_internal_name(db, &name))
            .await
    }

    async fn find_machine_with_config(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        let (vault, id) = (Arc::clone(&self.vault), id.clone());
        self.worker
            .run(move |db| {
                let snapshot = db.transaction().map_err(failure::read)?;
                machines::find_with_config(&snapshot, &vault, &id)
            })
            .await
    }

    async fn find_machine_without_password(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        let found = self.get_machine(id).await?;
        Ok(found.map(|machine| machine.record))
    }

    async fn find_running_vms(&self) -> Result<Vec<RunningVm>, DbError> {
        self.find_machines_by_statuses(&["running"]).await
    }

    async fn find_machines_by_statuses(
        &self,
        statuses: &[&str],
    ) -> Result<Vec<RunningVm>, DbError> {
        let statuses = owned(statuses);
        self.worker
            .run(move |db| machines::find_by_statuses(db, &statuses))
            .await
    }

    async fn find_machines_unchanged_since(
        &self,
        statuses: &[&str],
        since: u64,
    ) -> Result<Vec<RunningVm>, DbError> {
        let statuses = owned(statuses);
        self.worker
            .run(move |db| machines::find_unchanged_since(db, &statuses, &iso_date_ms(since)))
            .await
    }

    async fn find_machine_disks(&self) -> Result<Vec<MachineDisks>, DbError> {
        self.worker.run(|db| machines::disks(db)).await
    }

    async fn update_machine_status(
        &self,
        id: &VmId,
        status: &str,
        only_if_not_in: &[&str],
    ) -> Result<(), DbError> {
        let (id, status, guard) = (id.clone(), status.to_owned(), owned(only_if_not_in));
        self.worker
            .run(move |db| machines::update_status(db, &id, &status, &guard))
            .await
    }

    async fn write_status_over(
        &self,
        id: &VmId,
        status: &str,
        over: &[&str],
    ) -> Result<(), DbError> {
        let (id, status, over) = (id.clone(), status.to_owned(), owned(over));
        self.worker
            .run(move |db| machines::write_status_over(db, &id, &status, &over))
            .await
    }

    async fn update_machine_configuration(
        &self,
        id: &VmId,
        update: ConfigurationUpdate,
    ) -> Result<(), DbError> {
        let (vault, id) = (Arc::clone(&self.vault), id.clone());
        self.worker
            .run(move |db| configuration::upsert(db, &vault, &id, update))
            .await
    }

    async fn transition_vm_status(
        &self,
        id: &VmId,
        expected: &str,
        new: &str,
        version: i64,
    ) -> Result<Transition, DbError> {
        let (id, expected, new) = (id.clone(), expected.to_owned(), new.to_owned());
        let vault = Arc::clone(&self.vault);
        self.worker
            .run(move |db| machines::transition(db, &vault, &id, &expected, &new, version))
            .await
    }

    async fn clear_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        let id = id.clone();
        self.worker
            .run(move |db| configuration::clear(db, &id))
            .await
    }

    async fn clear_volatile_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        let id = id.clone();
        self.worker
            .run(move |db| configuration::clear_volatile(db, &id))
            .await
    }

    async fn get_machine_internal_name(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let id = id.clone();
        self.worker
            .run(move |db| machines::internal_name(db, &id))
            .await
    }

    async fn get_machine_disk_path(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let name = self.get_machine_internal_name(id).await?;
        Ok(name.as_deref().map(legacy_disk_path))
    }

    async fn get_firewall_rules(&self, id: &VmId) -> Result<Vec<FirewallRuleInput>, DbError> {
        let id = id.clone();
        self.worker.run(move |db| rules::of_machine(db, &id)).await
    }

    async fn get_firewall_rules_split(&self, id: &VmId) -> Result<RuleSplit, DbError> {
        Ok(RuleSplit {
            department_rules: Vec::new(),
            vm_rules: self.get_firewall_rules(id).await?,
        })
    }

    async fn get_department_firewall_policy(&self, _id: &VmId) -> Result<Option<String>, DbError> {
        Ok(None)
    }

    async fn get_firewall_rule_set_id(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let id = id.clone();
        self.worker.run(move |db| rules::set_id(db, &id)).await
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}
