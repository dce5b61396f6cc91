//! Cuts a byte stream into lines, with a cap on how long one may be.
//!
//! Bytes stay bytes until a whole line is there, so text split anywhere, even inside a character,
//! arrives intact. A stream that is waited for holds no memory: most say nothing for hours.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// How much is read at once.
const CHUNK: usize = 8 * 1024;

#[derive(Debug)]
pub(super) struct Lines<R> {
    source: R,
    limit: usize,
    buffer: Vec<u8>,
    /// Where the first line not yet taken begins.
    start: usize,
    /// Up to where no line end is.
    scanned: usize,
}

#[derive(Debug)]
pub(super) enum LineError {
    Io(io::Error),
    TooLong,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines longer than about `limit` bytes are an error, and no more than twice that is held.
    pub(super) fn new(source: R, limit: usize) -> Self {
        Self {
            source,
            limit,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
        }
    }

    /// Waits until [`Lines::take`] has a line; `false` at the end of the stream, where an
    /// unfinished line does not count. Dropping the future loses nothing.
    pub(super) async fn fill(&mut self) -> Result<bool, LineError> {
        while self.line_end().is_none() {
            if self.buffer.len() - self.start > self.limit {
                return Err(LineError::TooLong);
            }
            self.forget_taken();
            if !self.read().await.map_err(LineError::Io)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next buffered line without its line end, if a whole one is there.
    pub(super) fn take(&mut self) -> Option<&[u8]> {
        let end = self.line_end()?;
        let line = Range {
            start: self.start,
            end,
        };
        self.start = end + 1;
        self.scanned = self.start;
        Some(&self.buffer[line])
    }

    /// Whether no byte waits, not even of an unfinished line.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    fn line_end(&mut self) -> Option<usize> {
        let rest = &self.buffer[self.scanned..];
        let found = rest.iter().position(|&byte| byte == b'\n');
        self.scanned += found.unwrap_or(rest.len());
        found.map(|_| self.scanned)
    }

    fn forget_taken(&mut self) {
        if self.is_empty() {
            self.buffer = Vec::new();
        } else {
            self.buffer.drain(..self.start);
        }
        self.scanned -= self.start;
        self.start = 0;
    }

    /// Takes what has come; `false` at the end of the stream. The room for it is the stack's.
    async fn read(&mut self) -> io::Result<bool> {
        let Self { source, buffer, .. } = self;
        poll_fn(|context| {
            let mut room = [MaybeUninit::uninit(); CHUNK];
            let mut chunk = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut *source).poll_read(context, &mut chunk))?;
            buffer.extend_from_slice(chunk.filled());
            Poll::Ready(Ok(!chunk.filled().is_empty()))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn all(chunks: &[&[u8]], limit: usize) -> (Vec<Vec<u8>>, Result<bool, LineError>) {
        let mut lines = Lines::new(source_of(chunks), limit);
        let mut taken = Vec::new();
        loop {
            let end = lines.fill().await;
            if !matches!(end, Ok(true)) {
                return (taken, end);
            }
            while let Some(line) = lines.take() {
                taken.push(line.to_vec());
            }
        }
    }

    /// A source that gives one chunk per read.
    fn source_of(chunks: &[&[u8]]) -> impl AsyncRead + Unpin {
        let empty: Box<dyn AsyncRead + Unpin> = Box::new(tokio::io::empty());
        chunks.iter().fold(empty, |before, chunk| {
            Box::new(before.chain(io::Cursor::new(chunk.to_vec())))
        })
    }

    #[tokio::test]
    async fn f7_lines_survive_any_split() {
        let text = "{\"a\":\"grüß 🐧\"}\r\n\n{\"b\":2}\n".as_bytes();
        let whole = vec![
            "{\"a\":\"grüß 🐧\"}\r".as_bytes().to_vec(),
            Vec::new(),
            b"{\"b\":2}".to_vec(),
        ];
        for cut in 0..text.len() {
            let (lines, end) = all(&[&text[..cut], &text[cut..]], 100).await;
            assert_eq!(lines, whole, "cut at {cut}");
            assert!(matches!(end, Ok(false)));
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(all(&bytes, 100).await.0, whole);
    }

    #[tokio::test]
    async fn f7_a_line_without_end_is_cut_off() {
        let chunk = [b'x'; 1000];
        let (lines, end) = all(&[chunk.as_slice(); 200], 50_000).await;
        assert_eq!(lines.len(), 0);
        assert!(matches!(end, Err(LineError::TooLong)));
    }

    #[tokio::test]
    async fn an_unfinished_line_is_no_line() {
        let (lines, end) = all(&[b"whole\nha".as_slice(), b"lf".as_slice()], 100).await;
        assert_eq!(lines, [b"whole".to_vec()]);
        assert!(matches!(end, Ok(false)));
    }
}
