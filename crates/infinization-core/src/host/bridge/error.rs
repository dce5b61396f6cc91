//! Why a bridge could not be made or changed.

use std::io;

use nix::errno::Errno;
use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};
use crate::host::link::{LinkError, code_of, network_context};
use crate::types::LinkName;

/// A bridge operation that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BridgeError {
    #[error("an interface {name} exists already; it was left alone")]
    AlreadyExists { name: LinkName },
    #[error("the checksum offload of {name} could not be turned off")]
    Offload { name: LinkName, source: io::Error },
    #[error("making {name} was interrupted: the runtime is ending")]
    Interrupted { name: LinkName },
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl BridgeError {
    fn device(&self) -> Option<&LinkName> {
        match self {
            Self::AlreadyExists { name }
            | Self::Offload { name, .. }
            | Self::Interrupted { name } => Some(name),
            Self::Link(error) => error.device(),
        }
    }

    /// The kernel's errno.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::AlreadyExists { .. } => Some(Errno::EEXIST),
            Self::Offload { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Interrupted { .. } => None,
            Self::Link(error) => error.errno(),
        }
    }
}

impl Coded for BridgeError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::AlreadyExists { .. } => ErrorCode::BridgeAlreadyExists,
            Self::Offload { .. } => code_of(self.errno()),
            Self::Interrupted { .. } => ErrorCode::NetlinkFailed,
            Self::Link(error) => error.code(),
        }
    }

    fn context(&self) -> Map<String, Value> {
        network_context(self.device(), self.errno())
    }
}
