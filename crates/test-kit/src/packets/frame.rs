//! Packets as octets: built, taken apart, and disguised.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{Mark, Packet, What};

pub type Mac = [u8; 6];

pub const EVERYBODY: Mac = [0xff; 6];

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
/// IEEE 802 local experimental: nothing on the host answers it.
pub const EXPERIMENTAL: u16 = 0x88b5;
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// An Ethernet frame.
pub fn ethernet(to: Mac, from: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to, &from, &ether_type.to_be_bytes()[..], payload].concat()
}

/// The packet in a frame from one machine to another. ARP says what `from` really is.
pub fn of(packet: &Packet, from: Mac, to: Mac) -> Vec<u8> {
    let ether_type = match packet.what {
        What::Arp => ARP,
        _ if packet.is_v4() => IPV4,
        _ => IPV6,
    };
    let octets = match packet.what {
        What::Arp => arp(packet, from),
        _ => ip(packet),
    };
    ethernet(to, from, ether_type, &octets)
}

/// An ARP request from the owner of `sender`; the mark trails it.
pub fn arp(packet: &Packet, sender: Mac) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (packet.from, packet.to) else {
        panic!("ARP is of IPv4: {packet}");
    };
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let body = [&sender[..], &from.octets(), &[0; 6], &to.octets()].concat();
    [&head[..], &body, &packet.mark.octets()].concat()
}

/// The packet from its IP header on.
pub fn ip(packet: &Packet) -> Vec<u8> {
    let (protocol, segment) = segment(packet);
    match (packet.from, packet.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, [0, 0], &segment),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, &segment),
        _ => panic!("of two families: {packet}"),
    }
}

/// An IPv4 packet. `fragment` holds the flags and the offset.
pub fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    fragment: [u8; 2],
    segment: &[u8],
) -> Vec<u8> {
    let [high, low] = length(20 + segment.len());
    let [more, offset] = fragment;
    let mut header = vec![
        0x45, 0, high, low, 0x12, 0x34, more, offset, 64, protocol, 0, 0,
    ];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [&header, segment].concat()
}

/// An IPv6 packet.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, segment: &[u8]) -> Vec<u8> {
    let [high, low] = length(segment.len());
    let head = [0x60, 0, 0, 0, high, low, next, 255];
    [&head[..], &from.octets(), &to.octets(), segment].concat()
}

/// An IPv6 extension header of eight octets, which do nothing.
pub fn extension(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

/// What is above IP, and its protocol number.
pub fn segment(packet: &Packet) -> (u8, Vec<u8>) {
    let mark = packet.mark.octets();
    let (protocol, mut octets, sum_at) = match packet.what {
        What::Tcp { from, to, flags } => (TCP, tcp(from, to, flags, &mark), 16),
        What::Udp { from, to } => (UDP, udp(from, to, &mark), 6),
        What::Icmp { kind, id } if packet.is_v4() => (ICMP, icmp(kind, id, &mark), 2),
        What::Icmp { kind, id } => (ICMPV6, icmpv6(packet, kind, id), 2),
        What::Unreachable { from, to } => {
            let protocol = if packet.is_v4() { ICMP } else { ICMPV6 };
            (protocol, unreachable(packet, from, to), 2)
        }
        What::Arp => panic!("ARP is not above IP"),
    };
    let mut covered = pseudo_header(packet, protocol, octets.len());
    covered.extend(&octets);
    let sum = checksum(&covered).to_be_bytes();
    octets[sum_at..sum_at + 2].copy_from_slice(&sum);
    (protocol, octets)
}

/// The numbers are such that an answer to a SYN, and the ACK after it, are in the window.
fn tcp(from: u16, to: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let (sequence, acknowledged) = match flags {
        super::packet::SYN => (1000_u32, 0_u32),
        super::packet::ACK => (1009, 1009),
        _ => (1000, 1009),
    };
    let mut octets = [from.to_be_bytes(), to.to_be_bytes()].concat();
    octets.extend(sequence.to_be_bytes());
    octets.extend(acknowledged.to_be_bytes());
    octets.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    octets.extend(payload);
    octets
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    [&ports[..], &length(8 + payload.len()), &[0, 0], payload].concat()
}

fn icmp(kind: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1], payload].concat()
}

/// "Port unreachable"; quotes the packet it is about.
fn unreachable(packet: &Packet, from: u16, to: u16) -> Vec<u8> {
    let about = ip(&Packet {
        from: packet.to,
        to: packet.from,
        what: What::Udp { from, to },
        mark: packet.mark,
    });
    let (kind, code) = if packet.is_v4() { (3, 3) } else { (1, 4) };
    [&[kind, code, 0, 0, 0, 0, 0, 0][..], &about].concat()
}

