//! What should become of a packet, in the words of the contract and without a look at the compiler.
//!
//! A machine's packets are judged where they leave it and where they come to it, each time by that
//! machine's rules alone: identity, infrastructure, the rules by priority, replies, policy.

use std::fmt;
use std::net::IpAddr;

use super::kit::packets::packet::{
    ACK, NEIGHBOUR_ADVERT, NEIGHBOUR_SOLICIT, REDIRECT, ROUTER_ADVERT, ROUTER_SOLICIT, RST, SYN,
};
use super::kit::packets::{Packet, What};
use super::rule::{Action, Direction, Network, Ports, Protocol, Rule, State};

/// What the kernel can do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) tracks: bool,
    pub(crate) rejects: bool,
    /// br_netfilter is there and has the IP hooks called for bridged frames.
    pub(crate) calls_iptables: bool,
}

/// One machine's rules.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    pub(crate) department: Vec<Rule>,
    pub(crate) own: Vec<Rule>,
    /// Whether what no rule decides passes.
    pub(crate) open: bool,
    /// The host's addresses on its link.
    pub(crate) gateway: [IpAddr; 2],
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Passes,
    Vanishes,
    /// It vanishes and its sender is told.
    IsRefused,
}

/// A fate and the reason for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ruling {
    pub(crate) fate: Fate,
    pub(crate) because: String,
}

impl Ruling {
    pub(crate) fn new(fate: Fate, because: impl fmt::Display) -> Self {
        let because = because.to_string();
        Self { fate, because }
    }

    pub(crate) fn passes(&self) -> bool {
        self.fate == Fate::Passes
    }
}

/// A packet where it is judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) packet: Packet,
    /// What connection tracking makes of it.
    pub(crate) state: State,
    /// The host's own, whatever addresses others' packets get on their way.
    pub(crate) by_host: bool,
}

/// Which way a packet goes, seen from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    From,
    To,
}

impl Machine {
    /// What becomes of a packet that this machine sends, or that is sent to it.
    pub(crate) fn judges(&self, way: Way, seen: Seen, kernel: Kernel) -> Ruling {
        let Seen { packet, state, .. } = &seen;
        let infrastructure = match way {
            Way::From => self.infrastructure_out(packet),
            Way::To => self
                .infrastructure_in(seen, kernel)
                .or_else(|| self.answers_a_refusal(packet, kernel)),
        };
        infrastructure
            .or_else(|| self.rules_decide(way, packet, *state, kernel))
            .or_else(|| self.is_a_reply(way, packet, *state, kernel))
            .unwrap_or_else(|| Ruling::new(passes_if(self.open), "policy"))
    }

    /// The rules in the order they are tried.
    pub(crate) fn merged(&self) -> Vec<&Rule> {
        let overridden = |rule: &Rule| self.own.iter().any(|own| overrides(own, rule));
        let kept = self.department.iter().filter(|rule| !overridden(rule));
        let mut all: Vec<_> = kept.chain(&self.own).collect();
        all.sort_by_key(|rule| rule.priority);
        all
    }

    fn rules_decide(
        &self,
        way: Way,
        packet: &Packet,
        state: State,
        kernel: Kernel,
    ) -> Option<Ruling> {
        let matching = |rule: &&Rule| describes(rule, way, packet) && holds(rule, state, kernel);
        let rule = self.merged().into_iter().find(matching)?;
        let fate = match rule.action {
            Action::Accept => Fate::Passes,
            Action::Reject if way == Way::From && kernel.rejects && may_be_answered(packet) => {
                Fate::IsRefused
            }
            Action::Drop | Action::Reject => Fate::Vanishes,
        };
        Some(Ruling::new(fate, rule))
    }

    fn is_a_reply(
        &self,
        way: Way,
        packet: &Packet,
        state: State,
        kernel: Kernel,
    ) -> Option<Ruling> {
        if kernel.tracks {
            let known = matches!(state, State::Established | State::Related);
            return known.then(|| Ruling::new(Fate::Passes, "of an established connection"));
        }
        let mut rules = self.merged().into_iter();
        let mirrors = |rule: &&Rule| {
            rule.action == Action::Accept
                && use_of(rule, kernel) == Use::InForce
                && describes(rule, opposite(way), &turned(packet))
        };
        let rule = opens_nothing(packet).then(|| rules.find(mirrors))??;
        Some(Ruling::new(Fate::Passes, format!("reply to {rule}")))
    }

