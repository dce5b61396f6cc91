//! What the verbs on snapshots take.

use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, milliseconds, parsed, string, words_of_text};
use super::options::read;
use super::{ConfigError, Parsed, words};
use crate::types::InvalidValue;

/// More is a document, not a description. In bytes.
const LONGEST_DESCRIPTION: usize = 4096;

words! {
    /// Where a snapshot is kept.
    pub enum SnapshotKind {
        /// Inside each disk's image. The default.
        Internal = "internal",
        /// In the image itself, which is written no more: an overlay takes what comes after.
        External = "external",
    }
}

words! {
    /// What becomes of what builds on a snapshot that is deleted.
    pub enum Dependents {
        /// The snapshot is not deleted. The default.
        Refuse = "refuse",
        /// They are put on the snapshot's own parent, with what they need of it.
        Rebase = "rebase",
    }
}

/// What `createSnapshot` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// What the snapshot is called; whether it may be is the image's business.
    pub name: String,
    /// Where it is kept. Default: inside the images.
    pub kind: SnapshotKind,
    /// A text for people, kept beside the VM.
    pub description: Option<String>,
    /// Also the guest's memory, so that it can go on from there. Default false.
    pub memory: bool,
    /// Freeze the guest's file systems by its agent while the disks are snapshotted. Default false.
    pub quiesce: bool,
    /// How long freezing may take. Default 10 s.
    pub freeze_timeout: Duration,
}

/// What `revertSnapshot` takes beside the name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevertOptions {
    /// A running VM may be ended and started again, where its disks cannot be put back under it.
    pub restart: bool,
    /// What was written since the current external snapshot becomes a snapshot of this name.
    pub keep: Option<String>,
    /// What was written since the current external snapshot may be lost.
    pub discard: bool,
}

/// What `deleteSnapshot` takes beside the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotDeleteOptions {
    /// For what builds on an external snapshot.
    pub children: Dependents,
}

impl Default for SnapshotDeleteOptions {
    fn default() -> Self {
        Self {
            children: Dependents::Refuse,
        }
    }
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: SnapshotKind::Internal,
            description: None,
            memory: false,
            quiesce: false,
            freeze_timeout: Duration::from_secs(10),
        }
    }
}

impl SnapshotOptions {
    /// Reads `VMSnapshotOptions`.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        // Null is all defaults elsewhere; here the name is missing.
        let empty = Value::Object(serde_json::Map::new());
        let value = if value.is_null() { &empty } else { value };
        read(value, |fields| {
            let default = Self::default();
            let options = Self {
                name: fields
                    .required("name", string)
                    .unwrap_or_default()
                    .to_owned(),
                kind: fields.optional("kind", parsed).unwrap_or(default.kind),
                description: fields.optional("description", description),
                memory: fields.flag("memory", default.memory),
                quiesce: fields.flag("quiesce", default.quiesce),
                freeze_timeout: fields
                    .optional("freezeTimeout", milliseconds)
                    .unwrap_or(default.freeze_timeout),
            };
            refuse_both(fields, &options);
            options
        })
    }
}

impl RevertOptions {
    /// Reads `revertSnapshot`'s options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let options = Self {
                restart: fields.flag("restart", false),
                keep: fields.optional("keep", string).map(ToOwned::to_owned),
                discard: fields.flag("discard", false),
            };
            refuse_if(
                fields,
                "discard",
                options.discard && options.keep.is_some(),
                "is not for what is kept",
            );
            options
        })
    }
}

impl SnapshotDeleteOptions {
    /// Reads `deleteSnapshot`'s options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| Self {
            children: (fields.optional("children", parsed)).unwrap_or(Dependents::Refuse),
        })
    }
}

/// Memory holds what the guest has not written yet; freezing it would be saved frozen. An overlay has
/// no room for it.
fn refuse_both(fields: &Fields<'_>, options: &SnapshotOptions) {
    let (memory, external) = (options.memory, options.kind == SnapshotKind::External);
    let why = "goes with disks alone, not with memory";
    refuse_if(fields, "quiesce", memory && options.quiesce, why);
    let why = "goes into internal snapshots alone";
    refuse_if(fields, "memory", memory && external, why);
}

fn refuse_if(fields: &Fields<'_>, key: &'static str, refused: bool, why: &'static str) {
    if refused {
        let refuse = |_: &Value| -> Result<(), InvalidValue> { Err(InvalidValue::new(why)) };
        let _named = fields.optional(key, refuse);
    }
}

fn description(value: &Value) -> Result<String, InvalidValue> {
    let text = words_of_text(value)?;
    if text.len() > LONGEST_DESCRIPTION {
        return Err(InvalidValue::new("must have at most 4096 bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn b20_what_makes_no_sense_is_named() {
        let table = [
            (Value::Null, "name"),
            (json!({}), "name"),
            (json!({ "name": 7 }), "name"),
            (json!({ "name": "a", "memory": "yes" }), "memory"),
            (json!({ "name": "a", "description": 1 }), "description"),
            (
                json!({ "name": "a", "description": "x".repeat(4097) }),
                "description",
            ),
            (
                json!({ "name": "a", "freezeTimeout": "1" }),
                "freezeTimeout",
            ),
            (
                json!({ "name": "a", "memory": true, "quiesce": true }),
                "quiesce",
            ),
            (json!({ "name": "a", "kind": "outer" }), "kind"),
            (
                json!({ "name": "a", "kind": "external", "memory": true }),
                "memory",
            ),
        ];
        for (value, path) in table {
            let error = SnapshotOptions::parse(&value).unwrap_err();
            assert_eq!(error.issues[0].path, path, "{value}");
        }
        assert!(RevertOptions::parse(&json!({ "restart": 1 })).is_err());
        let both = json!({ "keep": "a", "discard": true });
        let error = RevertOptions::parse(&both).unwrap_err();
        assert_eq!(error.issues[0].path, "discard");
        assert!(SnapshotDeleteOptions::parse(&json!({ "children": "keep" })).is_err());
    }

    #[test]
    fn b19_null_and_absent_are_the_defaults() {
        let named = SnapshotOptions {
            name: "a".to_owned(),
            ..SnapshotOptions::default()
        };
        let nulls = json!({ "name": "a", "description": null, "memory": null, "quiesce": null });
        for value in [json!({ "name": "a" }), nulls] {
            assert_eq!(SnapshotOptions::parse(&value).unwrap().config, named);
        }
        let reverting = RevertOptions::parse(&Value::Null).unwrap().config;
        assert!(!reverting.restart);
    }
}
