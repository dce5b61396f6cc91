use serde_json::json;

use super::*;
use crate::firewall::{Field, Item, Op};

fn vm() -> VmFirewall {
    VmFirewall {
        vm_id: VmId::parse("vm-1").unwrap(),
        tap: LinkName::parse("vnet-a").unwrap(),
        mac: MacAddr::parse("52:54:00:00:00:01").unwrap(),
        known_addresses: Vec::new(),
        bridge_addresses: Vec::new(),
        host_services: HostService::DEFAULT.to_vec(),
        department_rules: Vec::new(),
        vm_rules: Vec::new(),
        default_action: FirewallDefaultAction::Drop,
        conntrack: Conntrack::Stateful,
        reject: true,
    }
}

fn network(address: &str, prefix: u8) -> Network {
    let address = address.parse().unwrap();
    Network { address, prefix }
}

fn rule(name: &str, action: &str, direction: &str, protocol: &str) -> FirewallRuleInput {
    FirewallRuleInput {
        id: format!("id-{name}"),
        name: name.into(),
        action: action.into(),
        direction: direction.into(),
        protocol: Some(protocol.into()),
        ..FirewallRuleInput::default()
    }
}

fn ssh(action: &str, direction: &str) -> FirewallRuleInput {
    FirewallRuleInput {
        dst_port_start: Some(22.0),
        ..rule("ssh", action, direction, "tcp")
    }
}

/// `vm_x` with these rules of the VM's own, one line each.
fn vm_chain(vm: VmFirewall, rules: &[FirewallRuleInput]) -> Vec<String> {
    let compiled = compile(&VmFirewall {
        vm_rules: rules.to_vec(),
        ..vm
    });
    compiled.unwrap().ruleset.vm.iter().map(line).collect()
}

fn stateless() -> VmFirewall {
    VmFirewall {
        conntrack: Conntrack::Stateless,
        reject: false,
        ..vm()
    }
}

/// A rule as a person would read it.
fn line(rule: &NftRule) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(condition).collect();
    words.push(match &rule.verdict {
        Verdict::Jump(chain) => format!("jump {chain}"),
        verdict => format!("{verdict:?}").to_lowercase(),
    });
    format!("{} # {}", words.join(" "), rule.comment)
}

fn condition(condition: &Match) -> String {
    let field = match condition.field {
        Field::Ip(side) => format!("ip-{side:?}"),
        Field::Ip6(side) => format!("ip6-{side:?}"),
        Field::Port(transport, side) => format!("{}-{side:?}", transport.as_str()),
        field => format!("{field:?}"),
    };
    let op = if condition.op == Op::Is { "=" } else { "!=" };
    let items: Vec<String> = condition.items.iter().map(item).collect();
    format!("{}{op}{}", field.to_lowercase(), items.join(","))
}

fn item(item: &Item) -> String {
    match item {
        Item::Word(word) => word.clone(),
        Item::Number(number) => number.to_string(),
        Item::Range(first, last) => format!("{first}-{last}"),
        Item::Prefix(address, length) => format!("{address}/{length}"),
    }
}

#[test]
fn b01_no_rules_still_end_in_the_terminal_verdict() {
    assert_eq!(
        vm_chain(vm(), &[]),
        [
            "ctstate=established,related accept # Allow Established/Related (Auto)",
            "drop # infinization-default-drop",
        ]
    );
    let open = VmFirewall {
        default_action: FirewallDefaultAction::Accept,
        ..stateless()
    };
    assert_eq!(
        vm_chain(open, &[]),
        ["accept # infinization-default-accept"]
    );
}

