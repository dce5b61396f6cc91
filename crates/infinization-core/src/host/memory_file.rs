//! A file in memory that cannot grow, for what a program says. A pipe would have to be read all the while, into this
//! process' own memory; a file that grows is one that a program could fill the host with.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// It ends with the last descriptor of it.
#[derive(Debug)]
pub(crate) struct MemoryFile(File);

impl MemoryFile {
    /// With this many bytes of room, of which only what is written takes memory. The name is what `/proc` shows.
    pub(crate) fn with_room(name: &str, room: u64) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, room)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self(File::from(file)))
    }

    /// The end that a program gets.
    pub(crate) fn writer(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    /// How much was written.
    pub(crate) fn written(&self) -> u64 {
        // The position is the program's, too.
        (&self.0).stream_position().unwrap_or_default()
    }

    /// What was written until now, from this byte on.
    pub(crate) fn reader(&self, from: u64) -> impl Read {
        Reader {
            file: &self.0,
            position: from,
            end: self.written(),
        }
    }
}

/// Has a position of its own.
struct Reader<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let most = into.len().min(left);
        let read = self.file.read_at(&mut into[..most], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
