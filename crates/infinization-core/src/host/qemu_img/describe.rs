//! What `qemu-img info` says, without the program, of images that we can read: qcow2 and raw. Everything here
//! blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::header::Qcow2Header;
use super::inspect::{header_bytes, open, parse_header};
use super::tables::{TableError, bitmap_directory, snapshots};
use super::{ImageError, ImageFormat, ImageInfo, SnapshotInfo};
use crate::types::{ByteSize, HostPath};

/// How often a header may change while it is read: each time a machine that runs changes its snapshots.
const ATTEMPTS: u32 = 16;
/// A list is read in pieces that grow, up to QEMU's limit.
const FIRST_PIECE: usize = 64 << 10;
const LONGEST_LIST: usize = 64 << 20;

/// What the image says about itself; nothing where only QEMU knows the format.
pub(super) fn describe(
    path: &HostPath,
    format: ImageFormat,
) -> Result<Option<ImageInfo>, ImageError> {
    match format {
        ImageFormat::Qcow2 => qcow2(path).map(Some),
        ImageFormat::Raw => raw(path).map(Some),
        ImageFormat::Vmdk | ImageFormat::Vdi | ImageFormat::Vhdx => Ok(None),
    }
}

fn raw(path: &HostPath) -> Result<ImageInfo, ImageError> {
    let (file, length) = open(path)?;
    Ok(ImageInfo {
        // A sector that the file ends in is whole for the guest.
        virtual_size: ByteSize::bytes(length.next_multiple_of(512)),
        actual_size: allocated(path, &file)?,
        cluster_size: None,
        encrypted: false,
        backing_file: None,
        backing_format: None,
        dirty: false,
        snapshots: Vec::new(),
        bitmaps: Vec::new(),
    })
}

fn qcow2(path: &HostPath) -> Result<ImageInfo, ImageError> {
    let (file, length) = open(path)?;
    let mut bytes = header_bytes(path, &file)?;
    for _ in 0..ATTEMPTS {
        let header = parse_header(path, &bytes, length)?;
        let lists = lists(path, &file, &bytes, &header);
        // New lists are whole before the header names them, but the old ones may be overwritten then.
        let again = header_bytes(path, &file)?;
        if again == bytes {
            return of_header(path, &file, header, lists?);
        }
        bytes = again;
    }
    Err(ImageError::corrupt(path, "changes all the time"))
}

fn of_header(
    path: &HostPath,
    file: &File,
    header: Qcow2Header,
    (snapshots, bitmaps): (Vec<SnapshotInfo>, Vec<String>),
) -> Result<ImageInfo, ImageError> {
    let (encrypted, dirty) = (header.encrypted(), header.dirty());
    let (backing_file, backing_format) = match header.backing {
        Some(claim) => (Some(claim.name), claim.format),
        None => (None, None),
    };
    Ok(ImageInfo {
        virtual_size: ByteSize::bytes(header.virtual_size),
        actual_size: allocated(path, file)?,
        cluster_size: Some(ByteSize::bytes(header.cluster_size)),
        encrypted,
        backing_file,
        backing_format,
        dirty,
        snapshots,
        bitmaps,
    })
}

fn allocated(path: &HostPath, file: &File) -> Result<ByteSize, ImageError> {
    let found = file.metadata();
    let found = found.map_err(|source| ImageError::io(path, source))?;
    Ok(ByteSize::bytes(found.blocks() * 512))
}

/// The snapshots, and the names of the bitmaps that QEMU may believe.
fn lists(
    path: &HostPath,
    file: &File,
    bytes: &[u8],
    header: &Qcow2Header,
) -> Result<(Vec<SnapshotInfo>, Vec<String>), ImageError> {
    let broken = |error| match error {
        TableError::Short => ImageError::corrupt(path, "has a list that is cut off"),
        TableError::Broken(how) => ImageError::corrupt(path, how),
    };
    let listed = list(path, file, header.snapshots_offset, |table| {
        snapshots(table, header.snapshots)
    })?;
    let (from, to) = header.extensions;
    let directory = bitmap_directory(bytes, from, to).map_err(broken)?;
    let bitmaps = match directory.filter(|_| header.bitmaps) {
        Some(directory) => list(path, file, directory.offset, |bytes| directory.names(bytes))?,
        None => Ok(Vec::new()),
    };
    Ok((listed.map_err(broken)?, bitmaps.map_err(broken)?))
}

/// Reads from `offset` on, until it is enough.
pub(super) fn list<T>(
    path: &HostPath,
    file: &File,
    offset: u64,
    parse: impl Fn(&[u8]) -> Result<T, TableError>,
) -> Result<Result<T, TableError>, ImageError> {
    let mut bytes = vec![0; FIRST_PIECE];
    loop {
        let read = read_up_to(file, &mut bytes, offset);
        let read = read.map_err(|source| ImageError::io(path, source))?;
        match parse(&bytes[..read]) {
            Err(TableError::Short) if read == bytes.len() && read < LONGEST_LIST => {
                bytes.resize(read * 4, 0);
            }
            parsed => return Ok(parsed),
        }
    }
}

/// Fills `bytes` as far as the file goes.
pub(super) fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