#[test]
fn rules_match_both_families_unless_they_name_an_address() {
    let from = |address: &str, mask: &str, protocol: &str| FirewallRuleInput {
        src_ip_addr: Some(address.into()),
        src_ip_mask: Some(mask.into()),
        ..rule("r", "DROP", "IN", protocol)
    };
    let lines = [
        (ssh("DROP", "IN"), "l4proto=tcp tcp-destination=22 "),
        (rule("r", "DROP", "IN", "icmp"), "l4proto=icmp,ipv6-icmp "),
        (rule("r", "DROP", "IN", "all"), ""),
        (
            from("10.0.0.5", "24", "icmp"),
            "protocol=ip l4proto=icmp ip-source=10.0.0.0/24 ",
        ),
        (
            from("10.0.0.5", "32", "all"),
            "protocol=ip ip-source=10.0.0.5 ",
        ),
        (from("10.0.0.5", "0", "all"), "protocol=ip "),
        (
            from("fd00::5", "64", "udp"),
            "protocol=ip6 l4proto=udp ip6-source=fd00::/64 ",
        ),
        (from("::", "0", "icmp"), "protocol=ip6 l4proto=ipv6-icmp "),
    ];
    for (rule, expected) in lines {
        let name = rule.name.clone();
        let chain = vm_chain(vm(), &[rule]);
        assert_eq!(chain[0], format!("oif!=0 {expected}drop # {name}"));
    }
}

#[test]
fn both_directions_are_two_rules_and_count_once() {
    let compiled = compile(&VmFirewall {
        vm_rules: vec![ssh("ACCEPT", "INOUT")],
        ..vm()
    });
    let compiled = compiled.unwrap();
    let lines: Vec<_> = compiled.ruleset.vm.iter().map(line).collect();
    assert_eq!(
        lines[..2],
        [
            "oif!=0 l4proto=tcp tcp-destination=22 accept # ssh",
            "iif!=0 l4proto=tcp tcp-destination=22 accept # ssh",
        ]
    );
    assert_eq!((compiled.total, compiled.applied), (1, 1));
}

#[test]
fn a_bad_rule_is_reported_and_the_others_apply() {
    let bad = FirewallRuleInput {
        src_ip_addr: Some("nowhere".into()),
        ..rule("bad", "ACCEPT", "IN", "all")
    };
    let compiled = compile(&VmFirewall {
        department_rules: vec![bad],
        vm_rules: vec![ssh("ACCEPT", "IN")],
        ..vm()
    });
    let compiled = compiled.unwrap();
    assert_eq!((compiled.total, compiled.applied), (2, 1));
    let failure = &compiled.failures[0];
    assert_eq!((&*failure.rule_id, &*failure.rule_name), ("id-bad", "bad"));
    assert_eq!(failure.error.code(), ErrorCode::InvalidIpAddress);
    assert_eq!(compiled.ruleset.vm.len(), 3);
}

fn with_states(rule: FirewallRuleInput, states: &[&str]) -> FirewallRuleInput {
    FirewallRuleInput {
        connection_state: Some(json!({ "states": states })),
        ..rule
    }
}

#[test]
fn tracked_states_are_matched_last() {
    let rule = with_states(ssh("ACCEPT", "IN"), &["NEW", "ESTABLISHED"]);
    assert_eq!(
        vm_chain(vm(), &[rule])[0],
        "oif!=0 l4proto=tcp tcp-destination=22 ctstate=established,new accept # ssh"
    );
}

#[test]
fn f30_without_tracking_each_tcp_accept_is_mirrored_before_the_terminal() {
    let udp = FirewallRuleInput {
        dst_port_start: Some(53.0),
        ..rule("dns", "ACCEPT", "OUT", "udp")
    };
    let http = FirewallRuleInput {
        dst_ip_addr: Some("10.0.0.9".into()),
        dst_port_start: Some(80.0),
        src_port_start: Some(1024.0),
        src_port_end: Some(65535.0),
        ..rule("http", "ACCEPT", "OUT", "tcp")
    };
    let all = rule("all", "ACCEPT", "IN", "all");
    let drop = ssh("DROP", "IN");
    assert_eq!(
        vm_chain(stateless(), &[drop, http, udp, all]),
        [
            "oif!=0 l4proto=tcp tcp-destination=22 drop # ssh",
            "iif!=0 protocol=ip l4proto=tcp ip-destination=10.0.0.9 \
             tcp-source=1024-65535 tcp-destination=80 accept # http",
            "iif!=0 l4proto=udp udp-destination=53 accept # dns",
            "oif!=0 accept # all",
            "oif!=0 protocol=ip l4proto=tcp ip-source=10.0.0.9 \
             tcp-source=80 tcp-destination=1024-65535 tcpsynack!=syn accept # http",
            "iif!=0 l4proto=tcp tcpsynack!=syn accept # all",
            "drop # infinization-default-drop",
        ]
    );
}

