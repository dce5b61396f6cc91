//! Connection states, in the newer shape and the older one.

use serde_json::{Map, Value};

use crate::firewall::rule::{RuleError, States};

/// Reads a connection state in either shape; absent or null is any state.
pub(in crate::firewall) fn states(value: Option<&Value>) -> Result<Option<States>, RuleError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => match object.get("states") {
            Some(list) if object.len() == 1 => state_list(list).map(Some),
            _ => state_object(object).map(Some),
        },
        Some(_) => Err(RuleError::StateShape),
    }
}

/// `{ established: true, new: false, … }`
pub(in crate::firewall) fn state_object(object: &Map<String, Value>) -> Result<States, RuleError> {
    let mut states = States::default();
    for (key, value) in object {
        let state = state_named(&mut states, key)?;
        *state = match value {
            Value::Bool(set) => *set,
            Value::Null => false,
            _ => return Err(RuleError::StateShape),
        };
    }
    some_state(states)
}

/// `{ states: ["ESTABLISHED", …] }`, as older rows have it.
fn state_list(list: &Value) -> Result<States, RuleError> {
    let list = list.as_array().ok_or(RuleError::StateShape)?;
    let mut states = States::default();
    for word in list {
        let word = word.as_str().ok_or(RuleError::StateShape)?;
        *state_named(&mut states, &word.to_ascii_lowercase())? = true;
    }
    some_state(states)
}

fn state_named<'a>(states: &'a mut States, name: &str) -> Result<&'a mut bool, RuleError> {
    match name {
        "established" => Ok(&mut states.established),
        "new" => Ok(&mut states.new),
        "related" => Ok(&mut states.related),
        "invalid" => Ok(&mut states.invalid),
        _ => Err(RuleError::UnknownState(name.to_owned())),
    }
}

/// A state list without a state must not become "any state".
fn some_state(states: States) -> Result<States, RuleError> {
    if states == States::default() {
        return Err(RuleError::NoState);
    }
    Ok(states)
}
