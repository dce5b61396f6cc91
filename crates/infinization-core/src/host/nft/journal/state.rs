//! What was told of commits, and how far each table is trusted.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};

use super::DATAGRAM;
use crate::host::nft::notice::{Commit, OurTable, Reader};

/// `NFNLGRP_NFTABLES` (7) as a bit of `nl_groups`.
const GROUP: u32 = 1 << 6;

/// Room for what is told between two looks: a commit that changes some thousand rules.
const BACKLOG: usize = 1024 * 1024;

/// What is listened with, and what was heard.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) socket: Option<OwnedFd>,
    reader: Reader,
    /// What was told and is not taken in yet.
    pub(super) gathered: Vec<Commit>,
    /// More was told than there was room for, and that is not taken in yet.
    pub(super) lost: bool,
    /// A commit of ours is under way: until it has ended it cannot be told whose is whose.
    pub(super) committing: bool,
    pub(super) filter: Trust,
    pub(super) nat: Trust,
    /// What is known of the filter's table.
    pub(super) table: Presence,
    /// The number of the last state that was told of or read, if none may have been missed since.
    pub(super) generation: Option<u32>,
}

/// Whether there is a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Presence {
    There,
    /// Another has deleted it, and nobody was heard to make it again.
    Gone,
    /// What was told of it may have been lost.
    #[default]
    Unknown,
}

/// How many doubts there have been about a table, and how many of them are settled.
#[derive(Debug, Default)]
pub(super) struct Trust {
    pub(super) doubts: u64,
    pub(super) settled: u64,
}

impl State {
    /// Gathers the commits that were told since the last time.
    pub(super) fn gather(&mut self) -> io::Result<()> {
        let socket = self.listening()?.as_raw_fd();
        self.gather_from(|datagram| recv(socket, datagram, MsgFlags::MSG_DONTWAIT))
    }

    pub(super) fn gather_from(
        &mut self,
        mut receive: impl FnMut(&mut [u8]) -> nix::Result<usize>,
    ) -> io::Result<()> {
        let mut datagram = vec![0; DATAGRAM];
        let mut overflowed = false;
        loop {
            match receive(&mut datagram) {
                Ok(length) => match self.reader.read(&datagram[..length]) {
                    Ok(ended) => self.gathered.extend(ended),
                    Err(_torn) => self.lost(),
                },
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // What there was room for is still to come.
                Err(Errno::ENOBUFS) => overflowed = true,
                Err(error) => return Err(error.into()),
            }
        }
        if overflowed {
            self.lost();
        }
        Ok(())
    }

    /// More was told than there was room for, or nobody listened: anything may have been done. What was read
    /// of a commit whose end is missing is not the beginning of the next.
    pub(super) fn lost(&mut self) {
        self.reader.restart();
        self.lost = true;
    }

    pub(super) fn doubt_all(&mut self) {
        for table in OurTable::ALL {
            self.trust_mut(table).doubts += 1;
        }
    }

    pub(super) fn doubts(&self) -> u64 {
        self.filter.doubts + self.nat.doubts
    }

    pub(super) fn trust(&self, table: OurTable) -> &Trust {
        match table {
            OurTable::Filter => &self.filter,
            OurTable::Nat => &self.nat,
        }
    }

    pub(super) fn trust_mut(&mut self, table: OurTable) -> &mut Trust {
        match table {
            OurTable::Filter => &mut self.filter,
            OurTable::Nat => &mut self.nat,
        }
    }

    /// The socket. What was committed before it was opened, nobody has told.
    pub(super) fn listening(&mut self) -> io::Result<&OwnedFd> {
        if let Some(socket) = self.socket.take() {
            return Ok(self.socket.insert(socket));
        }
        let socket = listen()?;
        self.lost();
        Ok(self.socket.insert(socket))
    }
}

impl Trust {
    pub(super) fn is_firm(&self) -> bool {
        self.doubts == self.settled
    }
}

/// A socket that is told of every commit from now on.
pub(in crate::host::nft) fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    // A smaller one only means that more is read back.
    let _smaller = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    Ok(socket)
}