#[test]
fn f30_without_tracking_states_are_dropped_covered_or_refused_never_widened() {
    type Outcome = Result<Option<Degradation>, ErrorCode>;
    let outcomes: [(&str, &[&str], Outcome); 8] = [
        ("ACCEPT", &["NEW"], Ok(Some(Degradation::StateIgnored))),
        (
            "ACCEPT",
            &["NEW", "ESTABLISHED"],
            Ok(Some(Degradation::StateIgnored)),
        ),
        (
            "ACCEPT",
            &["ESTABLISHED"],
            Ok(Some(Degradation::LeftToReplies)),
        ),
        (
            "ACCEPT",
            &["ESTABLISHED", "RELATED"],
            Ok(Some(Degradation::LeftToReplies)),
        ),
        ("ACCEPT", &["INVALID"], Err(ErrorCode::ConntrackUnavailable)),
        (
            "ACCEPT",
            &["INVALID", "ESTABLISHED"],
            Err(ErrorCode::ConntrackUnavailable),
        ),
        ("DROP", &["NEW"], Err(ErrorCode::ConntrackUnavailable)),
        ("REJECT", &["INVALID"], Err(ErrorCode::ConntrackUnavailable)),
    ];
    for (action, states, expected) in outcomes {
        let compiled = compile(&VmFirewall {
            vm_rules: vec![with_states(ssh(action, "IN"), states)],
            ..stateless()
        });
        let compiled = compiled.unwrap();
        let degradation = compiled.degraded.first().map(|rule| rule.degradation);
        let found = match compiled.failures.first() {
            Some(failure) => Err(failure.error.code()),
            None => Ok(degradation),
        };
        assert_eq!(found, expected, "{action} {states:?}");
        let text: Vec<_> = compiled.ruleset.vm.iter().map(line).collect();
        assert!(!text.join("\n").contains("ctstate"), "{action} {states:?}");
    }
}

#[test]
fn reject_goes_back_to_the_chain_that_can_refuse() {
    let compiled = compile(&VmFirewall {
        vm_rules: vec![ssh("REJECT", "OUT"), rule("quiet", "REJECT", "OUT", "udp")],
        ..vm()
    });
    let compiled = compiled.unwrap();
    assert_eq!(compiled.degraded, []);
    let tail = |rules: &[NftRule], n| {
        rules[rules.len() - n..]
            .iter()
            .map(line)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        line(&compiled.ruleset.vm[0]),
        "iif!=0 l4proto=tcp tcp-destination=22 return # ssh"
    );
    assert_eq!(
        tail(&compiled.ruleset.from, 3),
        [
            "l4proto=tcp rejectwithtcpreset # infinization-reject",
            "rejectasunreachable # infinization-reject",
            "drop # infinization-closed",
        ]
    );
    assert_eq!(
        tail(&compiled.ruleset.to, 5),
        [
            "l4proto=tcp tcp-source=22 tcprst=rst accept # infinization-reject-reply",
            "protocol=ip l4proto=icmp icmptype=destination-unreachable accept \
             # infinization-reject-reply",
            "protocol=ip6 l4proto=ipv6-icmp icmpv6type=destination-unreachable accept \
             # infinization-reject-reply",
            "jump vm_2d62b0035f348790d3b99c33 # infinization-rules",
            "drop # infinization-closed",
        ]
    );
}

