//! A database that may be away: writes that only record what already happened are kept while it
//! cannot take them, and delivered in order when it is back.
//!
//! ```text
//!            a write was kept, or a read found nobody
//!      Up ────────────────────────────────────────────► Behind ◄──► Down
//!       ▲   nothing is kept and the database answers      │
//!       └─────────────────────────────────────────────────┘
//! ```
//!
//! `Down`: nobody answers, so writes are kept without asking and one task looks for it (`courier`).
//! `Behind`: it answers, but has not taken everything yet.
//!
//! Invariants:
//! - Writes of one VM reach the database one at a time and in the order in which they were made.
//! - A read or a claim (`transition_vm_status`) of a VM follows its kept writes, or fails with
//!   `DB_CONNECTION_ERROR`. It is never stale and never "not found" for want of a database.
//! - A list follows all kept writes; machines whose writes the database does not take are not in it.
//! - A claim is never kept: whoever claims needs the answer.
//! - A write whose answer was lost is made again: each says what is, not what to change.
//!   A database may make the one that was given up even after newer ones; nothing here can know. The
//!   health monitor's next look makes such a row true (`manager/health`).
//! - Guards are kept with their writes, so a claim that somebody made meanwhile survives.
//! - What is lost (the database refused it for good, or a queue was full) is told ([`Notice::Lost`]).
//!
//! Kept writes are in memory alone. When this process is killed, the ledgers and reconciling make
//! the rows true at the next start (`manager/startup`).
//!
//! | file | what it holds |
//! | --- | --- |
//! | `cause` | what a failure says of the next attempt (pure) |
//! | `queue` | one VM's writes in order (pure) |
//! | `lanes` | what is known of the database and kept of each VM |
//! | `courier` | delivering; `courier/search`: looking for a database that is away |

mod cause;
mod courier;
mod lanes;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use lanes::Notice;

use self::cause::Cause;
use self::courier::{Behind, Courier};
use self::queue::Write;
use super::{
    ConfigurationUpdate, Database, DbError, MachineDisks, MachineRecord, RuleSplit, RunningVm,
    Transition, VmRecord,
};
use crate::error::ErrorCode;
use crate::types::{FirewallRuleInput, InternalName, VmId};

/// How long a caller waits for a write to be taken before he goes on without, and for any answer of
/// a database that is away. The attempt itself goes on, up to the database's own deadline: only that,
/// or a failure, says that nobody answers.
const PATIENCE: Duration = Duration::from_secs(3);

/// Unless told otherwise.
const GIVES_UP_AFTER: Duration = Duration::from_secs(120);

/// A [`Database`] that keeps what another cannot take now.
#[derive(Debug)]
pub struct Outbox {
    courier: Arc<Courier>,
    /// False for whoever needs to know that a write was made.
    keeps: bool,
}

impl Outbox {
    /// Stands before `inner`. What happens to it is told on the second.
    pub fn new(inner: Arc<dyn Database>) -> (Arc<Self>, mpsc::UnboundedReceiver<Notice>) {
        Self::giving_up_after(GIVES_UP_AFTER, inner)
    }

    /// As [`Outbox::new`]. A write is tried for so long that a database refuses without a reason while
    /// it answers reads of the same machine; then it is lost, and told.
    pub fn giving_up_after(
        patience: Duration,
        inner: Arc<dyn Database>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Notice>) {
        let (courier, notices) = Courier::new(inner, patience);
        let outbox = Self {
            courier,
            keeps: true,
        };
        (Arc::new(outbox), notices)
    }

    /// The same database for whoever needs to know that each write was taken: none is kept, and what
    /// was kept goes first.
    pub fn answering(&self) -> Arc<dyn Database> {
        Arc::new(Self {
            courier: Arc::clone(&self.courier),
            keeps: false,
        })
    }

    async fn write(&self, id: &VmId, write: Write) -> Result<(), DbError> {
        if self.keeps {
            return self.courier.write(id, write).await;
        }
        let write = &write;
        self.courier.claim(id, |db| write.send(db, id)).await
    }

    /// Somebody has found that nobody answers: nobody else waits to the end to find the same.
    pub fn nobody_answers(&self, error: &DbError) {
        self.courier.nobody_answers(error);
    }

    /// Whether nobody answers, as far as is known.
    pub fn is_away(&self) -> bool {
        self.courier.is_away()
    }

    /// Delivers what is kept of this VM, or fails with `DB_CONNECTION_ERROR`.
    pub async fn settle(&self, id: &VmId) -> Result<(), DbError> {
        self.courier.settle(id).await
    }

    /// The VM's row is gone: what is kept of it is nobody's.
    pub fn forget(&self, id: &VmId) {
        self.courier.forget(id);
    }

    /// Whether something of this VM is kept or under way.
    pub fn keeps(&self, id: &VmId) -> bool {
        self.courier.keeps(id)
    }

    /// How many writes are kept or under way.
    pub fn kept(&self) -> usize {
        self.courier.kept()
    }

    /// Tries what is kept a last time, for at most `patience`, and warns of what stays. From here on
    /// nothing is looked for any more.
    pub async fn close(&self, patience: Duration) {
        self.courier.close(patience).await;
    }
}

