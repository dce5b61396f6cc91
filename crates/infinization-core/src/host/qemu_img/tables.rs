//! A qcow2's lists of internal snapshots and of dirty bitmaps, read by us: asking a program takes ten times
//! as long.
//!
//! Pure: bytes in, claims out. Layouts and limits are those of QEMU's `docs/interop/qcow2.txt` and
//! `block/qcow2.h`. Nothing in them is trusted: every length is checked before it is used.

use super::SnapshotInfo;
use super::header::{be16, be32, be64};
use crate::types::{ByteSize, clock, iso_date};

/// QEMU's limits.
const MOST_SNAPSHOTS: u32 = 65_536;
const MOST_BITMAPS: u32 = 65_535;
const MOST_EXTRA_DATA: u32 = 1024;

const EXTENSION_END: u32 = 0;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// Why bytes are no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableError {
    /// There must be more of them.
    Short,
    /// They make no sense, and how.
    Broken(&'static str),
}

use TableError::{Broken, Short};

/// The `count` snapshots of the table that `bytes` begins with, oldest first.
pub(super) fn snapshots(bytes: &[u8], count: u32) -> Result<Vec<SnapshotInfo>, TableError> {
    let entries = entries(bytes, count)?.into_iter();
    Ok(entries.map(|(_, snapshot)| snapshot).collect())
}

/// Where the level 1 table of a snapshot is, and how many entries it has.
pub(super) fn level1_of(
    bytes: &[u8],
    count: u32,
    name: &str,
) -> Result<Option<(u64, u32)>, TableError> {
    let mut entries = entries(bytes, count)?.into_iter();
    let Some((at, _)) = entries.find(|(_, snapshot)| snapshot.name == name) else {
        return Ok(None);
    };
    let place = be64(bytes, at).zip(be32(bytes, at + 8));
    place.ok_or(Short).map(Some)
}

/// The snapshots, and where their entries begin.
fn entries(bytes: &[u8], count: u32) -> Result<Vec<(usize, SnapshotInfo)>, TableError> {
    if count > MOST_SNAPSHOTS {
        return Err(Broken("has more snapshots than QEMU allows"));
    }
    let (mut entries, mut at) = (Vec::new(), 0);
    for _ in 0..count {
        let (snapshot, length) = snapshot(bytes.get(at..).ok_or(Short)?)?;
        entries.push((at, snapshot));
        at += length.next_multiple_of(8);
    }
    Ok(entries)
}

/// The snapshot whose entry `bytes` begins with, and the entry's length.
fn snapshot(bytes: &[u8]) -> Result<(SnapshotInfo, usize), TableError> {
    let field = |at| be32(bytes, at).ok_or(Short);
    let extra = field(36)?;
    if extra > MOST_EXTRA_DATA {
        return Err(Broken("has a snapshot with too much extra data"));
    }
    let long = |at| be64(bytes, at).ok_or(Short);
    // Since QEMU 1.1 the size has 64 bits, in the extra data.
    let vm_state = if extra >= 8 {
        long(40)?
    } else {
        u64::from(field(32)?)
    };
    let lengths = (be16(bytes, 12), be16(bytes, 14));
    let (id, name) = lengths.0.zip(lengths.1).ok_or(Short)?;
    let id_at = 40 + extra as usize;
    let name_at = id_at + usize::from(id);
    let end = name_at + usize::from(name);
    let text = |from, to| {
        let text = bytes.get(from..to).ok_or(Short)?;
        Ok(String::from_utf8_lossy(text).into_owned())
    };
    let ran = long(24)? / 1_000_000;
    let info = SnapshotInfo {
        id: text(id_at, name_at)?,
        name: text(name_at, end)?,
        vm_state_size: ByteSize::bytes(vm_state),
        date: iso_date(i64::from(field(16)?), field(20)? / 1_000_000),
        vm_clock: clock(ran / 1000, u32::try_from(ran % 1000).unwrap_or_default()),
    };
    Ok((info, end))
}

/// Where the list of persistent dirty bitmaps is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BitmapDirectory {
    pub(super) offset: u64,
    pub(super) length: u64,
    count: u32,
}

