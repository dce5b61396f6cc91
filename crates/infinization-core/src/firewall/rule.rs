//! A rule that makes sense, and the ways in which one may not. [`super::parse`] makes them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::{Coded, ErrorCode};

/// What a rule does with a packet it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It passes.
    Accept,
    /// It vanishes.
    Drop,
    /// It vanishes and its sender is told, where the kernel can.
    Reject,
}

/// Which packets a rule looks at, from the VM's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Those on their way to the VM.
    In,
    /// Those the VM sent.
    Out,
    /// Both, with the same source and destination (nothing is swapped).
    InOut,
}

/// The two ends of a packet's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// nft's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest; equal to `first` for a single port.
    pub last: u16,
}

/// A rule's ports; `None` is any port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ports {
    /// The sender's.
    pub source: Option<PortRange>,
    /// The receiver's.
    pub destination: Option<PortRange>,
}

impl Ports {
    /// The ports of a reply: source and destination change places.
    #[must_use]
    pub fn swapped(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }
}

/// What a rule asks of the packet's protocol. Always IPv4 and IPv6 alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Any frame at all.
    All,
    /// ICMP and ICMPv6.
    Icmp,
    /// TCP or UDP, and the ports.
    Ports(Transport, Ports),
}

/// An address and how many of its leading bits count. Bits beyond the prefix are as the user wrote
/// them; they are cleared where the network is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Network {
    /// The address as written.
    pub address: IpAddr,
    /// 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub prefix: u8,
}

impl Network {
    /// Whether the address is one that an IPv6 interface gives itself; nobody chose it.
    pub fn is_link_local(&self) -> bool {
        match self.address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
    }

    /// The address with every bit beyond the prefix cleared.
    pub fn first_address(self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix));
                IpAddr::from((u32::from(address) & mask.unwrap_or(0)).to_be_bytes())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix));
                IpAddr::from((u128::from(address) & mask.unwrap_or(0)).to_be_bytes())
            }
        }
    }

    /// Whether the prefix leaves exactly one address.
    pub fn is_single_address(self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// The connection states a rule matches; at least one is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "conntrack's four states, any of which may be asked for"
)]
pub struct States {
    /// Packets of a connection that was seen both ways.
    pub established: bool,
    /// Packets that open a connection.
    pub new: bool,
    /// Packets of a connection another one announced, such as ICMP errors.
    pub related: bool,
    /// Packets that belong to no connection.
    pub invalid: bool,
}

impl States {
    /// What replies to allowed traffic carry.
    pub const REPLIES: Self = Self {
        established: true,
        new: false,
        related: true,
        invalid: false,
    };

    /// nft's words, in the order the contract fixes.
    pub fn words(self) -> Vec<&'static str> {
        [
            (self.established, "established"),
            (self.new, "new"),
            (self.related, "related"),
            (self.invalid, "invalid"),
        ]
        .into_iter()
        .filter_map(|(set, word)| set.then_some(word))
        .collect()
    }
}

/// A rule that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Becomes the nftables comment: at most 64 characters, without control characters or quotes.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Where it looks.
    pub direction: Direction,
    /// Lower comes first; finite.
    pub priority: f64,
    /// Protocol and ports.
    pub protocol: Protocol,
    /// Senders; `None` is any. Of the same family as `destination`.
    pub source: Option<Network>,
    /// Receivers; `None` is any.
    pub destination: Option<Network>,
    /// Connection states; `None` is any.
    pub states: Option<States>,
}

/// Why a rule is not applied. The others are.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RuleError {
    #[error("the rule has no name")]
    NoName,
    #[error("the action must be ACCEPT, DROP or REJECT, not {0:?}")]
    Action(String),
    #[error("the direction must be IN, OUT or INOUT, not {0:?}")]
    Direction(String),
    #[error("the priority must be a finite number")]
    Priority,
    #[error("the protocol must be tcp, udp, icmp or all, not {0:?}")]
    Protocol(String),
    #[error("only tcp and udp have ports")]
    PortsWithoutTransport,
    #[error("{0} is not a port: whole numbers from 0 to 65535 are")]
    Port(f64),
    #[error("the ports end at {last} before they start at {first}")]
    PortOrder { first: u16, last: u16 },
    #[error("there is a last port, {0}, without a first")]
    PortStartMissing(f64),
    #[error("{0:?} is not an IPv4 or IPv6 address")]
    Address(String),
    #[error("{mask:?} is not a mask for {address}")]
    Mask { mask: String, address: IpAddr },
    #[error("source and destination are of different address families")]
    MixedFamilies,
    #[error("the connection state must be an object of booleans or {{ states: [...] }}")]
    StateShape,
    #[error("there is no connection state {0:?}")]
    UnknownState(String),
    #[error("the connection state is given, but no state in it is set")]
    NoState,
    #[error(
        "the rule needs connection tracking for bridges (kernel module nf_conntrack_bridge), \
         which this kernel lacks"
    )]
    NeedsConntrack,
}

impl Coded for RuleError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoName
            | Self::Action(_)
            | Self::Direction(_)
            | Self::Priority
            | Self::PortsWithoutTransport
            | Self::MixedFamilies
            | Self::StateShape
            | Self::UnknownState(_)
            | Self::NoState => ErrorCode::RuleInvalid,
            Self::Protocol(_) => ErrorCode::UnsupportedProtocol,
            Self::Port(_) | Self::PortOrder { .. } | Self::PortStartMissing(_) => {
                ErrorCode::InvalidPortRange
            }
            Self::Address(_) => ErrorCode::InvalidIpAddress,
            Self::Mask { .. } => ErrorCode::InvalidSubnetMask,
            Self::NeedsConntrack => ErrorCode::ConntrackUnavailable,
        }
    }
}
