//! What the host itself sends and receives: raw sockets, which see whatever its firewall hooks let
//! through and send through its connection tracking, as its own services would.
//!
//! The kernel's own answers (resets, echoes, errors) are kept from being sent, as they would pass for
//! ours; the sockets' packets are told apart by a mark.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom,
    sendto, socket_with,
};

use super::batch;
use super::frame;
use super::packet::Packet;

const OURS: u32 = 0x1f2a;
const LONGEST: usize = 4096;

#[derive(Debug)]
pub struct Host {
    senders: [OwnedFd; 2],
    /// By protocol number: of IPv4, then of IPv6.
    receivers: [[(u8, OwnedFd); 3]; 2],
}

impl Host {
    pub fn new() -> Self {
        let hook = "type filter hook output priority -400";
        let quiet = format!("meta mark != {OURS} drop");
        let chain = format!("table inet quiet {{ chain output {{ {hook}; {quiet}; }}; }}");
        batch("nft", &[chain]);
        let receiver = |family, protocol: Protocol| {
            let number = u8::try_from(protocol.as_raw().get()).unwrap();
            (number, raw(family, protocol))
        };
        let receivers = |family, icmp| {
            [ipproto::TCP, ipproto::UDP, icmp].map(|protocol| receiver(family, protocol))
        };
        Self {
            senders: [AddressFamily::INET, AddressFamily::INET6].map(sender),
            receivers: [
                receivers(AddressFamily::INET, ipproto::ICMP),
                receivers(AddressFamily::INET6, ipproto::ICMPV6),
            ],
        }
    }

    pub fn send(&self, packet: &Packet) {
        let socket = &self.senders[usize::from(!packet.is_v4())];
        let to = SocketAddr::new(packet.to, 0);
        sendto(socket, &frame::ip(packet), SendFlags::empty(), &to)
            .unwrap_or_else(|error| panic!("{packet}: {error}"));
    }

    /// All that has arrived.
    pub fn receive(&self) -> Vec<Packet> {
        let [v4, v6] = &self.receivers;
        let v4 = v4.iter().flat_map(|(_, socket)| {
            datagrams(socket).filter_map(|(octets, _)| frame::read_ipv4(&octets))
        });
        // The kernel keeps the IPv6 header to itself.
        let v6 = v6.iter().flat_map(|(number, socket)| {
            datagrams(socket)
                .filter_map(|(octets, from)| frame::read_segment(*number, (from, from), &octets))
        });
        v4.chain(v6).collect()
    }
}

fn sender(family: AddressFamily) -> OwnedFd {
    let socket = raw(family, ipproto::RAW);
    setsockopt(&socket, sockopt::Mark, &OURS).unwrap();
    socket
}

fn raw(family: AddressFamily, protocol: Protocol) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::RAW, flags, Some(protocol)).unwrap()
}

fn datagrams(socket: &OwnedFd) -> impl Iterator<Item = (Vec<u8>, IpAddr)> {
    std::iter::from_fn(move || {
        let mut octets = vec![0; LONGEST];
        match recvfrom(socket, &mut octets[..], RecvFlags::empty()) {
            Ok((length, _, from)) => {
                octets.truncate(length);
                let from = SocketAddr::try_from(from?).unwrap();
                Some((octets, from.ip()))
            }
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    })
}
