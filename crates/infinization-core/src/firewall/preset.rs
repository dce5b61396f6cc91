//! Rules for services that everybody knows, so that nobody has to spell their ports.
//!
//! Invariant: what a preset answers, the compiler takes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::parse::parse_rule;
use super::rule::RuleError;
use crate::error::{Coded, ErrorCode};
use crate::types::FirewallRuleInput;

/// Between the consumer's own extremes, 0 and 1000.
const PRIORITY: f64 = 500.0;

/// A service by its ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// What the rules are called: `SSH`.
    pub name: String,
    /// Where it is listened to.
    pub ports: Vec<ServicePort>,
}

/// One port of a service, or several in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The first, or only, port.
    pub port: f64,
    /// The last port.
    #[serde(default)]
    pub last_port: Option<f64>,
}

/// Who may use the service, and how that is written down.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PresetOptions {
    /// Addresses and networks of whoever connects. Absent: anybody; empty: nobody.
    pub from: Option<OneOrMany>,
    /// Addresses and networks that are connected to. Absent: any.
    pub to: Option<OneOrMany>,
    /// `IN` unless given.
    pub direction: Option<String>,
    /// `ACCEPT` unless given.
    pub action: Option<String>,
    /// 500 unless given.
    pub priority: Option<f64>,
    /// As in the rules.
    pub overrides_dept: bool,
}

/// A list that may be written as its only element.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// The only one.
    One(String),
    /// Any number of them.
    Many(Vec<String>),
}

/// The preset makes no rule that makes sense.
#[derive(Debug, thiserror::Error)]
pub enum PresetError {
    /// One of its rules makes none.
    #[error("the preset {service}")]
    Rule {
        /// The service.
        service: String,
        /// Why.
        source: RuleError,
    },
    /// A rule for no port is a rule for all.
    #[error("the preset {0:?} has no ports")]
    NoPorts(String),
}

impl Coded for PresetError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Rule { source, .. } => source.code(),
            Self::NoPorts(_) => ErrorCode::InvalidPortRange,
        }
    }
}

impl Service {
    /// Those with a name of their own: `ssh`, `http`, `https`, `rdp`, `vnc`.
    pub fn known(key: &str) -> Option<Self> {
        let port = |protocol: &str, port: u16| ServicePort {
            protocol: protocol.to_owned(),
            port: f64::from(port),
            last_port: None,
        };
        let (name, ports) = match key {
            "ssh" => ("SSH", vec![port("tcp", 22)]),
            "http" => ("HTTP", vec![port("tcp", 80)]),
            "https" => ("HTTPS", vec![port("tcp", 443)]),
            // Pictures go over UDP where that gets through.
            "rdp" => ("RDP", vec![port("tcp", 3389), port("udp", 3389)]),
            // Displays 0 to 3, as other firewalls have it.
            "vnc" => {
                let displays = ServicePort {
                    last_port: Some(5903.0),
                    ..port("tcp", 5900)
                };
                ("VNC", vec![displays])
            }
            _ => return None,
        };
        let name = name.to_owned();
        Some(Self { name, ports })
    }

    /// A rule for each port, each `from` and each `to`; the same every time it is asked for.
    pub fn rules(&self, options: &PresetOptions) -> Result<Vec<FirewallRuleInput>, PresetError> {
        if self.ports.is_empty() {
            return Err(PresetError::NoPorts(self.name.clone()));
        }
        let (from, to) = (ends(options.from.as_ref()), ends(options.to.as_ref()));
        let mut rules = Vec::new();
        for port in &self.ports {
            for source in &from {
                for destination in to.iter().filter(|to| source.may_meet(to)) {
                    let rule = self.rule(options, port, source, destination);
                    parse_rule(&rule).map_err(|source| PresetError::Rule {
                        service: self.name.clone(),
                        source,
                    })?;
                    rules.push(rule);
                }
            }
        }
        Ok(rules)
    }

    fn rule(
        &self,
        options: &PresetOptions,
        port: &ServicePort,
        from: &End,
        to: &End,
    ) -> FirewallRuleInput {
        let given =
            |word: &Option<String>, default: &str| word.clone().unwrap_or(default.to_owned());
        let direction = given(&options.direction, "IN");
        let action = given(&options.action, "ACCEPT");
        let (from_words, to_words) = (from.words("from"), to.words("to"));
        let name = format!("{}{from_words}{to_words}", self.name);
        let last = port
            .last_port
            .map(|last| format!("-{last}"))
            .unwrap_or_default();
        FirewallRuleInput {
            id: format!(
                "{action} {direction} {}/{}{last} {name}",
                port.protocol, port.port
            ),
            name,
            action,
            direction,
            priority: options.priority.unwrap_or(PRIORITY),
            protocol: Some(port.protocol.clone()),
            dst_port_start: Some(port.port),
            dst_port_end: port.last_port,
            src_ip_addr: from.address.clone(),
            src_ip_mask: from.mask.clone(),
            dst_ip_addr: to.address.clone(),
            dst_ip_mask: to.mask.clone(),
            overrides_dept: options.overrides_dept,
            ..FirewallRuleInput::default()
        }
    }
}

