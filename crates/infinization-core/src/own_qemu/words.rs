//! What a QEMU says on its standard error, for as long as somebody may ask why it did not start.
//!
//! A file in memory that cannot grow: a pipe would end QEMU when this process ends, and a file that grows is one that a
//! guest could fill the host with.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::error::{ErrorCode, Failure};

/// What is said beyond this is not kept.
const ROOM: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Words(File);

impl Words {
    pub(super) fn new() -> Result<Self, Failure> {
        let made = || -> io::Result<File> {
            let file = memfd_create(
                "qemu-stderr",
                MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
            )?;
            ftruncate(&file, ROOM as u64)?;
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

    /// All that was said.
    pub(super) fn said(&self) -> String {
        let mut bytes = vec![0; ROOM];
        let read = self.0.read_at(&mut bytes, 0).unwrap_or_default();
        let said = bytes[..read].split(|byte| *byte == 0).next();
        String::from_utf8_lossy(said.unwrap_or_default())
            .trim()
            .to_owned()
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
        let more = writer.write_all(&vec![b'x'; 2 * ROOM]);
        assert!(more.is_err(), "the room does not grow");
    }
}
