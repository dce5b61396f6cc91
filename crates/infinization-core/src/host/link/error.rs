//! Why a link operation failed: the kernel's errno and words, and the link it was about.

use std::fmt;
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::packet_core::{ErrorMessage, NlaBuffer, NlasIterator};
use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};
use crate::types::LinkName;

/// Why one netlink request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The kernel said no, sometimes with a sentence (extended acknowledgement).
    #[error("{}", KernelWords(*errno, words.as_deref()))]
    Kernel {
        /// The reason as a number.
        errno: Errno,
        /// The reason as the kernel's sentence.
        words: Option<String>,
    },
    /// The connection ended first; whether the request was carried out is unknown.
    #[error("the netlink connection ended before the answer")]
    Lost,
    /// The kernel answered what this library cannot decode.
    #[error("the kernel's answer could not be read")]
    Unreadable,
    /// The kernel did not answer; whether the request will be carried out is unknown.
    #[error("the kernel did not answer within {0:?}")]
    Late(Duration),
    /// No netlink socket could be had.
    #[error("no netlink socket could be opened")]
    Unopened(#[source] std::io::Error),
}

struct KernelWords<'a>(Errno, Option<&'a str>);

impl fmt::Display for KernelWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(words) => write!(f, "{} ({words})", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Refusal {
    pub(super) fn from_errno(code: i32) -> Self {
        Self::Kernel {
            errno: Errno::from_raw(code.abs()),
            words: None,
        }
    }

    pub(super) fn from_message(message: &ErrorMessage) -> Self {
        Self::Kernel {
            errno: Errno::from_raw(message.raw_code().abs()),
            words: kernel_words(&message.header),
        }
    }

    /// The kernel's errno, when it is the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Unopened(source) => source.raw_os_error().map(Errno::from_raw),
            Self::Lost | Self::Unreadable | Self::Late(_) => None,
        }
    }

    /// Says what was being done, and to which link.
    pub(in crate::host) fn of(self, action: &'static str, name: &LinkName) -> LinkError {
        let name = name.clone();
        match self.errno() {
            Some(Errno::ENODEV) => LinkError::NotFound { name },
            Some(Errno::EEXIST) => LinkError::AlreadyExists { name },
            _ => LinkError::Refused {
                action,
                name,
                source: self,
            },
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Late(_) => ErrorCode::NetTimeout,
            _ => code_of(self.errno()),
        }
    }
}

/// The code for a refusal that none more precise is known for.
pub(in crate::host) fn code_of(errno: Option<Errno>) -> ErrorCode {
    match errno {
        Some(Errno::EPERM | Errno::EACCES) => ErrorCode::NetPermissionDenied,
        _ => ErrorCode::NetlinkFailed,
    }
}

/// `NLMSGERR_ATTR_MSG` of `<linux/netlink.h>`.
const ATTR_MSG: u16 = 1;
const NLMSG_HEADER: usize = 16;

/// The sentence behind the echoed request header (the sockets are set to echo no more than that).
fn kernel_words(echo: &[u8]) -> Option<String> {
    let attributes = echo.get(NLMSG_HEADER..)?;
    let sentence = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == ATTR_MSG)?;
    let text = String::from_utf8_lossy(sentence.value());
    Some(text.trim_end_matches('\0').to_owned())
}

/// A link operation that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum LinkError {
    #[error("there is no interface {name}")]
    NotFound { name: LinkName },
    #[error("an interface {name} exists already")]
    AlreadyExists { name: LinkName },
    #[error("there is no bridge {bridge}")]
    BridgeNotFound { bridge: LinkName },
    #[error("{name} is no bridge{}", kind_words(kind.as_deref()))]
    NotABridge {
        name: LinkName,
        kind: Option<String>,
    },
    #[error("bridge {bridge} has no free port for {name}")]
    BridgeFull { name: LinkName, bridge: LinkName },
    #[error("{action} {name} failed")]
    Refused {
        action: &'static str,
        name: LinkName,
        source: Refusal,
    },
    #[error("listing the host's {what} failed")]
    List { what: &'static str, source: Refusal },
    #[error("link changes could not be subscribed to")]
    Watch { source: Refusal },
    #[error("{name} did not become as expected within {deadline:?}")]
    Unchanged { name: LinkName, deadline: Duration },
}

fn kind_words(kind: Option<&str>) -> String {
    kind.map(|kind| format!(" but a {kind} interface"))
        .unwrap_or_default()
}

impl LinkError {
    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { source, .. } | Self::List { source, .. } | Self::Watch { source } => {
                Some(source)
            }
            _ => None,
        }
    }

    /// The link it is about.
    pub fn device(&self) -> Option<&LinkName> {
        match self {
            Self::NotFound { name }
            | Self::AlreadyExists { name }
            | Self::BridgeNotFound { bridge: name }
            | Self::NotABridge { name, .. }
            | Self::BridgeFull { name, .. }
            | Self::Refused { name, .. }
            | Self::Unchanged { name, .. } => Some(name),
            Self::List { .. } | Self::Watch { .. } => None,
        }
    }

    /// The kernel's errno.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::NotFound { .. } => Some(Errno::ENODEV),
            Self::AlreadyExists { .. } => Some(Errno::EEXIST),
            Self::BridgeFull { .. } => Some(Errno::EXFULL),
            _ => self.refusal().and_then(Refusal::errno),
        }
    }
}

impl Coded for LinkError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::DeviceNotFound,
            Self::AlreadyExists { .. } => ErrorCode::DeviceAlreadyExists,
            Self::BridgeNotFound { .. } | Self::NotABridge { .. } => ErrorCode::BridgeNotFound,
            Self::BridgeFull { .. } => ErrorCode::BridgeFull,
            Self::Unchanged { .. } => ErrorCode::NetTimeout,
            Self::Refused { source, .. } | Self::List { source, .. } | Self::Watch { source } => {
                source.code()
            }
        }
    }

    fn context(&self) -> Map<String, Value> {
        network_context(self.device(), self.errno())
    }
}

/// The facts every network error has for programs.
pub(in crate::host) fn network_context(
    device: Option<&LinkName>,
    errno: Option<Errno>,
) -> Map<String, Value> {
    let mut context = Map::new();
    if let Some(device) = device {
        context.insert("device".to_owned(), device.as_str().into());
    }
    if let Some(errno) = errno {
        context.insert("errno".to_owned(), (errno as i32).into());
    }
    context
}
