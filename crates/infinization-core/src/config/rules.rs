//! Firewall rules as callers give them: `createVM`'s `firewallRules` and `setFirewallRules`.
//!
//! Their types are read here; what a rule means is read where rules are compiled. A key that is no
//! field of a rule is refused and not only warned about: a rule without the filter that was meant
//! matches more than was meant.

use std::collections::HashMap;

use serde_json::Value;

use super::ConfigError;
use super::fields::{Fields, Report, elements, number, string, words_of_text};
use crate::types::{FirewallRuleInput, InvalidValue};

/// Reads `setFirewallRules`' rules. All refused fields are named at once, as `rules[0].id`.
pub fn parse_rules(value: &Value) -> Result<Vec<FirewallRuleInput>, ConfigError> {
    let report = Report::default();
    let values = report.check("rules", elements(value));
    let rules = values.map(|values| read("rules", values, &report));
    report.conclude(rules).map(|parsed| parsed.config)
}

/// Reads the list `key`. Two rules of one id are refused: a rule is told from others by its id.
pub(super) fn read(key: &str, values: &[Value], report: &Report) -> Vec<FirewallRuleInput> {
    let mut known = HashMap::new();
    let mut rules = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        let Some(rule) = Fields::element(key, index, value, report).and_then(|rule| one(&rule))
        else {
            continue;
        };
        if let Some(first) = known.insert(rule.id.clone(), index) {
            let message = format!("is the id of {key}[{first}] too");
            report.refuse(format!("{key}[{index}].id"), message);
        }
        rules.push(rule);
    }
    rules
}

fn one(fields: &Fields<'_>) -> Option<FirewallRuleInput> {
    let text = |key| fields.optional(key, owned);
    let port = |key| fields.optional(key, number);
    let [id, name] = [
        fields.required("id", words_of_text),
        fields.required("name", owned),
    ];
    let [action, direction] = [
        fields.required("action", owned),
        fields.required("direction", owned),
    ];
    let priority = fields.required("priority", number);
    let protocol = fields.required("protocol", owned);
    let rule = FirewallRuleInput {
        description: text("description"),
        src_port_start: port("srcPortStart"),
        src_port_end: port("srcPortEnd"),
        dst_port_start: port("dstPortStart"),
        dst_port_end: port("dstPortEnd"),
        src_ip_addr: text("srcIpAddr"),
        src_ip_mask: text("srcIpMask"),
        dst_ip_addr: text("dstIpAddr"),
        dst_ip_mask: text("dstIpMask"),
        connection_state: fields.optional("connectionState", |value| Ok(value.clone())),
        overrides_dept: fields.flag("overridesDept", false),
        ..FirewallRuleInput::default()
    };
    fields.refuse_strangers();
    Some(FirewallRuleInput {
        id: id?,
        name: name?,
        action: action?,
        direction: direction?,
        priority: priority?,
        protocol: Some(protocol?),
        ..rule
    })
}

fn owned(value: &Value) -> Result<String, InvalidValue> {
    string(value).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(more: &Value) -> Value {
        let mut rule = json!({ "id": "1", "name": "web", "action": "ACCEPT", "direction": "IN",
            "priority": 100, "protocol": "tcp", "dstPortStart": 80 });
        let more = more.as_object().unwrap().clone();
        rule.as_object_mut().unwrap().extend(more);
        rule
    }

    fn refused(rules: &Value) -> Vec<String> {
        let error = parse_rules(rules).unwrap_err();
        error.issues.into_iter().map(|issue| issue.path).collect()
    }

    #[test]
    fn b19_b20_b21_what_a_rule_must_be() {
        let table = [
            (json!({}), vec!["rules"]),
            (json!([5]), vec!["rules[0]"]),
            (
                json!([rule(&json!({ "dstPort": 80 }))]),
                vec!["rules[0].dstPort"],
            ),
            (
                json!([rule(
                    &json!({ "srcPortEnd": "80", "srcIpAddr": 10, "overridesDept": 1 })
                )]),
                vec![
                    "rules[0].srcPortEnd",
                    "rules[0].srcIpAddr",
                    "rules[0].overridesDept",
                ],
            ),
            (
                json!([rule(
                    &json!({ "id": " ", "name": null, "action": 1, "priority": null })
                )]),
                vec![
                    "rules[0].id",
                    "rules[0].name",
                    "rules[0].action",
                    "rules[0].priority",
                ],
            ),
            (
                json!([rule(&json!({})), {}]),
                vec![
                    "rules[1].id",
                    "rules[1].name",
                    "rules[1].action",
                    "rules[1].direction",
                    "rules[1].priority",
                    "rules[1].protocol",
                ],
            ),
        ];
        for (rules, paths) in table {
            assert_eq!(refused(&rules), paths, "{rules}");
        }
    }

    #[test]
    fn b28_two_rules_of_one_id_are_refused() {
        let rules = json!([
            rule(&json!({})),
            rule(&json!({ "id": "2" })),
            rule(&json!({}))
        ]);
        assert_eq!(refused(&rules), ["rules[2].id"]);
        let error = parse_rules(&rules).unwrap_err();
        assert_eq!(error.issues[0].message, "is the id of rules[0] too");
    }

    /// Every field of a rule is read.
    #[test]
    fn a_rule_is_read_whole() {
        let given = json!({ "id": "1", "name": "web", "description": "d", "action": "ACCEPT",
            "direction": "IN", "priority": 1.0, "protocol": "tcp", "srcPortStart": 1.0,
            "srcPortEnd": 2.0, "dstPortStart": 3.0, "dstPortEnd": 4.0, "srcIpAddr": "10.0.0.1",
            "srcIpMask": "24", "dstIpAddr": "10.0.0.2", "dstIpMask": "8",
            "connectionState": { "new": true }, "overridesDept": true });
        let rules = parse_rules(&json!([given])).unwrap();
        assert_eq!(serde_json::to_value(&rules[0]).unwrap(), given);
        assert_eq!(parse_rules(&json!([])).unwrap(), []);
    }
}
