//! What stands in the chains for a user's rule on this kernel. [`super::run`] says where.

use super::compile::{Conntrack, Degradation};
use super::expr::{Field, Item, Match, NftRule, Verdict};
use super::guard::{is_reply, opens_nothing, protocol};
use super::rule::{
    Action, Direction, Network, PortRange, Ports, Protocol, Rule, RuleError, Side, States,
    Transport,
};

/// The comment of what lets an answer to a refused packet reach the VM.
pub(super) const REJECT_REPLY: &str = "infinization-reject-reply";

/// What may be asked of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) conntrack: Conntrack,
    pub(super) reject: bool,
}

/// What became of one rule.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// For each way it looks at.
    pub(super) parts: Vec<Part>,
    pub(super) degradation: Option<Degradation>,
}

/// A rule, one way. The way is not in it: that is said where it stands.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) way: Way,
    pub(super) rule: NftRule,
    /// For the other way, after all rules: replies, when connections are not tracked.
    pub(super) mirror: Option<NftRule>,
    /// For `to_x`: lets the answer to a refused packet reach the VM.
    pub(super) reject_replies: Vec<NftRule>,
}

/// Places one rule.
pub(super) fn place(rule: &Rule, kernel: Kernel) -> Result<Placed, RuleError> {
    let mut placed = Placed::default();
    let states = match treatment(rule, kernel.conntrack)? {
        Treatment::AsWritten => rule.states,
        Treatment::Stateless => {
            placed.degradation = Some(Degradation::StateIgnored);
            None
        }
        Treatment::LeftToReplies => {
            placed.degradation = Some(Degradation::LeftToReplies);
            return Ok(placed);
        }
    };
    for way in ways(rule.direction) {
        placed.add(rule, *way, states, kernel);
    }
    Ok(placed)
}

/// What connection states mean on this kernel.
enum Treatment {
    AsWritten,
    Stateless,
    LeftToReplies,
}

/// Without tracking only accepts can be approximated without widening a drop or an exception.
fn treatment(rule: &Rule, conntrack: Conntrack) -> Result<Treatment, RuleError> {
    let Some(states) = rule.states else {
        return Ok(Treatment::AsWritten);
    };
    match (conntrack, rule.action) {
        (Conntrack::Stateful, _) => Ok(Treatment::AsWritten),
        (Conntrack::Stateless, Action::Accept) if states.new => Ok(Treatment::Stateless),
        (Conntrack::Stateless, Action::Accept) if !states.invalid => Ok(Treatment::LeftToReplies),
        (Conntrack::Stateless, _) => Err(RuleError::NeedsConntrack),
    }
}

/// One of the two ways a packet can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ToVm,
    FromVm,
}

impl Way {
    /// Packets that go this way. No port is named: whichever leads to the VM's chains is the VM's.
    pub(super) fn going(self) -> Match {
        let field = match self {
            Self::FromVm => Field::Iif,
            Self::ToVm => Field::Oif,
        };
        Match::is_not(field, "0")
    }

    pub(super) fn opposite(self) -> Self {
        match self {
            Self::ToVm => Self::FromVm,
            Self::FromVm => Self::ToVm,
        }
    }
}

fn ways(direction: Direction) -> &'static [Way] {
    match direction {
        Direction::In => &[Way::ToVm],
        Direction::Out => &[Way::FromVm],
        Direction::InOut => &[Way::ToVm, Way::FromVm],
    }
}

impl Placed {
    fn add(&mut self, rule: &Rule, way: Way, states: Option<States>, kernel: Kernel) {
        let flow = Flow::of(rule, way);
        let (verdict, reject_replies) = match rule.action {
            Action::Accept => (Verdict::Accept, Vec::new()),
            Action::Drop => (Verdict::Drop, Vec::new()),
            Action::Reject => self.reject(&flow, kernel),
        };
        let accepted = verdict == Verdict::Accept;
        let state = states.map(|states| {
            let words = states.words().into_iter().map(Item::from);
            Match::among(Field::CtState, words)
        });
        let placed = NftRule::new(verdict, rule.name.clone()).when(flow.headers());
        self.parts.push(Part {
            way,
            rule: placed.when(state),
            mirror: accepted.then(|| flow.mirror(&rule.name)).flatten(),
            reject_replies,
        });
    }

    /// Only prerouting can reject, and `vm_x` is reached from postrouting too: the packet goes back
    /// to `from_x`, which refuses it.
    fn reject(&mut self, flow: &Flow, kernel: Kernel) -> (Verdict, Vec<NftRule>) {
        if flow.way == Way::ToVm || !kernel.reject {
            self.degradation = Some(Degradation::RejectDrops);
            return (Verdict::Drop, Vec::new());
        }
        (Verdict::Return, flow.reject_replies())
    }
}

/// The packets a rule describes, going one way.
#[derive(Debug, Clone, Copy)]
struct Flow {
    way: Way,
    protocol: Protocol,
    source: Option<Network>,
    destination: Option<Network>,
}

impl Flow {
    fn of(rule: &Rule, way: Way) -> Self {
        Self {
            way,
            protocol: rule.protocol,
            source: rule.source,
            destination: rule.destination,
        }
    }

