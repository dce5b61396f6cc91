//! `FirewallRuleTranslator`, the public rule-to-tokens API of the contract, kept token for token.
//!
//! The engine does not use it ([`super::compile`] covers IPv6 and never writes text). It is
//! stricter than the engine where the contract is: IPv4 only, and only the newer shape of
//! `connectionState`.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use crate::error::{Coded, ErrorCode};
use crate::types::{FirewallRuleInput, LinkName};

use super::parse::{self, ProtocolWord};
use super::rule::{Action, Direction, PortRange, Ports, RuleError, Transport};

/// Translates rules to the tokens of an `nft add rule` command.
#[derive(Debug, Clone, Copy)]
pub struct FirewallRuleTranslator;

/// A rule, or part of one, that has no translation.
#[derive(Debug, Clone, PartialEq)]
pub struct TranslationError {
    /// `RULE_INVALID`, `INVALID_IP_ADDRESS`, `INVALID_SUBNET_MASK`, `INVALID_PORT_RANGE` or
    /// `UNSUPPORTED_PROTOCOL`.
    pub code: ErrorCode,
    /// Why.
    pub message: String,
    /// The rule's row, when a whole rule was given.
    pub rule_id: Option<String>,
}

impl std::fmt::Display for TranslationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.rule_id {
            Some(id) => write!(f, "[Rule {id}] {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for TranslationError {}

impl Coded for TranslationError {
    fn code(&self) -> ErrorCode {
        self.code
    }
}

impl From<RuleError> for TranslationError {
    fn from(error: RuleError) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
            rule_id: None,
        }
    }
}

impl TranslationError {
    fn of_rule(mut self, id: &str) -> Self {
        self.rule_id = (!id.is_empty()).then(|| id.to_owned());
        self
    }
}

type Tokens = Vec<String>;

impl FirewallRuleTranslator {
    /// A rule for one direction (`IN` or `OUT`) as tokens: interface, protocol, addresses, ports,
    /// state, verdict, comment.
    pub fn translate_to_tokens(
        rule: &FirewallRuleInput,
        tap: &str,
    ) -> Result<Tokens, TranslationError> {
        tokens_of(rule, tap).map_err(|error| error.of_rule(&rule.id))
    }

    /// `IN` → `oifname <tap>`, `OUT` → `iifname <tap>`.
    pub fn translate_direction_to_tokens(
        direction: &str,
        tap: &str,
    ) -> Result<Tokens, TranslationError> {
        let tap = LinkName::parse(tap).map_err(|why| TranslationError {
            code: ErrorCode::RuleInvalid,
            message: format!("the TAP name {tap:?} {why}"),
            rule_id: None,
        })?;
        match parse::direction(direction)? {
            Direction::In => Ok(tokens(["oifname", tap.as_str()])),
            Direction::Out => Ok(tokens(["iifname", tap.as_str()])),
            Direction::InOut => Err(RuleError::Direction(direction.to_owned()).into()),
        }
    }

    /// `tcp` → `ip protocol tcp`; `all` → nothing.
    pub fn translate_protocol_to_tokens(
        protocol: Option<&str>,
    ) -> Result<Tokens, TranslationError> {
        Ok(match parse::word(protocol)? {
            ProtocolWord::All => Vec::new(),
            ProtocolWord::Icmp => tokens(["ip", "protocol", "icmp"]),
            ProtocolWord::Transport(transport) => tokens(["ip", "protocol", transport.as_str()]),
        })
    }

    /// `tcp sport 1000-2000 tcp dport 22`. Reads the four ports and the protocol of `rule`.
    pub fn translate_ports_to_tokens(rule: &FirewallRuleInput) -> Result<Tokens, TranslationError> {
        let ports = parse::ports(rule)?;
        match parse::word(rule.protocol.as_deref())? {
            ProtocolWord::Transport(transport) => Ok(port_tokens(transport, ports)),
            _ if ports == Ports::default() => Ok(Vec::new()),
            _ => Err(RuleError::PortsWithoutTransport.into()),
        }
    }

    /// `ip saddr 10.0.0.5/24 ip daddr 1.2.3.4`. Reads the addresses and masks of `rule`.
    pub fn translate_ip_addresses_to_tokens(
        rule: &FirewallRuleInput,
    ) -> Result<Tokens, TranslationError> {
        let mut all = address_tokens(
            "saddr",
            rule.src_ip_addr.as_deref(),
            rule.src_ip_mask.as_deref(),
        )?;
        all.extend(address_tokens(
            "daddr",
            rule.dst_ip_addr.as_deref(),
            rule.dst_ip_mask.as_deref(),
        )?);
        Ok(all)
    }

