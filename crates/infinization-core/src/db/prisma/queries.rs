//! What is asked of a Prisma client, as data: `{ model, operation, args }`, and
//! `{ transaction: [...] }` for steps that belong together.
//!
//! Only the calls of the public contract are made: `machine.findUnique`, `findFirst`, `findMany` and
//! `updateMany`, `machineConfiguration.upsert` and `updateMany`, and `$transaction`. Each list of
//! columns is here once, so that no query forgets one.

use serde_json::{Map, Value, json};

use crate::db::ConfigurationUpdate;
use crate::db::wire::{COLUMNS, configuration_members};

/// The calls a client must have.
pub(super) const CALLS: [&str; 7] = [
    "machine.findUnique",
    "machine.findFirst",
    "machine.findMany",
    "machine.updateMany",
    "machineConfiguration.upsert",
    "machineConfiguration.updateMany",
    "$transaction",
];

/// The columns the monitor needs of a running machine; reading no more keeps a corrupt column from
/// hiding the machine.
const RUNTIME_COLUMNS: [&str; 5] = [
    "qemuPid",
    "tapDeviceName",
    "qmpSocketPath",
    "guestAgentSocketPath",
    "infiniServiceSocketPath",
];

const MACHINE_COLUMNS: [&str; 10] = [
    "id",
    "status",
    "name",
    "internalName",
    "os",
    "cpuCores",
    "ramGB",
    "diskSizeGB",
    "gpuPciAddress",
    "version",
];

pub(super) const RULE_SET_COLUMNS: [&str; 5] =
    ["id", "name", "internalName", "priority", "isActive"];

const RULE_COLUMNS: [&str; 17] = [
    "id",
    "name",
    "description",
    "action",
    "direction",
    "priority",
    "protocol",
    "srcPortStart",
    "srcPortEnd",
    "dstPortStart",
    "dstPortEnd",
    "srcIpAddr",
    "srcIpMask",
    "dstIpAddr",
    "dstIpMask",
    "connectionState",
    "overridesDept",
];

/// The columns of JSON, which a client does not make null by `null`.
const JSON_COLUMNS: [&str; 2] = ["diskPaths", "cpuPinning"];

/// Which machines of the database are looked at.
#[derive(Debug, Clone)]
pub(super) struct Scope(pub(super) Option<String>);

impl Scope {
    fn within(&self, mut condition: Value) -> Value {
        if let Some(node) = &self.0 {
            condition["nodeId"] = json!(node);
        }
        condition
    }

    pub(super) fn by_internal_name(&self, name: &str) -> Value {
        let args = json!({
            "where": self.within(json!({ "internalName": name })),
            "select": running(),
        });
        call("machine", "findFirst", &args)
    }

    pub(super) fn running(&self) -> Value {
        self.many(json!({ "status": "running" }))
    }

    pub(super) fn by_statuses(&self, statuses: &[&str]) -> Value {
        self.many(json!({ "status": { "in": statuses } }))
    }

    pub(super) fn unchanged_since(&self, statuses: &[&str], since: &str) -> Value {
        self.many(json!({ "status": { "in": statuses }, "updatedAt": { "lt": since } }))
    }

    pub(super) fn disks(&self) -> Value {
        let mut select = columns(&["id", "internalName"]);
        select["configuration"] = json!({ "select": { "diskPaths": true } });
        let args = json!({ "where": self.within(json!({})), "select": select });
        call("machine", "findMany", &args)
    }

    fn many(&self, condition: Value) -> Value {
        let args = json!({ "where": self.within(condition), "select": running() });
        call("machine", "findMany", &args)
    }
}

pub(super) fn machine(id: &str, select: &Value) -> Value {
    let args = json!({ "where": { "id": id }, "select": select });
    call("machine", "findUnique", &args)
}

pub(super) fn identity() -> Value {
    columns(&["id", "status"])
}

/// Everything start needs.
pub(super) fn everything() -> Value {
    let mut select = columns(&MACHINE_COLUMNS);
    select["configuration"] = json!({ "select": columns(COLUMNS) });
    select["firewallRuleSet"] = rule_set();
    select["department"] = json!({
        "select": { "id": true, "name": true, "firewallRuleSet": rule_set() },
    });
    select
}

pub(super) fn rule_sets() -> Value {
    json!({
        "firewallRuleSet": rule_set(),
        "department": { "select": { "firewallRuleSet": rule_set() } },
    })
}

pub(super) fn policy() -> Value {
    json!({ "department": { "select": { "firewallPolicy": true } } })
}

/// A read of nobody that has these columns of a machine's relation in its SQL all the same: a client
/// asks for relations only once it has found a row.
pub(super) fn touching(relation: &str, names: &[&str]) -> Value {
    let order: Vec<Value> = names
        .iter()
        .map(|name| json!({ (relation): { (*name): "asc" } }))
        .collect();
    let args = json!({ "where": { "id": "" }, "select": { "id": true }, "orderBy": order });
    call("machine", "findMany", &args)
}

/// A machine with rules, and these; no order reaches them.
pub(super) fn any_rules() -> Value {
    let args = json!({
        "where": { "firewallRuleSet": { "is": { "rules": { "some": {} } } } },
        "select": { "firewallRuleSet": rule_set() },
    });
    call("machine", "findFirst", &args)
}

