//! A monitor's socket, in two halves.
//!
//! It is watched for what comes in alone. One that is watched for room too wakes its watcher each time
//! the other side has read something, which is at every command, and for nothing; so room is only
//! watched for while something waits for it.
#![expect(unsafe_code, reason = "tokio wants a promise for a descriptor")]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::read;
use rustix::net::{SendFlags, send};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::UnixStream;

/// What comes in. The socket is closed when both halves are dropped.
#[derive(Debug)]
pub(super) struct ReadHalf(Arc<AsyncFd<OwnedFd>>);

/// What goes out.
#[derive(Debug)]
pub(super) struct WriteHalf(Arc<AsyncFd<OwnedFd>>);

/// Connects to the socket at `path`.
pub(super) async fn connect(path: &Path) -> io::Result<(ReadHalf, WriteHalf)> {
    let socket = UnixStream::connect(path).await?.into_std()?;
    let socket = Arc::new(watched(socket.into(), Interest::READABLE)?);
    Ok((ReadHalf(Arc::clone(&socket)), WriteHalf(socket)))
}

fn watched(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor: it stays open, and the same, until that is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            let most = room.len();
            let Ok(read) = ready.try_io(|socket| Ok(read(socket, &mut *room)?)) else {
                continue;
            };
            let read = read?;
            // Less than there was room for: that was all, and a further read would only say so.
            if 0 < read && read < most {
                ready.clear_ready();
            }
            buffer.advance(read);
            return Poll::Ready(Ok(()));
        }
    }
}

impl WriteHalf {
    /// Sends what the socket takes now, and says how much that was.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0.get_ref(), bytes, SendFlags::NOSIGNAL)?)
    }

    /// Waits until the socket may take more. One that is broken may: it says so when it is written to.
    pub(super) async fn writable(&self) -> io::Result<()> {
        let socket = watched(self.0.get_ref().try_clone()?, Interest::WRITABLE)?;
        socket.writable().await?.retain_ready();
        Ok(())
    }

    /// Sends all of it.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