    /// `ct state established`, or `ct state` and one token `{ established, new }`.
    pub fn translate_connection_state_to_tokens(
        state: Option<&Value>,
    ) -> Result<Tokens, TranslationError> {
        let object = match state {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(object)) => object,
            Some(_) => return Err(RuleError::StateShape.into()),
        };
        let words = parse::state_object(object)?.words();
        let states = match words.as_slice() {
            [one] => (*one).to_owned(),
            several => format!("{{ {} }}", several.join(", ")),
        };
        Ok(tokens(["ct", "state", states.as_str()]))
    }

    /// The action in nft's lower case.
    pub fn translate_action(action: &str) -> Result<&'static str, TranslationError> {
        Ok(match parse::action(action)? {
            Action::Accept => "accept",
            Action::Drop => "drop",
            Action::Reject => "reject",
        })
    }

    /// Checks everything about a rule but the TAP it is for.
    pub fn validate_rule(rule: &FirewallRuleInput) -> Result<(), TranslationError> {
        let checked = parse::direction(&rule.direction)
            .map_err(TranslationError::from)
            .and_then(|_| body_of(rule));
        checked.map(drop).map_err(|error| error.of_rule(&rule.id))
    }

    /// Whether this is a dotted IPv4 address without leading zeros.
    pub fn is_valid_ip_address(text: &str) -> bool {
        text.parse::<Ipv4Addr>().is_ok()
    }

    /// Whether this is an IPv4 address, `/` and 0 to 32.
    pub fn is_valid_cidr(text: &str) -> bool {
        text.split_once('/').is_some_and(|(address, length)| {
            Self::is_valid_ip_address(address)
                && !length.contains('.')
                && Self::is_valid_subnet_mask(length)
        })
    }

    /// Whether this is 0 to 32, or a dotted mask without holes.
    pub fn is_valid_subnet_mask(text: &str) -> bool {
        parse::prefix_length(text, IpAddr::V4(Ipv4Addr::UNSPECIFIED)).is_some()
    }
}

fn tokens_of(rule: &FirewallRuleInput, tap: &str) -> Result<Tokens, TranslationError> {
    let mut all = FirewallRuleTranslator::translate_direction_to_tokens(&rule.direction, tap)?;
    all.extend(body_of(rule)?);
    Ok(all)
}

/// All tokens after the interface.
fn body_of(rule: &FirewallRuleInput) -> Result<Tokens, TranslationError> {
    type T = FirewallRuleTranslator;
    let comment = format!("\"{}\"", parse::comment(&rule.name)?);
    let mut all = T::translate_protocol_to_tokens(rule.protocol.as_deref())?;
    all.extend(T::translate_ip_addresses_to_tokens(rule)?);
    all.extend(T::translate_ports_to_tokens(rule)?);
    all.extend(T::translate_connection_state_to_tokens(
        rule.connection_state.as_ref(),
    )?);
    all.push(T::translate_action(&rule.action)?.to_owned());
    all.extend(tokens(["comment", comment.as_str()]));
    Ok(all)
}

fn port_tokens(transport: Transport, ports: Ports) -> Tokens {
    let ends = [("sport", ports.source), ("dport", ports.destination)];
    let given = ends
        .into_iter()
        .filter_map(|(end, range)| Some((end, range?)));
    given
        .flat_map(|(end, PortRange { first, last })| {
            let range = if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            };
            [transport.as_str().to_owned(), end.to_owned(), range]
        })
        .collect()
}

fn address_tokens(
    end: &str,
    address: Option<&str>,
    mask: Option<&str>,
) -> Result<Tokens, TranslationError> {
    let Some(network) = parse::network(address, mask)? else {
        return Ok(Vec::new());
    };
    if network.address.is_ipv6() {
        return Err(RuleError::Address(network.address.to_string()).into());
    }
    let masked = mask.is_some_and(|mask| !mask.is_empty());
    let text = if masked {
        format!("{}/{}", network.address, network.prefix)
    } else {
        network.address.to_string()
    };
    Ok(tokens(["ip", end, text.as_str()]))
}

