//! The `machine` table, and the records that join others to it.

use rusqlite::{
    Connection, OptionalExtension, Params, Row, TransactionBehavior, named_params, params,
};
use serde_json::Value;

use super::vault::Vault;
use super::{configuration, failure, rules};
use crate::db::{DbError, MachineDisks, MachineRecord, RunningVm, Transition, VmRecord};
use crate::error::ErrorCode;
use crate::types::{FirewallRuleInput, InternalName, VmId};

/// A machine to add to the store.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMachine {
    /// Its id, unique in the store.
    pub id: VmId,
    /// The name its files carry, unique in the store.
    pub internal_name: InternalName,
    /// The name people see.
    pub name: String,
    /// The guest operating system, as the user calls it.
    pub os: String,
    /// Virtual CPUs.
    pub cpu_cores: u32,
    /// Memory in GiB.
    pub ram_gb: f64,
    /// Size of disk 0 in GiB.
    pub disk_size_gb: f64,
    /// The host PCI address of a passed-through GPU.
    pub gpu_pci_address: Option<String>,
    /// The status it begins with.
    pub status: &'static str,
    /// Its own firewall rules; one without an id gets one.
    pub firewall_rules: Vec<FirewallRuleInput>,
}

/// A machine's row, for lists.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct MachineSummary {
    pub id: String,
    pub internal_name: String,
    pub name: String,
    pub os: String,
    pub status: String,
    /// Counted up by each status transition.
    pub version: i64,
    pub cpu_cores: i64,
    pub ram_gb: f64,
    pub disk_size_gb: f64,
    pub gpu_pci_address: Option<String>,
    /// ISO 8601, UTC.
    pub created_at: String,
    /// ISO 8601, UTC; when the row, not its configuration, last changed.
    pub updated_at: String,
}

/// A machine with everything the store knows of it but its secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMachine {
    /// The row, its configuration without the password, and its rules.
    pub record: VmRecord,
    /// ISO 8601, UTC.
    pub created_at: String,
    /// ISO 8601, UTC; when the row, not its configuration, last changed.
    pub updated_at: String,
}

/// The SQL for the present moment, as the schema's defaults write it.
const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
const SUMMARY: &str = "SELECT id, internal_name, name, os, status, coalesce(version, 1) AS version, \
     cpu_cores, ram_gb, disk_size_gb, gpu_pci_address, created_at, updated_at FROM machine";

const INSERT: &str = "INSERT INTO machine \
     (id, internal_name, name, os, cpu_cores, ram_gb, disk_size_gb, gpu_pci_address, status) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

const REPLACE: &str = "UPDATE machine SET internal_name = ?2, name = ?3, os = ?4, cpu_cores = ?5, \
     ram_gb = ?6, disk_size_gb = ?7, gpu_pci_address = ?8, status = ?9 \
     WHERE id = ?1 AND status IN ('off', 'error')";

/// The row and its rules, or neither.
pub(super) fn insert(db: &mut Connection, machine: NewMachine) -> Result<(), DbError> {
    write(db, INSERT, machine).map(drop)
}

/// Makes another machine of a row that is `off` or `error`. Says whether it was.
pub(super) fn replace(db: &mut Connection, machine: NewMachine) -> Result<bool, DbError> {
    write(db, REPLACE, machine)
}

fn write(db: &mut Connection, sql: &str, machine: NewMachine) -> Result<bool, DbError> {
    let change = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::write)?;
    let rows = change.execute(
        sql,
        params![
            machine.id.as_str(),
            machine.internal_name.as_str(),
            machine.name,
            machine.os,
            machine.cpu_cores,
            machine.ram_gb,
            machine.disk_size_gb,
            machine.gpu_pci_address,
            machine.status,
        ],
    );
    if rows.map_err(failure::write)? == 0 {
        return Ok(false);
    }
    rules::put(&change, &machine.id, machine.firewall_rules).map_err(failure::write)?;
    change.commit().map_err(failure::write)?;
    Ok(true)
}

pub(super) fn delete(db: &Connection, id: &VmId) -> Result<bool, DbError> {
    let rows = db.execute("DELETE FROM machine WHERE id = ?1", [id.as_str()]);
    Ok(rows.map_err(failure::write)? > 0)
}

pub(super) fn list(db: &Connection) -> Result<Vec<MachineSummary>, DbError> {
    all(db, &format!("{SUMMARY} ORDER BY rowid"), [], summary)
}

