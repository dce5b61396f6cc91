//! Records out of what a database in another runtime answers.
//!
//! What a record cannot do without must be there and of its type, or it is `QUERY_FAILED`; further
//! members are not looked at. Numbers may come as text (BigInt, Decimal). A null number is 0 and a
//! null version 1, as the public contract has them. No value is ever told: it may be the password.

use serde_json::{Map, Value};

use super::columns::{integer, stored_configuration};
use crate::db::{
    DbError, Department, FirewallRuleSet, MachineDisks, MachineRecord, RuleSplit, RunningVm,
    Transition, VmRecord,
};
use crate::error::ErrorCode;
use crate::types::FirewallRuleInput;

/// `null`, or what `read` makes of it.
pub(in crate::db) fn nullable<T>(
    value: &Value,
    read: impl FnOnce(&Value) -> Result<T, DbError>,
) -> Result<Option<T>, DbError> {
    if value.is_null() {
        Ok(None)
    } else {
        read(value).map(Some)
    }
}

/// An array, each element read.
pub(in crate::db) fn list<T>(
    value: &Value,
    read: impl Fn(&Value) -> Result<T, DbError>,
) -> Result<Vec<T>, DbError> {
    let elements = value
        .as_array()
        .ok_or_else(|| wrong("the answer is not a list"))?;
    elements.iter().map(read).collect()
}

/// A text.
pub(in crate::db) fn text(value: &Value) -> Result<String, DbError> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| wrong("the answer is not a text"))
}

/// `MachineRecord`.
pub(in crate::db) fn machine(value: &Value) -> Result<MachineRecord, DbError> {
    let row = Row::of("machine", value)?;
    Ok(MachineRecord {
        id: row.text("id")?,
        status: row.text("status")?,
    })
}

/// `RunningVMRecord`. `relation` is what the configuration is called: `MachineConfiguration` in the
/// record, `configuration` in the schema.
pub(in crate::db) fn running_vm(value: &Value, relation: &str) -> Result<RunningVm, DbError> {
    let row = Row::of("machine", value)?;
    Ok(RunningVm {
        id: row.text("id")?,
        status: row.text("status")?,
        internal_name: row.text("internalName")?,
        configuration: nullable(row.get(relation), |it| {
            stored_configuration(Row::of("configuration", it)?.members)
        })?,
    })
}

/// What of a row is about its disks.
pub(in crate::db) fn machine_disks(value: &Value) -> Result<MachineDisks, DbError> {
    let row = Row::of("machine", value)?;
    let configuration = nullable(row.get("configuration"), |it| {
        stored_configuration(Row::of("configuration", it)?.members)
    })?;
    let disk_paths = configuration.and_then(|configuration| configuration.disk_paths);
    Ok(MachineDisks {
        id: row.text("id")?,
        internal_name: row.text("internalName")?,
        disk_paths: disk_paths.unwrap_or_default(),
    })
}

/// `VMConfigRecord`.
pub(in crate::db) fn vm_record(value: &Value) -> Result<VmRecord, DbError> {
    let row = Row::of("machine", value)?;
    let id = row.text("id")?;
    read_vm_record(&row, &id).map_err(|error| DbError {
        message: format!("machine {id}: {}", error.message),
        ..error
    })
}

fn read_vm_record(row: &Row<'_>, id: &str) -> Result<VmRecord, DbError> {
    Ok(VmRecord {
        id: id.to_owned(),
        status: row.text("status")?,
        name: row.optional_text("name")?.unwrap_or_default(),
        internal_name: row.text("internalName")?,
        os: row.optional_text("os")?.unwrap_or_default(),
        cpu_cores: row.integer("cpuCores")?.unwrap_or_default(),
        ram_gb: row.number("ramGB")?.unwrap_or_default(),
        disk_size_gb: row.number("diskSizeGB")?.unwrap_or_default(),
        gpu_pci_address: row.optional_text("gpuPciAddress")?,
        configuration: nullable(row.get("configuration"), |it| {
            stored_configuration(Row::of("configuration", it)?.members)
        })?,
        firewall_rule_set: nullable(row.get("firewallRuleSet"), rule_set)?,
        department: nullable(row.get("department"), department)?,
        version: row.integer("version")?.unwrap_or(1),
    })
}

/// What `transitionVMStatus` answers.
pub(in crate::db) fn transition(value: &Value) -> Result<Transition, DbError> {
    let row = Row::of("transition", value)?;
    let new_version = row.integer("newVersion")?;
    Ok(Transition {
        new_version: new_version.ok_or_else(|| wrong("the transition's newVersion is missing"))?,
        vm: vm_record(row.get("vmConfig"))?,
    })
}

