//! The rule sets that are tried: each single rule under each policy, then generated ones.

use std::fmt;

use super::firewall::address;
use super::kit::packets::Place;
use super::model::Machine;
use super::random::Random;
use super::rule::{Action, Direction, Network, Ports, Protocol, Rule, State};

/// The rules of each managed machine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    pub(crate) number: usize,
    pub(crate) machines: [(Place, Machine); 3],
}

impl Case {
    pub(crate) fn machine(&self, place: Place) -> Option<&Machine> {
        let mut machines = self.machines.iter();
        let found = machines.find(|(at, _)| *at == place);
        found.map(|(_, machine)| machine)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, machine) in &self.machines {
            let policy = if machine.open { "accept" } else { "drop" };
            writeln!(f, "  {place:?}, policy {policy}")?;
            for rule in machine.merged() {
                writeln!(f, "    {rule}")?;
            }
        }
        Ok(())
    }
}

/// The first `count` cases of this seed.
pub(crate) fn cases(seed: u64, count: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut all = single_rules();
    // Fewer are spread over all of them.
    if count < all.len() * 2 {
        let keep = all.len() * 2 / count.max(1);
        all = all.into_iter().step_by(keep.max(1)).collect();
    }
    all.truncate(count);
    let mut machines = [everything(), everything(), everything()];
    while all.len() < count {
        machines[0] = machine(&mut random, 6);
        // The others in turn: loading rules takes the most time.
        machines[1 + all.len() % 2] = machine(&mut random, 3);
        all.push(machines.clone());
    }
    let numbered = all.into_iter().enumerate();
    numbered
        .map(|(number, machines)| case(number, machines))
        .collect()
}

fn case(number: usize, machines: [Machine; 3]) -> Case {
    let mut places = [Place::A1, Place::A2, Place::B1].into_iter();
    let machines = machines.map(|machine| {
        let place = places.next().unwrap();
        let gateway = [true, false].map(|v4| place.gateway(v4));
        (place, Machine { gateway, ..machine })
    });
    Case { number, machines }
}

/// One rule for A1 among machines that allow everything.
fn single_rules() -> Vec<[Machine; 3]> {
    let mut all = Vec::new();
    for action in ACTIONS {
        for direction in DIRECTIONS {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::All] {
                for open in [true, false] {
                    let rule = named(Rule::new(action, direction, protocol), 0);
                    let own = vec![rule];
                    all.push([with_rules(open, own), everything(), everything()]);
                }
            }
        }
    }
    all
}

fn with_rules(open: bool, own: Vec<Rule>) -> Machine {
    let nowhere = address("0.0.0.0");
    Machine {
        department: Vec::new(),
        own,
        open,
        gateway: [nowhere; 2],
    }
}

fn everything() -> Machine {
    with_rules(true, Vec::new())
}

const ACTIONS: [Action; 3] = [Action::Accept, Action::Drop, Action::Reject];
const DIRECTIONS: [Direction; 3] = [Direction::In, Direction::Out, Direction::InOut];

fn machine(random: &mut Random, most_rules: usize) -> Machine {
    let count = random.below(most_rules + 1);
    let mut rules: Vec<_> = (0..count).map(|n| named(rule(random), n)).collect();
    let department = rules.split_off(random.below(count + 1));
    if let Some(equal) = department.first().filter(|_| random.chance(40)) {
        rules.push(override_of(random, equal));
    }
    Machine {
        department,
        ..with_rules(random.chance(40), rules)
    }
}

/// A rule of the machine's own that takes the place of its department's.
fn override_of(random: &mut Random, equal: &Rule) -> Rule {
    Rule {
        name: format!("{} overridden", equal.name),
        action: random.one_of(&ACTIONS),
        direction: random.one_of(&DIRECTIONS),
        priority: random.one_of(&PRIORITIES),
        overrides: true,
        ..equal.clone()
    }
}

const PRIORITIES: [u16; 5] = [10, 100, 500, 500, 900];

fn rule(random: &mut Random) -> Rule {
    let protocol = random.one_of(&[
        Protocol::Tcp,
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Icmp,
        Protocol::All,
    ]);
    let action = random.one_of(&[Action::Accept, Action::Accept, Action::Drop, Action::Reject]);
    let mut rule = Rule::new(action, random.one_of(&DIRECTIONS), protocol);
    rule.priority = random.one_of(&PRIORITIES);
    let v4 = random.chance(50);
    rule.source = random.chance(25).then(|| network(random, v4));
    rule.destination = random.chance(25).then(|| network(random, v4));
    if matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        rule.source_ports = random.chance(20).then(|| random.one_of(&SOURCE_PORTS));
        rule.destination_ports = random.chance(60).then(|| random.one_of(&PORTS));
    }
    if random.chance(25) {
        rule.states = random.one_of(&STATES).to_vec();
    }
    rule
}

fn named(rule: Rule, number: usize) -> Rule {
    let name = format!("r{number}");
    Rule { name, ..rule }
}

/// Those of the flows, ranges around them, and everything.
const PORTS: [Ports; 8] = [
    (22, 22),
    (80, 80),
    (20, 80),
    (53, 53),
    (7000, 7000),
    (4000, 7999),
    (23, 79),
    (1, 65535),
];
/// Flows have source ports of both kinds.
const SOURCE_PORTS: [Ports; 3] = [(1024, 29_999), (30_000, 65_535), (22, 80)];

const STATES: [&[State]; 7] = [
    &[State::New],
    &[State::New, State::Established],
    &[State::Established, State::Related],
    &[State::Established],
    &[State::Related],
    &[State::Invalid],
    &[State::New, State::Invalid],
];

fn network(random: &mut Random, v4: bool) -> Network {
    let places = [
        Place::A1,
        Place::A2,
        Place::B1,
        Place::Host,
        Place::Outside,
        Place::Wire,
    ];
    let address = random.one_of(&places).address(v4);
    let lengths = if v4 {
        [32, 32, 31, 30, 25, 24, 16, 0]
    } else {
        [128, 128, 127, 126, 120, 64, 15, 0]
    };
    (address, random.one_of(&lengths))
}
