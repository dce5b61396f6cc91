//! The bytes of an empty qcow2 (pure).
//!
//! It is as `qemu-img create` makes it, without a program that could outlive us and make the file once
//! more after it was swept away.
//!
//! An overlay on an encrypted image is encrypted too, and begins with a copy of that one's LUKS header: what opens
//! the one opens the other, and both have one data key, as an image and the snapshots inside it have. So
//! no key is needed to make it. LUKS tells clusters apart by where they are in their file, and an overlay
//! holds none of the clusters below it.

use super::ImageError;
use super::header::EXTENSION_LUKS;
use crate::types::{ByteSize, HostPath};

const CLUSTER: u64 = 64 << 10;
/// One level 1 entry leads to a cluster of level 2 entries, each of 8 bytes and for one cluster.
const PER_L1_ENTRY: u64 = CLUSTER * CLUSTER / 8;
const HEADER_LENGTH: u32 = 104;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Of the encryption methods.
const LUKS: u32 = 2;
/// 2 to the power of this many bits per reference count.
const REFCOUNT_ORDER: u32 = 4;
/// Header, table of reference counts, its one block; the level 1 table follows.
const BEFORE_L1: u64 = 3;
/// How many clusters that block counts the uses of.
const COUNTED: u64 = CLUSTER / 2;

/// A file to write: these bytes, then zeros up to the length.
#[derive(Debug)]
pub(super) struct EmptyImage {
    pub(super) bytes: Vec<u8>,
    pub(super) length: u64,
    /// Where the LUKS header goes, if there is one.
    pub(super) luks_at: u64,
}

impl EmptyImage {
    /// How large its clusters are.
    pub(super) const CLUSTER_SIZE: ByteSize = ByteSize::bytes(CLUSTER);

    /// One of `size` bytes on the qcow2 `backing`, or on nothing; with room for a LUKS header of `luks` bytes
    /// if it is to be encrypted. `path` is for the refusal.
    pub(super) fn new(
        path: &HostPath,
        size: u64,
        backing: Option<&HostPath>,
        luks: Option<u64>,
    ) -> Result<Self, ImageError> {
        let entries = size.div_ceil(PER_L1_ENTRY).max(1);
        let before_luks = BEFORE_L1 + (entries * 8).div_ceil(CLUSTER);
        let clusters = before_luks + luks.unwrap_or_default().div_ceil(CLUSTER);
        let luks_at = before_luks * CLUSTER;
        let l1_entries = u32::try_from(entries).ok();
        let l1_entries = l1_entries.filter(|_| clusters <= COUNTED);
        let l1_entries =
            l1_entries.ok_or_else(|| ImageError::size(path, "is more than qcow2 can hold"))?;
        let name = backing.map_or("", HostPath::as_str).as_bytes();
        if name.len() > 1023 {
            return Err(ImageError::format(
                path,
                "would lie on a file of too long a name",
            ));
        }
        let luks = luks.map(|length| (luks_at, length));
        let mut bytes = header(size, l1_entries, name, luks);
        bytes.resize(2 * usize_of(CLUSTER), 0);
        bytes[usize_of(CLUSTER)..][..8].copy_from_slice(&(2 * CLUSTER).to_be_bytes());
        for _ in 0..clusters {
            bytes.extend(1_u16.to_be_bytes());
        }
        let length = clusters * CLUSTER;
        Ok(Self {
            bytes,
            length,
            luks_at,
        })
    }
}

fn header(size: u64, l1_entries: u32, backing: &[u8], luks: Option<(u64, u64)>) -> Vec<u8> {
    let extensions = extensions(!backing.is_empty(), luks);
    let name_at = match backing {
        [] => 0,
        _ => u64::from(HEADER_LENGTH) + extensions.len() as u64,
    };
    let method = if luks.is_some() { LUKS } else { 0 };
    let name_length = u32::try_from(backing.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend(b"QFI\xfb");
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend(name_at.to_be_bytes());
    bytes.extend(name_length.to_be_bytes());
    bytes.extend(CLUSTER.ilog2().to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(method.to_be_bytes());
    bytes.extend(l1_entries.to_be_bytes());
    bytes.extend((BEFORE_L1 * CLUSTER).to_be_bytes());
    bytes.extend(CLUSTER.to_be_bytes());
    bytes.extend(1_u32.to_be_bytes());
    // No snapshots, and no feature of any kind.
    bytes.extend([0; 4 + 8 + 8 + 8 + 8]);
    bytes.extend(REFCOUNT_ORDER.to_be_bytes());
    bytes.extend(HEADER_LENGTH.to_be_bytes());
    bytes.extend(extensions);
    bytes.extend(backing);
    bytes
}

/// What stands behind the header: each is filled up to 8 bytes, and the last has none.
fn extensions(backed: bool, luks: Option<(u64, u64)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if backed {
        bytes.extend(BACKING_FORMAT.to_be_bytes());
        bytes.extend(5_u32.to_be_bytes());
        bytes.extend(b"qcow2\0\0\0");
    }
    if let Some((at, length)) = luks {
        bytes.extend(EXTENSION_LUKS.to_be_bytes());
        bytes.extend(16_u32.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        bytes.extend(length.to_be_bytes());
    }
    bytes.extend([0; 8]);
    bytes
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::header::Qcow2Header;
    use super::*;

    #[test]
    fn its_header_says_what_was_asked() {
        let path = |name: &str| HostPath::parse(format!("/d/{name}")).unwrap();
        for size in [1, 512 << 20, (512 << 20) + 512, 64 << 40] {
            let made = EmptyImage::new(&path("new"), size, Some(&path("base")), None).unwrap();
            let header = Qcow2Header::parse(&made.bytes).unwrap();
            assert_eq!(header.virtual_size, size);
            assert!(header.fits(made.length) && !header.fits(made.length - CLUSTER));
            let backing = header.backing.unwrap();
            assert_eq!(backing.name, "/d/base");
            assert_eq!(backing.format.as_deref(), Some("qcow2"));
            assert!(!header.bitmaps && header.snapshots == 0);
        }
        let long = path(&"x".repeat(1100));
        assert!(EmptyImage::new(&path("new"), 1, Some(&long), None).is_err());
    }

    #[test]
    fn b38_an_encrypted_one_has_room_for_the_luks_header() {
        let path = |name: &str| HostPath::parse(format!("/d/{name}")).unwrap();
        let luks = 2_068_480;
        let base = path("base");
        let made = EmptyImage::new(&path("new"), 1 << 30, Some(&base), Some(luks)).unwrap();
        let header = Qcow2Header::parse(&made.bytes).unwrap();
        assert!(header.luks());
        assert_eq!(header.luks_header, Some((made.luks_at, luks)));
        assert!(made.luks_at + luks <= made.length && made.luks_at >= made.bytes.len() as u64);
        assert_eq!(header.backing.unwrap().name, "/d/base");
    }
}
