//! Why a TAP could not be made or opened.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};
use crate::host::link::{LinkError, code_of, network_context};
use crate::types::LinkName;

/// A TAP operation that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TapError {
    #[error("an interface {name} exists already; it was left alone")]
    AlreadyExists { name: LinkName },
    #[error("there is no TAP {name}")]
    NotFound { name: LinkName },
    #[error("{name} is no TAP but a {} interface", kind.as_deref().unwrap_or("physical"))]
    NotATap {
        name: LinkName,
        kind: Option<String>,
    },
    #[error("TAP {name} is open in another process")]
    InUse { name: LinkName },
    /// It has to be deleted and made again.
    #[error("TAP {name} was made {} multi_queue", if *multi_queue { "with" } else { "without" })]
    QueueModeDiffers { name: LinkName, multi_queue: bool },
    #[error("{action} {name} failed")]
    Refused {
        action: &'static str,
        name: LinkName,
        source: io::Error,
    },
    #[error("the kernel did not answer for {name} within {deadline:?}")]
    Late { name: LinkName, deadline: Duration },
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl TapError {
    pub(super) fn refused(
        action: &'static str,
        name: &LinkName,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let name = name.clone();
        move |source| Self::Refused {
            action,
            name,
            source,
        }
    }

    fn device(&self) -> Option<&LinkName> {
        match self {
            Self::AlreadyExists { name }
            | Self::NotFound { name }
            | Self::NotATap { name, .. }
            | Self::InUse { name }
            | Self::QueueModeDiffers { name, .. }
            | Self::Refused { name, .. }
            | Self::Late { name, .. } => Some(name),
            Self::Link(error) => error.device(),
        }
    }

    /// The kernel's errno.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::AlreadyExists { .. } => Some(Errno::EEXIST),
            Self::NotFound { .. } => Some(Errno::ENODEV),
            Self::InUse { .. } => Some(Errno::EBUSY),
            Self::Refused { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Link(error) => error.errno(),
            Self::NotATap { .. } | Self::QueueModeDiffers { .. } | Self::Late { .. } => None,
        }
    }
}

impl Coded for TapError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::AlreadyExists { .. } | Self::InUse { .. } | Self::QueueModeDiffers { .. } => {
                ErrorCode::DeviceAlreadyExists
            }
            Self::NotFound { .. } | Self::NotATap { .. } => ErrorCode::DeviceNotFound,
            Self::Refused { .. } => code_of(self.errno()),
            Self::Late { .. } => ErrorCode::NetTimeout,
            Self::Link(error) => error.code(),
        }
    }

    fn context(&self) -> Map<String, Value> {
        network_context(self.device(), self.errno())
    }
}
