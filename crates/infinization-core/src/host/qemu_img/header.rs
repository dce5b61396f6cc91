//! A qcow2 header, read by us: what an image claims to be before QEMU believes it.
//!
//! Pure: bytes in, claims out. Offsets and limits are those of QEMU's `docs/interop/qcow2.txt` and
//! `block/qcow2.c`. Nothing in it is trusted: every length is checked before it is used.

const MAGIC: u32 = 0x5146_49fb;
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
/// QEMU's limits: 32 MiB of level 1 table, 8 MiB of refcount table, 1023 bytes of file name.
const MOST_L1_ENTRIES: u32 = 32 << 17;
const MOST_REFCOUNT_TABLE: u64 = 8 << 20;
const LONGEST_BACKING_NAME: usize = 1023;
const LONGEST_BACKING_FORMAT: usize = 15;
/// The largest cluster, hence the most a header with its extensions can take.
pub(super) const LONGEST_HEADER: u64 = 2 << 20;
/// A cluster as `qemu-img` makes them, and no smaller one is longer.
pub(super) const USUAL_HEADER: u64 = 1 << USUAL_CLUSTER_BITS;
const USUAL_CLUSTER_BITS: u32 = 16;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Where the LUKS header is: its offset and length.
pub(super) const EXTENSION_LUKS: u32 = 0x0537_be77;

/// Of the encryption methods.
const LUKS: u32 = 2;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
/// Compression type and extended level 2 entries: harmless, and known to QEMU 5.2.
const HARMLESS: u64 = 1 << 3 | 1 << 4;
/// Cleared by whoever writes without minding the bitmaps.
const BITMAPS: u64 = 1 << 0;

/// Where an image says the rest of its data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BackingClaim {
    pub(super) name: String,
    pub(super) format: Option<String>,
}

/// The claims of a header whose parts agree with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Qcow2Header {
    pub(super) virtual_size: u64,
    pub(super) cluster_size: u64,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
    refcount_table: (u64, u64),
    pub(super) backing: Option<BackingClaim>,
    /// How many internal snapshots there are.
    pub(super) snapshots: u32,
    /// Where their table is.
    pub(super) snapshots_offset: u64,
    /// Where its extensions begin, and where they end at the latest.
    pub(super) extensions: (usize, usize),
    /// Whether there are persistent dirty bitmaps that QEMU may believe.
    pub(super) bitmaps: bool,
    /// Where its LUKS header is, and how long.
    pub(super) luks_header: Option<(u64, u64)>,
    incompatible: u64,
    crypt_method: u32,
}

/// Why bytes are no usable header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// The magic number is missing.
    NotQcow2,
    /// The header makes no sense, and how.
    Broken(&'static str),
    /// It needs a feature nobody here knows.
    UnknownFeature,
}

use HeaderError::Broken;

impl Qcow2Header {
    /// Reads the header at the start of `file` (as much of it as there is, up to
    /// [`LONGEST_HEADER`]).
    pub(super) fn parse(file: &[u8]) -> Result<Self, HeaderError> {
        if be32(file, 0) != Some(MAGIC) {
            return Err(HeaderError::NotQcow2);
        }
        let fields = Fields::read(file).ok_or(Broken("is truncated inside its header"))?;
        fields.check()?;
        let backing = backing_claim(file, &fields)?;
        Ok(Self {
            virtual_size: fields.size,
            cluster_size: fields.cluster_size(),
            l1_offset: fields.l1_offset,
            l1_entries: fields.l1_entries,
            refcount_table: (fields.refcount_offset, fields.refcount_bytes()),
            backing,
            snapshots: fields.snapshots,
            snapshots_offset: fields.snapshots_offset,
            extensions: (fields.header_length as usize, fields.extensions_end()),
            bitmaps: fields.autoclear & BITMAPS != 0,
            luks_header: luks_header(file, &fields)?,
            incompatible: fields.incompatible,
            crypt_method: fields.crypt_method,
        })
    }

