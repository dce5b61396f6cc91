//! Why an image operation failed.

use std::io;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::in_use::Holder;
use crate::error::{Coded, ErrorCode};
use crate::host::program::ProgramError;
use crate::types::{ByteSize, HostPath};

/// An image operation that failed, and so changed nothing (unless it says otherwise).
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ImageError {
    #[error("the image {path} does not exist")]
    NotFound { path: HostPath },
    #[error("the directory of {path} does not exist")]
    NoDirectory { path: HostPath },
    #[error("the bytes of {path} have the SHA-256 {found}, not the one that was given")]
    Checksum { path: HostPath, found: String },
    #[error("{path} exists already and was left alone")]
    AlreadyExists { path: HostPath },
    #[error("the image {path} has no snapshot {name}")]
    SnapshotNotFound { path: HostPath, name: String },
    #[error("the image {path} has a snapshot {name} already")]
    SnapshotAlreadyExists { path: HostPath, name: String },
    #[error("a snapshot's name {why}")]
    InvalidSnapshotName { why: &'static str },
    #[error("{path} {why}")]
    Format { path: HostPath, why: String },
    #[error("the size of {path} {why}")]
    Size { path: HostPath, why: String },
    #[error("shrinking {path} from {from} to {to} bytes would lose data and was not agreed to")]
    ShrinkRefused {
        path: HostPath,
        from: u64,
        to: ByteSize,
    },
    #[error("the image {path} is in use{}", by(holder.as_ref()))]
    InUse {
        path: HostPath,
        holder: Option<Holder>,
    },
    #[error("the image {path} is encrypted, and its key was not given")]
    KeyRequired { path: HostPath },
    #[error("the image {path} is encrypted with another key")]
    AuthFailed { path: HostPath },
    #[error("the image {path} is encrypted, and {what} would not be")]
    PlainText { path: HostPath, what: &'static str },
    #[error("the image {path} {why}")]
    Corrupt { path: HostPath, why: String },
    #[error("the image {path} depends on a file that may not be opened: {why}")]
    UnsafeBacking { path: HostPath, why: String },
    #[error("{path} is not inside one of the allowed directories")]
    OutsideAllowed { path: HostPath },
    #[error("{path} may not be accessed")]
    PermissionDenied { path: HostPath },
    #[error("there is no space left for {path}")]
    NoSpace { path: HostPath },
    #[error("the work on {path} was cancelled")]
    Cancelled { path: HostPath },
    #[error("qemu-img did not finish with {path} within {deadline:?} and was ended")]
    TimedOut { path: HostPath, deadline: Duration },
    #[error("qemu-img failed on {path}: {stderr}")]
    Failed {
        path: HostPath,
        exit: Option<i32>,
        stderr: String,
    },
    #[error("qemu-img's answer about {path} makes no sense")]
    Answer {
        path: HostPath,
        source: serde_json::Error,
    },
    #[error("{path} could not be used")]
    Io { path: HostPath, source: io::Error },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

fn by(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| {
        format!(" by {} (pid {})", holder.name, holder.pid)
    })
}

/// The file that a failure is about, by reference or to be changed, as the failure is given.
macro_rules! path_in {
    ($failure:expr) => {
        match $failure {
            ImageError::NotFound { path }
            | ImageError::NoDirectory { path }
            | ImageError::Checksum { path, .. }
            | ImageError::AlreadyExists { path }
            | ImageError::SnapshotNotFound { path, .. }
            | ImageError::SnapshotAlreadyExists { path, .. }
            | ImageError::Format { path, .. }
            | ImageError::Size { path, .. }
            | ImageError::ShrinkRefused { path, .. }
            | ImageError::InUse { path, .. }
            | ImageError::KeyRequired { path }
            | ImageError::AuthFailed { path }
            | ImageError::PlainText { path, .. }
            | ImageError::Corrupt { path, .. }
            | ImageError::UnsafeBacking { path, .. }
            | ImageError::OutsideAllowed { path }
            | ImageError::PermissionDenied { path }
            | ImageError::NoSpace { path }
            | ImageError::Cancelled { path }
            | ImageError::TimedOut { path, .. }
            | ImageError::Failed { path, .. }
            | ImageError::Answer { path, .. }
            | ImageError::Io { path, .. } => Some(path),
            ImageError::InvalidSnapshotName { .. } | ImageError::Program(_) => None,
        }
    };
}

impl ImageError {
    /// Says what the kernel's refusal means for the image at `path`.
    pub(super) fn io(path: &HostPath, source: io::Error) -> Self {
        let path = path.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { path },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::PermissionDenied { path }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { path, source },
        }
    }

    pub(super) fn format(path: &HostPath, why: impl Into<String>) -> Self {
        let (path, why) = (path.clone(), why.into());
        Self::Format { path, why }
    }

    pub(super) fn size(path: &HostPath, why: impl Into<String>) -> Self {
        let (path, why) = (path.clone(), why.into());
        Self::Size { path, why }
    }

    pub(super) fn corrupt(path: &HostPath, why: impl Into<String>) -> Self {
        let (path, why) = (path.clone(), why.into());
        Self::Corrupt { path, why }
    }

    pub(super) fn unsafe_backing(path: &HostPath, why: impl Into<String>) -> Self {
        let (path, why) = (path.clone(), why.into());
        Self::UnsafeBacking { path, why }
    }

    /// The same failure of a file that is to have another name.
    pub(super) fn named(mut self, name: &HostPath) -> Self {
        if let Some(path) = self.path_mut() {
            path.clone_from(name);
        }
        self
    }

    fn path_mut(&mut self) -> Option<&mut HostPath> {
        path_in!(self)
    }

    fn path(&self) -> Option<&HostPath> {
        path_in!(self)
    }
}

impl Coded for ImageError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } | Self::NoDirectory { .. } => ErrorCode::ImageNotFound,
            Self::AlreadyExists { .. } => ErrorCode::ImageAlreadyExists,
            Self::Checksum { .. } => ErrorCode::ChecksumMismatch,
            Self::SnapshotNotFound { .. } => ErrorCode::SnapshotNotFound,
            Self::SnapshotAlreadyExists { .. } => ErrorCode::SnapshotAlreadyExists,
            Self::InvalidSnapshotName { .. } => ErrorCode::InvalidSnapshotName,
            Self::Format { .. } => ErrorCode::InvalidFormat,
            Self::Size { .. } => ErrorCode::InvalidSize,
            Self::ShrinkRefused { .. } => ErrorCode::DataLossRefused,
            Self::InUse { .. } => ErrorCode::ImageInUse,
            Self::KeyRequired { .. } => ErrorCode::KeyRequired,
            Self::AuthFailed { .. } => ErrorCode::AuthFailed,
            Self::PlainText { .. } => ErrorCode::PlainTextRefused,
            Self::Corrupt { .. } => ErrorCode::ImageCorrupt,
            Self::UnsafeBacking { .. } => ErrorCode::UnsafeBackingFile,
            Self::OutsideAllowed { .. } | Self::PermissionDenied { .. } => {
                ErrorCode::StoragePermissionDenied
            }
            Self::NoSpace { .. } => ErrorCode::InsufficientSpace,
            Self::Cancelled { .. } => ErrorCode::StorageAborted,
            Self::TimedOut { .. } => ErrorCode::StorageTimeout,
            Self::Failed { .. } | Self::Io { .. } => ErrorCode::CommandFailed,
            Self::Answer { .. } => ErrorCode::ParseError,
            Self::Program(error) => error.code(),
        }
    }

    fn context(&self) -> Map<String, Value> {
        let facts = match self {
            Self::InUse { holder, .. } => {
                json!({ "holder": holder.as_ref().map(|h| json!({ "pid": h.pid, "name": h.name })) })
            }
            Self::Failed { exit, stderr, .. } => json!({ "exitCode": exit, "stderr": stderr }),
            Self::Io { source, .. } => json!({ "errno": source.raw_os_error() }),
            Self::Program(error) => Value::Object(error.context()),
            _ => json!({}),
        };
        let mut context = facts.as_object().cloned().unwrap_or_default();
        if let Some(path) = self.path() {
            context.insert("path".to_owned(), path.as_str().into());
        }
        context
    }
}
