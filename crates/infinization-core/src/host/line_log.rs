//! An append-only file of lines that has a bounded size: the newest lines in `<name>.jsonl`, the ones
//! before them in `<name>.jsonl.1`.
//!
//! What [`LineLog::append`] has returned from is the kernel's: it survives the end of this process at
//! any moment. A line that was torn by such an end is cut off by [`LineLog::open`]. Nothing is
//! flushed: a host that loses power may lose the lines of its last half minute. Every call blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// How much is read at once.
const CHUNK: usize = 64 * 1024;
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
        LineReader {
            log: self.clone(),
            chunk: CHUNK,
            place: None,
            file: None,
            rest: Vec::new(),
        }
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

/// A file that was read from. A number alone may be another's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    made: Option<std::time::SystemTime>,
}

impl Identity {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            inode: found.ino(),
            made: found.created().ok(),
        }
    }

    fn is_at(self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| Self::of(&found) == self)
    }
}

/// Reads a log's lines in order, also while it is written and turned over.
#[derive(Debug)]
pub struct LineReader {
    log: LineLog,
    /// How much is read at once.
    chunk: usize,
    /// Which file is read, and up to where.
    place: Option<(Identity, u64)>,
    /// That file, unless [`LineReader::close`] gave it back.
    file: Option<File>,
    rest: Vec<u8>,
}

impl LineReader {
    /// Reads so much at once from here on: what [`LineReader::next_lines`] answers is not much more.
    pub fn read_at_once(&mut self, bytes: usize) {
        self.chunk = bytes.clamp(1, CHUNK);
    }

    /// Gives the file's descriptor back until more is read. Lines that the log drops meanwhile, because
    /// it turned over twice, are not read.
    pub fn close(&mut self) {
        if let Some((_, place)) = &mut self.place {
            *place -= self.rest.len() as u64;
        }
        self.rest.clear();
        self.file = None;
    }

    /// The next lines, as many as one read gives; none when all there is has been read. A line that
    /// is half written is given when it is whole.
    pub fn next_lines(&mut self) -> io::Result<Vec<Vec<u8>>> {
        loop {
            if self.file.is_none() && !self.open_again()? && !self.open_first()? {
                return Ok(Vec::new());
            }
            let lines = self.read_on()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            if !self.turn_over()? {
                return Ok(Vec::new());
            }
        }
    }

    /// The file that was read before, where it was left.
    fn open_again(&mut self) -> io::Result<bool> {
        let Some((identity, at)) = self.place else {
            return Ok(false);
        };
        for path in [self.log.newer.clone(), self.log.older.clone()] {
            if identity.is_at(&path) && self.open(&path)? && self.identity() == Some(identity) {
                self.seek(at)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn identity(&self) -> Option<Identity> {
        self.place.map(|(identity, _)| identity)
    }

    fn seek(&mut self, at: u64) -> io::Result<()> {
        if let (Some(file), Some((_, place))) = (&mut self.file, &mut self.place) {
            file.seek(SeekFrom::Start(at))?;
            *place = at;
        }
        Ok(())
    }

    fn open_first(&mut self) -> io::Result<bool> {
        let (older, newer) = (self.log.older.clone(), self.log.newer.clone());
        if self.open(&older)? {
            return Ok(true);
        }
        let opened = self.open(&newer)?;
        if opened {
            // It may have turned over in between, for the first time.
            self.open(&older)?;
        }
        Ok(opened)
    }

    fn open(&mut self, path: &Path) -> io::Result<bool> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        let identity = Identity::of(&file.metadata()?);
        self.place = Some((identity, 0));
        self.file = Some(file);
        self.rest.clear();
        Ok(true)
    }

    fn read_on(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let (Some(file), Some((_, place))) = (&mut self.file, &mut self.place) else {
            return Ok(Vec::new());
        };
        let mut chunk = vec![0; self.chunk];
        loop {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                return Ok(Vec::new());
            }
            *place += read as u64;
            self.rest.extend_from_slice(&chunk[..read]);
            if let Some(newline) = self.rest.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(newline + 1);
                let whole = std::mem::replace(&mut self.rest, rest);
                let lines = whole.split(|byte| *byte == b'\n');
                let lines = lines.filter(|line| !line.is_empty());
                return Ok(lines.map(<[u8]>::to_vec).collect());
            }
        }
    }

    /// At the end of a file that is not the newest any more: goes on with the next one.
    fn turn_over(&mut self) -> io::Result<bool> {
        let Some(identity) = self.identity() else {
            return Ok(false);
        };
        let (older, newer) = (self.log.older.clone(), self.log.newer.clone());
        if identity.is_at(&newer) {
            self.unread_torn_end(&newer)?;
            return Ok(false);
        }
        // Nothing is written to it any more, but it was perhaps after we read its end.
        if self.has_more()? {
            return Ok(true);
        }
        if identity.is_at(&older) || !self.open(&older)? {
            return self.open(&newer);
        }
        Ok(true)
    }

    fn has_more(&mut self) -> io::Result<bool> {
        let (Some(file), Some((_, here))) = (&self.file, self.place) else {
            return Ok(false);
        };
        Ok(file.metadata()?.len() > here)
    }

