//! The enumerations of the public contract. They are spelled in files as in JavaScript.

use serde::{Deserialize, Serialize};

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BackupType {
    /// Everything; needs no other backup.
    #[default]
    Full,
    /// What differs from its parent.
    Incremental,
    /// An internal snapshot in each disk: gone when the disk is.
    Snapshot,
}

/// Where a backup stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BackupStatus {
    /// Not begun. Never in a file.
    Pending,
    /// Being made.
    InProgress,
    /// Whole, and on disk.
    Completed,
    /// Not made; its files are gone.
    Failed,
    /// Cancelled; its files are gone.
    Cancelled,
}

/// How the files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Compression {
    /// Not.
    #[default]
    None,
    /// qcow2's own, cluster by cluster, with deflate.
    Qcow2,
    /// The whole file. Nothing can build on such a backup.
    Gzip,
    /// qcow2's own with Zstandard: quicker and smaller than deflate. Needs QEMU 5.1 to read.
    Zstd,
}
