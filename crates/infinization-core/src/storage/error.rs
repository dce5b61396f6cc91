//! Why a pool or volume cannot be had.

use std::io;

use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};
use crate::host::qemu_img::ImageError;
use crate::host::state_file::StateFileError;
use crate::types::{HostPath, VmId};

/// An operation on pools or volumes that failed, and so changed nothing.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PoolError {
    #[error("there is no storage pool {name}")]
    NotFound { name: String },
    #[error("the storage pool {name} exists already")]
    Exists { name: String },
    #[error("the directory {path} is that of the storage pool {name}")]
    Shared { path: HostPath, name: String },
    #[error("{path} {why}")]
    Directory { path: HostPath, why: &'static str },
    #[error("{path} could not be used")]
    Io { path: HostPath, source: io::Error },
    #[error("{path} is needed by {}", needed(users, overlays))]
    Needed {
        path: HostPath,
        users: Vec<VmId>,
        overlays: Vec<HostPath>,
    },
    #[error("whether {other} lies on {path} could not be found out: {why}")]
    Unknown {
        path: HostPath,
        other: HostPath,
        why: String,
    },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    State(#[from] StateFileError),
}

fn needed(users: &[VmId], overlays: &[HostPath]) -> String {
    let users = users.iter().map(|vm| format!("VM {vm}"));
    let overlays = overlays.iter().map(ToString::to_string);
    users.chain(overlays).collect::<Vec<_>>().join(", ")
}

impl Coded for PoolError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::PoolNotFound,
            Self::Exists { .. } | Self::Shared { .. } => ErrorCode::PoolAlreadyExists,
            Self::Directory { .. } => ErrorCode::StoragePermissionDenied,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorCode::ImageNotFound,
                io::ErrorKind::PermissionDenied => ErrorCode::StoragePermissionDenied,
                io::ErrorKind::StorageFull => ErrorCode::InsufficientSpace,
                _ => ErrorCode::CommandFailed,
            },
            Self::Needed { .. } | Self::Unknown { .. } => ErrorCode::ImageInUse,
            Self::Image(error) => error.code(),
            Self::State(error) => error.code(),
        }
    }

    fn context(&self) -> Map<String, Value> {
        let text = |path: &HostPath| Value::from(path.as_str());
        match self {
            Self::Needed {
                path,
                users,
                overlays,
            } => Map::from_iter([
                ("path".to_owned(), text(path)),
                ("users".to_owned(), users.iter().map(VmId::as_str).collect()),
                ("overlays".to_owned(), overlays.iter().map(text).collect()),
            ]),
            Self::Unknown { path, other, .. } => Map::from_iter([
                ("path".to_owned(), text(path)),
                ("overlays".to_owned(), Value::from(vec![text(other)])),
            ]),
            Self::Shared { path, .. } | Self::Directory { path, .. } | Self::Io { path, .. } => {
                Map::from_iter([("path".to_owned(), text(path))])
            }
            Self::Image(error) => error.context(),
            Self::State(error) => error.context(),
            Self::NotFound { .. } | Self::Exists { .. } => Map::new(),
        }
    }
}
