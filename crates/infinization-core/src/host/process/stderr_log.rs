//! A program's last words: its standard error in a file, and the end of that.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How much of the end [`StderrLog::tail`] gives.
const TAIL: u64 = 8 * 1024;

/// The file QEMU's standard error goes to: it keeps what QEMU says after this process is gone, and
/// why QEMU ended while starting.
#[derive(Debug, Clone)]
pub struct StderrLog(PathBuf);

impl StderrLog {
    /// Names the file; nothing is opened yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens it for a new run: emptied, readable by its owner alone, and appended to, so that a
    /// second writer cannot overwrite the first. A symbolic link in its place is not followed.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.0)?;
        file.set_len(0)?;
        Ok(file.into())
    }

    /// Its last 8 KiB as text, without surrounding space; empty when there is no such file.
    pub fn tail(&self) -> io::Result<String> {
        let mut file = match File::open(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            file => file?,
        };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn keeps_the_end_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let log = StderrLog::at(dir.path().join("qemu.log"));
        assert_eq!(log.tail().unwrap(), "");
        let mut file = File::from(log.open().unwrap());
        write!(file, "{}\nqemu: the last word\n", "x".repeat(20_000)).unwrap();
        assert_eq!(log.tail().unwrap().len(), 8 * 1024 - 1);
        assert!(log.tail().unwrap().ends_with("\nqemu: the last word"));

        drop(log.open().unwrap());
        assert_eq!(log.tail().unwrap(), "", "a new run starts empty");

        let link = StderrLog::at(dir.path().join("link"));
        std::os::unix::fs::symlink(log.path(), link.path()).unwrap();
        assert!(link.open().is_err());
    }
}
