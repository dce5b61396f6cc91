//! Why the firewall could not be changed, told apart by errno where there is one.

use nix::errno::Errno;
use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};
use crate::host::program::{Finished, ProgramError};

/// The firewall could not be read or changed. What was in force before still is.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// `nft` could not be run to its end.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel wants CAP_NET_ADMIN.
    #[error("nftables may only be changed by root (CAP_NET_ADMIN)")]
    PermissionDenied,
    /// The kernel, or `nft` before it, refused the transaction.
    #[error("nft refused: {stderr}")]
    Refused {
        /// Why, as far as it can be told from nft's words.
        errno: Option<Errno>,
        /// `nft`'s own words.
        stderr: String,
        /// `nft`'s exit code; none after a signal.
        exit_code: Option<i32>,
    },
    /// The kernel refused a message of ours.
    #[error("the kernel refused: {0}")]
    Rejected(Errno),
    /// The kernel could not be asked.
    #[error("nfnetlink failed")]
    Netlink(#[source] std::io::Error),
    /// Nothing would be routed, so nothing could be masqueraded.
    #[error("IPv4 forwarding could not be switched on")]
    Forwarding(#[source] std::io::Error),
    /// What `nft` printed is not what it documents.
    #[error("nft's answer cannot be read")]
    Answer(#[source] serde_json::Error),
    /// The kernel does not hold what was loaded.
    #[error("{chain} holds {found} where {asked} was loaded")]
    Mismatch {
        /// The chain.
        chain: String,
        /// What was asked for.
        asked: String,
        /// What there is.
        found: String,
    },
    /// The mode is `fail`, and this kernel cannot track connections on bridges.
    #[error(
        "this kernel cannot track connections on bridges: load the module nf_conntrack_bridge, or \
         set bridgeConntrackMode to \"degrade\" to filter without connection state"
    )]
    ConntrackUnavailable,
    /// The name is not one of a VM's chain.
    #[error("{0:?} is not the name of a machine's chain")]
    NotAVmChain(String),
    /// What several had asked for together failed for all of them.
    #[error(transparent)]
    Together(std::sync::Arc<Self>),
    /// The runtime went away before `nft` ended.
    #[error("the transaction was interrupted by the end of the runtime")]
    Interrupted,
}

impl NftError {
    pub(in crate::host) fn refused(finished: &Finished) -> Self {
        let stderr = finished.stderr_tail();
        match errno_in(&stderr) {
            Some(Errno::EPERM | Errno::EACCES) => Self::PermissionDenied,
            errno => Self::Refused {
                errno,
                stderr,
                exit_code: finished.status.code(),
            },
        }
    }

    pub(super) fn rejected(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES => Self::PermissionDenied,
            errno => Self::Rejected(errno),
        }
    }

    /// Whether something the request names does not exist.
    pub fn is_absent(&self) -> bool {
        self.is(Errno::ENOENT)
    }

    /// Whether the kernel refused for this reason.
    pub fn is(&self, reason: Errno) -> bool {
        match self {
            Self::Refused { errno, .. } => *errno == Some(reason),
            Self::Rejected(errno) => *errno == reason,
            Self::Together(error) => error.is(reason),
            _ => false,
        }
    }
}

/// `nft` always exits with 1 and prints `strerror(errno)`; it runs in the C locale, where these
/// words are fixed.
fn errno_in(stderr: &str) -> Option<Errno> {
    const TOLD_APART: [Errno; 7] = [
        Errno::EPERM,
        Errno::EACCES,
        Errno::ENOENT,
        Errno::EEXIST,
        Errno::EBUSY,
        Errno::EPROTO,
        Errno::EOPNOTSUPP,
    ];
    TOLD_APART
        .into_iter()
        .find(|errno| stderr.contains(errno.desc()))
}

impl Coded for NftError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Program(error) => error.code(),
            Self::Together(error) => error.code(),
            Self::PermissionDenied => ErrorCode::NftPermissionDenied,
            Self::Refused { .. }
            | Self::Rejected(_)
            | Self::Netlink(_)
            | Self::Answer(_)
            | Self::Interrupted => ErrorCode::NftCommandFailed,
            Self::Forwarding(_) => ErrorCode::ForwardingFailed,
            Self::Mismatch { .. } => ErrorCode::RulesetMismatch,
            Self::ConntrackUnavailable => ErrorCode::ConntrackUnavailable,
            Self::NotAVmChain(_) => ErrorCode::ChainNotFound,
        }
    }

    fn context(&self) -> Map<String, Value> {
        match self {
            Self::Program(error) => error.context(),
            Self::Together(error) => error.context(),
            Self::Refused {
                stderr, exit_code, ..
            } => Map::from_iter([
                ("command".to_owned(), Value::from("nft")),
                ("stderr".to_owned(), Value::from(stderr.as_str())),
                ("exitCode".to_owned(), Value::from(*exit_code)),
            ]),
            _ => Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_reason_out_of_nft_s_words() {
        let words = [
            (
                "internal:0:0-0: Error: Could not process rule: Device or resource busy",
                Some(Errno::EBUSY),
            ),
            (
                "Error: No such file or directory; did you mean table ‘t’ in family bridge?",
                Some(Errno::ENOENT),
            ),
            (
                "internal:0:0-0: Error: Could not process rule: File exists",
                Some(Errno::EEXIST),
            ),
            ("Error: syntax error, unexpected '}'", None),
        ];
        for (stderr, errno) in words {
            assert_eq!(errno_in(stderr), errno);
        }
    }
}