    /// Whether the tables it points at lie within a file of `length` bytes.
    pub(super) fn fits(&self, length: u64) -> bool {
        let l1 = (self.l1_offset, u64::from(self.l1_entries) * 8);
        [l1, self.refcount_table]
            .iter()
            .all(|(offset, bytes)| offset.checked_add(*bytes).is_some_and(|end| end <= length))
    }

    /// QEMU found damage in it and marked it.
    pub(super) fn marked_corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// It was not closed, and its reference counts may be behind.
    pub(super) fn dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// Its data is in a second file that the header names.
    pub(super) fn external_data_file(&self) -> bool {
        self.incompatible & EXTERNAL_DATA_FILE != 0
    }

    /// Its data is encrypted.
    pub(super) fn encrypted(&self) -> bool {
        self.crypt_method != 0
    }

    /// It is encrypted by LUKS; what else there was is not run by QEMU any more.
    pub(super) fn luks(&self) -> bool {
        self.crypt_method == LUKS
    }
}

/// The header's fields as they stand in the file.
struct Fields {
    version: u32,
    backing_offset: u64,
    backing_length: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    l1_entries: u32,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u32,
    snapshots: u32,
    snapshots_offset: u64,
    incompatible: u64,
    autoclear: u64,
    header_length: u32,
}

impl Fields {
    fn read(file: &[u8]) -> Option<Self> {
        let version = be32(file, 4)?;
        let v3 = version >= 3;
        Some(Self {
            version,
            backing_offset: be64(file, 8)?,
            backing_length: be32(file, 16)?,
            cluster_bits: be32(file, 20)?,
            size: be64(file, 24)?,
            crypt_method: be32(file, 32)?,
            l1_entries: be32(file, 36)?,
            l1_offset: be64(file, 40)?,
            refcount_offset: be64(file, 48)?,
            refcount_clusters: be32(file, 56)?,
            snapshots: be32(file, 60)?,
            snapshots_offset: be64(file, 64)?,
            incompatible: if v3 { be64(file, 72)? } else { 0 },
            autoclear: if v3 { be64(file, 88)? } else { 0 },
            header_length: if v3 { be32(file, 100)? } else { 72 },
        })
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The backing file's name comes after them, in the same cluster.
    fn extensions_end(&self) -> usize {
        let end = match self.backing_offset {
            0 => self.cluster_size(),
            offset => offset,
        };
        usize::try_from(end).unwrap_or_default()
    }

    fn refcount_bytes(&self) -> u64 {
        u64::from(self.refcount_clusters) << self.cluster_bits
    }

    fn check(&self) -> Result<(), HeaderError> {
        if !(2..=3).contains(&self.version) {
            return Err(Broken("has a version that is neither 2 nor 3"));
        }
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(Broken("has an impossible cluster size"));
        }
        if self.incompatible & !(DIRTY | CORRUPT | EXTERNAL_DATA_FILE | HARMLESS) != 0 {
            return Err(HeaderError::UnknownFeature);
        }
        let shortest = if self.version == 2 {
            V2_LENGTH
        } else {
            V3_LENGTH
        };
        let length = u64::from(self.header_length);
        if length < shortest as u64 || length > self.cluster_size() {
            return Err(Broken("has an impossible header length"));
        }
        if self.crypt_method > LUKS {
            return Err(Broken("has an unknown encryption"));
        }
        self.check_tables()
    }

    fn check_tables(&self) -> Result<(), HeaderError> {
        let within = self.cluster_size() - 1;
        if self.l1_offset & within != 0 || self.refcount_offset & within != 0 {
            return Err(Broken("has tables that are not aligned to clusters"));
        }
        if self.l1_entries > MOST_L1_ENTRIES || self.refcount_bytes() > MOST_REFCOUNT_TABLE {
            return Err(Broken("has tables larger than QEMU allows"));
        }
        // One level 2 table is one cluster of 8-byte entries, each for one cluster; with extended
        // entries (16 bytes) it covers half of that, and the check is only weaker.
        let covered = u128::from(self.l1_entries) << (2 * self.cluster_bits - 3);
        if i64::try_from(self.size).is_err() || u128::from(self.size) > covered {
            return Err(Broken("has a size its tables do not cover"));
        }
        Ok(())
    }
}

