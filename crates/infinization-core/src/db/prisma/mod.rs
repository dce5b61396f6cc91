//! The user's database, behind his Prisma client.
//!
//! The queries are made here, as data; who has the client only makes the calls they name, over the
//! [`port`](super::port). `queries` has their shapes, `failure` what the client's errors mean, `probe`
//! what is looked at before the client is used. A status is written with its guard in the `where`, a
//! transition is a read, one conditional write and a read of what came of it in one transaction.
//!
//! Whether a rule set is active (`isActive`) decides nothing here: its rules apply, and a warning
//! says so. To take them away, remove them or the set.

mod failure;
mod probe;
mod queries;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::port::{Line, Port};
use super::wire::reading::{self, list, nullable};
use super::{
    ConfigurationUpdate, Database, DbError, FirewallRuleSet, MachineDisks, MachineRecord,
    RuleSplit, RunningVm, Transition, VmRecord, known_but, legacy_disk_path,
};
use crate::error::ErrorCode;
use crate::types::{FirewallRuleInput, InternalName, VmId, iso_date_ms};
use queries::{Scope, Upsert};

/// How often a write is tried while other transactions are in its way.
const ATTEMPTS: u8 = 3;
/// What the schema calls a machine's configuration.
const CONFIGURATION: &str = "configuration";

/// The 16 operations over a Prisma client.
#[derive(Debug)]
pub struct PrismaDatabase {
    line: Line,
    scope: Scope,
}

impl PrismaDatabase {
    /// Looks for machines on `node_id` alone, or on all nodes. An answer may take 20 seconds.
    pub fn new(port: Arc<dyn Port>, node_id: Option<String>) -> Self {
        Self {
            line: Line::new(port),
            scope: Scope(node_id),
        }
    }

    /// With another deadline for each answer; passing it is `DB_CONNECTION_ERROR`.
    #[must_use]
    pub fn answering_within(self, deadline: Duration) -> Self {
        Self {
            line: self.line.answering_within(deadline),
            ..self
        }
    }

    async fn read(&self, request: Value) -> Result<Value, DbError> {
        self.line.ask(request).await.map_err(failure::read)
    }

    /// Again while the database gives up one of several transactions for the others: what is written
    /// here may be written twice.
    async fn write(&self, request: Value) -> Result<Value, DbError> {
        for _ in 1..ATTEMPTS {
            match self.line.ask(request.clone()).await {
                Err(error) if failure::is_write_conflict(&error) => {
                    tracing::debug!(%error, "a write gave way and is tried again");
                }
                answered => return answered.map_err(failure::write),
            }
        }
        self.line.ask(request).await.map_err(failure::write)
    }

    async fn machine(&self, id: &VmId, select: &Value) -> Result<Value, DbError> {
        self.read(queries::machine(id.as_str(), select)).await
    }
}

#[async_trait]
impl Database for PrismaDatabase {
    async fn find_machine(&self, id: &VmId) -> Result<Option<MachineRecord>, DbError> {
        let row = self.machine(id, &queries::identity()).await?;
        nullable(&row, reading::machine)
    }

    async fn find_machine_by_internal_name(
        &self,
        name: &InternalName,
    ) -> Result<Option<RunningVm>, DbError> {
        let row = self
            .read(self.scope.by_internal_name(name.as_str()))
            .await?;
        nullable(&row, running_vm)
    }

    async fn find_machine_with_config(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        let row = self.machine(id, &queries::everything()).await?;
        nullable(&row, reading::vm_record)
    }

    async fn find_running_vms(&self) -> Result<Vec<RunningVm>, DbError> {
        list(&self.read(self.scope.running()).await?, running_vm)
    }

    async fn find_machines_by_statuses(
        &self,
        statuses: &[&str],
    ) -> Result<Vec<RunningVm>, DbError> {
        list(
            &self.read(self.scope.by_statuses(statuses)).await?,
            running_vm,
        )
    }

    /// A schema need not have `updatedAt`.
    async fn find_machines_unchanged_since(
        &self,
        statuses: &[&str],
        since: u64,
    ) -> Result<Vec<RunningVm>, DbError> {
        let asked = self.scope.unchanged_since(statuses, &iso_date_ms(since));
        match self.read(asked).await {
            Err(error) if error.code == ErrorCode::SchemaMismatch => Ok(Vec::new()),
            answered => list(&answered?, running_vm),
        }
    }

    async fn find_machine_disks(&self) -> Result<Vec<MachineDisks>, DbError> {
        list(
            &self.read(self.scope.disks()).await?,
            reading::machine_disks,
        )
    }

    async fn update_machine_status(
        &self,
        id: &VmId,
        status: &str,
        only_if_not_in: &[&str],
    ) -> Result<(), DbError> {
        let write = queries::write_status(id.as_str(), status, only_if_not_in);
        self.write(write).await.map(drop)
    }

    async fn write_status_over(
        &self,
        id: &VmId,
        status: &str,
        over: &[&str],
    ) -> Result<(), DbError> {
        let write = queries::write_status_over(id.as_str(), status, over, &known_but(over));
        self.write(write).await.map(drop)
    }

