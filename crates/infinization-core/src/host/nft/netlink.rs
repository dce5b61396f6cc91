//! Taking ports out of the verdict maps by nfnetlink messages of our own, over a socket that stays
//! open.
//!
//! `nft` is not slow at this, its end is: a process that closes its nfnetlink socket waits until the
//! kernel has freed what was deleted, an RCU grace period of 10 to 20 ms (`nft_rcv_nl_event`, Linux
//! 6.18). A stop, a crash and a forced end of a VM need nothing but this.
//!
//! The bytes are those of `linux/netfilter/nfnetlink.h` and `nf_tables.h`. The kernel serves a batch
//! while it is being sent, all or nothing, and its answers are there when `send` returns.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, socket,
};

use super::error::NftError;
use crate::firewall::{TABLE, VerdictMap};
use crate::host::blocking::blocking;
use crate::types::LinkName;

const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYS_NFTABLES: u16 = 10;
/// `NFT_MSG_DELSETELEM`.
const DELETE_ELEMENTS: u16 = (SUBSYS_NFTABLES << 8) + 14;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const FAMILY_BRIDGE: u8 = 7;
const NESTED: u16 = 1 << 15;
/// `nlmsghdr`.
const HEADER: usize = 16;
/// `IFNAMSIZ`: the length of a map's key.
const KEY: usize = 16;
/// An answer has a header, an errno, and the request it is about.
const ANSWERS: usize = 16 * 1024;

/// Which element of which map.
pub(super) type Port = (VerdictMap, LinkName);

/// A socket that is opened when it is needed first, and again after an error.
#[derive(Debug, Default)]
pub(super) struct Elements(Mutex<Option<OwnedFd>>);

impl Elements {
    /// Deletes the elements in one transaction; answers the port of the socket it came from.
    pub(super) async fn delete(self: &Arc<Self>, ports: Vec<Port>) -> Result<u32, NftError> {
        let elements = Arc::clone(self);
        blocking(move || elements.delete_now(&ports))
            .await
            .map_err(|error| NftError::Netlink(error.into()))?
    }

    fn delete_now(&self, ports: &[Port]) -> Result<u32, NftError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match held.take() {
            Some(socket) => socket,
            None => open().map_err(NftError::Netlink)?,
        };
        match exchange(&socket, &batch(ports), ports.len()).map_err(NftError::Netlink)? {
            None => {
                let address: NetlinkAddr = getsockname(socket.as_raw_fd())
                    .map_err(|errno| NftError::Netlink(errno.into()))?;
                // Only a socket with nothing left unread is used again.
                *held = Some(socket);
                Ok(address.pid())
            }
            Some(errno) => Err(NftError::rejected(errno)),
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends a batch and reads the answer to each of its `requests`, up to the first refusal: of one, or
/// of the whole batch.
fn exchange(socket: &OwnedFd, batch: &[u8], requests: usize) -> io::Result<Option<Errno>> {
    send(socket.as_raw_fd(), batch, MsgFlags::empty())?;
    let mut accepted = 0;
    let mut buffer = vec![0; ANSWERS];
    while accepted < requests {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for errno in errnos_in(&buffer[..length])? {
            if errno != 0 {
                return Ok(Some(Errno::from_raw(errno)));
            }
            accepted += 1;
        }
    }
    Ok(None)
}

fn errnos_in(mut bytes: &[u8]) -> io::Result<Vec<i32>> {
    let torn = || io::Error::from(io::ErrorKind::InvalidData);
    let mut errnos = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(torn)?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).map_err(|_| torn())?;
        let kind = rest.first_chunk::<2>().ok_or_else(torn)?;
        let body = bytes.get(HEADER..length).ok_or_else(torn)?;
        if u16::from_ne_bytes(*kind) == NLMSG_ERROR {
            let errno = body.first_chunk::<4>().ok_or_else(torn)?;
            errnos.push(-i32::from_ne_bytes(*errno));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(errnos)
}

fn batch(ports: &[Port]) -> Vec<u8> {
    let limit = |kind| message(kind, REQUEST, 0, SUBSYS_NFTABLES, &[]);
    let deletes = ports.iter().flat_map(|(map, tap)| {
        let attributes = element(*map, tap);
        message(
            DELETE_ELEMENTS,
            REQUEST | ACK,
            FAMILY_BRIDGE,
            0,
            &attributes,
        )
    });
    let mut batch = limit(BATCH_BEGIN);
    batch.extend(deletes);
    batch.extend(limit(BATCH_END));
    batch
}

/// `nlmsghdr`, `nfgenmsg`, attributes.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + 4 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: answers come in order, and the kernel fills the port in.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// `NFTA_SET_ELEM_LIST_*` of one element.
fn element(map: VerdictMap, tap: &LinkName) -> Vec<u8> {
    let mut key = [0; KEY];
    key[..tap.as_str().len()].copy_from_slice(tap.as_str().as_bytes());
    let key = nested(1, &attribute(1, &key));
    let mut list = text(1, TABLE);
    list.extend(text(2, map.as_str()));
    list.extend(nested(3, &nested(1, &key)));
    list
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, content)
}

/// `nlattr`, padded to four bytes.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = 4 + content.len();
    let mut bytes = u16::try_from(length)
        .unwrap_or(u16::MAX)
        .to_ne_bytes()
        .to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_padded_and_its_length_is_not() {
        assert_eq!(
            attribute(2, b"abc"),
            [&7u16.to_ne_bytes()[..], &2u16.to_ne_bytes(), b"abc\0"].concat()
        );
        assert_eq!(text(1, "abc").len(), 8);
        assert_eq!(nested(3, &[])[2..], (3u16 | 0x8000).to_ne_bytes());
    }

    #[test]
    fn answers_are_told_apart_from_what_is_torn() {
        let answer = |errno: i32| {
            message(NLMSG_ERROR, 0, 0, 0, &[])[..HEADER]
                .iter()
                .copied()
                .chain((-errno).to_ne_bytes())
                .collect::<Vec<u8>>()
        };
        let mut two = answer(0);
        two.extend(answer(2));
        assert_eq!(errnos_in(&two).unwrap(), [0, 2]);
        assert!(errnos_in(&[]).unwrap().is_empty());
        for cut in [1, 5, 17] {
            assert!(errnos_in(&two[..cut]).is_err(), "{cut}");
        }
        let endless = [0; HEADER];
        assert!(errnos_in(&endless).is_err());
    }
}
