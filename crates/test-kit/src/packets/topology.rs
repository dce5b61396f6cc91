//! A site in a private network:
//!
//! ```text
//!   A1 ──vnet-…──┐                                    ┌──vnet-…── B1
//!   A2 ──vnet-…──┼── infinibr-a ── Host ── infinibr-b ┘
//!   Wire ─eth-a──┘                  │
//!                                uplink0 ── Outside
//! ```
//!
//! A1, A2 and B1 are managed machines, Wire is another machine on department A's link, by a port of a
//! foreign name. What the departments send outside is masqueraded.

use std::collections::BTreeMap;
use std::net::IpAddr;

use infinization_core::firewall::{Masquerade, Subnet};
use infinization_core::host::nft::Nft;
use infinization_core::types::{LinkName, VmId, VmNames};

use super::batch;
use super::frame::{self, Mac};
use super::host::Host;
use super::packet::{Mark, Packet, RST, What};
use super::port::Port;
use crate::firewall::address;

/// Where packets come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    A1,
    A2,
    B1,
    Wire,
    Outside,
    Host,
}

use Place::{A1, A2, B1, Outside, Wire};

/// The managed machines.
pub const VMS: [Place; 3] = [A1, A2, B1];
const PORTS: [Place; 5] = [A1, A2, B1, Wire, Outside];

/// The host's addresses on each link.
const GATEWAYS: [[&str; 2]; 3] = [
    ["10.1.0.1", "fd01::1"],
    ["10.2.0.1", "fd02::1"],
    ["198.51.100.1", "fd98::1"],
];

impl Place {
    pub fn is_vm(self) -> bool {
        VMS.contains(&self)
    }

    /// The machine's id, which names its port and its chains.
    pub fn vm_id(self) -> VmId {
        VmId::parse(format!("packets-{self:?}")).unwrap()
    }

    /// The link it is on: its name, and the host's MAC address there.
    pub fn link(self) -> (&'static str, Mac) {
        match self {
            A1 | A2 | Wire | Self::Host => ("infinibr-a", [2, 0, 0, 0, 0, 0xa]),
            B1 => ("infinibr-b", [2, 0, 0, 0, 0, 0xb]),
            Outside => ("uplink0", [2, 0, 0, 0, 0, 0xf]),
        }
    }

    /// The host's address on its link.
    pub fn gateway(self, v4: bool) -> IpAddr {
        let link = match self {
            A1 | A2 | Wire | Self::Host => 0,
            B1 => 1,
            Outside => 2,
        };
        address(GATEWAYS[link][usize::from(!v4)])
    }

    /// Its address.
    pub fn address(self, v4: bool) -> IpAddr {
        let (ip4, ip6) = match self {
            A1 => ("10.1.0.2", "fd01::2"),
            A2 => ("10.1.0.3", "fd01::3"),
            Wire => ("10.1.0.9", "fd01::9"),
            B1 => ("10.2.0.2", "fd02::2"),
            Outside => ("198.51.100.2", "fd98::2"),
            Self::Host => ("10.1.0.1", "fd01::1"),
        };
        address(if v4 { ip4 } else { ip6 })
    }

    pub fn mac(self) -> Mac {
        match self {
            A1 | A2 | B1 => octets(&VmNames::of(&self.vm_id()).mac.to_string()),
            Wire => [2, 0, 0, 0, 0, 0x99],
            Outside => [2, 0, 0, 0, 0, 0xee],
            Self::Host => self.link().1,
        }
    }

    fn port_name(self) -> String {
        match self {
            Wire => "eth-a".into(),
            Outside => "uplink0".into(),
            vm => VmNames::of(&vm.vm_id()).tap.to_string(),
        }
    }
}

fn octets(mac: &str) -> Mac {
    let mut pairs = mac.split(':').map(|pair| u8::from_str_radix(pair, 16));
    std::array::from_fn(|_| pairs.next().unwrap().unwrap())
}

/// All of it. Whatever arrives anywhere is kept until it is asked for.
#[derive(Debug)]
pub struct Site {
    ports: BTreeMap<Place, Port>,
    host: Host,
    arrived: Vec<(Place, Arrival)>,
    marks: u32,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Its octets; nothing of what the host's sockets took.
    pub frame: Vec<u8>,
    /// What it says, where that can be read.
    pub packet: Option<Packet>,
    pub mark: Option<Mark>,
}