    /// What was cut off under us is not the beginning of a line.
    fn unread_torn_end(&mut self, newer: &Path) -> io::Result<()> {
        let length = fs::metadata(newer)?.len();
        if self.place.is_some_and(|(_, here)| here > length) {
            self.seek(length)?;
            self.rest.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_word(line: &[u8]) -> bool {
        line.first() == Some(&b'w')
    }

    fn text(lines: Vec<Vec<u8>>) -> Vec<String> {
        let lines = lines.into_iter();
        lines.map(|line| String::from_utf8(line).unwrap()).collect()
    }

    fn all(reader: &mut LineReader) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let next = reader.next_lines().unwrap();
            if next.is_empty() {
                return text(lines);
            }
            lines.extend(next);
        }
    }

    #[test]
    fn f18_a_torn_end_is_cut_off() {
        for (content, left, last) in [
            ("w1\nw2\n", "w1\nw2\n", Some("w2")),
            ("w1\nw2", "w1\n", Some("w1")),
            ("w1\nw2\n\0\0\0", "w1\nw2\n", Some("w2")),
            ("w1\n\0\0\n", "w1\n", Some("w1")),
            ("w", "", None),
            ("", "", None),
            ("\n\n", "", None),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let log = LineLog::of(directory.path(), "vm");
            fs::write(&log.newer, content).unwrap();
            let found = log.open(is_word).unwrap();
            assert_eq!(found.as_deref(), last.map(str::as_bytes), "{content:?}");
            assert_eq!(fs::read_to_string(&log.newer).unwrap(), left, "{content:?}");
            log.append(b"w3\n", 100).unwrap();
            assert!(fs::read_to_string(&log.newer).unwrap().ends_with("w3\n"));
        }
    }

    #[test]
    fn a_log_of_which_only_the_older_file_is_left_knows_its_last_line() {
        let directory = tempfile::tempdir().unwrap();
        let log = LineLog::of(&directory.path().join("absent"), "vm");
        assert_eq!(log.open(is_word).unwrap(), None);
        log.append(b"w1\n", 100).unwrap();
        fs::rename(&log.newer, &log.older).unwrap();
        assert_eq!(log.open(is_word).unwrap(), Some(b"w1".to_vec()));
        log.remove().unwrap();
        assert_eq!(log.open(is_word).unwrap(), None);
    }

    #[test]
    fn two_files_are_the_most_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let log = LineLog::of(directory.path(), "a.jsonl");
        for number in 0..100 {
            log.append(format!("w{number:02}\n").as_bytes(), 40)
                .unwrap();
        }
        let lines = all(&mut log.read());
        assert!((10..=20).contains(&lines.len()), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "w99");
        let listed = LineLog::list(directory.path()).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].0, "a.jsonl");
    }

    #[test]
    fn a_reader_goes_on_where_it_was_when_the_log_turns_over() {
        let directory = tempfile::tempdir().unwrap();
        let log = LineLog::of(directory.path(), "vm");
        let mut reader = log.read();
        assert_eq!(all(&mut reader), Vec::<String>::new());
        let mut read = Vec::new();
        for number in 0..100 {
            log.append(format!("w{number:02}\n").as_bytes(), 40)
                .unwrap();
            if number % 7 == 0 {
                read.extend(all(&mut reader));
            }
        }
        read.extend(all(&mut reader));
        let expected: Vec<String> = (0..100).map(|number| format!("w{number:02}")).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_reader_that_gave_its_file_back_goes_on_where_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let log = LineLog::of(directory.path(), "vm");
        let mut reader = log.read();
        reader.read_at_once(4);
        let mut read = Vec::new();
        for number in 0..100 {
            log.append(format!("w{number:02}\n").as_bytes(), 40)
                .unwrap();
            if number % 3 == 0 {
                // In the middle of a line, too.
                read.extend(text(reader.next_lines().unwrap()));
                reader.close();
                read.extend(all(&mut reader));
                reader.close();
            }
        }
        let expected: Vec<String> = (0..100).map(|number| format!("w{number:02}")).collect();
        assert_eq!(read, expected);
        // Both files are others by now: it goes on with the oldest line there is.
        for number in 100..200 {
            log.append(format!("w{number}\n").as_bytes(), 40).unwrap();
        }
        let late = all(&mut reader);
        assert!(
            late.len() < 100 && late.last().unwrap() == "w199",
            "{late:?}"
        );
    }

    #[test]
    fn a_reader_waits_for_a_line_to_be_whole() {
        let directory = tempfile::tempdir().unwrap();
        let log = LineLog::of(directory.path(), "vm");
        let mut reader = log.read();
        fs::write(&log.newer, "w1\nw").unwrap();
        assert_eq!(all(&mut reader), ["w1"]);
        log.append(b"2\n", 100).unwrap();
        assert_eq!(all(&mut reader), ["w2"]);
        fs::write(&log.newer, "w1\nw2\nw3").unwrap();
        assert_eq!(all(&mut reader), Vec::<String>::new());
        log.open(is_word).unwrap();
        assert_eq!(all(&mut reader), Vec::<String>::new());
        log.append(b"w4\n", 100).unwrap();
        assert_eq!(all(&mut reader), ["w4"]);
    }
}
