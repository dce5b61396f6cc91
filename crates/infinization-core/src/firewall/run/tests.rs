use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::compile::{
    Compiled, Conntrack, HostService, VmFirewall, compile, compile_sharing,
};
use super::super::expr::{Field, Item, Match, Op};
use super::super::rule::{Side, Transport};
use super::*;
use crate::types::{FirewallDefaultAction, FirewallRuleInput, VmId, VmNames};

/// What a packet looks like to the few fields that users' rules look at.
#[derive(Debug, Clone)]
struct Packet {
    to_vm: bool,
    protocol: &'static str,
    destination_port: u16,
    source_port: u16,
    source: u8,
    destination: u8,
    state: &'static str,
    opens: bool,
}

impl Packet {
    fn has(&self, condition: &Match) -> bool {
        let found = condition
            .items
            .iter()
            .any(|item| self.is(condition.field, item));
        found == (condition.op == Op::Is)
    }

    fn is(&self, field: Field, item: &Item) -> bool {
        let port = match field {
            // All ports have numbers, and 0 is none's.
            Field::Iif => return self.to_vm && *item == Item::from("0"),
            Field::Oif => return !self.to_vm && *item == Item::from("0"),
            Field::Protocol => return *item == Item::from("ip"),
            Field::L4Proto => return *item == Item::from(self.protocol),
            Field::CtState => return *item == Item::from(self.state),
            Field::TcpSynAck => return self.opens,
            Field::Ip(side) => {
                let last = match side {
                    Side::Source => self.source,
                    Side::Destination => self.destination,
                };
                return *item == Item::Word(format!("10.0.0.{last}"));
            }
            Field::Port(Transport::Tcp, _) if self.protocol != "tcp" => return false,
            Field::Port(Transport::Udp, _) if self.protocol != "udp" => return false,
            Field::Port(_, Side::Source) => self.source_port,
            Field::Port(_, Side::Destination) => self.destination_port,
            other => panic!("users' rules do not look at {other:?}"),
        };
        match item {
            Item::Number(number) => port == *number,
            Item::Range(first, last) => (*first..=*last).contains(&port),
            other => panic!("{other:?} is no port"),
        }
    }
}

/// What becomes of the packet in `vm_x`; `Return` is its refusal. As the kernel does it: a chain that ends
/// or returns goes on behind the jump.
fn verdict(compiled: &Compiled, packet: &Packet) -> Verdict {
    let shared: BTreeMap<_, _> = compiled
        .ruleset
        .shared
        .iter()
        .map(|chain| (chain.name.as_str(), chain.rules.as_slice()))
        .collect();
    walk(&compiled.ruleset.vm, &shared, packet).unwrap_or(Verdict::Return)
}

fn walk(
    rules: &[NftRule],
    shared: &BTreeMap<&str, &[NftRule]>,
    packet: &Packet,
) -> Option<Verdict> {
    for rule in rules {
        if !rule.matches.iter().all(|condition| packet.has(condition)) {
            continue;
        }
        match &rule.verdict {
            Verdict::Return => return None,
            Verdict::Jump(chain) => {
                if let Some(verdict) = walk(shared[chain.as_str()], shared, packet) {
                    return Some(verdict);
                }
            }
            verdict => return Some(verdict.clone()),
        }
    }
    None
}

fn rules(owner: &'static str) -> impl Strategy<Value = Vec<FirewallRuleInput>> {
    let rule = (
        prop::sample::select(vec!["ACCEPT", "DROP", "REJECT"]),
        prop::sample::select(vec!["IN", "OUT", "INOUT"]),
        prop::sample::select(vec!["tcp", "udp", "icmp", "all"]),
        prop::option::of(1_u16..4),
        prop::option::of(1_u8..3),
        0_u8..4,
        any::<bool>(),
        prop::option::of(prop::sample::select(vec!["new", "established"])),
    );
    let rule = rule.prop_map(
        move |(action, direction, protocol, port, source, priority, overrides, state)| {
            let has_ports = matches!(protocol, "tcp" | "udp");
            FirewallRuleInput {
                id: owner.to_owned(),
                name: owner.to_owned(),
                action: action.to_owned(),
                direction: direction.to_owned(),
                protocol: Some(protocol.to_owned()),
                dst_port_start: port.filter(|_| has_ports).map(f64::from),
                src_ip_addr: source.map(|last| format!("10.0.0.{last}")),
                priority: f64::from(priority),
                overrides_dept: overrides,
                connection_state: state.map(|state| serde_json::json!({ state: true })),
                ..FirewallRuleInput::default()
            }
        },
    );
    prop::collection::vec(rule, 0..8)
}

fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let packet = (
        any::<bool>(),
        prop::sample::select(vec!["tcp", "udp", "icmp"]),
        (1_u16..4, 1_u16..4),
        (1_u8..4, 1_u8..4),
        prop::sample::select(vec!["new", "established", "invalid"]),
        any::<bool>(),
    );
    let packet = packet.prop_map(|(to_vm, protocol, ports, addresses, state, opens)| Packet {
        to_vm,
        protocol,
        destination_port: ports.0,
        source_port: ports.1,
        source: addresses.0,
        destination: addresses.1,
        state,
        opens,
    });
    prop::collection::vec(packet, 40)
}

