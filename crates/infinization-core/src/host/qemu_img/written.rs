//! Whether anything was written to a disk since one of its internal snapshots was made, or gone back to.
//!
//! A snapshot and the disk share the level 2 tables until somebody writes: then QEMU makes the disk a table of
//! its own, in clusters that no snapshot has. So it is enough to compare the level 1 tables.

use std::fs::File;

use super::describe::{list, read_up_to};
use super::header::{be64, fits_level1};
use super::inspect::{header_bytes, open, parse_header};
use super::job::blocking;
use super::tables::level1_of;
use super::{ImageError, SnapshotName};
use crate::types::HostPath;

/// Of an entry, what is no flag.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Whether the disk has at each place what one of these snapshots has there: a change from one to another that was
/// cut short is no writing.
pub async fn is_unwritten_since(
    path: &HostPath,
    snapshots: &[SnapshotName],
) -> Result<bool, ImageError> {
    let (image, snapshots) = (path.clone(), snapshots.to_vec());
    blocking(path, move || is_unwritten_since_now(&image, &snapshots)).await
}

fn is_unwritten_since_now(path: &HostPath, snapshots: &[SnapshotName]) -> Result<bool, ImageError> {
    let (file, length) = open(path)?;
    let header = parse_header(path, &header_bytes(path, &file)?, length)?;
    let mut kept = Vec::new();
    for name in snapshots {
        let found = list(path, &file, header.snapshots_offset, |table| {
            level1_of(table, header.snapshots, name.as_str())
        })?;
        if let Ok(Some((offset, entries))) = found {
            kept.push(level1(path, &file, offset, entries)?);
        }
    }
    let disk = level1(path, &file, header.l1_offset, header.l1_entries)?;
    // What a table is too short for, it has nothing of.
    let has = |table: &Vec<u64>, n| table.get(n).copied().unwrap_or_default();
    let mut places = disk.iter().enumerate();
    Ok(places.all(|(n, entry)| kept.iter().any(|table| has(table, n) == *entry)))
}

fn level1(path: &HostPath, file: &File, offset: u64, entries: u32) -> Result<Vec<u64>, ImageError> {
    if !fits_level1(entries) {
        return Err(ImageError::corrupt(path, "has too large a level 1 table"));
    }
    let mut bytes = vec![0; entries as usize * 8];
    let read = read_up_to(file, &mut bytes, offset);
    read.map_err(|source| ImageError::io(path, source))?;
    let places = (0..bytes.len()).step_by(8);
    Ok(places
        .filter_map(|at| be64(&bytes, at))
        .map(|entry| entry & OFFSET)
        .collect())
}
