//! Changing what a network shall be.

use serde_json::Value;

use super::VirtualNetwork;
use crate::config::ConfigError;
use crate::config::fields::Report;

/// Machines name it; another one is another network.
const FIXED: &str = "cannot be changed: machines know the network by it";

impl VirtualNetwork {
    /// This network after `changes`, which are a merge patch (RFC 7396) of it: what they do not name stays, and
    /// null is what would have been chosen. All of it is checked, as if it were made so.
    pub fn changed(&self, changes: &Value) -> Result<Self, ConfigError> {
        let mut whole = self.as_given();
        merge(&mut whole, changes);
        let changed = Self::parse(&whole)?.config;
        let report = Report::default();
        if changed.name != self.name {
            report.refuse("name", FIXED);
        }
        if changed.bridge != self.bridge {
            report.refuse("bridge", FIXED);
        }
        Ok(report.conclude(Some(changed))?.config)
    }

    /// What would be given for it.
    fn as_given(&self) -> Value {
        serde_json::to_value(self).expect("its keys are strings")
    }
}

fn merge(whole: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *whole = patch.clone();
        return;
    };
    if !whole.is_object() {
        *whole = Value::Object(serde_json::Map::new());
    }
    for (key, change) in patch {
        if change.is_null() {
            whole.as_object_mut().map(|whole| whole.remove(key));
        } else {
            merge(&mut whole[key.as_str()], change);
        }
    }
}