    /// The same conversation seen from its other end.
    fn answer(self, protocol: Protocol) -> Self {
        Self {
            way: self.way.opposite(),
            protocol,
            source: self.destination,
            destination: self.source,
        }
    }

    fn headers(&self) -> Vec<Match> {
        let mut matches: Vec<_> = self.family().map(protocol).into_iter().collect();
        matches.extend(self.l4proto());
        matches.extend(network(self.source, Side::Source));
        matches.extend(network(self.destination, Side::Destination));
        if let Protocol::Ports(transport, ports) = self.protocol {
            matches.extend(range(ports.source, Field::Port(transport, Side::Source)));
            matches.extend(range(
                ports.destination,
                Field::Port(transport, Side::Destination),
            ));
        }
        matches
    }

    /// nft's word for the address family, if the rule names an address.
    fn family(&self) -> Option<&'static str> {
        let network = self.source.or(self.destination)?;
        Some(if network.address.is_ipv4() {
            "ip"
        } else {
            "ip6"
        })
    }

    fn l4proto(&self) -> Option<Match> {
        let words: &[&str] = match (self.protocol, self.family()) {
            (Protocol::All, _) => return None,
            (Protocol::Ports(transport, _), _) => &[transport.as_str()],
            (Protocol::Icmp, Some("ip")) => &["icmp"],
            (Protocol::Icmp, Some(_)) => &["ipv6-icmp"],
            (Protocol::Icmp, None) => &["icmp", "ipv6-icmp"],
        };
        let words = words.iter().copied().map(Item::from);
        Some(Match::among(Field::L4Proto, words))
    }

    /// The TCP part of the protocol.
    fn tcp(&self) -> Option<Protocol> {
        match self.protocol {
            Protocol::All => Some(Protocol::Ports(Transport::Tcp, Ports::default())),
            Protocol::Ports(Transport::Tcp, _) => Some(self.protocol),
            Protocol::Ports(Transport::Udp, _) | Protocol::Icmp => None,
        }
    }

    /// Lets replies back when the kernel does not track connections: the flow turned round, and
    /// only segments that open nothing. UDP has no such mark, so it gets no mirror.
    fn mirror(&self, name: &str) -> Option<NftRule> {
        let answer = self.answer(self.tcp()?.swapped());
        let rule = NftRule::new(Verdict::Accept, name.to_owned()).when(answer.headers());
        Some(rule.when([opens_nothing()]))
    }

    /// What the kernel answers a refused packet with, on its way to the VM.
    fn reject_replies(&self) -> Vec<NftRule> {
        let rule = || NftRule::new(Verdict::Accept, REJECT_REPLY);
        let reset = self.tcp().map(|tcp| {
            let matches = self.answer(tcp.swapped()).headers();
            rule().when(matches).when([Match::is(Field::TcpRst, "rst")])
        });
        let other_than_tcp = !matches!(self.protocol, Protocol::Ports(Transport::Tcp, _));
        let errors = other_than_tcp.then(|| self.unreachable().map(|m| rule().when(m)));
        let errors = errors.into_iter().flatten();
        reset.into_iter().chain(errors).collect()
    }

    /// "Destination unreachable" in the families the rule may see.
    fn unreachable(&self) -> impl Iterator<Item = Vec<Match>> {
        let answer = self.answer(Protocol::Icmp);
        let families = [
            ("ip", "icmp", Field::IcmpType),
            ("ip6", "ipv6-icmp", Field::Icmpv6Type),
        ];
        let family = self.family();
        let seen = move |word| family.is_none_or(|family| family == word);
        let families = families.into_iter().filter(move |(word, ..)| seen(*word));
        families.map(move |(word, l4proto, kind)| {
            let mut matches = vec![protocol(word), Match::is(Field::L4Proto, l4proto)];
            matches.extend(network(answer.source, Side::Source));
            matches.extend(network(answer.destination, Side::Destination));
            matches.push(Match::is(kind, "destination-unreachable"));
            matches
        })
    }
}

impl Protocol {
    /// With the ports of a reply.
    fn swapped(self) -> Self {
        match self {
            Self::Ports(transport, ports) => Self::Ports(transport, ports.swapped()),
            other => other,
        }
    }
}

/// Every address is no condition beyond the family, which is matched already.
pub(super) fn network(network: Option<Network>, side: Side) -> Option<Match> {
    let network = network.filter(|network| network.prefix > 0)?;
    let first = network.first_address();
    let field = if first.is_ipv4() {
        Field::Ip(side)
    } else {
        Field::Ip6(side)
    };
    let item = if network.is_single_address() {
        Item::Word(first.to_string())
    } else {
        Item::Prefix(first, network.prefix)
    };
    Some(Match::is(field, item))
}

fn range(range: Option<PortRange>, field: Field) -> Option<Match> {
    let PortRange { first, last } = range?;
    let item = if first == last {
        Item::Number(first)
    } else {
        Item::Range(first, last)
    };
    Some(Match::is(field, item))
}

/// What tracked connections may always do, after the user's rules and before the terminal verdict.
pub(super) fn automatic_replies() -> NftRule {
    NftRule::new(Verdict::Accept, "Allow Established/Related (Auto)").when([is_reply()])
}
