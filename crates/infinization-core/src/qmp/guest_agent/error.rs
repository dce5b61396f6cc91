//! What can go wrong between us and a guest's agent. No message repeats an argument's value.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};
use crate::qmp::error::facts;
use crate::qmp::wire::InvalidCommand;

/// A guest agent that did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AgentError {
    #[error("the guest agent's socket {} cannot be connected to", path.display())]
    Connect {
        path: PathBuf,
        source: std::io::Error,
    },
    /// No agent runs in the guest, or it is stuck. The command may still take effect.
    #[error("the guest agent did not answer {what} within {deadline:?}")]
    Timeout { what: String, deadline: Duration },
    #[error("the guest agent's connection ended before {what} was answered")]
    Disconnected { what: String },
    #[error("the guest agent broke the protocol: {why}")]
    Protocol { why: String },
    #[error("guest agent error: {desc} ({class}), answering {command}")]
    Command {
        command: String,
        class: String,
        desc: String,
    },
    #[error("the guest agent is not connected: {why}")]
    NotConnected { why: &'static str },
    /// `ended`: it was ended then, through the guest's own `kill`.
    #[error("the program in the guest (pid {pid}) did not end within {deadline:?} and was {}", if *ended { "ended" } else { "left running" })]
    StillRunning {
        pid: i64,
        deadline: Duration,
        ended: bool,
    },
    #[error(transparent)]
    Arguments(#[from] InvalidCommand),
}

impl Coded for AgentError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Connect { .. } => ErrorCode::AgentConnectFailed,
            Self::Timeout { .. } | Self::StillRunning { .. } => ErrorCode::AgentTimeout,
            Self::Disconnected { .. } | Self::NotConnected { .. } => ErrorCode::AgentDisconnected,
            Self::Protocol { .. } => ErrorCode::AgentProtocol,
            Self::Command { .. } => ErrorCode::AgentCommandFailed,
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
            Self::StillRunning { pid, ended, .. } => {
                facts([("pid", (*pid).into()), ("ended", (*ended).into())])
            }
            Self::NotConnected { .. } | Self::Protocol { .. } | Self::Arguments(_) => Map::new(),
        }
    }
}
