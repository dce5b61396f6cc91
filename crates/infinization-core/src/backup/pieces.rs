//! The checksum of a backup's file: its BLAKE3, as `b3sum` says it.
//!
//! That is the root of a tree over the file, so pieces of it can be summed in any order and by several threads, and
//! while the file is still written elsewhere. Everything here blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Builder};

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{Hash, Hasher};
use rustix::fs::{Advice, fadvise};

use super::BackupError;
use super::digest::Measure;
use super::pass::Pass;
use crate::host::qemu_img::{Filling, Tables};
use crate::types::HostPath;

/// How long a piece is: a power of two, and so a whole subtree.
const PIECE: u64 = 4 << 20;
/// What is read at a time: it stays in the processor's cache.
const READ: usize = 256 << 10;
/// Hashing takes a core; more of them than this are somebody else's.
const MOST_THREADS: usize = 4;

/// The sums of a file's pieces, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<Option<ChainingValue>>);

/// A file that a QEMU fills, and its pieces that are finished and summed.
#[derive(Debug)]
pub(super) struct Followed {
    filling: Filling,
    pieces: Pieces,
}

impl Followed {
    /// Begins with an image that is empty yet.
    pub(super) fn begin(image: &HostPath) -> Result<Self, BackupError> {
        Ok(Self {
            filling: Filling::open(image)?,
            pieces: Pieces::default(),
        })
    }

    /// Sums the pieces that have been finished since the last time, and has the kernel write them out; ends soon after
    /// `go_on` says no. Says whether there were any.
    pub(super) fn catch_up(&mut self, go_on: impl Fn() -> bool) -> io::Result<bool> {
        let mut any = false;
        for place in self.finished(Tables::Newest)? {
            if !go_on() {
                break;
            }
            if self.pieces.has(place) {
                continue;
            }
            let sum = sum_of(self.filling.file(), place)?;
            self.pieces.put(place, sum);
            write_out(self.filling.file(), place);
            any = true;
        }
        Ok(any)
    }

    /// Which pieces hold finished clusters and nothing else.
    fn finished(&self, tables: Tables) -> io::Result<Vec<usize>> {
        let per_piece = usize_of(PIECE) / self.filling.cluster();
        let mut clusters: Vec<usize> = Vec::new();
        self.filling.finished(tables, |place| {
            let piece = usize_of(place / PIECE);
            if clusters.len() <= piece {
                clusters.resize(piece + 1, 0);
            }
            clusters[piece] += 1;
        })?;
        let places = clusters.iter().enumerate();
        let whole = places.filter(|(_, clusters)| **clusters == per_piece);
        Ok(whole.map(|(piece, _)| piece).collect())
    }

    /// What is known once nobody writes any more. What the file's tables do not say any more is forgotten.
    fn known(&self) -> io::Result<Pieces> {
        let mut known = Pieces::default();
        for piece in self.finished(Tables::All)? {
            if let Some(sum) = self.pieces.0.get(piece).copied().flatten() {
                known.put(piece, sum);
            }
        }
        Ok(known)
    }

    /// Flushes the file, and sums the rest meanwhile: nobody writes to it any more. What the kernel failed to write
    /// since it was opened is told.
    pub(super) fn flush_and_sum(
        &self,
        path: &HostPath,
        pass: &Pass,
    ) -> Result<Measure, BackupError> {
        let failed = |error| BackupError::io(path, error);
        let known = self.known().map_err(failed)?;
        flush_and_sum_rest(self.filling.file(), &known, pass).map_err(failed)
    }
}

impl Pieces {
    fn has(&self, piece: usize) -> bool {
        self.0.get(piece).is_some_and(Option::is_some)
    }

    fn put(&mut self, piece: usize, sum: ChainingValue) {
        if self.0.len() <= piece {
            self.0.resize(piece + 1, None);
        }
        self.0[piece] = Some(sum);
    }
}

