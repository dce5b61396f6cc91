//! Changing the table by nfnetlink messages of our own, over a socket that stays open.
//!
//! `nft` is not slow at this, its end is: a process that closes its nfnetlink socket waits until the
//! kernel has freed what was replaced, an RCU grace period of 10 to 20 ms (`nft_rcv_nl_event`, Linux
//! 6.18).
//!
//! The kernel serves a batch while it is being sent, all or nothing, and its answers are there when
//! `send` returns: what rules it made, as the multicast group is told it, and errors or the last
//! request's acknowledgement.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, setsockopt, socket, sockopt,
};

use super::encode::{Encoded, get_chain, get_generation, get_table, rename};
use super::error::NftError;
use super::transport::{Committed, CommittedRule};
use super::wire::{
    GENERIC_HEADER, HEADER, NLMSG_ERROR, SUBSYS_NFTABLES, batch, find, find_text, generation, kind,
    u16_at, u32_at,
};
use crate::firewall::VerdictMap;
use crate::host::blocking::blocking;
use crate::types::LinkName;

const NEW_CHAIN: u16 = (SUBSYS_NFTABLES << 8) + kind::NEW_CHAIN;
const NEW_RULE: u16 = (SUBSYS_NFTABLES << 8) + kind::NEW_RULE;
const NEW_GENERATION: u16 = (SUBSYS_NFTABLES << 8) + kind::NEW_GENERATION;
/// No datagram is longer: the kernel fills a page or two (`NLMSG_GOODSIZE`).
const DATAGRAM: usize = 64 * 1024;
/// Room for answers to a batch that is not large.
const ROOM: usize = 1024 * 1024;
/// The kernel takes sizes as a C int, and doubles them.
const MOST: usize = 512 * 1024 * 1024;
/// What goes through a socket as it is when it is opened, with the answers.
const SMALL: usize = 16 * 1024;

/// Which element of which map.
pub(super) type Port = (VerdictMap, LinkName);

/// A socket that is opened when it is needed first, and again after an error.
#[derive(Debug, Default)]
pub(super) struct Batches(Mutex<Option<OwnedFd>>);

impl Batches {
    /// Commits in one transaction.
    pub(super) async fn commit(self: &Arc<Self>, encoded: Encoded) -> Result<Committed, NftError> {
        let batches = Arc::clone(self);
        blocking(move || batches.commit_now(encoded))
            .await
            .map_err(|error| NftError::Netlink(error.into()))?
    }

    /// The number of the state that nftables is in: each commit makes the next.
    pub(super) async fn generation(self: &Arc<Self>) -> Result<u32, NftError> {
        let batches = Arc::clone(self);
        blocking(move || batches.with_socket(generation_now))
            .await
            .map_err(|error| NftError::Netlink(error.into()))?
    }

    /// Whether there is the filter's table.
    pub(super) async fn has_table(self: &Arc<Self>) -> Result<bool, NftError> {
        let batches = Arc::clone(self);
        blocking(move || batches.with_socket(has_table_now))
            .await
            .map_err(|error| NftError::Netlink(error.into()))?
    }

    /// Renames come last: until then everything is under its old name.
    fn commit_now(&self, encoded: Encoded) -> Result<Committed, NftError> {
        let Encoded {
            mut requests,
            renames,
            generation,
        } = encoded;
        self.with_socket(|socket| {
            for (chain, to) in &renames {
                requests.push(rename(&handle_of(socket, chain)?, to));
            }
            exchange(socket, &batch(requests, generation))
        })
    }