/// A write that no row need match.
pub(super) fn write_status(id: &str, status: &str, only_if_not_in: &[&str]) -> Value {
    let mut condition = json!({ "id": id });
    if !only_if_not_in.is_empty() {
        condition["status"] = json!({ "notIn": only_if_not_in });
    }
    let args = json!({ "where": condition, "data": { "status": status } });
    call("machine", "updateMany", &args)
}

/// The same over these words alone. What is known of the others is named too.
pub(super) fn write_status_over(id: &str, status: &str, over: &[&str], others: &[&str]) -> Value {
    let args = json!({
        "where": { "id": id, "status": { "in": over, "notIn": others } },
        "data": { "status": status },
    });
    call("machine", "updateMany", &args)
}

/// The row, then the conditional write; the write is left out where it would find nothing, and where
/// the row cannot be read for its disks. What follows is the row as it is now: of a write that found
/// nothing, to say why; of one that was made, because other columns may have changed between. The latter
/// is another call than the first, so that it takes no answer which was meant for that one, and may be
/// left out by a client that has none.
pub(super) fn transition(id: &str, expected: &str, new: &str, version: i64) -> Value {
    let write = json!({
        "where": { "id": id, "status": expected, "version": version },
        "data": { "status": new, "version": version.saturating_add(1) },
    });
    let mut write = call("machine", "updateMany", &write);
    write["given"] = json!({
        "is": { "status": expected, "version": version },
        "texts": ["configuration", "diskPaths"],
    });
    let read = machine(id, &everything());
    let mut again = read.clone();
    again["given"] = json!({ "is": { "count": 0 } });
    json!({ "transaction": [read, write, again, written(id, version)] })
}

/// The row after a write that was made.
fn written(id: &str, version: i64) -> Value {
    let args = json!({
        "where": { "id": id, "version": version.saturating_add(1) },
        "select": everything(),
    });
    let mut read = call("machine", "findFirst", &args);
    read["given"] = json!({ "is": { "count": 1 } });
    read["optional"] = json!(true);
    read
}

pub(super) fn clear(id: &str, names: &[&str]) -> Value {
    let data: Map<String, Value> = names
        .iter()
        .map(|name| ((*name).to_owned(), Value::Null))
        .collect();
    change_configuration(id, &json!(data))
}

/// A change of a machine's configuration. A column of JSON takes no null from a client that may not
/// be asked for its `DbNull`; so it is left out first, and emptied if the row turns out to have one.
#[derive(Debug)]
pub(super) struct Upsert {
    members: Map<String, Value>,
    /// The columns of JSON that shall be null.
    unset: Vec<&'static str>,
}

impl Upsert {
    pub(super) fn of(update: &ConfigurationUpdate) -> Self {
        let mut members = configuration_members(update);
        let unset: Vec<_> = JSON_COLUMNS
            .into_iter()
            .filter(|name| members.get(*name).is_some_and(Value::is_null))
            .collect();
        for name in &unset {
            members.remove(*name);
        }
        Self { members, unset }
    }

    pub(super) fn request(&self, id: &str) -> Value {
        let mut create = self.members.clone();
        create.insert("machineId".to_owned(), json!(id));
        let mut args = json!({
            "where": { "machineId": id },
            "create": create,
            "update": self.members,
        });
        if !self.unset.is_empty() {
            args["select"] = columns(&self.unset);
        }
        call("machineConfiguration", "upsert", &args)
    }

    /// What is still to be written, now that `row` is what the request answered.
    pub(super) fn rest(&self, id: &str, row: &Value) -> Option<Value> {
        let held = |name: &&&str| !row[**name].is_null() && row[**name] != empty(name);
        let data: Map<String, Value> = self
            .unset
            .iter()
            .filter(held)
            .map(|name| ((*name).to_owned(), empty(name)))
            .collect();
        (!data.is_empty()).then(|| change_configuration(id, &json!(data)))
    }
}

/// What a column of JSON holds that holds nothing.
fn empty(name: &str) -> Value {
    match name {
        "cpuPinning" => json!({ "cores": [] }),
        _ => json!([]),
    }
}

fn change_configuration(id: &str, data: &Value) -> Value {
    let args = json!({ "where": { "machineId": id }, "data": data });
    call("machineConfiguration", "updateMany", &args)
}

fn running() -> Value {
    let mut select = columns(&["id", "status", "internalName"]);
    select["configuration"] = json!({ "select": columns(&RUNTIME_COLUMNS) });
    select
}

fn rule_set() -> Value {
    let mut select = columns(&RULE_SET_COLUMNS);
    select["rules"] = json!({
        "orderBy": [{ "priority": "asc" }, { "id": "asc" }],
        "select": columns(&RULE_COLUMNS),
    });
    json!({ "select": select })
}

pub(super) fn columns(names: &[&str]) -> Value {
    let members = names.iter().map(|name| ((*name).to_owned(), true.into()));
    Value::Object(members.collect())
}

fn call(model: &str, operation: &str, args: &Value) -> Value {
    json!({ "model": model, "operation": operation, "args": args })
}
