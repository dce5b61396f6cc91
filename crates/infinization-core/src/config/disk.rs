//! One disk, and what a disk is that says nothing of itself. Where its bytes are: [`super::location`].

use serde::{Deserialize, Serialize};

use super::{DiskLocation, words};
use crate::types::{ByteSize, DiskKey, HostPath, InternalName, InvalidValue};

/// One disk: where its bytes are, and how the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskConfig {
    /// The image file, or where it is on the network.
    #[serde(flatten)]
    pub location: DiskLocation,
    /// The image's format. It is always told to QEMU, never probed: a guest can write any header
    /// into a raw disk.
    pub format: DiskFormat,
    /// The size to create it with; `None` when the disk was made before sizes were kept, and on the network.
    /// With a backing file the image has the backing file's size.
    pub size: Option<ByteSize>,
    /// The controller it hangs on.
    pub bus: DiskBus,
    /// Who caches what.
    pub cache: CacheMode,
    /// Whether the guest's TRIM gives space back to the host.
    pub discard: bool,
    /// The image this one is a thin clone of.
    pub backing_file: Option<HostPath>,
    /// The key of an encrypted image. Never written with the rest; whether an image is encrypted is
    /// told by its header alone.
    #[serde(skip)]
    pub key: Option<DiskKey>,
}

/// What a disk gets that names no bus or cache of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskDefaults {
    /// The controller.
    pub bus: DiskBus,
    /// The cache mode.
    pub cache: CacheMode,
}

impl DiskConfig {
    /// The image file, unless it is on the network.
    pub fn path(&self) -> Option<&HostPath> {
        self.location.path()
    }

    /// The contract's path of disk `index`: `{diskDir}/{internalName}.qcow2` for disk 0,
    /// `{internalName}-disk{index}.qcow2` for the others; raw images end in `.raw`.
    pub fn default_path(
        disk_dir: &HostPath,
        name: &InternalName,
        index: usize,
        format: DiskFormat,
    ) -> Result<HostPath, InvalidValue> {
        let suffix = format.as_str();
        match index {
            0 => disk_dir.join(&format!("{name}.{suffix}")),
            _ => disk_dir.join(&format!("{name}-disk{index}.{suffix}")),
        }
    }
}

words! {
    /// An image format.
    pub enum DiskFormat {
        /// Grows as it is written, has snapshots and backing files. The default.
        Qcow2 = "qcow2",
        /// The disk's bytes and nothing else.
        Raw = "raw",
    }
}

words! {
    /// The controller a disk hangs on.
    pub enum DiskBus {
        /// virtio-blk.
        Virtio = "virtio",
        /// AHCI.
        Sata = "sata",
        /// virtio-scsi.
        Scsi = "scsi",
        /// PIIX IDE on `pc`; `q35` has none, its AHCI takes the disk.
        Ide = "ide",
    }
}

words! {
    /// Who caches what, in QEMU's words.
    pub enum CacheMode {
        /// The host's page cache is bypassed; the guest sees a write cache.
        None = "none",
        /// The host's page cache is used; the guest sees a write cache.
        Writeback = "writeback",
        /// The host's page cache is used for reads; every write reaches the disk.
        Writethrough = "writethrough",
        /// The host's page cache is bypassed; every write reaches the disk.
        Directsync = "directsync",
        /// Flushes are ignored: fast, and lost with the host.
        Unsafe = "unsafe",
    }
}

impl CacheMode {
    /// Whether the host's page cache is bypassed (`O_DIRECT`).
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether the guest sees a volatile write cache it must flush.
    pub fn has_write_cache(self) -> bool {
        !matches!(self, Self::Writethrough | Self::Directsync)
    }

    /// Whether the guest's flushes are ignored.
    pub fn ignores_flushes(self) -> bool {
        self == Self::Unsafe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_contract() {
        let dir = HostPath::parse("/srv/disks/").unwrap();
        let name = InternalName::parse("vm-1").unwrap();
        for (index, format, path) in [
            (0, DiskFormat::Qcow2, "/srv/disks/vm-1.qcow2"),
            (1, DiskFormat::Qcow2, "/srv/disks/vm-1-disk1.qcow2"),
            (0, DiskFormat::Raw, "/srv/disks/vm-1.raw"),
            (2, DiskFormat::Raw, "/srv/disks/vm-1-disk2.raw"),
        ] {
            let made = DiskConfig::default_path(&dir, &name, index, format).unwrap();
            assert_eq!(made.as_str(), path);
        }
    }
}