#[test]
fn f30_reject_drops_and_says_so_where_the_kernel_cannot() {
    let cases = [(true, "IN"), (true, "INOUT"), (false, "OUT")];
    for (reject, direction) in cases {
        let compiled = compile(&VmFirewall {
            vm_rules: vec![ssh("REJECT", direction)],
            reject,
            ..vm()
        });
        let compiled = compiled.unwrap();
        assert_eq!(compiled.degraded[0].degradation, Degradation::RejectDrops);
        assert!(
            line(&compiled.ruleset.vm[0]).contains(" drop # ssh"),
            "{direction}"
        );
        assert_eq!((compiled.applied, compiled.failures.len()), (1, 0));
    }
}

#[test]
fn every_header_match_follows_the_proof_that_the_header_is_there() {
    let compiled = compile(&VmFirewall {
        known_addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        bridge_addresses: vec![network("10.0.0.1", 24), network("fd00::1", 64)],
        vm_rules: vec![
            ssh("REJECT", "INOUT"),
            rule("ping", "REJECT", "OUT", "icmp"),
        ],
        ..vm()
    });
    for (_, rule) in compiled.unwrap().ruleset.rules() {
        let mut seen = Vec::new();
        for condition in &*rule.matches {
            let needs = match condition.field {
                Field::Ip(_) | Field::Ip6(_) | Field::ArpSenderEther | Field::ArpSenderIp => {
                    Some(Field::Protocol)
                }
                Field::FragmentNext | Field::FragmentMore => Some(Field::Protocol),
                Field::Port(..) | Field::TcpSynAck | Field::TcpRst | Field::IcmpType => {
                    Some(Field::L4Proto)
                }
                Field::Icmpv6Type => Some(Field::L4Proto),
                Field::NdTarget | Field::NdTargetNetwork => Some(Field::Icmpv6Type),
                _ => None,
            };
            assert!(
                needs.is_none_or(|field| seen.contains(&field)),
                "{}",
                line(rule)
            );
            seen.push(condition.field);
        }
    }
}

#[test]
fn a_whole_vm_as_a_person_would_read_it() {
    let compiled = compile(&VmFirewall {
        known_addresses: vec!["10.0.0.5".parse().unwrap()],
        bridge_addresses: vec![network("10.0.0.1", 24), network("fe80::1", 64)],
        ..stateless()
    });
    let compiled = compiled.unwrap();
    let text: Vec<_> = compiled
        .ruleset
        .rules()
        .map(|(chain, rule)| format!("{} | {}", chain.split('_').next().unwrap(), line(rule)))
        .collect();
    let text = text.join("\n").replace(&compiled.hash, "<hash>");
    assert_eq!(
        text,
        include_str!("golden_vm.txt").trim_end(),
        "found:\n{text}"
    );
}

#[test]
fn f8_the_hash_follows_the_contents() {
    let hash = |vm: &VmFirewall| compile(vm).unwrap().hash;
    let base = hash(&vm());
    assert_eq!(base, hash(&vm()));
    let tap = LinkName::parse("vnet-b").unwrap();
    let changes = [
        VmFirewall { tap, ..vm() },
        VmFirewall {
            vm_rules: vec![ssh("DROP", "IN")],
            ..vm()
        },
        VmFirewall {
            default_action: FirewallDefaultAction::Accept,
            ..vm()
        },
        VmFirewall {
            bridge_addresses: vec![network("10.0.0.1", 24)],
            ..vm()
        },
        stateless(),
    ];
    for changed in changes {
        assert_ne!(base, hash(&changed), "{changed:?}");
    }
}

#[test]
fn b27_ten_thousand_rules_are_fine_and_a_million_are_not() {
    let many = |count| VmFirewall {
        vm_rules: vec![ssh("ACCEPT", "IN"); count],
        ..vm()
    };
    assert_eq!(compile(&many(10_000)).unwrap().applied, 10_000);
    let error = compile(&many(1_000_001)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::RuleInvalid);
}
