//! The traffic every rule set is tried with: who speaks first, to whom, and of what.

use std::net::IpAddr;

use super::firewall::address;
use super::kit::packets::Place::{self, A1, A2, B1, Host, Outside, Wire};
use super::kit::packets::packet::{
    ACK, NEIGHBOUR_ADVERT, NEIGHBOUR_SOLICIT, REDIRECT, ROUTER_ADVERT, ROUTER_SOLICIT, RST, SYN,
};
use super::kit::packets::{Packet, Site, What};
use super::rule::State;

/// A packet that nothing has gone before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) first: Packet,
    /// What connection tracking makes of it.
    pub(crate) state: State,
}

impl Flow {
    /// The packet as its receiver sees it. What a department sends outside comes from the
    /// host's address there; of IPv4, and if it may belong to a connection. Between departments addresses stay.
    pub(crate) fn masqueraded(&self) -> Packet {
        let leaves = self.from != Outside && self.to == Outside;
        if leaves && self.first.is_v4() && self.state != State::Invalid {
            let from = self.to.gateway(true);
            return Packet { from, ..self.first };
        }
        self.first
    }
}

/// On one link, to the host, through it, from outside: both ways.
const PAIRS: [(Place, Place); 8] = [
    (A1, A2),
    (A2, A1),
    (A1, Host),
    (Host, A1),
    (A1, Outside),
    (Outside, A1),
    (A1, B1),
    (B1, A1),
];

/// All of them, with ports of their own. `round` makes every other source port a high one.
pub(crate) fn flows(site: &mut Site, round: usize) -> Vec<Flow> {
    let mut all = Vec::new();
    for (from, to) in PAIRS {
        for v4 in [true, false] {
            for what in conversations(v4) {
                all.push((from, to, between(from, to, v4), what, State::New));
            }
        }
    }
    all.extend(strays());
    all.extend(infrastructure(round));
    let numbered = all.into_iter().enumerate();
    let flow = |(n, (from, to, (source, destination), what, state))| {
        let mark = site.mark();
        let first = Packet {
            from: source,
            to: destination,
            what: with_port(what, source_port(round, n)),
            mark,
        };
        Flow {
            from,
            to,
            first,
            state,
        }
    };
    numbered.map(flow).collect()
}

type Draft = (Place, Place, (IpAddr, IpAddr), What, State);

fn between(from: Place, to: Place, v4: bool) -> (IpAddr, IpAddr) {
    (from.address(v4), to.address(v4))
}

/// A port, or identifier, that no flow of 240 rounds has used before: a kernel that tracks connections remembers
/// those of days. Of two neighbours one is low and one high, and a round has fewer than 200 flows.
fn source_port(round: usize, n: usize) -> u16 {
    let low = (round + n).is_multiple_of(2);
    assert!(n < 200, "the next round's");
    let number = u16::try_from((round * 100 + n / 2) % 24_000).unwrap();
    if low { 2000 + number } else { 40_000 + number }
}

/// 0 stands for a port that has not been chosen yet.
fn with_port(what: What, port: u16) -> What {
    match what {
        What::Tcp { from: 0, to, flags } => What::Tcp {
            from: port,
            to,
            flags,
        },
        What::Tcp { from, to: 0, flags } => What::Tcp {
            from,
            to: port,
            flags,
        },
        What::Udp { from, to: 0 } => What::Udp { from, to: port },
        What::Udp { from: 0, to } => What::Udp { from: port, to },
        What::Icmp { kind, id: 0 } => What::Icmp { kind, id: port },
        chosen => chosen,
    }
}

fn conversations(v4: bool) -> [What; 6] {
    let tcp = |to| What::Tcp {
        from: 0,
        to,
        flags: SYN,
    };
    let udp = |to| What::Udp { from: 0, to };
    let echo = Packet::echo_request(v4, 0);
    [tcp(22), tcp(80), tcp(4000), udp(53), udp(7000), echo]
}

/// Packets that pretend to answer something.
fn strays() -> Vec<Draft> {
    let mut all = Vec::new();
    for (from, to) in [(A2, A1), (A1, A2), (Host, A1), (Outside, A1), (B1, A1)] {
        for v4 in [true, false] {
            let ends = between(from, to, v4);
            all.push((from, to, ends, What::Udp { from: 53, to: 0 }, State::New));
            for port in [22, 4000] {
                let untracked = [SYN | ACK, RST].map(|flags| (flags, State::Invalid));
                for (flags, state) in [(ACK, State::New)].into_iter().chain(untracked) {
                    let what = What::Tcp {
                        from: port,
                        to: 0,
                        flags,
                    };
                    all.push((from, to, between(from, to, v4), what, state));
                }
            }
        }
    }
    all
}

/// What machines say to find each other, routers and addresses.
fn infrastructure(round: usize) -> Vec<Draft> {
    let direct = |from: Place, to: Place, v4: bool, what| {
        (from, to, between(from, to, v4), what, State::New)
    };
    let group = |from: Place, to: Place, source: &str, group: &str, what| {
        (
            from,
            to,
            (address(source), address(group)),
            what,
            State::New,
        )
    };
    let discovery = |kind| What::Icmp { kind, id: 1 };
    let udp = |from, to| What::Udp { from, to };
    let everybody = "255.255.255.255";
    // Another host each time: its ports cannot change, and a connection outlives its rules.
    let far = format!("203.0.113.{}", 1 + round % 250);
    let server = format!("192.0.2.{}", 1 + round % 250);
    let server_v6 = format!("fd99::{:x}", 1 + round);
    vec![
        direct(A1, A2, true, What::Arp),
        direct(A2, A1, true, What::Arp),
        direct(Wire, A1, true, What::Arp),
        group(
            A1,
            A2,
            "fd01::2",
            "ff02::1:ff00:3",
            discovery(NEIGHBOUR_SOLICIT),
        ),
        direct(A2, A1, false, discovery(NEIGHBOUR_ADVERT)),
        group(A1, Wire, "fe80::2", "ff02::2", discovery(ROUTER_SOLICIT)),
        group(Wire, A1, "fe80::9", "ff02::1", discovery(ROUTER_ADVERT)),
        group(A1, A2, "fe80::2", "ff02::1", discovery(ROUTER_ADVERT)),
        group(A1, Wire, "fe80::2", "fd01::9", discovery(REDIRECT)),
        group(A1, Wire, "0.0.0.0", everybody, udp(68, 67)),
        group(A1, Host, "0.0.0.0", everybody, udp(68, 67)),
        group(A1, A2, "0.0.0.0", everybody, udp(68, 67)),
        direct(A1, Host, true, udp(68, 67)),
        group(A1, Outside, "10.1.0.2", &far, udp(68, 67)),
        direct(Wire, A1, true, udp(67, 68)),
        direct(Host, A1, true, udp(67, 68)),
        group(Outside, A1, &server, "10.1.0.2", udp(67, 68)),
        group(Outside, A1, &server_v6, "fd01::2", udp(547, 546)),
        group(Wire, A1, "203.0.113.9", everybody, udp(67, 68)),
        direct(A2, A1, true, udp(67, 68)),
        group(A1, A2, "10.1.0.2", everybody, udp(67, 68)),
        group(A1, Wire, "fe80::2", "ff02::1:2", udp(546, 547)),
        direct(Wire, A1, false, udp(547, 546)),
        direct(A2, A1, false, udp(547, 546)),
    ]
}
