//! What can go wrong between us and a monitor. No message repeats an argument's value.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::wire::InvalidCommand;
use crate::error::{Coded, ErrorCode};

/// A monitor that did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum QmpError {
    #[error("the monitor socket {} cannot be connected to", path.display())]
    Connect {
        path: PathBuf,
        source: std::io::Error,
    },
    /// After this the command may still take effect: QEMU has it, or had half of it.
    #[error("the monitor did not answer {what} within {deadline:?}")]
    Timeout { what: String, deadline: Duration },
    #[error("the monitor connection ended before {what} was answered")]
    Disconnected { what: String },
    #[error("the monitor is not connected: {why}")]
    NotConnected { why: &'static str },
    #[error("the monitor broke the protocol: {why}")]
    Protocol { why: String },
    #[error("QMP error: {desc} ({class}), answering {command}")]
    Command {
        command: String,
        /// QEMU's error class (`GenericError`, `CommandNotFound`, `DeviceNotFound` …).
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    #[error(transparent)]
    Arguments(#[from] InvalidCommand),
}

impl Coded for QmpError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Connect { .. } => ErrorCode::QmpConnectFailed,
            Self::Timeout { .. } => ErrorCode::QmpTimeout,
            Self::Disconnected { .. } | Self::NotConnected { .. } => ErrorCode::QmpDisconnected,
            Self::Protocol { .. } => ErrorCode::QmpProtocol,
            Self::Command { .. } => ErrorCode::QmpCommandFailed,
            Self::Arguments(_) => ErrorCode::QmpArguments,
        }
    }

    fn context(&self) -> Map<String, Value> {
        match self {
            Self::Connect { path, source } => facts([
                ("path", path.display().to_string().into()),
                ("errno", source.raw_os_error().into()),
            ]),
            Self::Timeout { what, .. } | Self::Disconnected { what } => {
                facts([("command", what.as_str().into())])
            }
            Self::Command {
                command,
                class,
                desc,
            } => facts([
                ("command", command.as_str().into()),
                ("class", class.as_str().into()),
                ("desc", desc.as_str().into()),
            ]),
            Self::NotConnected { .. } | Self::Protocol { .. } | Self::Arguments(_) => Map::new(),
        }
    }
}

pub(super) fn facts<const N: usize>(facts: [(&str, Value); N]) -> Map<String, Value> {
    facts
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
