//! The user's own adapter object: the 16 operations by their public names, each one call.
//!
//! Requests are `{ method, args }`, with nothing but plain JSON: the object may carry them to another
//! host. Its answers are read as strictly as a database's own. An error is known by its `code`, whoever
//! made it; what has none of the contract's codes is `QUERY_FAILED` or `UPDATE_FAILED`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::port::{Line, Port, PortError};
use super::wire::configuration_members;
use super::wire::reading::{self, list, nullable};
use super::{
    ConfigurationUpdate, Database, DbError, MachineRecord, RuleSplit, RunningVm, Transition,
    VmRecord,
};
use crate::error::{ErrorClass, ErrorCode};
use crate::types::{FirewallRuleInput, InternalName, VmId};

/// What the record calls a machine's configuration.
const CONFIGURATION: &str = "MachineConfiguration";

/// The methods an adapter must have.
pub const METHODS: [&str; 16] = [
    "findMachine",
    "findMachineByInternalName",
    "findMachineWithConfig",
    "findRunningVMs",
    "findMachinesByStatuses",
    "updateMachineStatus",
    "updateMachineConfiguration",
    "transitionVMStatus",
    "clearMachineConfiguration",
    "clearVolatileMachineConfiguration",
    "getMachineInternalName",
    "getMachineDiskPath",
    "getFirewallRules",
    "getFirewallRulesSplit",
    "getDepartmentFirewallPolicy",
    "getFirewallRuleSetId",
];

/// The 16 operations over an object of the user's.
#[derive(Debug)]
pub struct InjectedDatabase {
    line: Line,
}

impl InjectedDatabase {
    /// An answer may take 20 seconds.
    pub fn new(port: Arc<dyn Port>) -> Self {
        Self {
            line: Line::new(port),
        }
    }

    /// With another deadline for each answer; passing it is `DB_CONNECTION_ERROR`.
    #[must_use]
    pub fn answering_within(self, deadline: Duration) -> Self {
        Self {
            line: self.line.answering_within(deadline),
        }
    }

    /// Looks whether the object has the methods; makes none of the calls.
    pub async fn probe(&self) -> Result<(), DbError> {
        let absent = self.line.ask(json!({ "absent": METHODS })).await;
        let absent = list(&absent.map_err(read_failure)?, reading::text)?;
        if absent.is_empty() {
            return Ok(());
        }
        let message = format!("databaseAdapter has no {}", absent.join(", "));
        let mut error = DbError::new(ErrorCode::SchemaMismatch, message);
        error.details.insert("missing".to_owned(), json!(absent));
        Err(error)
    }

    async fn read(&self, method: &str, args: Value) -> Result<Value, DbError> {
        let request = json!({ "method": method, "args": args });
        self.line.ask(request).await.map_err(read_failure)
    }

    async fn write(&self, method: &str, args: Value) -> Result<Value, DbError> {
        let request = json!({ "method": method, "args": args });
        self.line.ask(request).await.map_err(write_failure)
    }
}

#[async_trait]
impl Database for InjectedDatabase {
    async fn find_machine(&self, id: &VmId) -> Result<Option<MachineRecord>, DbError> {
        let row = self.read("findMachine", json!([id])).await?;
        nullable(&row, reading::machine)
    }

    async fn find_machine_by_internal_name(
        &self,
        name: &InternalName,
    ) -> Result<Option<RunningVm>, DbError> {
        let row = self
            .read("findMachineByInternalName", json!([name]))
            .await?;
        nullable(&row, running_vm)
    }

    async fn find_machine_with_config(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        let row = self.read("findMachineWithConfig", json!([id])).await?;
        nullable(&row, reading::vm_record)
    }

    async fn find_running_vms(&self) -> Result<Vec<RunningVm>, DbError> {
        list(&self.read("findRunningVMs", json!([])).await?, running_vm)
    }

    async fn find_machines_by_statuses(
        &self,
        statuses: &[&str],
    ) -> Result<Vec<RunningVm>, DbError> {
        let rows = self
            .read("findMachinesByStatuses", json!([statuses]))
            .await?;
        list(&rows, running_vm)
    }