/// Flushes the file, and sums it meanwhile: nobody writes to it any more.
pub(super) fn flush_and_sum(path: &HostPath, pass: &Pass) -> Result<Measure, BackupError> {
    let file = File::open(path.as_path());
    let measured = file.and_then(|file| flush_and_sum_rest(&file, &Pieces::default(), pass));
    measured.map_err(|error| BackupError::io(path, error))
}

/// Sums the file.
pub(super) fn sum(path: &HostPath, pass: &Pass) -> Result<Measure, BackupError> {
    let file = File::open(path.as_path());
    let measured = file.and_then(|file| sum_rest(&file, &Pieces::default(), pass));
    measured.map_err(|error| BackupError::io(path, error))
}

fn flush_and_sum_rest(file: &File, known: &Pieces, pass: &Pass) -> io::Result<Measure> {
    thread::scope(|scope| {
        let flush = Builder::new().spawn_scoped(scope, || file.sync_all())?;
        let measured = sum_rest(file, known, pass);
        flush.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        measured
    })
}

fn sum_rest(file: &File, known: &Pieces, pass: &Pass) -> io::Result<Measure> {
    let length = file.metadata()?.len();
    let count = usize_of(length.div_ceil(PIECE));
    // One piece alone is no subtree.
    if count < 2 {
        let hash = hashed(file, 0, &mut Hasher::new())?.finalize();
        pass.advance(length);
        return Ok(measure(length, hash));
    }
    let missing: Vec<usize> = (0..count).filter(|piece| !known.has(*piece)).collect();
    let to_read = missing.iter().map(|piece| length_of(*piece, length));
    pass.advance(length - to_read.sum::<u64>());
    let mut all = known.0.clone();
    all.resize(count, None);
    for (piece, sum) in in_parallel(file, length, &missing, pass)? {
        all[piece] = Some(sum);
    }
    let all: Vec<_> = all.into_iter().flatten().collect();
    let (left, right) = halves(&all);
    let hash = merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
    Ok(measure(length, hash))
}

fn measure(length: u64, hash: Hash) -> Measure {
    let checksum = hash.to_hex().to_string();
    Measure { length, checksum }
}

/// The sum of these pieces, of which there is one at least.
fn subtree(pieces: &[ChainingValue]) -> ChainingValue {
    if let [piece] = pieces {
        return *piece;
    }
    let (left, right) = halves(pieces);
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The left one is the largest power of two that leaves the right one something.
fn halves(pieces: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    pieces.split_at(pieces.len().next_power_of_two() / 2)
}

/// Sums these pieces of so long a file, on several threads where there are several cores.
fn in_parallel(
    file: &File,
    length: u64,
    pieces: &[usize],
    pass: &Pass,
) -> io::Result<Vec<(usize, ChainingValue)>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MOST_THREADS).min(pieces.len());
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<Vec<(usize, ChainingValue)>> {
        let mut sums = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            pass.go_on()?;
            sums.push((*piece, sum_of(file, *piece)?));
            pass.advance(length_of(*piece, length));
        }
        Ok(sums)
    };
    thread::scope(|scope| {
        let others = (1..threads).map(|_| Builder::new().spawn_scoped(scope, work));
        // Without another thread this one does it all.
        let others: Vec<_> = others.filter_map(Result::ok).collect();
        let mut sums = work()?;
        for other in others {
            let done = other.join();
            sums.extend(done.unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(sums)
    })
}

/// The last piece is what is left of a file of `length` bytes.
fn length_of(piece: usize, length: u64) -> u64 {
    (length - piece as u64 * PIECE).min(PIECE)
}

fn sum_of(file: &File, piece: usize) -> io::Result<ChainingValue> {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(piece as u64 * PIECE);
    match hashed(file, piece, &mut hasher)? {
        // Somebody has cut the file short.
        cut if cut.count() == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        piece => Ok(piece.finalize_non_root()),
    }
}

fn hashed<'h>(file: &File, piece: usize, hasher: &'h mut Hasher) -> io::Result<&'h Hasher> {
    let mut buffer = vec![0; READ];
    let (mut at, end) = (piece as u64 * PIECE, (piece as u64 + 1) * PIECE);
    while at < end {
        let most = usize_of((end - at).min(READ as u64));
        match file.read_at(&mut buffer[..most], at)? {
            0 => break,
            length => {
                hasher.update(&buffer[..length]);
                at += length as u64;
            }
        }
    }
    Ok(hasher)
}

