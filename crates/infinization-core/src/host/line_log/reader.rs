//! Reads a log's lines in order, while it is written and turned over.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::LineLog;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

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
    /// From the log's oldest line on.
    pub(super) fn of(log: LineLog) -> Self {
        Self {
            log,
            chunk: CHUNK,
            place: None,
            file: None,
            rest: Vec::new(),
        }
    }

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
