//! What a parser says: the configuration, warnings, or every issue with its path.

use serde_json::{Map, Value, json};

use super::VmConfig;
use crate::error::{Coded, ErrorCode};
use crate::types::VmId;

/// One refused value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// The field as a user would write it: `disks[0].sizeGB`.
    pub path: String,
    /// What it must be; follows the path in a sentence. Never holds the value, unless that is a path
    /// or address on this host.
    pub message: String,
    /// `INVALID_CONFIG`, or `RESOURCE_UNAVAILABLE` for what this version does not have.
    pub code: ErrorCode,
}

impl Issue {
    /// A value that cannot be right: `INVALID_CONFIG`.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidConfig, path, message)
    }

    /// A value that names what this host does not have: `RESOURCE_UNAVAILABLE`.
    pub fn unavailable(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ResourceUnavailable, path, message)
    }

    fn new(code: ErrorCode, path: impl Into<String>, message: impl Into<String>) -> Self {
        let (path, message) = (path.into(), message.into());
        Self {
            path,
            message,
            code,
        }
    }
}

/// Something given that has no effect, or not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The field.
    pub path: String,
    /// What happens instead; follows the path in a sentence.
    pub message: String,
}

/// A configuration and what its author should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed<T = VmConfig> {
    /// What was meant.
    pub config: T,
    /// In the order of the fields.
    pub warnings: Vec<Warning>,
}

impl<T> Parsed<T> {
    /// The configuration; its warnings go to the log, as what `verb` of the VM was given.
    pub fn warned(self, verb: &str, vm_id: &VmId) -> T {
        for Warning { path, message } in self.warnings {
            tracing::warn!(vm = %vm_id, "{verb}: {path} {message}");
        }
        self.config
    }
}

/// A configuration that is refused, with every reason at once. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration is refused: {}", sentences(.issues))]
pub struct ConfigError {
    /// Every refused value.
    pub issues: Vec<Issue>,
}

impl ConfigError {
    /// Refuses, unless there is nothing to say.
    pub fn unless_empty(issues: Vec<Issue>) -> Result<(), Self> {
        if issues.is_empty() {
            Ok(())
        } else {
            Err(Self { issues })
        }
    }
}

impl Coded for ConfigError {
    /// `INVALID_CONFIG` as soon as one value is wrong in itself.
    fn code(&self) -> ErrorCode {
        let unavailable = |issue: &Issue| issue.code == ErrorCode::ResourceUnavailable;
        if self.issues.iter().all(unavailable) {
            ErrorCode::ResourceUnavailable
        } else {
            ErrorCode::InvalidConfig
        }
    }

    fn context(&self) -> Map<String, Value> {
        let issues = self
            .issues
            .iter()
            .map(
                |Issue {
                     path,
                     message,
                     code,
                 }| {
                    json!({ "path": path, "message": message, "code": code.as_str() })
                },
            )
            .collect();
        Map::from_iter([("issues".to_owned(), Value::Array(issues))])
    }
}

fn sentences(issues: &[Issue]) -> String {
    let sentences: Vec<String> = issues
        .iter()
        .map(|issue| format!("{} {}", issue.path, issue.message))
        .collect();
    sentences.join("; ")
}
