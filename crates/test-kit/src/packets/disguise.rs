//! Ways to wrap a packet so that a filter may not recognise it, while its receiver does.

use std::net::IpAddr;

use super::frame::{self, IPV6, Mac, SERVICE_VLAN, VLAN};
use super::packet::Packet;

/// IPv6's extension headers that do nothing.
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;

/// The frames of one packet; its receiver needs all of them.
#[derive(Debug, Clone)]
pub struct Disguise {
    pub name: &'static str,
    pub frames: Vec<Vec<u8>>,
}

/// The packet as it is, and in every disguise.
pub fn all(packet: &Packet, from: Mac, to: Mac) -> Vec<Disguise> {
    let plain = frame::of(packet, from, to);
    let mut all = vec![
        one("tagged", frame::tagged(&plain, VLAN)),
        one("tagged by a provider", frame::tagged(&plain, SERVICE_VLAN)),
    ];
    let of_ip = !matches!(packet.what, super::What::Arp);
    if of_ip {
        let pieces = frame::fragments(packet, from, to);
        let tagged = pieces.each_ref().map(|piece| frame::tagged(piece, VLAN));
        all.push(several("in fragments", pieces));
        all.push(several("in tagged fragments", tagged));
    }
    if of_ip && !packet.is_v4() {
        all.extend(extended(packet, from, to));
    }
    all.push(one("plain", plain));
    all
}

/// Behind extension headers of IPv6.
fn extended(packet: &Packet, from: Mac, to: Mac) -> Vec<Disguise> {
    let (protocol, segment) = frame::segment(packet);
    let framed = |next: u8, octets: &[u8]| ipv6(packet, from, to, next, octets);
    let behind = |header: u8| framed(header, &[&frame::extension(protocol), &*segment].concat());
    // The first piece ends before the segment begins.
    let fragment =
        |offset: u8, more: u8| [DESTINATION_OPTIONS, 0, 0, offset << 3 | more, 0, 0, 0, 7];
    let head = [fragment(0, 1), frame::extension(protocol)].concat();
    let tail = [&fragment(1, 0), &*segment].concat();
    let atomic = [&[protocol, 0, 0, 0, 0, 0, 0, 7], &*segment].concat();
    vec![
        one("behind hop-by-hop options", behind(HOP_BY_HOP)),
        one("behind destination options", behind(DESTINATION_OPTIONS)),
        one("in the only fragment", framed(FRAGMENT, &atomic)),
        several(
            "in a later fragment",
            [framed(FRAGMENT, &head), framed(FRAGMENT, &tail)],
        ),
    ]
}

fn ipv6(packet: &Packet, from: Mac, to: Mac, next: u8, octets: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.from, packet.to) else {
        panic!("not of IPv6: {packet}");
    };
    let octets = frame::ipv6(source, destination, next, octets);
    frame::ethernet(to, from, IPV6, &octets)
}

fn one(name: &'static str, frame: Vec<u8>) -> Disguise {
    let frames = vec![frame];
    Disguise { name, frames }
}

fn several(name: &'static str, frames: [Vec<u8>; 2]) -> Disguise {
    let frames = Vec::from(frames);
    Disguise { name, frames }
}