/// Whether the first cluster goes on after [`USUAL_HEADER`].
pub(super) fn may_be_longer(file: &[u8]) -> bool {
    be32(file, 20).is_some_and(|bits| bits > USUAL_CLUSTER_BITS)
}

fn backing_claim(file: &[u8], fields: &Fields) -> Result<Option<BackingClaim>, HeaderError> {
    if fields.backing_offset == 0 {
        return Ok(None);
    }
    let broken = Broken("has a backing file name outside its header");
    let length = fields.backing_length as usize;
    let offset = usize::try_from(fields.backing_offset).map_err(|_| broken)?;
    if length > LONGEST_BACKING_NAME || fields.backing_offset > fields.cluster_size() {
        return Err(broken);
    }
    let name = file.get(offset..offset + length).ok_or(broken)?;
    let name =
        std::str::from_utf8(name).map_err(|_| Broken("has an unreadable backing file name"))?;
    Ok(Some(BackingClaim {
        name: name.to_owned(),
        format: backing_format(file, fields.header_length as usize, offset)?,
    }))
}

fn backing_format(file: &[u8], at: usize, end: usize) -> Result<Option<String>, HeaderError> {
    let found = extension(file, at, end, EXTENSION_BACKING_FORMAT)?;
    match found {
        Some(text) if text.len() > LONGEST_BACKING_FORMAT => Err(BROKEN_EXTENSIONS),
        text => Ok(text.map(|text| String::from_utf8_lossy(text).into_owned())),
    }
}

/// QEMU does not open an encrypted image whose header does not say it.
fn luks_header(file: &[u8], fields: &Fields) -> Result<Option<(u64, u64)>, HeaderError> {
    if fields.crypt_method != LUKS {
        return Ok(None);
    }
    let (from, to) = (fields.header_length as usize, fields.extensions_end());
    let found = extension(file, from, to.min(file.len()), EXTENSION_LUKS)?;
    Ok(found.and_then(|data| be64(data, 0).zip(be64(data, 8))))
}

const BROKEN_EXTENSIONS: HeaderError = Broken("has broken header extensions");

/// The data of the first extension of a kind between the header and `end`.
fn extension(
    file: &[u8],
    mut at: usize,
    end: usize,
    wanted: u32,
) -> Result<Option<&[u8]>, HeaderError> {
    while at < end {
        let (kind, length) = (be32(file, at), be32(file, at + 4));
        let (kind, length) = kind.zip(length).ok_or(BROKEN_EXTENSIONS)?;
        let data = at + 8..at + 8 + length as usize;
        let found = file
            .get(data.clone())
            .filter(|_| data.end <= end)
            .ok_or(BROKEN_EXTENSIONS)?;
        match kind {
            EXTENSION_END => break,
            kind if kind == wanted => return Ok(Some(found)),
            _ => at = data.end.next_multiple_of(8),
        }
    }
    Ok(None)
}