/// Whether a write that failed with this may have been done all the same: the answer was lost.
pub fn may_have_happened(error: &DbError) -> bool {
    matches!(Cause::of(error), Cause::Unreachable | Cause::Doubtful)
}

#[async_trait]
impl Database for Outbox {
    async fn find_machine(&self, id: &VmId) -> Result<Option<MachineRecord>, DbError> {
        self.courier.read_of(id, |db| db.find_machine(id)).await
    }

    async fn find_machine_by_internal_name(
        &self,
        name: &InternalName,
    ) -> Result<Option<RunningVm>, DbError> {
        let courier = &self.courier;
        let read = courier.read_all(|db| db.find_machine_by_internal_name(name));
        let (row, mut behind) = read.await?;
        match row.as_ref().and_then(|row| behind.remove(&row.id)) {
            Some(error) => Err(error),
            None => Ok(row),
        }
    }

    async fn find_machine_with_config(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        self.courier
            .read_of(id, |db| db.find_machine_with_config(id))
            .await
    }

    async fn find_machine_without_password(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        self.courier
            .read_of(id, |db| db.find_machine_without_password(id))
            .await
    }

    async fn find_running_vms(&self) -> Result<Vec<RunningVm>, DbError> {
        let read = self.courier.read_all(|db| db.find_running_vms());
        read.await.map(without_old_rows)
    }

    async fn find_machines_by_statuses(
        &self,
        statuses: &[&str],
    ) -> Result<Vec<RunningVm>, DbError> {
        let courier = &self.courier;
        let read = courier.read_all(|db| db.find_machines_by_statuses(statuses));
        read.await.map(without_old_rows)
    }

    async fn find_machines_unchanged_since(
        &self,
        statuses: &[&str],
        since: u64,
    ) -> Result<Vec<RunningVm>, DbError> {
        let courier = &self.courier;
        let read = courier.read_all(|db| db.find_machines_unchanged_since(statuses, since));
        read.await.map(without_old_rows)
    }

    /// Also of rows that are behind: what they were told of is in their machines' own files.
    async fn find_machine_disks(&self) -> Result<Vec<MachineDisks>, DbError> {
        let read = self.courier.read_all(|db| db.find_machine_disks());
        read.await.map(|(disks, _behind)| disks)
    }

    async fn update_machine_status(
        &self,
        id: &VmId,
        status: &str,
        only_if_not_in: &[&str],
    ) -> Result<(), DbError> {
        let write = Write::status(status, only_if_not_in);
        self.write(id, write).await
    }

    async fn write_status_over(
        &self,
        id: &VmId,
        status: &str,
        over: &[&str],
    ) -> Result<(), DbError> {
        self.write(id, Write::status_over(status, over)).await
    }

    async fn update_machine_configuration(
        &self,
        id: &VmId,
        update: ConfigurationUpdate,
    ) -> Result<(), DbError> {
        self.write(id, Write::Configuration(Box::new(update))).await
    }

    async fn transition_vm_status(
        &self,
        id: &VmId,
        expected: &str,
        new: &str,
        version: i64,
    ) -> Result<Transition, DbError> {
        let courier = &self.courier;
        courier
            .claim(id, |db| db.transition_vm_status(id, expected, new, version))
            .await
    }

    async fn clear_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        self.write(id, Write::Clear).await
    }

    async fn clear_volatile_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        self.write(id, Write::ClearVolatile).await
    }

    async fn get_machine_internal_name(&self, id: &VmId) -> Result<Option<String>, DbError> {
        // A name never changes: nothing that is kept is of it.
        let courier = &self.courier;
        courier.read(|db| db.get_machine_internal_name(id)).await
    }

    async fn get_machine_disk_path(&self, id: &VmId) -> Result<Option<String>, DbError> {
        self.courier.read(|db| db.get_machine_disk_path(id)).await
    }

    async fn get_firewall_rules(&self, id: &VmId) -> Result<Vec<FirewallRuleInput>, DbError> {
        self.courier.read(|db| db.get_firewall_rules(id)).await
    }

    async fn get_firewall_rules_split(&self, id: &VmId) -> Result<RuleSplit, DbError> {
        self.courier
            .read(|db| db.get_firewall_rules_split(id))
            .await
    }

    async fn get_department_firewall_policy(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let courier = &self.courier;
        courier
            .read(|db| db.get_department_firewall_policy(id))
            .await
    }

    async fn get_firewall_rule_set_id(&self, id: &VmId) -> Result<Option<String>, DbError> {
        self.courier
            .read(|db| db.get_firewall_rule_set_id(id))
            .await
    }
}

fn without_old_rows((mut rows, behind): (Vec<RunningVm>, Behind)) -> Vec<RunningVm> {
    rows.retain(|row| !behind.contains_key(&row.id));
    rows
}

/// Nobody answered in time.
fn no_answer(patience: Duration) -> DbError {
    DbError::new(
        ErrorCode::DbConnectionError,
        format!(
            "the database did not answer within {} s",
            patience.as_secs()
        ),
    )
}