pub(super) fn get(db: &mut Connection, id: &VmId) -> Result<Option<StoredMachine>, DbError> {
    let snapshot = db.transaction().map_err(failure::read)?;
    let Some(summary) = find_summary(&snapshot, id)? else {
        return Ok(None);
    };
    let (created_at, updated_at) = (summary.created_at.clone(), summary.updated_at.clone());
    Ok(Some(StoredMachine {
        record: complete(&snapshot, None, summary)?,
        created_at,
        updated_at,
    }))
}

pub(super) fn find(db: &Connection, id: &VmId) -> Result<Option<MachineRecord>, DbError> {
    let sql = "SELECT id, status FROM machine WHERE id = ?1";
    one(db, sql, [id.as_str()], |row| {
        Ok(MachineRecord {
            id: row.get("id")?,
            status: row.get("status")?,
        })
    })
}

pub(super) fn internal_name(db: &Connection, id: &VmId) -> Result<Option<String>, DbError> {
    let sql = "SELECT internal_name FROM machine WHERE id = ?1";
    one(db, sql, [id.as_str()], |row| row.get(0))
}

pub(super) fn find_by_internal_name(
    db: &Connection,
    name: &InternalName,
) -> Result<Option<RunningVm>, DbError> {
    let sql = running("internal_name = ?1");
    one(db, &sql, [name.as_str()], running_vm)
}

pub(super) fn find_by_statuses(
    db: &Connection,
    statuses: &[String],
) -> Result<Vec<RunningVm>, DbError> {
    let sql = running("status IN (SELECT value FROM json_each(?1))") + " ORDER BY machine.rowid";
    all(db, &sql, [json_list(statuses)], running_vm)
}

/// `since` is written as `updated_at` is.
pub(super) fn find_unchanged_since(
    db: &Connection,
    statuses: &[String],
    since: &str,
) -> Result<Vec<RunningVm>, DbError> {
    let sql = running(
        "status IN (SELECT value FROM json_each(?1)) AND updated_at < ?2 ORDER BY machine.rowid",
    );
    all(db, &sql, [json_list(statuses).as_str(), since], running_vm)
}

pub(super) fn disks(db: &Connection) -> Result<Vec<MachineDisks>, DbError> {
    let sql = "SELECT id, internal_name, disk_paths FROM machine \
         LEFT JOIN machine_configuration ON machine_id = id ORDER BY machine.rowid";
    let rows: Vec<(String, String, Option<String>)> = all(db, sql, [], |row| row.try_into())?;
    let read = |(id, internal_name, paths): (String, String, Option<String>)| {
        let disk_paths = paths.map(|paths| serde_json::from_str(&paths)).transpose();
        let disk_paths = disk_paths.map_err(|_words| {
            let message =
                format!("machine {id}: the column disk_paths is not a JSON list of strings");
            DbError::new(ErrorCode::QueryFailed, message)
        })?;
        Ok(MachineDisks {
            id,
            internal_name,
            disk_paths: disk_paths.unwrap_or_default(),
        })
    };
    rows.into_iter().map(read).collect()
}

/// The record start reads. Run it inside a transaction, so that its parts belong together.
pub(super) fn find_with_config(
    db: &Connection,
    vault: &Vault,
    id: &VmId,
) -> Result<Option<VmRecord>, DbError> {
    let summary = find_summary(db, id)?;
    summary
        .map(|summary| complete(db, Some(vault), summary))
        .transpose()
}

/// One conditional write: the guard is in the WHERE, so nobody can step between.
pub(super) fn update_status(
    db: &Connection,
    id: &VmId,
    status: &str,
    only_if_not_in: &[String],
) -> Result<(), DbError> {
    let condition = "status NOT IN (SELECT value FROM json_each(:words))";
    update_status_where(db, condition, id, status, only_if_not_in)
}

fn update_status_where(
    db: &Connection,
    condition: &str,
    id: &VmId,
    status: &str,
    words: &[String],
) -> Result<(), DbError> {
    let sql = format!(
        "UPDATE machine SET status = :status, updated_at = {NOW} WHERE id = :id AND {condition}"
    );
    let words = json_list(words);
    let params = named_params! { ":id": id.as_str(), ":status": status, ":words": words };
    db.prepare_cached(&sql)
        .and_then(|mut statement| statement.execute(params))
        .map_err(failure::write)?;
    Ok(())
}

/// The same over the words `over` alone.
pub(super) fn write_status_over(
    db: &Connection,
    id: &VmId,
    status: &str,
    over: &[String],
) -> Result<(), DbError> {
    let condition = "status IN (SELECT value FROM json_each(:words))";
    update_status_where(db, condition, id, status, over)
}