    fn infrastructure_out(&self, packet: &Packet) -> Option<Ruling> {
        let (v6, host) = (!packet.is_v4(), self.gateway.contains(&packet.to));
        let to_servers = host || [everybody(), all_dhcp_servers()].contains(&packet.to);
        let refusal = |why| Some(Ruling::new(Fate::Vanishes, why));
        let allowance = match packet.what {
            What::Icmp {
                kind: ROUTER_ADVERT | REDIRECT,
                ..
            } if v6 => {
                return refusal("a guest is no router");
            }
            What::Udp { from: 67, to: 68 } | What::Udp { from: 547, to: 546 } => {
                return refusal("a guest is no DHCP server");
            }
            What::Arp => "ARP",
            What::Icmp { kind, .. } if v6 && is_discovery(kind) => "neighbour discovery",
            What::Udp { from: 68, to: 67 } if !v6 && to_servers => "DHCP request",
            What::Udp { from: 546, to: 547 } if v6 && to_servers => "DHCPv6 request",
            What::Udp { to: 53, .. } | What::Tcp { to: 53 | 4000, .. } if host => "host's service",
            _ => return None,
        };
        Some(Ruling::new(Fate::Passes, allowance))
    }

    /// What others send from the host's address and from the port of a service is not its answer; what
    /// the host sends is one if it was asked, as far as that is known.
    fn infrastructure_in(&self, seen: Seen, kernel: Kernel) -> Option<Ruling> {
        let packet = &seen.packet;
        let asked = !kernel.tracks || seen.state == State::Established;
        let host = seen.by_host && asked && self.gateway.contains(&packet.from);
        let allowance = match packet.what {
            What::Arp => "ARP",
            What::Icmp {
                kind: NEIGHBOUR_SOLICIT | NEIGHBOUR_ADVERT | ROUTER_ADVERT,
                ..
            } if !packet.is_v4() => "neighbour discovery",
            What::Udp { from: 67, to: 68 } if packet.is_v4() && self.is_on_link(packet) => {
                "DHCP answer"
            }
            What::Udp { from: 547, to: 546 } if !packet.is_v4() && self.is_on_link(packet) => {
                "DHCPv6 answer"
            }
            What::Udp { from: 53, .. } if host => "answer of a host's service",
            What::Tcp {
                from: 53 | 4000, ..
            } if host && opens_nothing(packet) => "answer of a host's service",
            _ => return None,
        };
        Some(Ruling::new(Fate::Passes, allowance))
    }
}

impl Machine {
    /// Whether the packet cannot have been routed here: what its addresses say, on links of 24 and 64 bits.
    fn is_on_link(&self, packet: &Packet) -> bool {
        let same_link = |gateway: &IpAddr| match (gateway, packet.from) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => ours.octets()[..3] == theirs.octets()[..3],
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => ours.octets()[..8] == theirs.octets()[..8],
            _ => false,
        };
        let is_link_local = matches!(packet.from, IpAddr::V6(from) if from.is_unicast_link_local());
        is_link_local || packet.to == everybody() || self.gateway.iter().any(same_link)
    }

    /// What refuses a packet must reach the machine whatever its rules for others' packets say.
    fn answers_a_refusal(&self, packet: &Packet, kernel: Kernel) -> Option<Ruling> {
        let error = |rule: &Rule| {
            rule.direction != Direction::In
                && rule.protocol != Protocol::Tcp
                && within(rule.source, packet.to)
                && within(rule.destination, packet.from)
        };
        let answers = |rule: &&Rule| {
            let reset = is_reset(packet) && describes(rule, Way::From, &turned(packet));
            rule.action == Action::Reject && (reset || is_error(packet) && error(rule))
        };
        let mut rules = self.merged().into_iter().filter(|_| kernel.rejects);
        let rule = rules.find(answers)?;
        Some(Ruling::new(
            Fate::Passes,
            format!("as if it answered {rule}"),
        ))
    }
}

/// An ICMP error.
fn is_error(packet: &Packet) -> bool {
    matches!(packet.what, What::Unreachable { .. })
}

/// A TCP reset.
fn is_reset(packet: &Packet) -> bool {
    matches!(packet.what, What::Tcp { flags, .. } if flags & RST != 0)
}

