//! What a QEMU says on its standard error, for as long as somebody may ask why it did not start.
//!
//! A file in memory that cannot grow: a pipe would end QEMU when this process ends, and a file that grows is one that a
//! guest could fill the host with.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::error::{ErrorCode, Failure};

/// What is said beyond this is not kept. Only what is said takes memory.
const ROOM: u64 = 4 * 1024 * 1024;
/// How much of its end is told.
const TOLD: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Words(File);

impl Words {
    pub(super) fn new() -> Result<Self, Failure> {
        let made = || -> io::Result<File> {
            let file = memfd_create(
                "qemu-stderr",
                MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
            )?;
            ftruncate(&file, ROOM)?;
            fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
            Ok(File::from(file))
        };
        made().map(Self).map_err(|error| not_made(&error))
    }

    /// The end that QEMU gets.
    pub(super) fn writer(&self) -> Result<OwnedFd, Failure> {
        let copy = self.0.try_clone().map_err(|error| not_made(&error))?;
        Ok(copy.into())
    }

    /// The end of what was said, by whole lines: half a line may be a secret that nobody can tell any more.
    pub(super) fn said(&self) -> String {
        // The position is QEMU's, too.
        let end = (&self.0).stream_position().unwrap_or_default();
        let start = end.saturating_sub(TOLD);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or_default()];
        let read = self.0.read_at(&mut bytes, start).unwrap_or_default();
        bytes.truncate(read);
        let said = String::from_utf8_lossy(&bytes);
        let whole = match start {
            0 => said.as_ref(),
            _ => said.split_once('\n').map_or("", |(_half, whole)| whole),
        };
        whole.trim().to_owned()
    }
}

fn not_made(error: &io::Error) -> Failure {
    let message = format!("there is nowhere to keep what QEMU says: {error}");
    Failure::new(ErrorCode::HostFile, message)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_said_is_kept_up_to_the_end_of_the_room() {
        let words = Words::new().unwrap();
        assert_eq!(words.said(), "");
        let mut writer = File::from(words.writer().unwrap());
        writer.write_all(b"qemu: no\n").unwrap();
        assert_eq!(words.said(), "qemu: no");
        for number in 0..20_000 {
            writeln!(writer, "warning {number}").unwrap();
        }
        writer.write_all(b"qemu: the cause\n").unwrap();
        let said = words.said();
        assert!(said.len() <= 64 * 1024 && said.starts_with("warning "));
        assert!(said.ends_with("warning 19999\nqemu: the cause"));
        let more = writer.write_all(&vec![b'x'; usize::try_from(2 * ROOM).unwrap()]);
        assert!(more.is_err(), "the room does not grow");
    }
}