/// One conditional write, then the row as it is now; both or neither.
pub(super) fn transition(
    db: &mut Connection,
    vault: &Vault,
    id: &VmId,
    expected: &str,
    new: &str,
    version: i64,
) -> Result<Transition, DbError> {
    let step = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::write)?;
    let sql = format!(
        "UPDATE machine SET status = :new, version = :version + 1, updated_at = {NOW} \
         WHERE id = :id AND status = :expected AND coalesce(version, 1) = :version"
    );
    let params = named_params! {
        ":id": id.as_str(), ":expected": expected, ":new": new, ":version": version,
    };
    let changed = step.execute(&sql, params).map_err(failure::write)?;
    let vm = find_with_config(&step, vault, id)?.ok_or_else(|| failure::no_machine(id))?;
    if changed == 0 {
        return Err(conflict(&vm, expected, version));
    }
    step.commit().map_err(failure::write)?;
    Ok(Transition {
        new_version: vm.version,
        vm,
    })
}

/// Why the conditional write found no row. The version speaks first, as in the contract.
fn conflict(vm: &VmRecord, expected: &str, version: i64) -> DbError {
    let (id, now) = (&vm.id, vm.version);
    let (code, message) = if now == version {
        (
            ErrorCode::UpdateFailed,
            format!("machine {id} is {}, not {expected}", vm.status),
        )
    } else {
        (
            ErrorCode::VersionConflict,
            format!("machine {id} has version {now}, not {version}"),
        )
    };
    let details = [
        ("currentStatus", Value::from(vm.status.as_str())),
        ("currentVersion", Value::from(vm.version)),
    ];
    DbError {
        details: details
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect(),
        ..DbError::new(code, message)
    }
}

fn find_summary(db: &Connection, id: &VmId) -> Result<Option<MachineSummary>, DbError> {
    one(
        db,
        &format!("{SUMMARY} WHERE id = ?1"),
        [id.as_str()],
        summary,
    )
}

fn complete(
    db: &Connection,
    vault: Option<&Vault>,
    machine: MachineSummary,
) -> Result<VmRecord, DbError> {
    let configuration = configuration::find(db, vault, &machine.id).map_err(|error| DbError {
        message: format!("machine {}: {}", machine.id, error.message),
        ..error
    })?;
    Ok(VmRecord {
        configuration,
        firewall_rule_set: rules::set_of(db, &machine)?,
        department: None,
        id: machine.id,
        status: machine.status,
        name: machine.name,
        internal_name: machine.internal_name,
        os: machine.os,
        cpu_cores: machine.cpu_cores,
        ram_gb: machine.ram_gb,
        disk_size_gb: machine.disk_size_gb,
        gpu_pci_address: machine.gpu_pci_address,
        version: machine.version,
    })
}

fn summary(row: &Row<'_>) -> rusqlite::Result<MachineSummary> {
    Ok(MachineSummary {
        id: row.get("id")?,
        internal_name: row.get("internal_name")?,
        name: row.get("name")?,
        os: row.get("os")?,
        status: row.get("status")?,
        version: row.get("version")?,
        cpu_cores: row.get("cpu_cores")?,
        ram_gb: row.get("ram_gb")?,
        disk_size_gb: row.get("disk_size_gb")?,
        gpu_pci_address: row.get("gpu_pci_address")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn running(condition: &str) -> String {
    format!(
        "SELECT id, status, internal_name, machine_id, {} FROM machine \
         LEFT JOIN machine_configuration ON machine_id = id WHERE {condition}",
        configuration::RUNTIME_COLUMNS
    )
}

fn running_vm(row: &Row<'_>) -> rusqlite::Result<RunningVm> {
    let configured: Option<String> = row.get("machine_id")?;
    Ok(RunningVm {
        id: row.get("id")?,
        status: row.get("status")?,
        internal_name: row.get("internal_name")?,
        configuration: configured
            .map(|_| configuration::read_runtime(row))
            .transpose()?,
    })
}

/// A list as one parameter, for `json_each`.
fn json_list(texts: &[String]) -> String {
    Value::from(texts).to_string()
}

fn one<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, DbError> {
    db.prepare_cached(sql)
        .and_then(|mut statement| statement.query_row(params, read).optional())
        .map_err(failure::read)
}

fn all<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, DbError> {
    db.prepare_cached(sql)
        .and_then(|mut statement| statement.query_map(params, read)?.collect())
        .map_err(failure::read)
}
