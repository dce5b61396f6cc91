//! The user's database, behind the 16 operations the library needs of it.
//!
//! [`Database`] is the one way in. The embedded store ([`sqlite`]) is the default; the user's own
//! Prisma client ([`prisma`]) or adapter object ([`injected`]) stand behind the same trait, each over
//! a [`port`]. A failure is never "not found": absence is `Ok(None)`, trouble is an error.

pub mod injected;
pub mod outbox;
pub mod port;
pub mod prisma;
mod records;
pub mod sqlite;
pub mod wire;

use async_trait::async_trait;
use futures_util::future::try_join_all;

pub use records::{
    ConfigurationUpdate, CpuPinning, Department, FirewallRuleSet, MachineConfiguration,
    MachineDisks, MachineRecord, RuleSplit, RunningVm, Transition, VmRecord,
};

use crate::error::{Coded, ErrorCode};
use crate::types::{FirewallRuleInput, InternalName, VmId};

/// Where the contract's `getMachineDiskPath` looks, whatever directory is configured.
pub const DEFAULT_DISK_PATH_PREFIX: &str = "/var/lib/infinization/disks";

/// What `get_machine_disk_path` answers for a machine with this internal name.
pub fn legacy_disk_path(internal_name: &str) -> String {
    format!("{DEFAULT_DISK_PATH_PREFIX}/{internal_name}.qcow2")
}

/// The words of the status column that the public contract knows, for a database that can only be told
/// what not to write over.
pub const KNOWN_STATUSES: [&str; 17] = [
    "off",
    "starting",
    "running",
    "suspended",
    "paused",
    "updating_hardware",
    "powering_off_update",
    "rebuilding",
    "deleting",
    "moving",
    "backing_up",
    "restoring",
    "snapshotting",
    "capturing",
    "archived",
    "delete_failed",
    "error",
];

/// The known words that are none of `these`.
fn known_but(these: &[&str]) -> Vec<&'static str> {
    let mut words = KNOWN_STATUSES.to_vec();
    words.retain(|word| !these.contains(word));
    words
}

/// Why a database operation failed. The codes are the public contract's.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct DbError {
    /// One of the database class' codes.
    pub code: ErrorCode,
    /// A sentence without secrets.
    pub message: String,
    /// Facts for programs.
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl DbError {
    /// A failure with no further facts.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: serde_json::Map::new(),
        }
    }
}

impl Coded for DbError {
    fn code(&self) -> ErrorCode {
        self.code
    }

    fn context(&self) -> serde_json::Map<String, serde_json::Value> {
        self.details.clone()
    }
}

/// The 16 operations. Method names and meaning are the public `InfinizationDatabase`'s, and there are
/// four of the library's own, which come of the others, or to nothing, where a database has nothing better.
#[async_trait]
pub trait Database: Send + Sync + std::fmt::Debug {
    /// The machine's id and status, whichever node it is on.
    async fn find_machine(&self, id: &VmId) -> Result<Option<MachineRecord>, DbError>;

    /// A machine of this node by its internal name.
    async fn find_machine_by_internal_name(
        &self,
        name: &InternalName,
    ) -> Result<Option<RunningVm>, DbError>;

    /// Everything start needs: the row, its configuration, rule sets and department.
    async fn find_machine_with_config(&self, id: &VmId) -> Result<Option<VmRecord>, DbError>;

    /// The same without the display's password, which only a start needs: where the store keeps it apart,
    /// one that cannot be read is then no trouble. A database that keeps it in the row tells it all the same.
    async fn find_machine_without_password(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        self.find_machine_with_config(id).await
    }

    /// This node's machines with status `running`.
    async fn find_running_vms(&self) -> Result<Vec<RunningVm>, DbError>;

    /// This node's machines with one of `statuses`.
    async fn find_machines_by_statuses(&self, statuses: &[&str])
    -> Result<Vec<RunningVm>, DbError>;

