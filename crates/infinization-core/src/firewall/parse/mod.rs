//! The one place where a rule from the database becomes a [`Rule`].
//!
//! Invariant: nothing is widened. What cannot be understood is a [`RuleError`], never a default:
//! an unknown action, a state list without a state, half a port range.

mod address;
mod ports;
mod states;

use crate::types::FirewallRuleInput;

pub(super) use address::{network, prefix_length};
pub(super) use ports::ports;
pub(super) use states::{state_object, states};

use super::rule::{Action, Direction, Network, Ports, Protocol, Rule, RuleError, Transport};

/// The longest comment, in characters.
const MAX_COMMENT_CHARS: usize = 64;
/// The longest comment nft takes, in bytes.
const MAX_COMMENT_BYTES: usize = 127;

/// Reads one rule.
pub fn parse_rule(input: &FirewallRuleInput) -> Result<Rule, RuleError> {
    let (source, destination) = networks(input)?;
    Ok(Rule {
        name: comment(&input.name)?,
        action: action(&input.action)?,
        direction: direction(&input.direction)?,
        priority: priority(input.priority)?,
        protocol: with_ports(word(input.protocol.as_deref())?, ports(input)?)?,
        source,
        destination,
        states: states(input.connection_state.as_ref())?,
    })
}

/// What nftables shows beside the rule: one line, without what would end or escape a quoted string
/// when the ruleset is listed as text.
pub(super) fn comment(name: &str) -> Result<String, RuleError> {
    let clean: String = name
        .chars()
        .map(|c| match c {
            '"' => '\'',
            '\\' => '/',
            c if c.is_control() => ' ',
            c => c,
        })
        .take(MAX_COMMENT_CHARS)
        .collect();
    let trimmed = within_bytes(&clean, MAX_COMMENT_BYTES).trim();
    match trimmed {
        "" => Err(RuleError::NoName),
        text => Ok(text.to_owned()),
    }
}

fn within_bytes(text: &str, longest: usize) -> &str {
    let mut ends = (0..=longest.min(text.len())).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

pub(super) fn action(text: &str) -> Result<Action, RuleError> {
    match text.to_ascii_lowercase().as_str() {
        "accept" => Ok(Action::Accept),
        "drop" => Ok(Action::Drop),
        "reject" => Ok(Action::Reject),
        _ => Err(RuleError::Action(text.to_owned())),
    }
}

pub(super) fn direction(text: &str) -> Result<Direction, RuleError> {
    match text {
        "IN" => Ok(Direction::In),
        "OUT" => Ok(Direction::Out),
        "INOUT" => Ok(Direction::InOut),
        _ => Err(RuleError::Direction(text.to_owned())),
    }
}

fn priority(number: f64) -> Result<f64, RuleError> {
    let finite = number.is_finite().then_some(number);
    finite.ok_or(RuleError::Priority)
}

/// A protocol's name, before its ports are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProtocolWord {
    All,
    Icmp,
    Transport(Transport),
}

pub(super) fn word(text: Option<&str>) -> Result<ProtocolWord, RuleError> {
    let text = text.unwrap_or_default();
    match text.to_ascii_lowercase().as_str() {
        "" | "all" => Ok(ProtocolWord::All),
        "icmp" => Ok(ProtocolWord::Icmp),
        "tcp" => Ok(ProtocolWord::Transport(Transport::Tcp)),
        "udp" => Ok(ProtocolWord::Transport(Transport::Udp)),
        _ => Err(RuleError::Protocol(text.to_owned())),
    }
}

pub(super) fn with_ports(word: ProtocolWord, ports: Ports) -> Result<Protocol, RuleError> {
    match word {
        ProtocolWord::Transport(transport) => Ok(Protocol::Ports(transport, ports)),
        _ if ports != Ports::default() => Err(RuleError::PortsWithoutTransport),
        ProtocolWord::All => Ok(Protocol::All),
        ProtocolWord::Icmp => Ok(Protocol::Icmp),
    }
}

fn networks(input: &FirewallRuleInput) -> Result<(Option<Network>, Option<Network>), RuleError> {
    let source = network(input.src_ip_addr.as_deref(), input.src_ip_mask.as_deref())?;
    let destination = network(input.dst_ip_addr.as_deref(), input.dst_ip_mask.as_deref())?;
    match (source, destination) {
        (Some(a), Some(b)) if a.address.is_ipv4() != b.address.is_ipv4() => {
            Err(RuleError::MixedFamilies)
        }
        both => Ok(both),
    }
}

#[cfg(test)]
mod tests;
