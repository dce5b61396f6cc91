//! Keys of encrypted disks.

use std::os::fd::RawFd;

use serde::Serialize;

use super::args::ToArgs;
use super::machine::object;

/// The id of the object that has the key of disk `index` while QEMU runs: what is opened later needs it too.
pub fn key_of(index: usize) -> String {
    format!("disk{index}-key")
}

/// `-object secret`: what a pipe holds. QEMU reads it once, at start, and nothing is left in the pipe.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Secret {
    qom_type: &'static str,
    id: String,
    file: String,
}

impl Secret {
    /// The key of a disk.
    pub(super) fn of_disk(index: usize, descriptor: RawFd) -> Self {
        Self {
            qom_type: "secret",
            id: key_of(index),
            file: format!("/proc/self/fd/{descriptor}"),
        }
    }
}

impl ToArgs for Secret {
    fn to_args(&self) -> Vec<String> {
        object(self)
    }
}
