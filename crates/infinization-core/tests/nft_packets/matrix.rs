//! Every case's rules loaded, every flow sent, every packet compared with the model.

use std::collections::HashSet;
use std::fmt::Write;

use infinization_core::db::RuleSplit;
use infinization_core::manager::{Firewall, Wanted};
use infinization_core::types::{FirewallDefaultAction, VmNames};

use super::cases::Case;
use super::firewall::address;
use super::flows::{Flow, flows};
use super::model::{Fate, Kernel, Machine, Ruling, Use, Way, use_of};
use super::packet_kit::topology::Arrival;
use super::packet_kit::{Mark, Packet, Place, Site};
use super::rule::State;

/// What the outside sees of department A.
const MASQUERADE: &str = "198.51.100.1";
/// As many are told; the rest is counted.
const MOST_FAILURES: usize = 12;

pub(crate) struct Matrix {
    site: Site,
    firewall: Firewall,
    kernel: Kernel,
    /// Marks of packets that must not turn up, even late.
    forbidden: HashSet<(Place, Mark)>,
    failures: Vec<String>,
    pub(crate) packets: usize,
}

/// Somebody sends a packet to somebody.
struct Step<'a> {
    from: Place,
    to: Place,
    /// As the machines' rules see it.
    packet: &'a Packet,
    /// As it is sent: masquerading may be in between.
    sent: &'a Packet,
    state: State,
}

impl Matrix {
    pub(crate) fn new(site: Site, firewall: Firewall, kernel: Kernel) -> Self {
        Self {
            site,
            firewall,
            kernel,
            forbidden: HashSet::new(),
            failures: Vec::new(),
            packets: 0,
        }
    }

    pub(crate) async fn try_case(&mut self, case: &Case) {
        for (place, machine) in &case.machines {
            self.load(case, *place, machine).await;
        }
        for flow in flows(&mut self.site, case.number) {
            self.converse(case, flow);
            self.clear(case);
        }
    }

    /// Fails the test, telling all, if anything was not as the model says.
    pub(crate) fn finish(self) {
        let mut report = String::new();
        for failure in self.failures.iter().take(MOST_FAILURES) {
            writeln!(report, "{failure}").unwrap();
        }
        let (wrong, packets) = (self.failures.len(), self.packets);
        assert!(
            wrong == 0,
            "{wrong} of {packets} packets are not as they should be:\n{report}"
        );
    }

    async fn load(&mut self, case: &Case, place: Place, machine: &Machine) {
        let vm_id = place.vm_id();
        let inputs = |rules: &[super::rule::Rule]| rules.iter().map(|rule| rule.input()).collect();
        let wanted = Wanted {
            tap: VmNames::of(&vm_id).tap,
            vm_id,
            rules: RuleSplit {
                department_rules: inputs(&machine.department),
                vm_rules: inputs(&machine.own),
            },
            default_action: match machine.open {
                true => FirewallDefaultAction::Accept,
                false => FirewallDefaultAction::Drop,
            },
        };
        let change = self.firewall.apply_if_changed(&wanted).await.unwrap();
        let Some(applied) = change.result else { return };
        let merged = machine.merged().into_iter();
        let fails = merged.filter(|rule| use_of(rule, self.kernel) == Use::Fails);
        let expected = fails.count();
        if applied.failed_rules != expected {
            let failures = applied.failures;
            self.wrong(
                case,
                format!("{place:?}: {expected} rules fail, not {failures:?}"),
            );
        }
    }

    /// A request, and what follows from it as far as it gets.
    fn converse(&mut self, case: &Case, flow: Flow) {
        let Flow {
            from,
            to,
            first,
            state,
        } = flow;
        let request = Step {
            from,
            to,
            packet: &first,
            sent: &first,
            state,
        };
        let Some(arrival) = self.step(case, &request) else {
            return;
        };
        // As the outside sees it.
        let seen = match arrival.packet {
            Some(packet) if to == Place::Outside => packet,
            _ => first,
        };
        if to == Place::Outside && first.is_v4() && seen.from != address(MASQUERADE) {
            self.wrong(case, format!("{first} is not masqueraded: {seen}"));
        }
        if state == State::New && first.to == to.address(first.is_v4()) {
            self.answer(case, flow, &seen);
        }
    }

    fn answer(&mut self, case: &Case, flow: Flow, seen: &Packet) {
        let Flow {
            from, to, first, ..
        } = flow;
        let (reply, error, next) = (self.site.mark(), self.site.mark(), self.site.mark());
        if let (Some(packet), Some(sent)) = (&first.reply(reply), &seen.reply(reply)) {
            let state = State::Established;
            let back = Step {
                from: to,
                to: from,
                packet,
                sent,
                state,
            };
            let answered = self.step(case, &back).is_some();
            if let Some(packet) = first.follow_up(next).filter(|_| answered) {
                let (packet, sent) = (&packet, &packet);
                self.step(
                    case,
                    &Step {
                        from,
                        to,
                        packet,
                        sent,
                        state,
                    },
                );
            }
        }
        if let (Some(packet), Some(sent)) = (&first.error(error), &seen.error(error)) {
            let state = State::Related;
            self.step(
                case,
                &Step {
                    from: to,
                    to: from,
                    packet,
                    sent,
                    state,
                },
            );
        }
    }

    /// Sends one packet and compares its fate with the model's ruling.
    fn step(&mut self, case: &Case, step: &Step) -> Option<Arrival> {
        let ruling = ruling(case, step, self.kernel);
        self.site.send(step.from, step.to, step.sent);
        self.packets += 1;
        let arrival = self.site.arrival(step.to, step.packet.mark);
        let refused = self.site.is_refused(step.from, step.sent);
        let fate = match (&arrival, refused) {
            (Some(_), _) => Fate::Passes,
            (None, true) => Fate::IsRefused,
            (None, false) => Fate::Vanishes,
        };
        if fate != ruling.fate {
            let Step {
                from,
                to,
                packet,
                state,
                ..
            } = step;
            let Ruling { fate: due, because } = &ruling;
            let what = format!("{from:?} -> {to:?}, {packet} ({state:?})");
            self.wrong(
                case,
                format!("{what}: {fate:?}, should be {due:?}: {because}"),
            );
        }
        if !ruling.passes() {
            self.forbidden.insert((step.to, step.packet.mark));
        }
        arrival
    }

    /// Forgets what has arrived; nothing of it may have been forbidden.
    fn clear(&mut self, case: &Case) {
        for (place, arrival) in self.site.take() {
            let Some(mark) = arrival.mark else { continue };
            if self.forbidden.remove(&(place, mark)) {
                self.wrong(
                    case,
                    format!("{place:?} was reached by {:?}", arrival.packet),
                );
            }
        }
    }

    fn wrong(&mut self, case: &Case, what: String) {
        let number = case.number;
        self.failures.push(format!("case {number}: {what}\n{case}"));
    }
}

/// The sender's rules first, then the receiver's.
fn ruling(case: &Case, step: &Step, kernel: Kernel) -> Ruling {
    let judged = |place: Place, way| {
        let machine = case.machine(place)?;
        let ruling = machine.judges(way, step.packet, step.state, kernel);
        let because = format!("{place:?}: {}", ruling.because);
        Some(Ruling { because, ..ruling })
    };
    let sender = judged(step.from, Way::From).filter(|ruling| !ruling.passes());
    let receiver = || judged(step.to, Way::To);
    sender
        .or_else(receiver)
        .unwrap_or_else(|| Ruling::new(Fate::Passes, "no rules"))
}
