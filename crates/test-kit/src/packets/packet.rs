//! A packet in words. Each carries a mark, by which it is known wherever it turns up.

use std::fmt;
use std::net::IpAddr;

/// TCP's flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// ICMPv6's message types that find neighbours and routers.
pub const ROUTER_SOLICIT: u8 = 133;
pub const ROUTER_ADVERT: u8 = 134;
pub const NEIGHBOUR_SOLICIT: u8 = 135;
pub const NEIGHBOUR_ADVERT: u8 = 136;
pub const REDIRECT: u8 = 137;

const MAGIC: &[u8; 4] = b"infz";

/// A number in the payload that no other packet of the test has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark(pub u32);

impl Mark {
    pub fn octets(self) -> [u8; 8] {
        let number = self.0.to_be_bytes();
        std::array::from_fn(|n| if n < 4 { MAGIC[n] } else { number[n - 4] })
    }

    /// The mark anywhere in these octets: an ICMP error quotes what it is about.
    pub fn in_octets(octets: &[u8]) -> Option<Self> {
        let at = octets.windows(4).position(|four| four == MAGIC)?;
        let number = octets.get(at + 4..at + 8)?.try_into().ok()?;
        Some(Self(u32::from_be_bytes(number)))
    }
}

/// What a packet is, above its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Tcp {
        from: u16,
        to: u16,
        flags: u8,
    },
    Udp {
        from: u16,
        to: u16,
    },
    /// ICMP over IPv4, ICMPv6 over IPv6. Echoes have an identifier.
    Icmp {
        kind: u8,
        id: u16,
    },
    /// An ICMP error about a UDP packet its receiver has sent from port `from` to port `to`.
    Unreachable {
        from: u16,
        to: u16,
    },
    /// "Who has `to`? Tell `from`."
    Arp,
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub what: What,
    pub mark: Mark,
}

impl Packet {
    pub fn is_v4(&self) -> bool {
        self.from.is_ipv4()
    }

    /// An echo request of the packet's family.
    pub fn echo_request(v4: bool, id: u16) -> What {
        let kind = if v4 { 8 } else { 128 };
        What::Icmp { kind, id }
    }

    /// What whoever got this packet answers; nothing where an answer would mean nothing.
    pub fn reply(&self, mark: Mark) -> Option<Self> {
        let what = match self.what {
            What::Tcp { from, to, flags } if flags == SYN => What::Tcp {
                from: to,
                to: from,
                flags: SYN | ACK,
            },
            What::Udp { from, to } => What::Udp { from: to, to: from },
            What::Icmp { kind: 8, id } => What::Icmp { kind: 0, id },
            What::Icmp { kind: 128, id } => What::Icmp { kind: 129, id },
            _ => return None,
        };
        let (from, to) = (self.to, self.from);
        Some(Self {
            from,
            to,
            what,
            mark,
        })
    }

    /// What whoever got this packet says if nobody listens there.
    pub fn error(&self, mark: Mark) -> Option<Self> {
        let What::Udp { from, to } = self.what else {
            return None;
        };
        let what = What::Unreachable { from, to };
        let (from, to) = (self.to, self.from);
        Some(Self {
            from,
            to,
            what,
            mark,
        })
    }

    /// The next packet of whoever sent this one, after the answer.
    pub fn follow_up(&self, mark: Mark) -> Option<Self> {
        match self.what {
            What::Tcp { from, to, flags } if flags == SYN => {
                let what = What::Tcp {
                    from,
                    to,
                    flags: ACK,
                };
                Some(Self {
                    what,
                    mark,
                    ..*self
                })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, what, .. } = self;
        match what {
            What::Tcp {
                from: source,
                to: destination,
                flags,
            } => {
                let flags = flag_names(*flags);
                write!(f, "tcp {from} {source} -> {to} {destination} {flags}")
            }
            What::Udp {
                from: source,
                to: destination,
            } => {
                write!(f, "udp {from} {source} -> {to} {destination}")
            }
            What::Icmp { kind, .. } => write!(f, "icmp type {kind} {from} -> {to}"),
            What::Unreachable { .. } => write!(f, "icmp unreachable {from} -> {to}"),
            What::Arp => write!(f, "arp {from} asks for {to}"),
        }
    }
}

fn flag_names(flags: u8) -> String {
    let all = [(SYN, "SYN"), (ACK, "ACK"), (RST, "RST"), (FIN, "FIN")];
    let set = all.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join("+")
}