    fn with_socket<T>(
        &self,
        work: impl FnOnce(&OwnedFd) -> Result<T, NftError>,
    ) -> Result<T, NftError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match held.take() {
            Some(socket) => socket,
            None => open().map_err(NftError::Netlink)?,
        };
        let done = work(&socket)?;
        // Only a socket with nothing left unread is used again.
        *held = Some(socket);
        Ok(done)
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// The kernel's number for the chain.
fn handle_of(socket: &OwnedFd, chain: &str) -> Result<Vec<u8>, NftError> {
    let question = get_chain(chain).bytes();
    send(socket.as_raw_fd(), &question, MsgFlags::empty()).map_err(lost)?;
    let mut handle = None;
    receive(socket, |kind, attributes| {
        if kind == NEW_CHAIN {
            handle = find(attributes, 2).map(<[u8]>::to_vec);
        }
    })?;
    handle.ok_or(NftError::Rejected(Errno::ENOENT))
}

fn has_table_now(socket: &OwnedFd) -> Result<bool, NftError> {
    send(socket.as_raw_fd(), &get_table().bytes(), MsgFlags::empty()).map_err(lost)?;
    match receive(socket, |_, _| ()) {
        Err(error) if error.is_absent() => Ok(false),
        answered => answered.map(|()| true),
    }
}

fn generation_now(socket: &OwnedFd) -> Result<u32, NftError> {
    send(
        socket.as_raw_fd(),
        &get_generation().bytes(),
        MsgFlags::empty(),
    )
    .map_err(lost)?;
    let mut number = None;
    receive(socket, |kind, attributes| {
        if kind == NEW_GENERATION {
            number = generation(attributes);
        }
    })?;
    number.ok_or_else(torn)
}

/// Sends a batch and reads what came of it.
fn exchange(socket: &OwnedFd, batch: &[u8]) -> Result<Committed, NftError> {
    // What is told of a rule is no longer than four times what makes it, with the kernel's own share.
    let answered = (ROOM + 8 * batch.len()).min(MOST);
    let sent = (batch.len() + ROOM).min(MOST);
    let sent = setsockopt(socket, sockopt::SndBufForce, &sent);
    let grown = sent.and_then(|()| setsockopt(socket, sockopt::RcvBufForce, &answered));
    // Only the first user namespace's administrator may: small batches need no more than there is.
    if batch.len() > SMALL {
        grown.map_err(lost)?;
    }
    send(socket.as_raw_fd(), batch, MsgFlags::empty()).map_err(lost)?;
    let mut rules = Vec::new();
    receive(socket, |kind, attributes| {
        if kind == NEW_RULE {
            rules.extend(committed_rule(attributes));
        }
    })?;
    let address: NetlinkAddr = getsockname(socket.as_raw_fd()).map_err(lost)?;
    Ok(Committed {
        sender: Some(address.pid()),
        rules,
    })
}

/// Reads messages up to an acknowledgement, or the first refusal.
fn receive(socket: &OwnedFd, mut each: impl FnMut(u16, &[u8])) -> Result<(), NftError> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(lost)?;
        let mut bytes = &buffer[..length];
        while !bytes.is_empty() {
            let (message, rest) = split(bytes).ok_or_else(torn)?;
            bytes = rest;
            let kind = u16_at(message, 4).ok_or_else(torn)?;
            if kind != NLMSG_ERROR {
                each(kind, message.get(GENERIC_HEADER..).ok_or_else(torn)?);
                continue;
            }
            let errno = message.get(HEADER..).and_then(|body| u32_at(body, 0));
            return match -errno.ok_or_else(torn)?.cast_signed() {
                0 => Ok(()),
                errno => Err(NftError::rejected(Errno::from_raw(errno))),
            };
        }
    }
}

/// The first message, and what is behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let message = bytes.get(..length).filter(|_| length >= HEADER)?;
    let next = length.next_multiple_of(4);
    Some((message, bytes.get(next..).unwrap_or_default()))
}

fn committed_rule(attributes: &[u8]) -> Option<CommittedRule> {
    let handle = find(attributes, 3)?.first_chunk()?;
    // `NFTNL_UDATA_RULE_COMMENT` is the first of the user's data, and we give no other.
    let comment = find(attributes, 7)?.get(2..)?;
    let comment = comment.strip_suffix(&[0]).unwrap_or(comment);
    Some(CommittedRule {
        chain: String::from_utf8_lossy(find_text(attributes, 2)?).into_owned(),
        comment: String::from_utf8_lossy(comment).into_owned(),
        handle: u64::from_be_bytes(*handle),
    })
}

fn lost(errno: Errno) -> NftError {
    NftError::Netlink(errno.into())
}

fn torn() -> NftError {
    NftError::Netlink(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::super::wire::message;
    use super::*;

    #[test]
    fn answers_are_told_apart_from_what_is_torn() {
        let answer = message(NLMSG_ERROR, 0, 0, 0, &[]);
        let two = [answer.clone(), answer].concat();
        let (first, rest) = split(&two).unwrap();
        assert_eq!((first.len(), rest.len()), (GENERIC_HEADER, GENERIC_HEADER));
        for cut in [1, 5, 17] {
            assert!(split(&two[..cut]).is_none(), "{cut}");
        }
        let endless = [0; HEADER];
        assert!(split(&endless).is_none());
    }
}