fn machine(id: &str, department: &[FirewallRuleInput], own: &[FirewallRuleInput]) -> VmFirewall {
    let vm_id = VmId::parse(id).unwrap();
    let names = VmNames::of(&vm_id);
    VmFirewall {
        vm_id,
        tap: names.tap,
        mac: names.mac,
        known_addresses: Vec::new(),
        bridge_addresses: Vec::new(),
        host_services: HostService::DEFAULT.to_vec(),
        department_rules: department.to_vec(),
        vm_rules: own.to_vec(),
        default_action: FirewallDefaultAction::Drop,
        conntrack: Conntrack::Stateless,
        reject: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn b28_shared_or_not_every_packet_meets_the_same_verdict(
        (department, own) in (rules("department"), rules("own")),
        packets in packets(),
        (tracks, reject, accepts) in any::<(bool, bool, bool)>(),
    ) {
        let vm = VmFirewall {
            conntrack: if tracks { Conntrack::Stateful } else { Conntrack::Stateless },
            reject,
            default_action: if accepts { FirewallDefaultAction::Accept } else { FirewallDefaultAction::Drop },
            ..machine("vm-1", &department, &own)
        };
        let (shared, inlined) = (compile(&vm).unwrap(), compile_sharing(&vm, false).unwrap());
        prop_assert!(inlined.ruleset.shared.is_empty());
        prop_assert_eq!(&shared.ruleset.to.len(), &inlined.ruleset.to.len());
        prop_assert_eq!(shared.applied, inlined.applied);
        for packet in packets {
            prop_assert_eq!(verdict(&shared, &packet), verdict(&inlined, &packet), "{:?}", packet);
        }
    }
}

fn rule(words: &str, priority: f64) -> FirewallRuleInput {
    let mut parts = words.split(' ').map(str::to_owned);
    let mut next = || parts.next().unwrap();
    FirewallRuleInput {
        id: words.to_owned(),
        name: words.to_owned(),
        action: next(),
        direction: next(),
        protocol: Some(next()),
        priority,
        ..FirewallRuleInput::default()
    }
}

fn shared(id: &str, department: &[FirewallRuleInput], own: &[FirewallRuleInput]) -> Vec<String> {
    let compiled = compile(&machine(id, department, own)).unwrap();
    compiled.ruleset.shared_names().map(str::to_owned).collect()
}

#[test]
fn machines_share_what_their_own_rules_do_not_take_apart() {
    let department = [rule("DROP IN tcp", 100.0), rule("DROP IN udp", 200.0)];
    let before = [rule("ACCEPT IN icmp", 50.0)];
    let between = [rule("ACCEPT IN icmp", 150.0)];
    let elsewhere = [rule("ACCEPT OUT icmp", 150.0)];
    let alone = shared("vm-1", &department, &[]);
    assert_eq!(alone.len(), 1);
    assert!(
        alone[0].starts_with(SharedChain::IN) && alone[0].len() == 31 - 1,
        "{alone:?}"
    );
    assert_eq!(shared("vm-2", &department, &before), alone);
    assert_eq!(
        shared("vm-3", &department, &elsewhere),
        alone,
        "the other direction"
    );
    let apart = shared("vm-4", &department, &between);
    assert_eq!(apart.len(), 2);
    assert_eq!(shared("vm-5", &department, &between), apart);
    assert_eq!(
        shared("vm-1", &department[..1], &[]),
        apart[..1],
        "named by contents"
    );
    assert_eq!(shared("vm-1", &[], &between), [] as [&str; 0]);
}

#[test]
fn what_refuses_stands_in_the_machine_s_own_chain() {
    let department = ["DROP OUT tcp", "REJECT OUT udp", "DROP OUT icmp"];
    let department = department.map(|words| rule(words, 1.0));
    let refusing = VmFirewall {
        reject: true,
        ..machine("vm-1", &department, &[])
    };
    let compiled = compile(&refusing).unwrap();
    assert_eq!(compiled.ruleset.shared.len(), 2);
    let verdicts: Vec<_> = compiled
        .ruleset
        .vm
        .iter()
        .map(|rule| &rule.verdict)
        .collect();
    assert!(matches!(
        verdicts[..3],
        [Verdict::Jump(_), Verdict::Return, Verdict::Jump(_)]
    ));
    // Where nothing can be refused it is a drop, and can be shared.
    assert_eq!(shared("vm-1", &department, &[]).len(), 1);
}

#[test]
fn a_department_s_change_leaves_the_hash_of_the_machine_alone() {
    let of = |department: &[FirewallRuleInput]| {
        compile(&machine("vm-1", department, &[rule("DROP OUT all", 1.0)])).unwrap()
    };
    let (one, other) = (
        of(&[rule("DROP IN tcp", 1.0)]),
        of(&[rule("DROP IN udp", 1.0)]),
    );
    assert_eq!(one.hash, other.hash);
    assert!(!one.says_the_same(&other) && one.says_the_same(&one));
    assert_ne!(one.hash, of(&[]).hash);
}

#[test]
fn newer_rules_move_into_the_machine_that_is_started() {
    let mac = |last| crate::types::MacAddr::parse(&format!("52:54:00:00:00:0{last}")).unwrap();
    let department = [rule("DROP IN tcp", 1.0), rule("REJECT OUT udp", 1.0)];
    let newer = VmFirewall {
        mac: mac(1),
        reject: true,
        ..machine("vm-1", &department, &[rule("ACCEPT IN icmp", 2.0)])
    };
    let started = VmFirewall {
        mac: mac(2),
        department_rules: Vec::new(),
        vm_rules: vec![rule("ACCEPT OUT all", 1.0)],
        ..newer.clone()
    };
    let wanted = compile(&VmFirewall {
        mac: mac(2),
        ..newer.clone()
    })
    .unwrap();
    let both = compile(&started)
        .unwrap()
        .with_rules_of(&compile(&newer).unwrap());
    assert_eq!(both, wanted);
}
