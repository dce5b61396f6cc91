//! Storage pools: directories of volumes, in libvirt's words.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | what is told of pools and volumes |
//! | `pools` | which pools there are: a file in the state directory, replaced as a whole |
//! | `volumes` | making, cloning, resizing and deleting volumes |
//! | `transfers` | volumes that come and go as bytes |
//! | `progress` | how far a copy is |
//! | `references` | who would miss a volume |
//!
//! Invariants: a volume is a plain file right inside its pool, no symbolic link is followed to it, and no
//! name leads elsewhere; its format is what its name's ending says, never what it contains; what a machine
//! or another image stands on is neither deleted nor changed.
//! Neighbours: `host::qemu_img` works on the images; the manager says which machine has which file.

mod error;
mod pools;
mod progress;
mod references;
mod transfers;
mod volumes;

use serde::Serialize;

pub use error::PoolError;
pub use pools::Pools;
pub use progress::{Audience, Progress, copy};
pub use references::{Unknown, Use, Uses};

use crate::config::{DiskFormat, PoolName};
use crate::types::{ByteSize, HostPath, VmId};

/// `StoragePool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// Its directory.
    pub path: HostPath,
    /// What its file system holds, in bytes.
    pub capacity: ByteSize,
    /// What of that is taken, by whomever.
    pub allocation: ByteSize,
    /// What of that we may still take.
    pub available: ByteSize,
}

/// `StorageVolume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its file's name.
    pub name: String,
    /// Where it is.
    pub path: HostPath,
    /// What it is.
    pub format: DiskFormat,
    /// The disk's size as a guest sees it, in bytes.
    pub capacity: ByteSize,
    /// What the file takes on the host, in bytes.
    pub allocation: ByteSize,
    /// The file it is an overlay on.
    pub backing: Option<HostPath>,
    /// Whether a key is needed to read it.
    pub encrypted: bool,
    /// The machines that have it, as a disk or a snapshot's layer.
    pub used_by: Vec<VmId>,
    /// The images that are overlays on it.
    pub overlays: Vec<HostPath>,
}
