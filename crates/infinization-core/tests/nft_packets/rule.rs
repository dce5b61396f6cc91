//! A rule as the model understands it, and as the library is given it.

use std::fmt;
use std::net::IpAddr;

use infinization_core::types::FirewallRuleInput;
use serde_json::json;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    Drop,
    Reject,
}

/// Seen from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
    InOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    All,
    Tcp,
    Udp,
    Icmp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    New,
    Established,
    Related,
    Invalid,
}

/// First and last.
pub(crate) type Ports = (u16, u16);
/// An address, not always the first of its network, and the length of the prefix.
pub(crate) type Network = (IpAddr, u8);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) action: Action,
    pub(crate) direction: Direction,
    pub(crate) protocol: Protocol,
    pub(crate) source: Option<Network>,
    pub(crate) destination: Option<Network>,
    pub(crate) source_ports: Option<Ports>,
    pub(crate) destination_ports: Option<Ports>,
    /// Empty: any.
    pub(crate) states: Vec<State>,
    pub(crate) priority: u16,
    pub(crate) overrides: bool,
}

impl Rule {
    pub(crate) fn new(action: Action, direction: Direction, protocol: Protocol) -> Self {
        Self {
            name: String::new(),
            action,
            direction,
            protocol,
            source: None,
            destination: None,
            source_ports: None,
            destination_ports: None,
            states: Vec::new(),
            priority: 500,
            overrides: false,
        }
    }

    /// The rule as the library's users write it.
    pub(crate) fn input(&self) -> FirewallRuleInput {
        let states = self.states.iter().map(|state| word(state).to_lowercase());
        let states: serde_json::Map<_, _> = states.map(|state| (state, json!(true))).collect();
        let address = |network: Option<Network>| network.map(|(address, _)| address.to_string());
        FirewallRuleInput {
            id: self.name.clone(),
            name: self.name.clone(),
            action: word(self.action).to_uppercase(),
            direction: word(self.direction).to_uppercase(),
            priority: self.priority.into(),
            protocol: Some(word(self.protocol).to_lowercase()),
            src_port_start: self.source_ports.map(|ports| ports.0.into()),
            src_port_end: self.source_ports.and_then(last),
            dst_port_start: self.destination_ports.map(|ports| ports.0.into()),
            dst_port_end: self.destination_ports.and_then(last),
            src_ip_addr: address(self.source),
            src_ip_mask: self.source.map(mask),
            dst_ip_addr: address(self.destination),
            dst_ip_mask: self.destination.map(mask),
            connection_state: (!states.is_empty()).then(|| states.into()),
            overrides_dept: self.overrides,
            ..FirewallRuleInput::default()
        }
    }
}

fn word(value: impl fmt::Debug) -> String {
    format!("{value:?}")
}

fn last((first, last): Ports) -> Option<f64> {
    (last != first).then(|| last.into())
}

/// Dotted where that is possible and the length is odd, so that both ways to write it are used.
fn mask((address, length): Network) -> String {
    if address.is_ipv4() && length % 2 == 1 {
        let bits = u32::MAX << (32 - u32::from(length));
        return std::net::Ipv4Addr::from(bits).to_string();
    }
    length.to_string()
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            action,
            direction,
            protocol,
            priority,
            ..
        } = self;
        write!(
            f,
            "{:>5} {action:?} {direction:?} {protocol:?}",
            format!("{priority}:")
        )?;
        for (word, network) in [("from", self.source), ("to", self.destination)] {
            if let Some((address, length)) = network {
                write!(f, " {word} {address}/{length}")?;
            }
        }
        for (word, ports) in [
            ("sport", self.source_ports),
            ("dport", self.destination_ports),
        ] {
            if let Some((first, last)) = ports {
                write!(f, " {word} {first}-{last}")?;
            }
        }
        if !self.states.is_empty() {
            write!(f, " {:?}", self.states)?;
        }
        let overrides = if self.overrides { ", overrides" } else { "" };
        write!(f, " ({}{overrides})", self.name)
    }
}