/// The rules as plain data, without what is not set.
pub fn preset_values(rules: &[FirewallRuleInput]) -> serde_json::Result<Vec<Value>> {
    let plain = |rule: &FirewallRuleInput| {
        let mut value = serde_json::to_value(rule)?;
        if let Value::Object(fields) = &mut value {
            let set = std::mem::take(fields)
                .into_iter()
                .filter(|(_, it)| !it.is_null());
            *fields = set.collect();
        }
        Ok(value)
    };
    rules.iter().map(plain).collect()
}

/// One end of the packets: an address, a network, or any.
#[derive(Debug, Default)]
struct End {
    address: Option<String>,
    mask: Option<String>,
}

fn ends(given: Option<&OneOrMany>) -> Vec<End> {
    match given {
        None => vec![End::default()],
        Some(OneOrMany::One(text)) => vec![End::of(text)],
        Some(OneOrMany::Many(texts)) => texts.iter().map(|text| End::of(text)).collect(),
    }
}

impl End {
    /// What it is, the rule's own check says. A part that is empty is wrong, and not "any".
    fn of(text: &str) -> Self {
        let part = |text: &str| if text.is_empty() { " " } else { text }.to_owned();
        let (address, mask) = match text.split_once('/') {
            Some((address, mask)) => (address, Some(part(mask))),
            None => (text, None),
        };
        Self {
            address: Some(part(address)),
            mask,
        }
    }

    /// A packet's ends are of one family.
    fn may_meet(&self, other: &Self) -> bool {
        let is_v6 = |end: &Self| end.address.as_ref().map(|address| address.contains(':'));
        is_v6(self).is_none() || is_v6(other).is_none() || is_v6(self) == is_v6(other)
    }

    fn words(&self, preposition: &str) -> String {
        let Some(address) = &self.address else {
            return String::new();
        };
        let mask = self
            .mask
            .as_ref()
            .map(|mask| format!("/{mask}"))
            .unwrap_or_default();
        format!(" {preposition} {address}{mask}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(value: Value) -> PresetOptions {
        serde_json::from_value(value).unwrap()
    }

    fn ssh(given: Value) -> Vec<FirewallRuleInput> {
        Service::known("ssh")
            .unwrap()
            .rules(&options(given))
            .unwrap()
    }

    #[test]
    fn the_known_ones_open_their_ports_to_anybody() {
        let table = [
            ("ssh", vec!["tcp 22"]),
            ("http", vec!["tcp 80"]),
            ("https", vec!["tcp 443"]),
            ("rdp", vec!["tcp 3389", "udp 3389"]),
            ("vnc", vec!["tcp 5900-5903"]),
        ];
        for (key, ports) in table {
            let rules = Service::known(key)
                .unwrap()
                .rules(&options(json!({})))
                .unwrap();
            let words = rules.iter().map(|rule| {
                let last = rule
                    .dst_port_end
                    .map(|last| format!("-{last}"))
                    .unwrap_or_default();
                let protocol = rule.protocol.as_deref().unwrap();
                format!("{protocol} {}{last}", rule.dst_port_start.unwrap())
            });
            assert_eq!(words.collect::<Vec<_>>(), ports, "{key}");
            assert!(
                rules
                    .iter()
                    .all(|it| it.action == "ACCEPT" && it.direction == "IN")
            );
        }
        assert_eq!(Service::known("gopher"), None);
    }

    #[test]
    fn a_rule_for_each_pair_of_ends_that_can_meet() {
        let rules = ssh(json!({ "from": ["10.0.0.0/8", "fd00::/8"], "to": "10.1.2.3" }));
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].src_ip_addr.as_deref(), Some("10.0.0.0"));
        assert_eq!(rules[0].src_ip_mask.as_deref(), Some("8"));
        assert_eq!(rules[0].name, "SSH from 10.0.0.0/8 to 10.1.2.3");
        assert_eq!(ssh(json!({ "from": ["10.0.0.1", "10.0.0.2"] })).len(), 2);
        assert_eq!(ssh(json!({ "from": [] })), [], "nobody is not anybody");
        let ids = ssh(json!({ "from": ["10.0.0.1", "10.0.0.2"], "action": "DROP" }));
        assert_ne!(ids[0].id, ids[1].id);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_rules_own_code() {
        let refusal = |given| {
            Service::known("ssh")
                .unwrap()
                .rules(&options(given))
                .unwrap_err()
        };
        let table = [
            (json!({ "from": "10.0.0" }), ErrorCode::InvalidIpAddress),
            (json!({ "from": "" }), ErrorCode::InvalidIpAddress),
            (json!({ "from": "/8" }), ErrorCode::InvalidIpAddress),
            (json!({ "from": "10.0.0.0/" }), ErrorCode::InvalidSubnetMask),
            (json!({ "from": "010.0.0.1" }), ErrorCode::InvalidIpAddress),
            (
                json!({ "from": "10.0.0.0/33" }),
                ErrorCode::InvalidSubnetMask,
            ),
            (json!({ "action": "ALLOW" }), ErrorCode::RuleInvalid),
            (json!({ "direction": "UP" }), ErrorCode::RuleInvalid),
        ];
        for (given, code) in table {
            assert_eq!(refusal(given.clone()).code(), code, "{given}");
        }
        assert!(serde_json::from_value::<PresetOptions>(json!({ "form": "10.0.0.1" })).is_err());
        let portless = Service {
            name: "x".to_owned(),
            ports: Vec::new(),
        };
        assert!(portless.rules(&PresetOptions::default()).is_err());
    }
}
