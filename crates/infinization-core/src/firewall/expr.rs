//! nftables rules as values: a few fields, comparisons and verdicts, the ones we use.
//!
//! Invariant: a match on a header is preceded by the match that proves the header is there
//! (`meta protocol`, `meta l4proto`). nft would add its own, and in the bridge family that is
//! `ether type`, which a VLAN tag hides.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use super::rule::{Side, Transport};

/// What a match looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// The port a frame came in by; empty in postrouting.
    Iifname,
    /// The port a frame leaves by; empty in prerouting.
    Oifname,
    /// The number of the port a frame came in by; 0 in postrouting.
    Iif,
    /// The number of the port a frame leaves by; 0 in prerouting.
    Oif,
    /// The Ethernet source address.
    EtherSource,
    /// The protocol above Ethernet, whether or not there is a VLAN tag.
    Protocol,
    /// The protocol above IPv4 or IPv6, extension headers skipped.
    L4Proto,
    /// An IPv4 address.
    Ip(Side),
    /// An IPv6 address.
    Ip6(Side),
    /// IPv4's "more fragments" flag.
    Ip4FragmentMore,
    /// What follows IPv6's fragment header.
    FragmentNext,
    /// Whether more fragments of an IPv6 packet follow.
    FragmentMore,
    /// A port.
    Port(Transport, Side),
    /// TCP's flags, of which only SYN and ACK are kept.
    TcpSynAck,
    /// TCP's RST flag.
    TcpRst,
    /// The hardware address a DHCP request is made for (`chaddr`, of which Ethernet has six bytes; nft has no
    /// name for it). UDP's header is before it.
    DhcpClient,
    /// The hardware address an ARP packet claims.
    ArpSenderEther,
    /// The IPv4 address an ARP packet claims.
    ArpSenderIp,
    /// ICMP's message type.
    IcmpType,
    /// ICMPv6's message type.
    Icmpv6Type,
    /// The address a neighbour message is about (nft 1.0.6 has no name for it).
    NdTarget,
    /// Its first 64 bits.
    NdTargetNetwork,
    /// Connection tracking's verdict on the packet.
    CtState,
    /// The bit of the packet's mark that says where it comes from; see [`Verdict::MarkAs`].
    Mark(Origin),
}

/// One value to compare with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Item {
    /// nft's word, a name or an address.
    Word(String),
    /// A number.
    Number(u16),
    /// Numbers from, to, both included.
    Range(u16, u16),
    /// A network.
    Prefix(IpAddr, u8),
}

impl From<&str> for Item {
    fn from(word: &str) -> Self {
        Self::Word(word.to_owned())
    }
}

/// How a match compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// The field is one of the values.
    Is,
    /// The field is none of the values.
    IsNot,
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Match {
    /// What is looked at.
    pub field: Field,
    /// How.
    pub op: Op,
    /// With what; never empty.
    pub items: Vec<Item>,
}

impl Match {
    /// The field has this value.
    pub fn is(field: Field, item: impl Into<Item>) -> Self {
        Self::among(field, [item.into()])
    }

    /// The field has another value.
    pub fn is_not(field: Field, item: impl Into<Item>) -> Self {
        Self {
            op: Op::IsNot,
            ..Self::is(field, item)
        }
    }

    /// The field has one of these values, of which there is at least one.
    pub fn among(field: Field, items: impl IntoIterator<Item = Item>) -> Self {
        let items = items.into_iter().collect();
        Self {
            field,
            op: Op::Is,
            items,
        }
    }

    /// The field has none of these values, of which there is at least one.
    pub fn not_among(field: Field, items: impl IntoIterator<Item = Item>) -> Self {
        Self {
            op: Op::IsNot,
            ..Self::among(field, items)
        }
    }
}

/// What a packet's mark says of where it comes from. It survives routing and masquerading on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A managed VM has sent it.
    Guest,
    /// It was put on a bridge by the host, which has made or routed it; not by one of the bridge's ports.
    Host,
}

impl Origin {
    /// Its bit.
    pub fn mark(self) -> u32 {
        match self {
            Self::Guest => 0x1000_0000,
            Self::Host => 0x2000_0000,
        }
    }
}

/// IPv4's "more fragments", beside the offset.
pub(crate) const IP4_MORE_FRAGMENTS: u16 = 0x2000;

/// How a rule ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The packet passes this hook.
    Accept,
    /// The packet vanishes.
    Drop,
    /// The packet goes on, with a bit of its mark set that is ours.
    MarkAs(Origin),
    /// Back to the chain that jumped here.
    Return,
    /// On to another chain, and back if that one does not decide.
    Jump(String),
    /// The packet vanishes; a TCP reset answers it. Only prerouting and input can.
    RejectWithTcpReset,
    /// The packet vanishes; "port unreachable" answers it. Only prerouting and input can.
    RejectAsUnreachable,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NftRule {
    /// All of them must hold. Rules are copied about, and most of a machine's are every machine's.
    pub matches: Arc<[Match]>,
    /// What happens then.
    pub verdict: Verdict,
    /// Shown in listings; at most 127 bytes. Every rule of ours has one, and most say the same.
    pub comment: Cow<'static, str>,
}

impl NftRule {
    /// A rule that matches everything.
    pub fn new(verdict: Verdict, comment: impl Into<Cow<'static, str>>) -> Self {
        Self {
            matches: Arc::default(),
            verdict,
            comment: comment.into(),
        }
    }

    /// Adds conditions.
    #[must_use]
    pub fn when(mut self, matches: impl IntoIterator<Item = Match>) -> Self {
        self.matches = self.matches.iter().cloned().chain(matches).collect();
        self
    }
}