    async fn update_machine_configuration(
        &self,
        id: &VmId,
        update: ConfigurationUpdate,
    ) -> Result<(), DbError> {
        let upsert = Upsert::of(&update);
        let request = upsert.request(id.as_str());
        let row = match self.write(request.clone()).await {
            // Somebody has made the row in the same moment: this time it is there to be changed.
            Err(error) if error.code == ErrorCode::ConstraintViolation => {
                self.write(request).await?
            }
            answered => answered?,
        };
        match upsert.rest(id.as_str(), &row) {
            Some(rest) => self.write(rest).await.map(drop),
            None => Ok(()),
        }
    }

    async fn transition_vm_status(
        &self,
        id: &VmId,
        expected: &str,
        new: &str,
        version: i64,
    ) -> Result<Transition, DbError> {
        let request = queries::transition(id.as_str(), expected, new, version);
        let answers = self.write(request).await?;
        let changed = answers[1]["count"].as_i64().unwrap_or_default();
        if changed == 0 {
            // The row as it was, or as whoever came between has left it.
            let row = answers.get(2).unwrap_or(&answers[0]);
            let vm = nullable(row, reading::vm_record)?.ok_or_else(|| no_machine(id))?;
            return Err(conflict(&vm, expected, version));
        }
        let new_version = version.saturating_add(1);
        let is_it = |row: &&Value| row["status"] == new && row["version"] == new_version;
        let row = answers.get(2).filter(is_it).unwrap_or(&answers[0]);
        let vm = nullable(row, reading::vm_record)?.ok_or_else(|| no_machine(id))?;
        Ok(Transition {
            new_version,
            // Of a client that does not read it again, the row as it was, with what was written.
            vm: VmRecord {
                status: new.to_owned(),
                version: new_version,
                ..vm
            },
        })
    }

    async fn clear_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        let names = ["qemuPid", "tapDeviceName", "qmpSocketPath"];
        self.write(queries::clear(id.as_str(), &names))
            .await
            .map(drop)
    }

    async fn clear_volatile_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        let names = ["qemuPid", "qmpSocketPath"];
        self.write(queries::clear(id.as_str(), &names))
            .await
            .map(drop)
    }

    async fn get_machine_internal_name(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let row = self
            .machine(id, &queries::columns(&["internalName"]))
            .await?;
        nullable(&row["internalName"], reading::text)
    }

    async fn get_machine_disk_path(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let name = self.get_machine_internal_name(id).await?;
        Ok(name.as_deref().map(legacy_disk_path))
    }

    async fn get_firewall_rules(&self, id: &VmId) -> Result<Vec<FirewallRuleInput>, DbError> {
        Ok(self.get_firewall_rules_split(id).await?.merged())
    }

    async fn get_firewall_rules_split(&self, id: &VmId) -> Result<RuleSplit, DbError> {
        let row = self.machine(id, &queries::rule_sets()).await?;
        if row.is_null() {
            return Err(no_machine(id));
        }
        Ok(RuleSplit {
            department_rules: rules_of(id, &row["department"]["firewallRuleSet"])?,
            vm_rules: rules_of(id, &row["firewallRuleSet"])?,
        })
    }

    async fn get_department_firewall_policy(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let row = self.machine(id, &queries::policy()).await?;
        nullable(&row["department"]["firewallPolicy"], reading::text)
    }

    async fn get_firewall_rule_set_id(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let row = self
            .machine(id, &queries::columns(&["firewallRuleSetId"]))
            .await?;
        nullable(&row["firewallRuleSetId"], reading::text)
    }
}

fn running_vm(row: &Value) -> Result<RunningVm, DbError> {
    reading::running_vm(row, CONFIGURATION)
}

fn rules_of(id: &VmId, set: &Value) -> Result<Vec<FirewallRuleInput>, DbError> {
    let Some(FirewallRuleSet {
        name,
        is_active,
        rules,
        ..
    }) = nullable(set, reading::rule_set)?
    else {
        return Ok(Vec::new());
    };
    if !is_active {
        tracing::warn!(vm = %id, set = name, "the rule set is not active; its rules apply all the same");
    }
    Ok(rules)
}

fn no_machine(id: &VmId) -> DbError {
    let message = format!("the database has no machine {id}");
    DbError::new(ErrorCode::MachineNotFound, message)
}

/// Why the conditional write found no row. The version speaks first, as in the contract. A row that
/// was read as it was expected is another now.
fn conflict(vm: &VmRecord, expected: &str, version: i64) -> DbError {
    let (id, now) = (&vm.id, vm.version);
    let (code, message) = if now != version {
        let message = format!("machine {id} has version {now}, not {version}");
        (ErrorCode::VersionConflict, message)
    } else if vm.status != expected {
        let message = format!("machine {id} is {}, not {expected}", vm.status);
        (ErrorCode::UpdateFailed, message)
    } else {
        let message = format!("machine {id} was changed by another writer");
        (ErrorCode::VersionConflict, message)
    };
    let mut error = DbError::new(code, message);
    let facts = [
        ("currentStatus", Value::from(vm.status.as_str())),
        ("currentVersion", Value::from(now)),
    ];
    error
        .details
        .extend(facts.map(|(name, fact)| (name.to_owned(), fact)));
    error
}
