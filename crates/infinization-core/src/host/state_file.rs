//! Small files that must never be half written: a VM's spec, its resource list, its process id.
//!
//! A file is one header line with the SHA-256 of the body, then the body. It is replaced by a rename
//! of a complete temporary file beside it, so a reader finds the old content or the new one; what a
//! crashed host tore anyway is told by the checksum. Files are readable by their owner alone.
//!
//! Neighbour: [`super::dir_lock`] lets one process write a state directory, and sweeps the temporary
//! files of writers that died.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Coded, ErrorCode};

const HEADER: &[u8] = b"infinization-state 1 sha256=";
/// Every temporary name ends so, and no other file of ours does.
const TEMPORARY: &str = ".infinization-tmp";

static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// What a write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of this process at any moment. Costs no disk flush.
    ProcessCrash,
    /// Also a crash of the host: file and directory are flushed before the write counts as done.
    HostCrash,
}

/// A state file that could not be read or written. After a failed write the old content is in place.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StateFileError {
    #[error("{path} could not be written")]
    Write { path: String, source: io::Error },
    #[error("{path} could not be read")]
    Read { path: String, source: io::Error },
    #[error("{path} is damaged: its checksum does not fit its content")]
    Torn { path: String },
}

impl StateFileError {
    fn facts(&self) -> (&str, Option<&io::Error>) {
        match self {
            Self::Write { path, source } | Self::Read { path, source } => (path, Some(source)),
            Self::Torn { path } => (path, None),
        }
    }
}

impl Coded for StateFileError {
    fn code(&self) -> ErrorCode {
        ErrorCode::StateFile
    }

    fn context(&self) -> Map<String, Value> {
        let (path, source) = self.facts();
        let mut facts = Map::from_iter([("path".to_owned(), Value::from(path))]);
        if let Some(errno) = source.and_then(io::Error::raw_os_error) {
            facts.insert("errno".to_owned(), Value::from(errno));
        }
        facts
    }
}

/// Replaces `path`'s content. Blocks.
pub fn write(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), StateFileError> {
    let temporary = temporary_beside(path);
    replace(path, &temporary, bytes, durability).map_err(|source| {
        // What could not be completed must not fill the disk; nothing may be there at all.
        let _absent = fs::remove_file(&temporary);
        StateFileError::Write {
            path: show(path),
            source,
        }
    })
}

fn replace(path: &Path, temporary: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    file.write_all(&header_of(bytes))?;
    file.write_all(bytes)?;
    if durability == Durability::HostCrash {
        file.sync_all()?;
    }
    fs::rename(temporary, path)?;
    if durability == Durability::HostCrash {
        directory_of(path).and_then(|dir| File::open(dir)?.sync_all())?;
    }
    Ok(())
}

/// Reads `path`'s content, `None` when there is no file. Blocks.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
    let mut bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StateFileError::Read {
                path: show(path),
                source,
            });
        }
        Ok(bytes) => bytes,
    };
    let length = body_start(&bytes).ok_or_else(|| StateFileError::Torn { path: show(path) })?;
    bytes.drain(..length);
    Ok(Some(bytes))
}

fn header_of(body: &[u8]) -> Vec<u8> {
    let mut hex = String::with_capacity(64);
    for octet in Sha256::digest(body) {
        // Writing to a String cannot fail.
        let _infallible = write!(hex, "{octet:02x}");
    }
    [HEADER, hex.as_bytes(), b"\n"].concat()
}

/// Where the body starts, if the header is whole and its checksum fits.
fn body_start(bytes: &[u8]) -> Option<usize> {
    let start = HEADER.len() + 64 + 1;
    let (header, body) = bytes.split_at_checked(start)?;
    (header == header_of(body)).then_some(start)
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{number}{TEMPORARY}", std::process::id()));
    path.with_file_name(name)
}

/// Whether a file of this name is what a dead writer left.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

fn directory_of(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names_in(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn what_was_written_is_read_and_only_we_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        assert_eq!(read(&path).unwrap(), None);
        for (body, durability) in [
            (&b"{\"a\":1}\n"[..], Durability::HostCrash),
            (&b""[..], Durability::ProcessCrash),
            (&b"\0\xff\n\n"[..], Durability::ProcessCrash),
        ] {
            write(&path, body, durability).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), body);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names_in(dir.path()), ["spec.json"]);
    }

    #[test]
    fn f18_every_torn_form_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        write(&path, b"the whole content", Durability::ProcessCrash).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let torn = read(&path).unwrap_err();
            assert!(
                matches!(torn, StateFileError::Torn { .. }),
                "{length} bytes passed"
            );
            assert_eq!(torn.code(), ErrorCode::StateFile);
        }
        for position in 0..whole.len() {
            let mut changed = whole.clone();
            changed[position] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(read(&path).is_err(), "a changed byte {position} passed");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(read(&path).is_err(), "an appended byte passed");
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        // A directory cannot be replaced by a file: the rename is refused.
        let path = dir.path().join("spec.json");
        fs::create_dir(&path).unwrap();
        let refused = write(&path, b"new", Durability::HostCrash).unwrap_err();
        assert!(matches!(refused, StateFileError::Write { .. }));
        assert_eq!(names_in(dir.path()), ["spec.json"]);
        let absent = dir.path().join("none/spec.json");
        assert!(write(&absent, b"new", Durability::ProcessCrash).is_err());
    }
}
