//! An append-only file of lines that has a bounded size: the newest lines in `<name>.jsonl`, the ones
//! before them in `<name>.jsonl.1`.
//!
//! What [`LineLog::append`] has returned from is the kernel's: it survives the end of this process at
//! any moment. A line that was torn by such an end is cut off by [`LineLog::open`]. Nothing is
//! flushed: a host that loses power may lose the lines of its last half minute. Every call blocks.

mod reader;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

pub use reader::LineReader;

const NEWER: &str = ".jsonl";
const OLDER: &str = ".jsonl.1";

/// The two files of one log, by their common stem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineLog {
    newer: PathBuf,
    older: PathBuf,
}

impl LineLog {
    /// The log `name` in `directory`, which need not exist.
    pub fn of(directory: &Path, name: &str) -> Self {
        Self {
            newer: directory.join(format!("{name}{NEWER}")),
            older: directory.join(format!("{name}{OLDER}")),
        }
    }

    /// The names of all logs in `directory`, and when each was written last.
    pub fn list(directory: &Path) -> io::Result<Vec<(String, std::time::SystemTime)>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let logs = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let stem = name.strip_suffix(NEWER).or(name.strip_suffix(OLDER))?;
            Some((stem.to_owned(), entry.metadata().ok()?.modified().ok()?))
        });
        let mut logs: Vec<_> = logs.collect();
        logs.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        logs.dedup_by(|later, kept| later.0 == kept.0);
        Ok(logs)
    }

    /// Cuts off what is behind the last line that `is_whole`, and answers that line, from the older
    /// file if the newer has none.
    pub fn open(&self, is_whole: impl Fn(&[u8]) -> bool) -> io::Result<Option<Vec<u8>>> {
        for path in [&self.newer, &self.older] {
            let bytes = match fs::read(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            let (length, last) = last_whole(&bytes, &is_whole);
            if length < bytes.len() {
                tracing::warn!(path = %path.display(), cut = bytes.len() - length, "a torn end is cut off");
                let file = OpenOptions::new().write(true).open(path)?;
                file.set_len(u64::try_from(length).unwrap_or(u64::MAX))?;
            }
            if let Some(last) = last {
                return Ok(Some(last.to_vec()));
            }
        }
        Ok(None)
    }

    /// Appends whole lines with one write; at `limit` bytes a new file is begun and the older one
    /// goes. Nothing of lines that could not be written stays.
    pub fn append(&self, lines: &[u8], limit: u64) -> io::Result<()> {
        let mut file = self.newest()?;
        let mut length = file.metadata()?.len();
        if length > 0 && length + lines.len() as u64 > limit {
            fs::rename(&self.newer, &self.older)?;
            file = self.newest()?;
            length = 0;
        }
        file.write_all(lines).inspect_err(|_| {
            // Half a line would hide the next one; what is left all the same is cut off at `open`.
            let _cut = file.set_len(length);
        })
    }

    /// Removes both files.
    pub fn remove(&self) -> io::Result<()> {
        for path in [&self.older, &self.newer] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A reader from the oldest line on.
    pub fn read(&self) -> LineReader {
        LineReader::of(self.clone())
    }

    fn newest(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        match options.open(&self.newer) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Not what is above it: a directory that somebody removed whole stays removed.
                fs::create_dir(self.newer.parent().unwrap_or(Path::new("/")))?;
                options.open(&self.newer)
            }
            opened => opened,
        }
    }
}

/// The length up to the end of the last whole line, and that line.
fn last_whole(bytes: &[u8], is_whole: impl Fn(&[u8]) -> bool) -> (usize, Option<&[u8]>) {
    let newline = |until: usize| bytes[..until].iter().rposition(|byte| *byte == b'\n');
    let mut end = bytes.len();
    while let Some(line_end) = newline(end) {
        let start = newline(line_end).map_or(0, |before| before + 1);
        let line = &bytes[start..line_end];
        if is_whole(line) {
            return (line_end + 1, Some(line));
        }
        end = start;
    }
    (0, None)
}

#[cfg(test)]
mod tests;
