//! The `firewall_rule` table: a machine's own rules, which together are its rule set.

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, named_params};
use uuid::Uuid;

use super::machines::MachineSummary;
use super::{failure, machines};
use crate::db::{DbError, FirewallRuleSet};
use crate::types::{FirewallRuleInput, VmId};

/// The contract's default priority of a rule set; ours has no rank of its own.
const SET_PRIORITY: i64 = 500;

const INSERT: &str = "INSERT INTO firewall_rule \
     (machine_id, position, id, name, description, action, direction, priority, protocol, \
      src_port_start, src_port_end, dst_port_start, dst_port_end, \
      src_ip_addr, src_ip_mask, dst_ip_addr, dst_ip_mask, connection_state, overrides_dept) \
     VALUES (:machine_id, :position, :id, :name, :description, :action, :direction, :priority, \
      :protocol, :src_port_start, :src_port_end, :dst_port_start, :dst_port_end, \
      :src_ip_addr, :src_ip_mask, :dst_ip_addr, :dst_ip_mask, :connection_state, :overrides_dept)";

/// Puts `rules` in the place of the machine's rules; all or none.
pub(super) fn replace(
    db: &mut Connection,
    id: &VmId,
    rules: Vec<FirewallRuleInput>,
) -> Result<(), DbError> {
    let change = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::write)?;
    machines::find(&change, id)?.ok_or_else(|| failure::no_machine(id))?;
    put(&change, id, rules).map_err(failure::write)?;
    change.commit().map_err(failure::write)
}

/// [`replace`] within a transaction.
pub(super) fn put(
    change: &Connection,
    id: &VmId,
    rules: Vec<FirewallRuleInput>,
) -> rusqlite::Result<()> {
    let clear = "DELETE FROM firewall_rule WHERE machine_id = ?1";
    change.execute(clear, [id.as_str()])?;
    for (position, rule) in rules.into_iter().enumerate() {
        insert(change, id, position, rule)?;
    }
    Ok(())
}

/// The machine's rules, lowest priority first. `MACHINE_NOT_FOUND` when there is no row.
pub(super) fn of_machine(
    db: &mut Connection,
    id: &VmId,
) -> Result<Vec<FirewallRuleInput>, DbError> {
    let snapshot = db.transaction().map_err(failure::read)?;
    machines::find(&snapshot, id)?.ok_or_else(|| failure::no_machine(id))?;
    select(&snapshot, id.as_str()).map_err(failure::read)
}

/// The rule set a machine has once it has rules. It is named after the machine.
pub(super) fn set_of(
    db: &Connection,
    machine: &MachineSummary,
) -> Result<Option<FirewallRuleSet>, DbError> {
    let rules = select(db, &machine.id).map_err(failure::read)?;
    Ok((!rules.is_empty()).then(|| FirewallRuleSet {
        id: machine.id.clone(),
        name: machine.name.clone(),
        internal_name: machine.internal_name.clone(),
        priority: SET_PRIORITY,
        is_active: true,
        rules,
    }))
}

/// The id [`set_of`] gives, without reading the rules.
pub(super) fn set_id(db: &Connection, id: &VmId) -> Result<Option<String>, DbError> {
    let sql = "SELECT machine_id FROM firewall_rule WHERE machine_id = ?1 LIMIT 1";
    db.query_row(sql, [id.as_str()], |row| row.get(0))
        .optional()
        .map_err(failure::read)
}

fn insert(
    db: &Connection,
    machine: &VmId,
    position: usize,
    rule: FirewallRuleInput,
) -> rusqlite::Result<()> {
    let id = if rule.id.is_empty() {
        Uuid::new_v4().to_string()
    } else {
        rule.id
    };
    let state = rule.connection_state.map(|state| state.to_string());
    db.prepare_cached(INSERT)?.execute(named_params! {
        ":machine_id": machine.as_str(),
        ":position": i64::try_from(position).unwrap_or(i64::MAX),
        ":id": id,
        ":name": rule.name,
        ":description": rule.description,
        ":action": rule.action,
        ":direction": rule.direction,
        ":priority": rule.priority,
        ":protocol": rule.protocol,
        ":src_port_start": rule.src_port_start,
        ":src_port_end": rule.src_port_end,
        ":dst_port_start": rule.dst_port_start,
        ":dst_port_end": rule.dst_port_end,
        ":src_ip_addr": rule.src_ip_addr,
        ":src_ip_mask": rule.src_ip_mask,
        ":dst_ip_addr": rule.dst_ip_addr,
        ":dst_ip_mask": rule.dst_ip_mask,
        ":connection_state": state,
        ":overrides_dept": rule.overrides_dept,
    })?;
    Ok(())
}

fn select(db: &Connection, machine: &str) -> rusqlite::Result<Vec<FirewallRuleInput>> {
    let sql = "SELECT * FROM firewall_rule WHERE machine_id = ?1 ORDER BY priority, position";
    db.prepare_cached(sql)?
        .query_map([machine], read)?
        .collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<FirewallRuleInput> {
    let state: Option<String> = row.get("connection_state")?;
    Ok(FirewallRuleInput {
        id: row.get("id")?,
        name: row.get("name")?,
        description: row.get("description")?,
        action: row.get("action")?,
        direction: row.get("direction")?,
        priority: row.get("priority")?,
        protocol: row.get("protocol")?,
        src_port_start: row.get("src_port_start")?,
        src_port_end: row.get("src_port_end")?,
        dst_port_start: row.get("dst_port_start")?,
        dst_port_end: row.get("dst_port_end")?,
        src_ip_addr: row.get("src_ip_addr")?,
        src_ip_mask: row.get("src_ip_mask")?,
        dst_ip_addr: row.get("dst_ip_addr")?,
        dst_ip_mask: row.get("dst_ip_mask")?,
        // What is no JSON stays text: the rule's compiler refuses it by name, instead of the
        // rule losing its condition here.
        connection_state: state
            .map(|text| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))),
        overrides_dept: row.get("overrides_dept")?,
    })
}
