//! Guest memory.

use serde::Serialize;

use super::args::{Opts, ToArgs};
use super::machine::object;
use crate::config::MemoryConfig;
use crate::types::ByteSize;

/// `-m`, in MiB, so that half a GiB is no fraction.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) size: ByteSize,
}

impl ToArgs for Memory {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-m")
            .with("size", format_args!("{}M", self.size.as_mib()))
            .args()
    }
}

/// `-object memory-backend-memfd` or `memory-backend-ram`: memory that is more than plain.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct MemoryBackend<'a> {
    qom_type: &'static str,
    id: &'static str,
    /// Bytes.
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlb: Option<bool>,
    /// Taking all pages at start turns "not enough huge pages" from a guest's SIGBUS into a start
    /// that fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    prealloc: Option<bool>,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    host_nodes: &'a [u32],
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
}

impl<'a> MemoryBackend<'a> {
    pub(super) const ID: &'static str = "ram0";

    /// `None` when plain memory will do. Huge pages come from a memfd: no mount point is needed and
    /// an unprivileged QEMU may have them.
    pub(super) fn new(memory: &MemoryConfig, host_nodes: &'a [u32]) -> Option<Self> {
        if !memory.hugepages && host_nodes.is_empty() {
            return None;
        }
        Some(Self {
            qom_type: if memory.hugepages {
                "memory-backend-memfd"
            } else {
                "memory-backend-ram"
            },
            id: Self::ID,
            size: memory.size.as_bytes(),
            hugetlb: memory.hugepages.then_some(true),
            prealloc: memory.hugepages.then_some(true),
            host_nodes,
            policy: (!host_nodes.is_empty()).then_some("bind"),
        })
    }
}

impl ToArgs for MemoryBackend<'_> {
    fn to_args(&self) -> Vec<String> {
        object(self)
    }
}