/// Neither errors nor resets are answered, or two machines would go on for ever.
fn may_be_answered(packet: &Packet) -> bool {
    !is_error(packet) && !is_reset(packet)
}

/// What is left of a rule on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    InForce,
    /// Only replies would match, and those are recognised otherwise.
    LeftToReplies,
    /// It is reported as failed.
    Fails,
}

pub(crate) fn use_of(rule: &Rule, kernel: Kernel) -> Use {
    let any = |states: &[State]| rule.states.iter().any(|state| states.contains(state));
    match rule.action {
        _ if kernel.tracks || rule.states.is_empty() => Use::InForce,
        Action::Accept if any(&[State::New]) => Use::InForce,
        Action::Accept if !any(&[State::Invalid]) => Use::LeftToReplies,
        _ => Use::Fails,
    }
}

/// Whether the rule's states allow it to match.
fn holds(rule: &Rule, state: State, kernel: Kernel) -> bool {
    let asked = !kernel.tracks || rule.states.is_empty() || rule.states.contains(&state);
    asked && use_of(rule, kernel) == Use::InForce
}

fn describes(rule: &Rule, way: Way, packet: &Packet) -> bool {
    let ours = match rule.direction {
        Direction::In => way == Way::To,
        Direction::Out => way == Way::From,
        Direction::InOut => true,
    };
    let protocol = match packet.what {
        What::Tcp { .. } => rule.protocol == Protocol::Tcp,
        What::Udp { .. } => rule.protocol == Protocol::Udp,
        What::Icmp { .. } | What::Unreachable { .. } => rule.protocol == Protocol::Icmp,
        What::Arp => false,
    };
    let protocol = protocol || rule.protocol == Protocol::All;
    let (source, destination) = ports(packet);
    ours && protocol
        && within(rule.source, packet.from)
        && within(rule.destination, packet.to)
        && in_range(rule.source_ports, source)
        && in_range(rule.destination_ports, destination)
}

fn ports(packet: &Packet) -> (u16, u16) {
    match packet.what {
        What::Tcp { from, to, .. } | What::Udp { from, to } => (from, to),
        What::Icmp { .. } | What::Unreachable { .. } | What::Arp => (0, 0),
    }
}

fn within(network: Option<Network>, address: IpAddr) -> bool {
    let Some((network, length)) = network else {
        return true;
    };
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            length == 0 || (u32::from(a) ^ u32::from(b)) >> (32 - length) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            length == 0 || (u128::from(a) ^ u128::from(b)) >> (128 - length) == 0
        }
        _ => false,
    }
}

fn in_range(range: Option<Ports>, port: u16) -> bool {
    range.is_none_or(|(first, last)| (first..=last).contains(&port))
}

/// The packet as it would be if its receiver had sent it.
fn turned(packet: &Packet) -> Packet {
    let what = match packet.what {
        What::Tcp { from, to, flags } => What::Tcp {
            from: to,
            to: from,
            flags,
        },
        other => other,
    };
    let (from, to) = (packet.to, packet.from);
    Packet {
        from,
        to,
        what,
        ..*packet
    }
}

fn opposite(way: Way) -> Way {
    match way {
        Way::From => Way::To,
        Way::To => Way::From,
    }
}

/// A TCP segment other than the first of a connection.
fn opens_nothing(packet: &Packet) -> bool {
    matches!(packet.what, What::Tcp { flags, .. } if flags & (SYN | ACK) != SYN)
}

fn overrides(own: &Rule, department: &Rule) -> bool {
    let directions = [own.direction, department.direction];
    let address = |network: Option<Network>| network.map(|(address, _)| address);
    own.overrides
        && own.protocol == department.protocol
        && (directions[0] == directions[1] || directions.contains(&Direction::InOut))
        && own.source_ports == department.source_ports
        && own.destination_ports == department.destination_ports
        && address(own.source) == address(department.source)
        && address(own.destination) == address(department.destination)
}

fn is_discovery(kind: u8) -> bool {
    [ROUTER_SOLICIT, NEIGHBOUR_SOLICIT, NEIGHBOUR_ADVERT].contains(&kind)
}

fn everybody() -> IpAddr {
    IpAddr::from([255; 4])
}

fn all_dhcp_servers() -> IpAddr {
    IpAddr::from([0xff02, 0, 0, 0, 0, 0, 1, 2])
}

fn passes_if(open: bool) -> Fate {
    if open { Fate::Passes } else { Fate::Vanishes }
}
