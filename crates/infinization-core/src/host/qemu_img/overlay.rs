//! The bytes of an empty qcow2 overlay (pure).
//!
//! It is as `qemu-img create` makes it, without a program that could outlive us and make the file once
//! more after it was swept away.
//!
//! One on an encrypted image is encrypted too, and begins with a copy of that one's LUKS header: what opens
//! the one opens the other, and both have one data key, as an image and the snapshots inside it have. So
//! no key is needed to make it. LUKS tells clusters apart by where they are in their file, and an overlay
//! holds none of the clusters below it.

use super::ImageError;
use super::header::EXTENSION_LUKS;
use crate::types::HostPath;

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

/// A file to write: these bytes, then zeros up to the length.
#[derive(Debug)]
pub(super) struct EmptyOverlay {
    pub(super) bytes: Vec<u8>,
    pub(super) length: u64,
    /// Where the LUKS header goes, if there is one.
    pub(super) luks_at: u64,
}

impl EmptyOverlay {
    /// An overlay of `size` bytes on the qcow2 `backing`, with room for a LUKS header of `luks` bytes if
    /// that is encrypted. `path` is for the refusal.
    pub(super) fn new(
        path: &HostPath,
        size: u64,
        backing: &HostPath,
        luks: Option<u64>,
    ) -> Result<Self, ImageError> {
        let entries = size.div_ceil(PER_L1_ENTRY).max(1);
        let before_luks = BEFORE_L1 + (entries * 8).div_ceil(CLUSTER);
        let clusters = before_luks + luks.unwrap_or_default().div_ceil(CLUSTER);
        let luks_at = before_luks * CLUSTER;
        let too_large = |_| ImageError::size(path, "is more than qcow2 can hold");
        let l1_entries = u32::try_from(entries).map_err(too_large)?;
        let name = backing.as_str().as_bytes();
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
    // Behind the header: an extension of 8 + 5 bytes, filled up to 8, one of 8 + 16 where it is encrypted, and
    // the end of the extensions.
    let luks_length = if luks.is_some() { 24 } else { 0 };
    let name_at = u64::from(HEADER_LENGTH) + 16 + luks_length + 8;
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
    bytes.extend(BACKING_FORMAT.to_be_bytes());
    bytes.extend(5_u32.to_be_bytes());
    bytes.extend(b"qcow2\0\0\0");
    if let Some((at, length)) = luks {
        bytes.extend(EXTENSION_LUKS.to_be_bytes());
        bytes.extend(16_u32.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        bytes.extend(length.to_be_bytes());
    }
    bytes.extend([0; 8]);
    bytes.extend(backing);
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
            let made = EmptyOverlay::new(&path("new"), size, &path("base"), None).unwrap();
            let header = Qcow2Header::parse(&made.bytes).unwrap();
            assert_eq!(header.virtual_size, size);
            assert!(header.fits(made.length) && !header.fits(made.length - CLUSTER));
            let backing = header.backing.unwrap();
            assert_eq!(backing.name, "/d/base");
            assert_eq!(backing.format.as_deref(), Some("qcow2"));
            assert!(!header.bitmaps && header.snapshots == 0);
        }
        let long = path(&"x".repeat(1100));
        assert!(EmptyOverlay::new(&path("new"), 1, &long, None).is_err());
    }

    #[test]
    fn b38_an_encrypted_one_has_room_for_the_luks_header() {
        let path = |name: &str| HostPath::parse(format!("/d/{name}")).unwrap();
        let luks = 2_068_480;
        let made = EmptyOverlay::new(&path("new"), 1 << 30, &path("base"), Some(luks)).unwrap();
        let header = Qcow2Header::parse(&made.bytes).unwrap();
        assert!(header.luks());
        assert_eq!(header.luks_header, Some((made.luks_at, luks)));
        assert!(made.luks_at + luks <= made.length && made.luks_at >= made.bytes.len() as u64);
        assert_eq!(header.backing.unwrap().name, "/d/base");
    }
}
