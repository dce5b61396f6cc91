//! A disk on its way from QEMU to the backup.

use super::super::progress::Work;
use super::attached::Attached;
use crate::host::qemu_img::Parent;
use crate::types::HostPath;

/// How a disk is copied.
pub(super) enum Method {
    /// Everything, into what becomes the backup.
    Full,
    /// What the parent's bitmap has marked, into what becomes the backup.
    Marked { parent: Parent },
    /// Everything, into a scratch file that is then compared with the parent.
    Compared { parent: Parent },
}

impl Method {
    /// What is done until the backup's file is there.
    pub(super) fn works(&self) -> &'static [Work] {
        match self {
            Self::Full | Self::Marked { .. } => &[Work::Copy],
            Self::Compared { .. } => &[Work::Copy, Work::Compare],
        }
    }

    pub(super) fn parent(&self) -> Option<&Parent> {
        match self {
            Self::Full => None,
            Self::Marked { parent } | Self::Compared { parent } => Some(parent),
        }
    }
}

/// One disk on its way.
pub(super) struct Copying {
    pub(super) disk: Attached,
    pub(super) method: Method,
    /// Where QEMU writes to.
    pub(super) target: HostPath,
}
