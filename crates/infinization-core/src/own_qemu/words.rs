//! What a QEMU says on its standard error, for as long as somebody may ask why it did not start.
//! Its command line is the user's, and may hold secrets.
//!
//! It is kept in a file in memory: a pipe would end QEMU when this process ends.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;

use crate::error::{ErrorCode, Failure};
use crate::host::memory_file::MemoryFile;
use crate::host::process::{Exit, ended_while_starting};
use crate::secrets::secrets_among;
use crate::types::Secret;

/// What is said beyond this is not kept. Only what is said takes memory.
const ROOM: u64 = 4 * 1024 * 1024;
/// How much of its end is told.
const TOLD: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Words {
    file: MemoryFile,
    secrets: Vec<Secret>,
}

impl Words {
    /// Of a QEMU with these arguments.
    pub(super) fn of(args: &[String]) -> Result<Self, Failure> {
        let file = MemoryFile::with_room("qemu-stderr", ROOM);
        Ok(Self {
            file: file.map_err(|error| not_made(&error))?,
            secrets: secrets_among(args),
        })
    }

    /// The end that QEMU gets.
    pub(super) fn writer(&self) -> Result<OwnedFd, Failure> {
        self.file.writer().map_err(|error| not_made(&error))
    }

    /// Why it ended while it was starting.
    pub(super) fn failure(&self, exit: Exit) -> Failure {
        ended_while_starting(&self.said(), exit, &self.secrets)
    }

    /// The end of what was said, by whole lines: half a line may be a secret that nobody can tell any more.
    fn said(&self) -> String {
        let start = self.file.written().saturating_sub(TOLD);
        let mut bytes = Vec::new();
        // What could be read is told.
        let _end = self.file.reader(start).read_to_end(&mut bytes);
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
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_said_is_kept_up_to_the_end_of_the_room() {
        let words = Words::of(&[]).unwrap();
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

    #[test]
    fn i43_a_secret_of_its_command_line_is_not_told() {
        let option = "port=1,password=my: hunter2 --it=is,addr=no";
        let words = Words::of(&["-spice".to_owned(), option.to_owned()]).unwrap();
        let mut writer = File::from(words.writer().unwrap());
        writeln!(writer, "qemu: -spice {option}: no such address").unwrap();
        let failure = words.failure(Exit::Code(1));
        assert_eq!(
            failure.to_string(),
            "QEMU ended while starting: qemu: -spice port=1,password=***,addr=no: no such address"
        );
        assert!(!format!("{words:?}{failure:?}").contains("hunter2"));
    }
}
