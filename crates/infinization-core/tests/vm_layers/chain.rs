//! Reads the first clusters of a chain of qcow2 images, without a program: a walk looks at thousands.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// How many clusters of a disk the tests write into.
pub(crate) const CLUSTERS: usize = 12;
const CLUSTER: u64 = 64 << 10;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const READS_AS_ZEROS: u64 = 1;

/// The byte each of the first clusters is filled with, as a guest would read it.
pub(crate) fn patterns(image: &Path) -> Vec<u8> {
    let mut found: Vec<Option<u8>> = vec![None; CLUSTERS];
    let mut next = Some(image.to_owned());
    while let Some(path) = next {
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let l1 = be64(&file, be64(&file, 40)) & OFFSET;
        for (cluster, byte) in found.iter_mut().enumerate() {
            if byte.is_none() && l1 != 0 {
                *byte = stored(&file, be64(&file, l1 + 8 * cluster as u64));
            }
        }
        next = backing(&file);
    }
    found.into_iter().map(Option::unwrap_or_default).collect()
}

/// Where in its own file a cluster's data is.
pub(crate) fn place(image: &Path, cluster: usize) -> u64 {
    let file = File::open(image).unwrap();
    let l1 = be64(&file, be64(&file, 40)) & OFFSET;
    be64(&file, l1 + 8 * cluster as u64) & OFFSET
}

fn stored(file: &File, entry: u64) -> Option<u8> {
    if entry & READS_AS_ZEROS != 0 {
        return Some(0);
    }
    let offset = entry & OFFSET;
    if offset == 0 {
        return None;
    }
    let mut data = vec![0; usize::try_from(CLUSTER).unwrap()];
    // The last cluster of a file may be cut short where it is zeros.
    let _read = file.read_at(&mut data, offset).unwrap();
    // Each byte is the one before it, in one comparison of memory.
    assert!(data[1..] == data[..data.len() - 1], "half a write");
    Some(data[0])
}

fn backing(file: &File) -> Option<PathBuf> {
    let offset = be64(file, 8);
    if offset == 0 {
        return None;
    }
    let mut length = [0; 4];
    file.read_exact_at(&mut length, 16).unwrap();
    let mut name = vec![0; u32::from_be_bytes(length) as usize];
    file.read_exact_at(&mut name, offset).unwrap();
    Some(PathBuf::from(String::from_utf8(name).unwrap()))
}

fn be64(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}