/// What the extensions of a header say of bitmaps. They begin at `from`, and end at `to` at the latest.
pub(super) fn bitmap_directory(
    header: &[u8],
    from: usize,
    to: usize,
) -> Result<Option<BitmapDirectory>, TableError> {
    let broken = Broken("has broken header extensions");
    let mut at = from;
    while at + 8 <= to {
        let (kind, length) = (be32(header, at), be32(header, at + 4));
        let (kind, length) = kind.zip(length).ok_or(broken)?;
        if kind == EXTENSION_END {
            break;
        }
        if kind == EXTENSION_BITMAPS {
            let count = be32(header, at + 8).filter(|count| *count <= MOST_BITMAPS);
            let place = be64(header, at + 16).zip(be64(header, at + 24));
            let (count, (length, offset)) = count.zip(place).ok_or(broken)?;
            return Ok(Some(BitmapDirectory {
                offset,
                length,
                count,
            }));
        }
        at = (at + 8 + length as usize).next_multiple_of(8);
    }
    Ok(None)
}

impl BitmapDirectory {
    /// The names in the list that `bytes` are.
    pub(super) fn names(&self, bytes: &[u8]) -> Result<Vec<String>, TableError> {
        let (mut names, mut at) = (Vec::new(), 0);
        for _ in 0..self.count {
            let (name, extra) = (be16(bytes, at + 18), be32(bytes, at + 20));
            let (name, extra) = name.zip(extra).ok_or(Short)?;
            let from = at + 24 + extra as usize;
            let end = from + usize::from(name);
            let text = bytes.get(from..end).ok_or(Short)?;
            names.push(String::from_utf8_lossy(text).into_owned());
            at = end.next_multiple_of(8);
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as QEMU 7.2 writes it.
    fn entry(id: &str, name: &str, vm_state: u64) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[12..14].copy_from_slice(&u16::try_from(id.len()).unwrap().to_be_bytes());
        bytes[14..16].copy_from_slice(&u16::try_from(name.len()).unwrap().to_be_bytes());
        bytes[16..20].copy_from_slice(&1_795_232_753_u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&255_715_000_u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&3_723_083_000_000_u64.to_be_bytes());
        bytes[36..40].copy_from_slice(&24_u32.to_be_bytes());
        bytes.extend(vm_state.to_be_bytes());
        bytes.extend([0; 16]);
        bytes.extend(id.bytes().chain(name.bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn s9_snapshots_are_read_with_all_they_say() {
        let table = [entry("1", "before", 0), entry("12", "s", 5 << 32)].concat();
        let listed = snapshots(&table, 2).unwrap();
        let expected = SnapshotInfo {
            id: "12".to_owned(),
            name: "s".to_owned(),
            vm_state_size: ByteSize::bytes(5 << 32),
            date: "2026-11-21T03:45:53.255Z".to_owned(),
            vm_clock: "01:02:03.083".to_owned(),
        };
        assert_eq!((listed[0].name.as_str(), &listed[1]), ("before", &expected));
        assert_eq!(snapshots(&table, 3), Err(Short));
        assert_eq!(snapshots(&table[..table.len() - 8], 2), Err(Short));
    }

    #[test]
    fn b9_lists_that_make_no_sense_are_refused() {
        assert!(matches!(snapshots(&[], u32::MAX), Err(Broken(_))));
        let mut extra = entry("1", "a", 0);
        extra[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(snapshots(&extra, 1), Err(Broken(_))));
        let mut extension = vec![0; 64];
        extension[..4].copy_from_slice(&EXTENSION_BITMAPS.to_be_bytes());
        extension[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(bitmap_directory(&extension, 0, 64).is_err());
        assert_eq!(bitmap_directory(&[0; 64], 0, 64), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn b7_no_bytes_make_it_panic(bytes: Vec<u8>, count in 0..40_u32, from in 0..64_usize) {
            let _any_answer = snapshots(&bytes, count);
            let _any_answer = bitmap_directory(&bytes, from, bytes.len());
            let directory = BitmapDirectory { offset: 0, length: 0, count };
            let _any_answer = directory.names(&bytes);
        }
    }
}