/// Has the kernel begin to write the piece to the disk, so that little is left for the flush; what is there already need
/// not stay in memory, where other machines' disks want to be. A mere wish.
fn write_out(file: &File, piece: usize) {
    let length = std::num::NonZeroU64::new(PIECE);
    if let Err(errno) = fadvise(file, piece as u64 * PIECE, length, Advice::DontNeed) {
        tracing::debug!(%errno, "a piece of a backup is written out later");
    }
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio_util::sync::CancellationToken;

    use super::*;

    const MIB: usize = 1 << 20;

    fn run(program: &str, args: &[&str]) {
        let status = Command::new(program).args(args).status().unwrap();
        assert!(status.success(), "{program} {args:?}");
    }

    fn write(image: &HostPath, from: usize, to: usize, byte: u8) {
        let (at, length) = (from * MIB, (to - from) * MIB);
        let line = format!("write -q -P {byte} {at} {length}");
        run("qemu-io", &["-f", "qcow2", "-c", &line, image.as_str()]);
    }

    fn at_once(file: &HostPath) -> String {
        let bytes = std::fs::read(file.as_path()).unwrap();
        blake3::hash(&bytes).to_hex().to_string()
    }

    #[test]
    fn a_file_is_summed_by_its_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let file = HostPath::parse(dir.path().join("a").to_str().unwrap()).unwrap();
        let cancel = CancellationToken::new();
        let pass = Pass::untold(&cancel);
        for length in [
            0,
            1,
            4 * MIB,
            4 * MIB + 1,
            8 * MIB,
            13 * MIB - 7,
            16 * MIB,
            21 * MIB,
        ] {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            std::fs::write(file.as_path(), bytes).unwrap();
            let summed = sum(&file, &pass).unwrap();
            assert_eq!(summed.length, length as u64);
            assert_eq!(summed.checksum, at_once(&file));
            assert_eq!(flush_and_sum(&file, &pass).unwrap(), summed);
        }
        cancel.cancel();
        let cancelled = sum(&file, &pass).unwrap_err();
        assert!(matches!(cancelled, BackupError::Cancelled), "{cancelled}");
    }

    #[test]
    fn what_grows_is_summed_once_and_the_rest_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let image = HostPath::parse(dir.path().join("a.qcow2").to_str().unwrap()).unwrap();
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", image.as_str(), "1G"],
        );
        let mut followed = Followed::begin(&image).unwrap();
        assert!(!followed.catch_up(|| true).unwrap());
        write(&image, 0, 42, 1);
        assert!(!followed.catch_up(|| false).unwrap());
        assert!(followed.catch_up(|| true).unwrap());
        assert!(!followed.catch_up(|| true).unwrap());
        // The first piece has the header and tables, the last is not full yet.
        let known = followed.pieces.0.iter().flatten().count();
        assert_eq!((known, followed.pieces.has(0)), (9, false));
        write(&image, 600, 620, 2);
        assert!(followed.catch_up(|| true).unwrap());
        write(&image, 42, 51, 3);
        let pass = Pass::untold(&CancellationToken::new());
        let summed = followed.flush_and_sum(&image, &pass).unwrap();
        assert_eq!(summed.checksum, at_once(&image));
        assert_eq!(summed, sum(&image, &pass).unwrap());
    }
}