fn tokens<const N: usize>(words: [&str; N]) -> Tokens {
    words.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type T = FirewallRuleTranslator;

    fn rule() -> FirewallRuleInput {
        FirewallRuleInput {
            id: "r1".into(),
            name: "n".into(),
            action: "ACCEPT".into(),
            direction: "OUT".into(),
            protocol: Some("tcp".into()),
            ..FirewallRuleInput::default()
        }
    }

    fn joined(rule: &FirewallRuleInput) -> String {
        T::translate_to_tokens(rule, "vnet-x").unwrap().join(" ")
    }

    #[test]
    fn keeps_the_golden_tokens() {
        let ports = FirewallRuleInput {
            src_port_start: Some(1000.0),
            src_port_end: Some(2000.0),
            dst_port_start: Some(22.0),
            ..rule()
        };
        assert_eq!(
            joined(&ports),
            "iifname vnet-x ip protocol tcp tcp sport 1000-2000 tcp dport 22 accept comment \"n\""
        );
        let addresses = FirewallRuleInput {
            direction: "IN".into(),
            protocol: Some("all".into()),
            src_ip_addr: Some("10.0.0.5".into()),
            src_ip_mask: Some("255.255.255.0".into()),
            dst_ip_addr: Some("1.2.3.4".into()),
            ..rule()
        };
        assert_eq!(
            joined(&addresses),
            "oifname vnet-x ip saddr 10.0.0.5/24 ip daddr 1.2.3.4 accept comment \"n\""
        );
    }

    #[test]
    fn several_states_are_one_token() {
        let three = json!({ "invalid": true, "new": true, "established": true });
        assert_eq!(
            T::translate_connection_state_to_tokens(Some(&three)).unwrap(),
            ["ct", "state", "{ established, new, invalid }"]
        );
        let one = json!({ "related": true });
        assert_eq!(
            T::translate_connection_state_to_tokens(Some(&one)).unwrap(),
            ["ct", "state", "related"]
        );
        let older = json!({ "states": ["ESTABLISHED"] });
        let error = T::translate_connection_state_to_tokens(Some(&older)).unwrap_err();
        assert_eq!(error.code, ErrorCode::RuleInvalid);
    }

    #[test]
    fn comments_are_one_quoted_token() {
        let rule = FirewallRuleInput {
            name: "a \"quoted\" \\ name\n".into(),
            ..rule()
        };
        let tokens = T::translate_to_tokens(&rule, "vnet-x").unwrap();
        assert_eq!(tokens.last().unwrap(), "\"a 'quoted' / name\"");
    }

    #[test]
    fn errors_name_the_rule() {
        let broken = [
            (
                FirewallRuleInput {
                    direction: "INOUT".into(),
                    ..rule()
                },
                "RULE_INVALID",
            ),
            (
                FirewallRuleInput {
                    src_ip_addr: Some("::1".into()),
                    ..rule()
                },
                "INVALID_IP_ADDRESS",
            ),
            (
                FirewallRuleInput {
                    dst_port_end: Some(1.0),
                    ..rule()
                },
                "INVALID_PORT_RANGE",
            ),
            (
                FirewallRuleInput {
                    protocol: Some("gre".into()),
                    ..rule()
                },
                "UNSUPPORTED_PROTOCOL",
            ),
        ];
        for (rule, code) in broken {
            let error = T::translate_to_tokens(&rule, "vnet-x").unwrap_err();
            assert_eq!(error.code.as_str(), code);
            assert!(error.to_string().starts_with("[Rule r1] "), "{error}");
        }
        let error = T::translate_to_tokens(&rule(), "vnet-x; flush ruleset").unwrap_err();
        assert_eq!(error.code, ErrorCode::RuleInvalid);
        let both = FirewallRuleInput {
            direction: "INOUT".into(),
            ..rule()
        };
        assert!(T::validate_rule(&both).is_ok());
    }

    #[test]
    fn knows_addresses_masks_and_cidrs() {
        for (text, address, cidr, mask) in [
            ("10.0.0.1", true, false, false),
            ("010.0.0.1", false, false, false),
            ("10.0.0.0/24", false, true, false),
            ("10.0.0.0/33", false, false, false),
            ("10.0.0.0/255.0.0.0", false, false, false),
            ("255.255.0.0", true, false, true),
            ("255.0.255.0", true, false, false),
            ("32", false, false, true),
            ("33", false, false, false),
            ("::1", false, false, false),
        ] {
            assert_eq!(T::is_valid_ip_address(text), address, "{text}");
            assert_eq!(T::is_valid_cidr(text), cidr, "{text}");
            assert_eq!(T::is_valid_subnet_mask(text), mask, "{text}");
        }
    }
}