    async fn update_machine_status(
        &self,
        id: &VmId,
        status: &str,
        only_if_not_in: &[&str],
    ) -> Result<(), DbError> {
        let args = if only_if_not_in.is_empty() {
            json!([id, status])
        } else {
            json!([id, status, { "onlyIfNotIn": only_if_not_in }])
        };
        self.write("updateMachineStatus", args).await.map(drop)
    }

    async fn update_machine_configuration(
        &self,
        id: &VmId,
        update: ConfigurationUpdate,
    ) -> Result<(), DbError> {
        let args = json!([id, configuration_members(&update)]);
        self.write("updateMachineConfiguration", args)
            .await
            .map(drop)
    }

    async fn transition_vm_status(
        &self,
        id: &VmId,
        expected: &str,
        new: &str,
        version: i64,
    ) -> Result<Transition, DbError> {
        let args = json!([id, expected, new, version]);
        let moved = self.write("transitionVMStatus", args).await?;
        reading::transition(&moved)
    }

    async fn clear_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        self.write("clearMachineConfiguration", json!([id]))
            .await
            .map(drop)
    }

    async fn clear_volatile_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        let method = "clearVolatileMachineConfiguration";
        self.write(method, json!([id])).await.map(drop)
    }

    async fn get_machine_internal_name(&self, id: &VmId) -> Result<Option<String>, DbError> {
        nullable(
            &self.read("getMachineInternalName", json!([id])).await?,
            reading::text,
        )
    }

    async fn get_machine_disk_path(&self, id: &VmId) -> Result<Option<String>, DbError> {
        nullable(
            &self.read("getMachineDiskPath", json!([id])).await?,
            reading::text,
        )
    }

    async fn get_firewall_rules(&self, id: &VmId) -> Result<Vec<FirewallRuleInput>, DbError> {
        list(
            &self.read("getFirewallRules", json!([id])).await?,
            reading::rule,
        )
    }

    async fn get_firewall_rules_split(&self, id: &VmId) -> Result<RuleSplit, DbError> {
        let split = self.read("getFirewallRulesSplit", json!([id])).await?;
        reading::rule_split(&split)
    }

    async fn get_department_firewall_policy(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let policy = self
            .read("getDepartmentFirewallPolicy", json!([id]))
            .await?;
        nullable(&policy, reading::text)
    }

    async fn get_firewall_rule_set_id(&self, id: &VmId) -> Result<Option<String>, DbError> {
        nullable(
            &self.read("getFirewallRuleSetId", json!([id])).await?,
            reading::text,
        )
    }
}

fn running_vm(row: &Value) -> Result<RunningVm, DbError> {
    reading::running_vm(row, CONFIGURATION)
}

fn read_failure(error: PortError) -> DbError {
    failure(error, ErrorCode::QueryFailed)
}

fn write_failure(error: PortError) -> DbError {
    failure(error, ErrorCode::UpdateFailed)
}

fn failure(error: PortError, otherwise: ErrorCode) -> DbError {
    let typed = error.code.as_deref().and_then(database_code);
    let code = match typed {
        Some(code) => code,
        None if error.is_connection_failure() => ErrorCode::DbConnectionError,
        None => otherwise,
    };
    let mut details = match error.details {
        Value::Object(details) => details,
        _ => serde_json::Map::new(),
    };
    // Whoever carries an error over a network may have dropped its details; its words have the code.
    if code == ErrorCode::UpdateFailed && error.message.contains("P2034") {
        details.insert("prismaCode".to_owned(), "P2034".into());
    }
    let message = match typed {
        Some(_) => error.message,
        None => format!("the database adapter failed: {}", error.message),
    };
    DbError {
        details,
        ..DbError::new(code, message)
    }
}

fn database_code(wire: &str) -> Option<ErrorCode> {
    let mut codes = ErrorCode::ALL.iter().copied();
    codes.find(|code| code.class() == ErrorClass::Database && code.as_str() == wire)
}