/// Whether QEMU would read a level 1 table that is so long.
pub(super) fn fits_level1(entries: u32) -> bool {
    entries <= MOST_L1_ENTRIES
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    field.try_into().ok().map(u16::from_be_bytes)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    field.try_into().ok().map(u32::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    field.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as `qemu-img create -f qcow2 -b /b.qcow2 -F qcow2 … 1G` writes it.
    fn header() -> Vec<u8> {
        let mut bytes = vec![0; 65536];
        put(&mut bytes, 0, &MAGIC.to_be_bytes());
        put(&mut bytes, 4, &3_u32.to_be_bytes());
        put(&mut bytes, 8, &0x200_u64.to_be_bytes());
        put(&mut bytes, 16, &8_u32.to_be_bytes());
        put(&mut bytes, 20, &16_u32.to_be_bytes());
        put(&mut bytes, 24, &(1_u64 << 30).to_be_bytes());
        put(&mut bytes, 36, &2_u32.to_be_bytes());
        put(&mut bytes, 40, &0x3_0000_u64.to_be_bytes());
        put(&mut bytes, 48, &0x1_0000_u64.to_be_bytes());
        put(&mut bytes, 56, &1_u32.to_be_bytes());
        put(&mut bytes, 100, &112_u32.to_be_bytes());
        put(&mut bytes, 112, &EXTENSION_BACKING_FORMAT.to_be_bytes());
        put(&mut bytes, 116, &5_u32.to_be_bytes());
        put(&mut bytes, 120, b"qcow2");
        put(&mut bytes, 0x200, b"/b.qcow2");
        bytes
    }

    fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
        bytes[at..at + field.len()].copy_from_slice(field);
    }

    #[test]
    fn reads_size_tables_and_backing_file() {
        let header = Qcow2Header::parse(&header()).unwrap();
        assert_eq!(header.virtual_size, 1 << 30);
        assert_eq!(header.cluster_size, 65536);
        let backing = header.backing.clone().unwrap();
        assert_eq!(backing.name, "/b.qcow2");
        assert_eq!(backing.format.as_deref(), Some("qcow2"));
        assert!(header.fits(0x3_0010));
        assert!(!header.fits(0x3_000f));
    }

    #[test]
    fn b9_refuses_headers_that_make_no_sense() {
        let table: &[(&str, usize, &[u8])] = &[
            ("magic", 0, b"QFI\0"),
            ("version 1", 4, &1_u32.to_be_bytes()),
            ("version 4", 4, &4_u32.to_be_bytes()),
            (
                "backing name beyond the cluster",
                8,
                &0x1_0001_u64.to_be_bytes(),
            ),
            (
                "backing name at the end of memory",
                8,
                &u64::MAX.to_be_bytes(),
            ),
            ("backing name of 4 GiB", 16, &u32::MAX.to_be_bytes()),
            ("cluster of 2^63", 20, &63_u32.to_be_bytes()),
            ("cluster of 2^8", 20, &8_u32.to_be_bytes()),
            ("size 2^64-1", 24, &u64::MAX.to_be_bytes()),
            (
                "size beyond the tables",
                24,
                &((1_u64 << 30) + 1).to_be_bytes(),
            ),
            ("encryption 3", 32, &3_u32.to_be_bytes()),
            ("level 1 of 32 GiB", 36, &u32::MAX.to_be_bytes()),
            ("level 1 off a cluster", 40, &1_u64.to_be_bytes()),
            ("refcounts off a cluster", 48, &1_u64.to_be_bytes()),
            ("refcount table of 256 TiB", 56, &u32::MAX.to_be_bytes()),
            ("an unknown feature", 72, &(1_u64 << 40).to_be_bytes()),
            ("header of 0 bytes", 100, &0_u32.to_be_bytes()),
            ("header of 4 GiB", 100, &u32::MAX.to_be_bytes()),
            ("extension of 4 GiB", 116, &u32::MAX.to_be_bytes()),
            ("format name of 16 bytes", 116, &16_u32.to_be_bytes()),
            ("backing name that is no text", 0x200, b"\xff\xff"),
        ];
        for (what, at, field) in table {
            let mut bytes = header();
            put(&mut bytes, *at, field);
            assert!(Qcow2Header::parse(&bytes).is_err(), "{what} was taken");
        }
    }

    #[test]
    fn b9_refuses_every_truncation_without_a_panic() {
        let whole = header();
        for length in 0..0x208 {
            assert!(
                Qcow2Header::parse(&whole[..length]).is_err(),
                "{length} bytes were taken"
            );
        }
    }

    #[test]
    fn tells_the_flags_apart() {
        let with = |bits: u64| {
            let mut bytes = header();
            put(&mut bytes, 72, &bits.to_be_bytes());
            Qcow2Header::parse(&bytes).unwrap()
        };
        assert!(with(DIRTY).dirty() && !with(CORRUPT).dirty());
        assert!(with(CORRUPT).marked_corrupt() && !with(DIRTY).marked_corrupt());
        assert!(with(EXTERNAL_DATA_FILE).external_data_file());
        assert!(!with(HARMLESS).external_data_file());
    }

    proptest::proptest! {
        #[test]
        fn b7_no_bytes_make_it_panic(at in 0_usize..0x208, field: [u8; 8]) {
            let mut bytes = header();
            put(&mut bytes, at, &field);
            let _any_answer = Qcow2Header::parse(&bytes);
        }
    }
}
