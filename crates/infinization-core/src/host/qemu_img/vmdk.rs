//! Refuses VMDK images that bring other files along.
//!
//! A VMDK may be a text that names its extents, or name a parent in the text inside it; QEMU opens
//! either, so an uploaded one could show host files. Single files without a parent remain, which is
//! what exports and OVA archives hold. Layout: `block/vmdk.c`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::ImageError;
use crate::types::HostPath;

const SPARSE_MAGIC: &[u8] = b"KDMV";
const SECTOR: u64 = 512;
/// What QEMU reads of the text in search of a parent.
const DESCRIPTOR: usize = 20 * 512;
/// In the header's place for the grain directory: look at the footer, one header before the end.
const AT_END: u64 = u64::MAX;
const FOOTER_FROM_END: u64 = 2 * SECTOR;
const PARENT: &[u8] = b"parentFileNameHint";

/// `UNSAFE_BACKING_FILE` unless the image is one file and needs no other.
pub(super) fn refuse_foreign_files(
    path: &HostPath,
    file: &File,
    length: u64,
) -> Result<(), ImageError> {
    let io = |source| ImageError::io(path, source);
    let header = Header::at(file, 0).map_err(io)?;
    let mut descriptors = vec![checked(path, header.as_ref())?];
    if header.is_some_and(|header| header.grain_directory == AT_END) {
        let footer = Header::at(file, length.saturating_sub(FOOTER_FROM_END)).map_err(io)?;
        descriptors.push(checked(path, footer.as_ref())?);
    }
    for at in descriptors {
        let text = read_up_to(file, at, DESCRIPTOR).map_err(io)?;
        if text.windows(PARENT.len()).any(|window| window == PARENT) {
            return Err(ImageError::unsafe_backing(path, "it names a parent"));
        }
    }
    Ok(())
}

struct Header {
    capacity: u64,
    descriptor: u64,
    grain_directory: u64,
}

impl Header {
    fn at(file: &File, at: u64) -> io::Result<Option<Self>> {
        let bytes = read_up_to(file, at, 79)?;
        if !bytes.starts_with(SPARSE_MAGIC) {
            return Ok(None);
        }
        let field = |at: usize| {
            let field = bytes.get(at..at + 8)?;
            field.try_into().ok().map(u64::from_le_bytes)
        };
        let (capacity, descriptor, grain_directory) = (field(12), field(28), field(56));
        Ok(capacity.zip(descriptor).zip(grain_directory).map(
            |((capacity, descriptor), grain_directory)| Self {
                capacity,
                descriptor,
                grain_directory,
            },
        ))
    }
}

/// Where the text is. Without a capacity QEMU would take the text for a list of extents.
fn checked(path: &HostPath, header: Option<&Header>) -> Result<u64, ImageError> {
    header
        .filter(|header| header.capacity != 0)
        .and_then(|header| header.descriptor.checked_mul(SECTOR))
        .ok_or_else(|| ImageError::unsafe_backing(path, "it is not a single sparse VMDK file"))
}

fn read_up_to(file: &File, at: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; most];
    let mut filled = 0;
    while filled < most {
        match file.read_at(&mut bytes[filled..], at.saturating_add(filled as u64))? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
