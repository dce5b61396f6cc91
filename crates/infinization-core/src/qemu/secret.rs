//! Keys of encrypted disks.

use std::os::fd::RawFd;

use serde::Serialize;

use super::args::ToArgs;
use super::machine::object;

/// `-object secret`: what a pipe holds. QEMU reads it once, at start, and nothing is left in the pipe.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Secret {
    qom_type: &'static str,
    pub(super) id: String,
    file: String,
}

impl Secret {
    /// The key of a disk.
    pub(super) fn of_disk(index: usize, descriptor: RawFd) -> Self {
        Self {
            qom_type: "secret",
            id: format!("disk{index}-key"),
            file: format!("/proc/self/fd/{descriptor}"),
        }
    }
}

impl ToArgs for Secret {
    fn to_args(&self) -> Vec<String> {
        object(self)
    }
}