/// What `getFirewallRulesSplit` answers.
pub(in crate::db) fn rule_split(value: &Value) -> Result<RuleSplit, DbError> {
    let row = Row::of("rules", value)?;
    Ok(RuleSplit {
        department_rules: list(row.get("departmentRules"), rule)?,
        vm_rules: list(row.get("vmRules"), rule)?,
    })
}

/// `FirewallRuleSetRecord`.
pub(in crate::db) fn rule_set(value: &Value) -> Result<FirewallRuleSet, DbError> {
    let row = Row::of("rule set", value)?;
    Ok(FirewallRuleSet {
        id: row.optional_text("id")?.unwrap_or_default(),
        name: row.optional_text("name")?.unwrap_or_default(),
        internal_name: row.optional_text("internalName")?.unwrap_or_default(),
        priority: row.integer("priority")?.unwrap_or_default(),
        is_active: row.flag("isActive")?.unwrap_or(true),
        rules: list(row.get("rules"), rule)?,
    })
}

fn department(value: &Value) -> Result<Department, DbError> {
    let row = Row::of("department", value)?;
    Ok(Department {
        id: row.optional_text("id")?.unwrap_or_default(),
        name: row.optional_text("name")?.unwrap_or_default(),
        firewall_rule_set: nullable(row.get("firewallRuleSet"), rule_set)?,
    })
}

/// `FirewallRuleRecord`. What it means is the firewall compiler's business, which names a rule that
/// makes no sense; so texts may be empty here, and a connection state has any shape.
pub(in crate::db) fn rule(value: &Value) -> Result<FirewallRuleInput, DbError> {
    let row = Row::of("firewall rule", value)?;
    Ok(FirewallRuleInput {
        id: row.optional_text("id")?.unwrap_or_default(),
        name: row.optional_text("name")?.unwrap_or_default(),
        description: row.optional_text("description")?,
        action: row.optional_text("action")?.unwrap_or_default(),
        direction: row.optional_text("direction")?.unwrap_or_default(),
        priority: row.number("priority")?.unwrap_or_default(),
        protocol: row.optional_text("protocol")?,
        src_port_start: row.number("srcPortStart")?,
        src_port_end: row.number("srcPortEnd")?,
        dst_port_start: row.number("dstPortStart")?,
        dst_port_end: row.number("dstPortEnd")?,
        src_ip_addr: row.optional_text("srcIpAddr")?,
        src_ip_mask: row.optional_text("srcIpMask")?,
        dst_ip_addr: row.optional_text("dstIpAddr")?,
        dst_ip_mask: row.optional_text("dstIpMask")?,
        connection_state: Some(row.get("connectionState").clone()).filter(|it| !it.is_null()),
        overrides_dept: row.flag("overridesDept")?.unwrap_or_default(),
    })
}

/// An object, and what it is called in a refusal.
struct Row<'a> {
    what: &'static str,
    members: &'a Map<String, Value>,
}

impl<'a> Row<'a> {
    fn of(what: &'static str, value: &'a Value) -> Result<Self, DbError> {
        let members = value.as_object();
        let members = members.ok_or_else(|| wrong(format!("the {what} is not an object")))?;
        Ok(Self { what, members })
    }

    fn get(&self, name: &str) -> &'a Value {
        self.members.get(name).unwrap_or(&Value::Null)
    }

    fn text(&self, name: &str) -> Result<String, DbError> {
        let text = self.optional_text(name)?;
        text.ok_or_else(|| wrong(format!("the {}'s {name} is missing", self.what)))
    }

    fn optional_text(&self, name: &str) -> Result<Option<String>, DbError> {
        self.member(name, "a text", |it| it.as_str().map(str::to_owned))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, DbError> {
        self.member(name, "a boolean", Value::as_bool)
    }

    fn integer(&self, name: &str) -> Result<Option<i64>, DbError> {
        self.member(name, "an integer", integer)
    }

    fn number(&self, name: &str) -> Result<Option<f64>, DbError> {
        self.member(name, "a number", number)
    }

    fn member<T>(
        &self,
        name: &str,
        kind: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, DbError> {
        nullable(self.get(name), |value| {
            read(value).ok_or_else(|| wrong(format!("the {}'s {name} is not {kind}", self.what)))
        })
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.parse().ok().filter(|number: &f64| number.is_finite()),
        value => value.as_f64(),
    }
}

fn wrong(message: impl Into<String>) -> DbError {
    DbError::new(ErrorCode::QueryFailed, message)
}