    /// Those of them whose row nobody has changed since then (milliseconds since 1970), by the clock of
    /// whoever changed it last. None of a database that cannot tell.
    async fn find_machines_unchanged_since(
        &self,
        _statuses: &[&str],
        _since: u64,
    ) -> Result<Vec<RunningVm>, DbError> {
        Ok(Vec::new())
    }

    /// Which disks the rows of this node's machines name. Who would delete a file must know them all; a
    /// database that is only asked by status tells of the statuses that are known.
    async fn find_machine_disks(&self) -> Result<Vec<MachineDisks>, DbError> {
        const AT_ONCE: usize = 16;
        let rows = self.find_machines_by_statuses(&KNOWN_STATUSES).await?;
        let ids = rows.into_iter().map(|row| VmId::parse(row.id));
        let ids: Vec<VmId> = ids.filter_map(Result::ok).collect();
        let mut disks = Vec::new();
        for ids in ids.chunks(AT_ONCE) {
            let found = ids.iter().map(|id| self.find_machine_without_password(id));
            let found = try_join_all(found).await?;
            disks.extend(found.into_iter().flatten().map(MachineDisks::of));
        }
        Ok(disks)
    }

    /// Writes the status unless the row has one of `only_if_not_in`. No row is no error.
    async fn update_machine_status(
        &self,
        id: &VmId,
        status: &str,
        only_if_not_in: &[&str],
    ) -> Result<(), DbError>;

    /// Writes the status over one of the words `over`. Over any other it does not, nor over one that
    /// nobody here knows, which is somebody's claim. No row is no error.
    ///
    /// Unless a database can say so in the write itself, the row is read first, and the write spares the
    /// words that are known.
    async fn write_status_over(
        &self,
        id: &VmId,
        status: &str,
        over: &[&str],
    ) -> Result<(), DbError> {
        match self.find_machine(id).await? {
            Some(row) if !over.contains(&row.status.as_str()) => Ok(()),
            _ => {
                self.update_machine_status(id, status, &known_but(over))
                    .await
            }
        }
    }

    /// Creates or changes the machine's configuration row; absent fields stay as they are.
    async fn update_machine_configuration(
        &self,
        id: &VmId,
        update: ConfigurationUpdate,
    ) -> Result<(), DbError>;

    /// Moves the status from `expected` to `new` if the version is still `version`, and counts the
    /// version up. Errors: `MACHINE_NOT_FOUND`, `VERSION_CONFLICT`, and `UPDATE_FAILED` with
    /// `details.currentStatus` when the status is another.
    async fn transition_vm_status(
        &self,
        id: &VmId,
        expected: &str,
        new: &str,
        version: i64,
    ) -> Result<Transition, DbError>;

    /// Clears pid, TAP name and QMP socket.
    async fn clear_machine_configuration(&self, id: &VmId) -> Result<(), DbError>;

    /// Clears pid and QMP socket.
    async fn clear_volatile_machine_configuration(&self, id: &VmId) -> Result<(), DbError>;

    /// The machine's internal name.
    async fn get_machine_internal_name(&self, id: &VmId) -> Result<Option<String>, DbError>;

    /// The contract's legacy path of disk 0.
    async fn get_machine_disk_path(&self, id: &VmId) -> Result<Option<String>, DbError>;

    /// Department and VM rules, lowest priority first. `MACHINE_NOT_FOUND` when there is no row.
    async fn get_firewall_rules(&self, id: &VmId) -> Result<Vec<FirewallRuleInput>, DbError>;

    /// Department and VM rules apart. `MACHINE_NOT_FOUND` when there is no row.
    async fn get_firewall_rules_split(&self, id: &VmId) -> Result<RuleSplit, DbError>;

    /// `ALLOW_ALL` or `BLOCK_ALL`, if the machine has a department.
    async fn get_department_firewall_policy(&self, id: &VmId) -> Result<Option<String>, DbError>;

    /// The id of the machine's own rule set.
    async fn get_firewall_rule_set_id(&self, id: &VmId) -> Result<Option<String>, DbError>;
}
