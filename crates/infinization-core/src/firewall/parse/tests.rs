use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::error::Coded;
use crate::firewall::rule::{PortRange, States};

fn input() -> FirewallRuleInput {
    FirewallRuleInput {
        name: "web".into(),
        action: "ACCEPT".into(),
        direction: "IN".into(),
        protocol: Some("tcp".into()),
        ..FirewallRuleInput::default()
    }
}

fn code(rule: &FirewallRuleInput) -> &'static str {
    parse_rule(rule).unwrap_err().code().as_str()
}

#[test]
fn reads_a_whole_rule() {
    let rule = parse_rule(&FirewallRuleInput {
        dst_port_start: Some(80.0),
        dst_port_end: Some(90.0),
        src_ip_addr: Some("10.0.0.5".into()),
        src_ip_mask: Some("255.255.255.0".into()),
        connection_state: Some(json!({ "new": true, "established": true, "invalid": false })),
        ..input()
    });
    let rule = rule.unwrap();
    let ports = Ports {
        source: None,
        destination: Some(PortRange {
            first: 80,
            last: 90,
        }),
    };
    assert_eq!(rule.protocol, Protocol::Ports(Transport::Tcp, ports));
    let source = rule.source.unwrap();
    assert_eq!(
        (source.prefix, source.first_address()),
        (24, "10.0.0.0".parse().unwrap())
    );
    assert_eq!(rule.states.unwrap().words(), ["established", "new"]);
}

#[test]
fn b29_unknown_words_are_never_defaulted() {
    for action in ["allow", "", "accept ", "ACCEPT;drop"] {
        assert_eq!(
            code(&FirewallRuleInput {
                action: action.into(),
                ..input()
            }),
            "RULE_INVALID"
        );
    }
    for direction in ["BOTH", "", "in"] {
        let rule = FirewallRuleInput {
            direction: direction.into(),
            ..input()
        };
        assert_eq!(code(&rule), "RULE_INVALID");
    }
    let rule = FirewallRuleInput {
        protocol: Some("sctp".into()),
        ..input()
    };
    assert_eq!(code(&rule), "UNSUPPORTED_PROTOCOL");
    let rule = FirewallRuleInput {
        priority: f64::NAN,
        ..input()
    };
    assert_eq!(code(&rule), "RULE_INVALID");
}

#[test]
fn no_protocol_means_all() {
    for protocol in [None, Some(String::new()), Some("ALL".into())] {
        let rule = parse_rule(&FirewallRuleInput {
            protocol,
            ..input()
        })
        .unwrap();
        assert_eq!(rule.protocol, Protocol::All);
    }
}

#[test]
fn b24_ports_that_are_none() {
    let refused = [
        (Some(-1.0), None),
        (Some(65536.0), None),
        (Some(1.5), None),
        (Some(f64::NAN), None),
        (Some(f64::INFINITY), None),
        (Some(90.0), Some(80.0)),
        (None, Some(80.0)),
    ];
    for (dst_port_start, dst_port_end) in refused {
        let rule = FirewallRuleInput {
            dst_port_start,
            dst_port_end,
            ..input()
        };
        assert_eq!(
            code(&rule),
            "INVALID_PORT_RANGE",
            "{dst_port_start:?}-{dst_port_end:?}"
        );
    }
    for protocol in ["icmp", "all"] {
        let rule = FirewallRuleInput {
            protocol: Some(protocol.into()),
            src_port_start: Some(1.0),
            ..input()
        };
        assert_eq!(code(&rule), "RULE_INVALID");
    }
}

#[test]
fn b24_port_0_is_one() {
    // The contract's range begins with it, and packets may bear it.
    let rule = FirewallRuleInput {
        dst_port_start: Some(0.0),
        dst_port_end: Some(1023.0),
        ..input()
    };
    let Protocol::Ports(_, ports) = parse_rule(&rule).unwrap().protocol else {
        panic!("it has no ports");
    };
    let (first, last) = (0, 1023);
    assert_eq!(ports.destination, Some(PortRange { first, last }));
}

#[test]
fn b25_addresses_that_are_none() {
    for address in [
        "10.0.0",
        "010.0.0.1",
        "10.0.0.0/24",
        "1.2.3.4.5",
        "fe80::1%eth0",
        "::g",
        " 1.2.3.4",
    ] {
        let rule = FirewallRuleInput {
            src_ip_addr: Some(address.into()),
            ..input()
        };
        assert_eq!(code(&rule), "INVALID_IP_ADDRESS", "{address}");
    }
}

#[test]
fn b25_masks_that_do_not_fit() {
    let masks = [
        ("10.0.0.1", "33"),
        ("10.0.0.1", "-1"),
        ("10.0.0.1", "08"),
        ("10.0.0.1", "+8"),
        ("10.0.0.1", "255.0.255.0"),
        ("10.0.0.1", "/24"),
        ("2001:db8::1", "129"),
        ("2001:db8::1", "255.255.255.0"),
    ];
    for (address, mask) in masks {
        let rule = FirewallRuleInput {
            dst_ip_addr: Some(address.into()),
            dst_ip_mask: Some(mask.into()),
            ..input()
        };
        assert_eq!(code(&rule), "INVALID_SUBNET_MASK", "{address} {mask}");
    }
}