impl Site {
    /// Needs a network of its own. No rules are loaded: the managed ports are closed.
    pub async fn new() -> Self {
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
        }
        let mut ports = BTreeMap::new();
        for place in PORTS {
            let port = Port::new(&place.port_name(), place.mac()).await;
            ports.insert(place, port);
        }
        batch("ip", &links());
        batch("bridge", &learned());
        masquerade().await;
        Self {
            ports,
            host: Host::new(),
            arrived: Vec::new(),
            marks: 0,
        }
    }

    /// A mark nothing else has.
    pub fn mark(&mut self) -> Mark {
        self.marks += 1;
        Mark(self.marks)
    }

    /// Puts a frame on a machine's cable as it is.
    pub fn send_frame(&self, from: Place, frame: &[u8]) {
        self.ports[&from].send(frame);
    }

    /// Sends a packet as `from` would to reach `to`.
    pub fn send(&self, from: Place, to: Place, packet: &Packet) {
        match from {
            Place::Host => self.host.send(packet),
            _ => self.send_frame(from, &Self::frame(from, to, packet)),
        }
    }

    /// The frame `from` would send to reach `to`: directly on one link, else by the host.
    pub fn frame(from: Place, to: Place, packet: &Packet) -> Vec<u8> {
        frame::of(packet, from.mac(), next_hop(from, to, packet))
    }

    /// What has arrived anywhere, and forgets it.
    pub fn take(&mut self) -> Vec<(Place, Arrival)> {
        for place in PORTS {
            self.collect(place);
        }
        self.collect(Place::Host);
        std::mem::take(&mut self.arrived)
    }

    /// The packet with this mark, if it has arrived at this place.
    pub fn arrival(&mut self, place: Place, mark: Mark) -> Option<Arrival> {
        self.collect(place);
        let mut all = self.arrived.iter().rev();
        let found = all.find(|(at, arrival)| *at == place && arrival.mark == Some(mark));
        found.map(|(_, arrival)| arrival.clone())
    }

    /// Whether `place`, which sent this packet, was told that it is refused.
    pub fn is_refused(&mut self, place: Place, sent: &Packet) -> bool {
        self.collect(place);
        let here = self.arrived.iter().rev().filter(|(at, _)| *at == place);
        let mut packets = here.filter_map(|(_, arrival)| arrival.packet);
        packets.any(|packet| refuses(&packet, sent))
    }

    /// Takes in whatever has arrived there since.
    fn collect(&mut self, place: Place) {
        let Some(port) = self.ports.get(&place) else {
            let packets = self.host.receive().into_iter();
            self.arrived
                .extend(packets.map(|packet| (place, Arrival::read(packet))));
            return;
        };
        while let Some(frame) = port.receive() {
            self.arrived.push((place, Arrival::of(frame)));
        }
    }
}

impl Arrival {
    fn of(frame: Vec<u8>) -> Self {
        Self {
            packet: frame::read(&frame),
            mark: Mark::in_octets(&frame),
            frame,
        }
    }

    fn read(packet: Packet) -> Self {
        Self {
            frame: Vec::new(),
            packet: Some(packet),
            mark: Some(packet.mark),
        }
    }
}

/// A reset for its ports, or an error that quotes it.
fn refuses(answer: &Packet, sent: &Packet) -> bool {
    match (answer.what, sent.what) {
        (
            What::Tcp { from, to, flags },
            What::Tcp {
                from: ours,
                to: theirs,
                ..
            },
        ) => flags & RST != 0 && (from, to) == (theirs, ours),
        (What::Icmp { kind: 3, .. }, _) if sent.is_v4() => answer.mark == sent.mark,
        (What::Icmp { kind: 1, .. }, _) if !sent.is_v4() => answer.mark == sent.mark,
        _ => false,
    }
}

fn next_hop(from: Place, to: Place, packet: &Packet) -> Mac {
    match (packet.what, packet.to) {
        (What::Arp, _) => frame::EVERYBODY,
        (_, IpAddr::V4(address)) if address.is_broadcast() => frame::EVERYBODY,
        (_, IpAddr::V6(address)) if address.is_multicast() => {
            let [.., a, b, c, d] = address.octets();
            [0x33, 0x33, a, b, c, d]
        }
        _ if from.link() == to.link() => to.mac(),
        _ => from.link().1,
    }
}

/// Lines for `ip` that make the links and give the host its addresses.
fn links() -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    for place in [A1, B1] {
        let (name, mac) = place.link();
        let mac = text(mac);
        lines.push(format!(
            "link add {name} address {mac} type bridge mcast_snooping 0"
        ));
        lines.extend(up(place));
    }
    for place in [A1, A2, B1, Wire] {
        let (name, (link, _)) = (place.port_name(), place.link());
        lines.push(format!("link set {name} master {link}"));
        lines.push(format!("link set {name} up"));
    }
    let (name, mac) = Outside.link();
    lines.push(format!("link set {name} address {}", text(mac)));
    lines.extend(up(Outside));
    lines.extend(PORTS.into_iter().flat_map(neighbours));
    // Somebody beyond the outside.
    for (network, is_v4) in [
        ("203.0.113.0/24", true),
        ("192.0.2.0/24", true),
        ("fd99::/64", false),
    ] {
        let via = Outside.address(is_v4);
        lines.push(format!("route add {network} via {via}"));
    }
    lines
}

/// The host's side of a link. No address of the kernel's own choice, so that the rules do not depend
/// on when it comes.
fn up(place: Place) -> [String; 4] {
    let (link, _) = place.link();
    let [v4, v6] = [true, false].map(|v4| place.gateway(v4));
    [
        format!("link set {link} addrgenmode none"),
        format!("link set {link} up"),
        format!("addr add {v4}/24 dev {link}"),
        format!("addr add {v6}/64 dev {link} nodad"),
    ]
}

/// The host need not ask who has the machine's addresses.
fn neighbours(place: Place) -> [String; 2] {
    let ((link, _), mac) = (place.link(), text(place.mac()));
    [true, false].map(|v4| {
        let address = place.address(v4);
        format!("neigh replace {address} lladdr {mac} dev {link} nud permanent")
    })
}

/// Lines for `bridge`: as if the machines had spoken before, nothing is flooded.
fn learned() -> Vec<String> {
    let line = |place: Place| {
        let (mac, port) = (text(place.mac()), place.port_name());
        format!("fdb replace {mac} dev {port} master static")
    };
    [A1, A2, B1, Wire].map(line).to_vec()
}

async fn masquerade() {
    let nft = Nft::new();
    nft.prepare_nat().await.unwrap();
    for (subnet, bridge) in [("10.1.0.0/24", "infinibr-a"), ("10.2.0.0/24", "infinibr-b")] {
        let wanted = Masquerade {
            subnet: Subnet::parse(subnet).unwrap(),
            bridge: LinkName::parse(bridge).unwrap(),
        };
        nft.masquerade(wanted).await.unwrap();
    }
}

fn text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