/// A neighbour message is about its sender if it advertises, else about its receiver.
fn icmpv6(packet: &Packet, kind: u8, id: u16) -> Vec<u8> {
    use super::packet::{NEIGHBOUR_ADVERT, NEIGHBOUR_SOLICIT};
    let mark = packet.mark.octets();
    let about = match (kind, packet.from, packet.to) {
        (NEIGHBOUR_ADVERT, IpAddr::V6(from), _) => from,
        (NEIGHBOUR_SOLICIT, _, IpAddr::V6(to)) => to,
        _ => return icmp(kind, id, &mark),
    };
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &about.octets(), &mark].concat()
}

/// What checksums cover beside the segment. Of ICMP over IPv4 nothing.
fn pseudo_header(packet: &Packet, protocol: u8, segment: usize) -> Vec<u8> {
    let rest = [&[0, protocol], &length(segment)[..]].concat();
    match (packet.from, packet.to) {
        _ if protocol == ICMP => Vec::new(),
        (IpAddr::V4(from), IpAddr::V4(to)) => [&from.octets()[..], &to.octets(), &rest].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [&from.octets()[..], &to.octets(), &rest].concat(),
        _ => panic!("of two families: {packet}"),
    }
}

fn length(octets: usize) -> [u8; 2] {
    u16::try_from(octets).unwrap().to_be_bytes()
}

fn checksum(octets: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = octets.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// The frame with an 802.1Q (or 802.1ad) tag put in.
pub fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    [&frame[..12], &tag.to_be_bytes(), &[0, 5], &frame[12..]].concat()
}

/// A frame in two pieces; the second has no ports.
pub fn fragments(packet: &Packet, from: Mac, to: Mac) -> [Vec<u8>; 2] {
    let (protocol, segment) = segment(packet);
    // A fragment's length is a multiple of eight.
    let (head, tail) = segment.split_at(8);
    let pieces = match (packet.from, packet.to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => [
            ipv4(source, destination, protocol, [0x20, 0], head),
            ipv4(source, destination, protocol, [0, 1], tail),
        ],
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let piece = |offset: u8, more: u8, octets: &[u8]| {
                let header = [protocol, 0, 0, offset << 3 | more, 0, 0, 0x12, 0x34];
                ipv6(source, destination, 44, &[&header[..], octets].concat())
            };
            [piece(0, 1, head), piece(1, 0, tail)]
        }
        _ => panic!("of two families: {packet}"),
    };
    let ether_type = if packet.is_v4() { IPV4 } else { IPV6 };
    pieces.map(|piece| ethernet(to, from, ether_type, &piece))
}

/// What a frame says, as far as a test asks: not of tagged ones, nor of those with extensions.
pub fn read(frame: &[u8]) -> Option<Packet> {
    match (u16_at(frame, 12)?, frame.get(14..)?) {
        (IPV4, octets) => read_ipv4(octets),
        (IPV6, octets) => read_ipv6(octets),
        _ => None,
    }
}

/// A packet from its IPv4 header on.
pub fn read_ipv4(octets: &[u8]) -> Option<Packet> {
    let address = |at: usize| {
        octets
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(<Ipv4Addr as From<[u8; 4]>>::from)
    };
    let segment = octets.get(usize::from(octets.first()? & 0xf) * 4..)?;
    let ends = (address(12)?.into(), address(16)?.into());
    read_segment(*octets.get(9)?, ends, segment)
}

fn read_ipv6(octets: &[u8]) -> Option<Packet> {
    let address = |at: usize| {
        octets
            .get(at..at + 16)?
            .try_into()
            .ok()
            .map(<Ipv6Addr as From<[u8; 16]>>::from)
    };
    let ends = (address(8)?.into(), address(24)?.into());
    read_segment(*octets.get(6)?, ends, octets.get(40..)?)
}

/// What is above IP. A segment without a mark has mark 0, which no packet of ours has.
pub fn read_segment(protocol: u8, ends: (IpAddr, IpAddr), segment: &[u8]) -> Option<Packet> {
    let ports = || Some((u16_at(segment, 0)?, u16_at(segment, 2)?));
    let what = match protocol {
        TCP => {
            let ((from, to), flags) = (ports()?, *segment.get(13)?);
            What::Tcp { from, to, flags }
        }
        UDP => {
            let (from, to) = ports()?;
            What::Udp { from, to }
        }
        ICMP | ICMPV6 => What::Icmp {
            kind: *segment.first()?,
            id: u16_at(segment, 4)?,
        },
        _ => return None,
    };
    let mark = Mark::in_octets(segment).unwrap_or(Mark(0));
    let (from, to) = ends;
    Some(Packet {
        from,
        to,
        what,
        mark,
    })
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_be_bytes)
}
