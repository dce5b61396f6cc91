//! Passes over a whole file: gzip and back, and the checksum of older backups. Everything here blocks, flushes
//! what it writes, tells its bytes, and ends soon after it is cancelled.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::BackupError;
use super::pass::Pass;
use crate::types::HostPath;

const PIECE: usize = 1 << 20;

/// A file's length and checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Measure {
    pub(super) length: u64,
    /// In hexadecimal digits.
    pub(super) checksum: String,
}

/// Reads the file whole, for its SHA-256.
pub(super) fn measure(path: &HostPath, pass: &Pass) -> Result<Measure, BackupError> {
    let sum = || -> io::Result<Measure> {
        let mut hasher = Sha256::new();
        let length = pieces(File::open(path.as_path())?, pass, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        let checksum = hexadecimal(&hasher.finalize());
        Ok(Measure { length, checksum })
    };
    sum().map_err(|error| BackupError::io(path, error))
}

/// Writes `from`, compressed, into the new file `to`.
pub(super) fn gzip(from: &HostPath, to: &HostPath, pass: &Pass) -> Result<(), BackupError> {
    let squeeze = || -> io::Result<()> {
        let mut encoder = GzEncoder::new(new_file(to)?, Compression::fast());
        pieces(File::open(from.as_path())?, pass, |piece| {
            encoder.write_all(piece)
        })?;
        encoder.finish()?.sync_all()
    };
    squeeze().map_err(|error| BackupError::io(to, error))
}

/// Writes what `from` holds into the new file `to`, which must come out with `length` bytes.
pub(super) fn gunzip(
    from: &HostPath,
    to: &HostPath,
    length: u64,
    pass: &Pass,
) -> Result<(), BackupError> {
    let expand = || -> io::Result<()> {
        let packed = GzDecoder::new(File::open(from.as_path())?);
        let mut file = new_file(to)?;
        // One byte more than there should be tells too long from right, and no bomb goes on.
        let written = pieces(packed.take(length.saturating_add(1)), pass, |piece| {
            file.write_all(piece)
        })?;
        if written == length {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    };
    expand().map_err(|error| BackupError::io(to, error))
}

fn pieces(
    mut from: impl Read,
    pass: &Pass,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut total = 0;
    loop {
        pass.go_on()?;
        match from.read(&mut buffer)? {
            0 => return Ok(total),
            length => {
                take(&buffer[..length])?;
                total += length as u64;
                pass.advance(length as u64);
            }
        }
    }
}

fn new_file(path: &HostPath) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path.as_path())
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn what_is_packed_comes_out_and_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| HostPath::parse(dir.path().join(name).to_str().unwrap()).unwrap();
        let plain = vec![7_u8; 3 * PIECE + 5];
        std::fs::write(path("a").as_path(), &plain).unwrap();
        let cancel = CancellationToken::new();
        let pass = Pass::untold(&cancel);
        gzip(&path("a"), &path("a.gz"), &pass).unwrap();
        let length = plain.len() as u64;
        gunzip(&path("a.gz"), &path("b"), length, &pass).unwrap();
        assert_eq!(std::fs::read(path("b").as_path()).unwrap(), plain);
        assert!(gunzip(&path("a.gz"), &path("c"), length - 1, &pass).is_err());
        assert!(gunzip(&path("a.gz"), &path("d"), length + 1, &pass).is_err());
        let measured = measure(&path("a"), &pass).unwrap();
        assert_eq!(measured, measure(&path("b"), &pass).unwrap());
        assert_eq!((measured.length, measured.checksum.len()), (length, 64));
        cancel.cancel();
        let cancelled = measure(&path("a"), &pass).unwrap_err();
        assert!(matches!(cancelled, BackupError::Cancelled), "{cancelled}");
    }
}
