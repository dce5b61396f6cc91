//! What is looked at before a client is used: whether it can make the queries at all.
//!
//! A client names one unknown field at a time; asking again without it finds the next, so that the
//! refusal lists all of them.

use serde_json::{Value, json};

use super::{PrismaDatabase, failure, queries};
use crate::db::DbError;

/// No machine has it; it is an id for every kind of column.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
/// The models behind the relations of a query.
const RELATIONS: [(&str, &str); 4] = [
    ("configuration", "MachineConfiguration"),
    ("department", "Department"),
    ("firewallRuleSet", "FirewallRuleSet"),
    ("rules", "FirewallRule"),
];

impl PrismaDatabase {
    /// Looks whether the client has the calls, models and columns that are needed, by a read that
    /// finds nothing. `SCHEMA_MISMATCH` lists what is missing; `DB_CONNECTION_ERROR` says nothing about
    /// the schema.
    pub async fn probe(&self) -> Result<(), DbError> {
        let absent = self.read(json!({ "absent": queries::CALLS })).await?;
        let mut missing = names(&absent);
        if missing.is_empty() {
            missing = self.unknown_columns().await?;
            missing.extend(self.unknown_scope().await?);
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(failure::mismatch(&missing))
        }
    }

    async fn unknown_columns(&self) -> Result<Vec<String>, DbError> {
        let mut select = queries::everything();
        select["department"]["select"]["firewallPolicy"] = json!(true);
        select["firewallRuleSetId"] = json!(true);
        let mut missing: Vec<String> = Vec::new();
        loop {
            let asked = self.line.ask(queries::machine(NOBODY, &select)).await;
            let Err(error) = asked else {
                return Ok(missing);
            };
            let found = failure::missing(&error);
            if found.is_empty() {
                return Err(failure::read(error));
            }
            let left_out = found
                .iter()
                .any(|name| leave_out(&mut select, "Machine", name));
            missing.extend(
                found
                    .into_iter()
                    .filter(|name| !missing.contains(name))
                    .collect::<Vec<_>>(),
            );
            if !left_out {
                return Ok(missing);
            }
        }
    }

    /// The column that machines are told apart by, if they are.
    async fn unknown_scope(&self) -> Result<Vec<String>, DbError> {
        if self.scope.0.is_none() {
            return Ok(Vec::new());
        }
        let Err(error) = self.line.ask(self.scope.by_internal_name(NOBODY)).await else {
            return Ok(Vec::new());
        };
        match failure::missing(&error) {
            missing if missing.is_empty() => Err(failure::read(error)),
            missing => Ok(missing),
        }
    }
}

/// Takes `model.field` out of a selection of `model`'s columns. Says whether it was there.
fn leave_out(select: &mut Value, model: &str, name: &str) -> bool {
    let Some(columns) = select.as_object_mut() else {
        return false;
    };
    let here = name
        .strip_prefix(model)
        .and_then(|rest| rest.strip_prefix('.'));
    let mut found = here.is_some_and(|field| columns.remove(field).is_some());
    for (relation, model) in RELATIONS {
        if let Some(inner) = columns.get_mut(relation) {
            found |= leave_out(&mut inner["select"], model, name);
        }
    }
    found
}

fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}
