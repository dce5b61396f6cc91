//! Hearing of every commit to one table, whoever makes it, over a socket of one's own.
//!
//! Invariant: none is missed; where the kernel had no room to tell, there may have been one. Neighbour:
//! [`super::journal`] tells ours from others'.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::unix::AsyncFd;

use super::journal::{DATAGRAM, listen};
use super::notice::names_table;
use super::wire::FAMILY_BRIDGE;
use crate::firewall::TABLE;
use crate::host::readable::readable;

/// `NFPROTO_INET`.
const FAMILY_INET: u8 = 1;

/// The commits to a table since this was made.
#[derive(Debug)]
pub struct Commits {
    socket: AsyncFd<Arc<OwnedFd>>,
    family: u8,
    table: String,
}

impl Commits {
    /// To the filter, in the calling thread's network. Needs a runtime.
    pub fn to_filter() -> io::Result<Self> {
        Self::to(FAMILY_BRIDGE, TABLE)
    }

    /// To a table of the `inet` family.
    pub fn to_inet(table: &str) -> io::Result<Self> {
        Self::to(FAMILY_INET, table)
    }

    fn to(family: u8, table: &str) -> io::Result<Self> {
        let socket = readable(Arc::new(listen()?))?;
        Ok(Self {
            socket,
            family,
            table: table.to_owned(),
        })
    }

    /// Resolves when there was one. Several that nobody waited for count once.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let heard = take_all(ready.get_inner(), self.family, &self.table)?;
            ready.clear_ready();
            if heard {
                return Ok(());
            }
        }
    }
}

/// Whether one of the messages that wait is about the table.
fn take_all(socket: &OwnedFd, family: u8, table: &str) -> io::Result<bool> {
    let (mut datagram, mut heard) = (vec![0; DATAGRAM], false);
    loop {
        match recv(socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => heard |= names_table(&datagram[..length], family, table),
            Err(Errno::ENOBUFS) => heard = true,
            Err(Errno::EAGAIN) => return Ok(heard),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
