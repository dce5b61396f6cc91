//! A qcow2 image that a QEMU is filling by a job: which of its clusters hold already what they will always hold.
//!
//! QEMU writes a cluster's data first, and when that is done a level 2 entry that names it: the order that lets an
//! image survive the death of its QEMU. A backup job writes each cluster whole, and once. So what an entry in the
//! *file* names is finished, however much else is still in QEMU's memory, and whoever reads a file as it grows needs
//! no other word of QEMU. Compressed clusters share places in the file: such images are none of this module's.
//! Everything here blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::inspect::{header_of, open};
use super::{ImageError, header::be64};
use crate::types::HostPath;

/// Which tables of level 2 are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// Those that were made last: a job goes through the disk from its beginning, so older ones hardly change. Guests
    /// that write elsewhere meanwhile have tables made out of turn.
    Newest,
    /// All of them.
    All,
}

/// How many [`Tables::Newest`] are.
const NEWEST: usize = 16;

/// The image's file, opened before anything was written into it.
#[derive(Debug)]
pub struct Filling {
    file: File,
    l1_offset: u64,
    l1_entries: usize,
    cluster: usize,
}

impl Filling {
    /// Opens an image that is empty yet.
    pub fn open(path: &HostPath) -> Result<Self, ImageError> {
        let header = header_of(path)?;
        let (file, _) = open(path)?;
        let cluster = usize::try_from(header.cluster_size);
        Ok(Self {
            file,
            l1_offset: header.l1_offset,
            l1_entries: header.l1_entries as usize,
            cluster: cluster.map_err(|_| ImageError::corrupt(path, "has too large clusters"))?,
        })
    }

    /// Its file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The size of its clusters, in bytes.
    pub fn cluster(&self) -> usize {
        self.cluster
    }

    /// Tells where in the file there are finished clusters.
    pub fn finished(&self, tables: Tables, mut found: impl FnMut(u64)) -> io::Result<()> {
        let mut places = self.level_2()?;
        if tables == Tables::Newest {
            places.sort_unstable();
            places.drain(..places.len().saturating_sub(NEWEST));
        }
        let mut table = vec![0; self.cluster];
        for place in places {
            // One that is not there yet has no entries yet.
            let length = read_up_to(&self.file, &mut table, place)?;
            let entries = table[..length].chunks_exact(8);
            entries
                .filter_map(|entry| self.data(entry))
                .for_each(&mut found);
        }
        Ok(())
    }

    /// Where the tables of level 2 are.
    fn level_2(&self) -> io::Result<Vec<u64>> {
        let mut table = vec![0; self.l1_entries * 8];
        let length = read_up_to(&self.file, &mut table, self.l1_offset)?;
        let entries = table[..length].chunks_exact(8);
        Ok(entries.filter_map(place_of).collect())
    }

    /// The cluster of data that an entry of level 2 names: neither compressed nor zeros.
    fn data(&self, entry: &[u8]) -> Option<u64> {
        const COMPRESSED_OR_ZEROS: u64 = 1 << 62 | 1;
        let place = place_of(entry)?;
        let plain = be64(entry, 0)? & COMPRESSED_OR_ZEROS == 0;
        (plain && place % self.cluster as u64 == 0).then_some(place)
    }
}

/// The place that an entry names. The topmost bit says that nobody else uses it, which is so in an image without
/// snapshots.
fn place_of(entry: &[u8]) -> Option<u64> {
    const USED_ONCE: u64 = 1 << 63;
    const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
    let entry = be64(entry, 0)?;
    let place = entry & PLACE;
    (entry & USED_ONCE != 0 && place != 0).then_some(place)
}

/// Fills `buffer` with what there is, and says how much that is.
fn read_up_to(file: &File, buffer: &mut [u8], from: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], from + filled as u64)? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_data_that_an_entry_names_is_finished() {
        let filling = Filling {
            file: tempfile::tempfile().unwrap(),
            l1_offset: 0,
            l1_entries: 0,
            cluster: 64 << 10,
        };
        let once = 1 << 63;
        for (entry, place) in [
            (once | 0x50000, Some(0x50000)),
            (0x50000, None),
            (once, None),
            (0, None),
            (once | 0x50001, None),
            (once | 1 << 62 | 0x50000, None),
            (once | 0x50200, None),
        ] {
            assert_eq!(filling.data(&u64::to_be_bytes(entry)), place, "{entry:x}");
        }
    }

    #[test]
    fn what_qemu_wrote_is_found_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = HostPath::parse(dir.path().join("a.qcow2").to_str().unwrap()).unwrap();
        let run = |program: &str, args: &[&str]| {
            let status = Command::new(program).args(args).status().unwrap();
            assert!(status.success());
        };
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", path.as_str(), "20G"],
        );
        let filling = Filling::open(&path).unwrap();
        let places = |tables| {
            let mut places = Vec::new();
            filling
                .finished(tables, |place| places.push(place))
                .unwrap();
            places
        };
        assert_eq!(places(Tables::All), Vec::<u64>::new());
        // In 20 tables, of 512 MiB each.
        let lines: Vec<_> = (0..20)
            .map(|gib| format!("write -q -P {gib} {gib}G 128k"))
            .collect();
        let mut args = vec!["-f", "qcow2", path.as_str()];
        args.extend(lines.iter().flat_map(|line| ["-c", line]));
        run("qemu-io", &args);
        let (all, newest) = (places(Tables::All), places(Tables::Newest));
        assert_eq!((all.len(), newest.len()), (40, 2 * NEWEST));
        assert!(newest.iter().all(|place| all.contains(place)));
        for place in all {
            let mut bytes = vec![0; filling.cluster()];
            filling.file().read_exact_at(&mut bytes, place).unwrap();
            assert!(bytes[0] < 20 && bytes.iter().all(|byte| *byte == bytes[0]));
        }
    }
}