#[test]
fn masks_become_prefixes() {
    let masks = [
        ("10.1.2.3", Some("0"), 0, "0.0.0.0"),
        ("10.1.2.3", Some("0.0.0.0"), 0, "0.0.0.0"),
        ("10.1.2.3", Some("255.255.255.255"), 32, "10.1.2.3"),
        ("10.1.2.3", None, 32, "10.1.2.3"),
        ("2001:db8::1", Some("64"), 64, "2001:db8::"),
        ("2001:db8::1", Some("0"), 0, "::"),
        ("2001:db8::1", None, 128, "2001:db8::1"),
    ];
    for (address, mask, prefix, first) in masks {
        let network = network(Some(address), mask).unwrap().unwrap();
        assert_eq!(network.prefix, prefix);
        assert_eq!(network.first_address().to_string(), first);
    }
    assert_eq!(network(None, Some("24")).unwrap(), None);
    assert_eq!(network(Some(""), Some("nonsense")).unwrap(), None);
}

#[test]
fn families_do_not_mix() {
    let rule = FirewallRuleInput {
        src_ip_addr: Some("10.0.0.1".into()),
        dst_ip_addr: Some("2001:db8::1".into()),
        ..input()
    };
    assert_eq!(code(&rule), "RULE_INVALID");
}

#[test]
fn reads_states_in_both_shapes() {
    let replies = Some(States::REPLIES);
    let shapes = [
        (json!(null), None),
        (json!({ "established": true, "related": true }), replies),
        (
            json!({ "established": true, "related": true, "new": null }),
            replies,
        ),
        (json!({ "states": ["ESTABLISHED", "related"] }), replies),
    ];
    for (shape, expected) in shapes {
        assert_eq!(states(Some(&shape)).unwrap(), expected, "{shape}");
    }
}

#[test]
fn b30_states_that_set_none_do_not_widen_the_rule() {
    let shapes = [
        json!({}),
        json!({ "established": false, "new": false }),
        json!({ "states": [] }),
        json!({ "states": "ESTABLISHED" }),
        json!({ "states": ["ESTABLISHED"], "new": true }),
        json!({ "states": ["MADE_UP"] }),
        json!({ "established": "yes" }),
        json!({ "untracked": true }),
        json!([]),
        json!("established"),
        json!(true),
    ];
    for shape in shapes {
        let rule = FirewallRuleInput {
            connection_state: Some(shape.clone()),
            ..input()
        };
        assert_eq!(code(&rule), "RULE_INVALID", "{shape}");
    }
}

#[test]
fn b30_a_state_goes_with_every_protocol() {
    // The kernel tracks what has no ports too: the answer to a ping is of an established connection.
    for protocol in ["icmp", "udp", "all"] {
        let rule = FirewallRuleInput {
            protocol: Some(protocol.into()),
            dst_port_start: None,
            connection_state: Some(json!({ "established": true })),
            ..input()
        };
        assert!(parse_rule(&rule).unwrap().states.is_some(), "{protocol}");
    }
}

#[test]
fn b26_names_become_harmless_comments() {
    let names = [
        ("plain", "plain"),
        ("say \"hi\" \\ \r\n\t bye", "say 'hi' /     bye"),
        ("\"; flush ruleset; #", "'; flush ruleset; #"),
        ("\u{1b}[31mred\0", "[31mred"),
    ];
    for (name, expected) in names {
        assert_eq!(comment(name).unwrap(), expected);
    }
    assert_eq!(comment(&"x".repeat(300)).unwrap().len(), 64);
    assert_eq!(comment(&"😀".repeat(300)).unwrap(), "😀".repeat(31));
    for nameless in ["", "  ", "\n\t"] {
        assert_eq!(comment(nameless), Err(RuleError::NoName));
    }
}

proptest! {
    #[test]
    fn b26_any_name_is_one_short_line(name in any::<String>()) {
        if let Ok(comment) = comment(&name) {
            prop_assert!(comment.len() <= MAX_COMMENT_BYTES);
            prop_assert!(!comment.contains(|c: char| c.is_control() || c == '"' || c == '\\'));
        }
    }

    #[test]
    fn any_input_is_a_rule_or_an_error(
        texts in proptest::array::uniform8(proptest::option::of(".{0,40}|[0-9.:a-f/]{0,20}")),
        ports in proptest::array::uniform4(proptest::option::of(any::<f64>())),
        state in proptest::option::of("established|new|[a-z]{0,9}"),
        set in any::<bool>(),
    ) {
        let [name, action, direction, protocol, src_ip_addr, src_ip_mask, dst_ip_addr, dst_ip_mask]
            = texts;
        let [src_port_start, src_port_end, dst_port_start, dst_port_end] = ports;
        let rule = FirewallRuleInput {
            name: name.unwrap_or_default(),
            action: action.unwrap_or("DROP".into()),
            direction: direction.unwrap_or("OUT".into()),
            connection_state: state.map(|state| json!({ state: set })),
            protocol, src_ip_addr, src_ip_mask, dst_ip_addr, dst_ip_mask,
            src_port_start, src_port_end, dst_port_start, dst_port_end,
            ..input()
        };
        if let Ok(rule) = parse_rule(&rule) {
            prop_assert!(rule.states.is_none_or(|states| !states.words().is_empty()));
        }
    }
}
