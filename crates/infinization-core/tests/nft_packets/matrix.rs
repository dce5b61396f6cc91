//! Every case's rules loaded, every flow sent, every packet compared with the model.

use std::collections::HashSet;
use std::fmt::Write;

use infinization_core::db::RuleSplit;
use infinization_core::manager::{Firewall, Wanted};
use infinization_core::types::{FirewallDefaultAction, VmNames};

use super::cases::Case;
use super::flows::{Flow, flows};
use super::kit::packets::topology::Arrival;
use super::kit::packets::{Mark, Packet, Place, Site};
use super::model::{Fate, Kernel, Machine, Ruling, Seen, Use, Way, use_of};
use super::rule::{Rule, State};

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

/// Somebody sends a packet to somebody. Masquerading may be in between.
#[derive(Debug, Clone, Copy)]
struct Step {
    from: Place,
    to: Place,
    sent: Packet,
    /// As the sender's rules see it.
    leaving: Packet,
    /// As the receiver's rules see it.
    arriving: Packet,
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
        }
        self.clear(case);
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
        let inputs = |rules: &[Rule]| rules.iter().map(Rule::input).collect();
        let wanted = Wanted {
            addresses: None,
            tap: VmNames::of(&vm_id).tap,
            vm_id,
            rules: RuleSplit {
                department_rules: inputs(&machine.department),
                vm_rules: inputs(&machine.own),
            },
            default_action: if machine.open {
                FirewallDefaultAction::Accept
            } else {
                FirewallDefaultAction::Drop
            },
        };
        let change = self.firewall.apply_if_changed(wanted).await.unwrap();
        let Some(applied) = change.result else { return };
        let merged = machine.merged().into_iter();
        let fails = merged.filter(|rule| use_of(rule, self.kernel) == Use::Fails);
        let expected = fails.count();
        if applied.failed_rules != expected {
            let failures = applied.failures;
            self.wrong(
                case,
                &format!("{place:?}: {expected} rules fail, not {failures:?}"),
            );
        }
    }

    /// A request, and what follows from it as far as it gets.
    fn converse(&mut self, case: &Case, flow: Flow) {
        let Flow {
            to, first, state, ..
        } = flow;
        let expected = flow.masqueraded();
        let Some(arrival) = self.step(case, flow.forth(first, expected, state)) else {
            return;
        };
        // Masquerading may have changed its port too; the host's sockets do not tell addresses.
        let seen = arrival
            .packet
            .filter(|_| to != Place::Host)
            .unwrap_or(first);
        if to != Place::Host && seen.from != expected.from {
            self.wrong(
                case,
                &format!("{first} should arrive as {expected}, not as {seen}"),
            );
        }
        if state == State::New && first.to == to.address(first.is_v4()) {
            self.answer(case, flow, seen);
        }
    }

    fn answer(&mut self, case: &Case, flow: Flow, seen: Packet) {
        let Flow { first, .. } = flow;
        let (reply, error, next) = (self.site.mark(), self.site.mark(), self.site.mark());
        if let (Some(sent), Some(arriving)) = (seen.reply(reply), first.reply(reply)) {
            let state = State::Established;
            let answered = self.step(case, self.back(flow, sent, arriving, state));
            let next = (first.follow_up(next), seen.follow_up(next));
            if let (Some(_), (Some(sent), Some(arriving))) = (answered, next) {
                self.step(case, flow.forth(sent, arriving, state));
            }
        }
        if let (Some(sent), Some(arriving)) = (seen.error(error), first.error(error)) {
            self.step(case, self.back(flow, sent, arriving, State::Related));
        }
    }

    /// A step of the answering side. Where br_netfilter has the IP hooks called for bridged frames, the
    /// masquerade is taken off before the sender's rules see the packet.
    fn back(&self, flow: Flow, sent: Packet, arriving: Packet, state: State) -> Step {
        let leaving = if self.kernel.calls_iptables {
            arriving
        } else {
            sent
        };
        let (from, to) = (flow.to, flow.from);
        Step {
            from,
            to,
            sent,
            leaving,
            arriving,
            state,
        }
    }

    /// Sends one packet and compares its fate with the model's ruling.
    fn step(&mut self, case: &Case, step: Step) -> Option<Arrival> {
        let ruling = ruling(case, step, self.kernel);
        self.site.send(step.from, step.to, &step.sent);
        self.packets += 1;
        let arrival = self.site.arrival(step.to, step.sent.mark);
        let refused = self.site.is_refused(step.from, &step.sent);
        let fate = match (&arrival, refused) {
            (Some(_), _) => Fate::Passes,
            (None, true) => Fate::IsRefused,
            (None, false) => Fate::Vanishes,
        };
        if fate != ruling.fate {
            let Step {
                from,
                to,
                sent,
                state,
                ..
            } = step;
            let Ruling { fate: due, because } = &ruling;
            let what = format!("{from:?} -> {to:?}, {sent} ({state:?})");
            self.wrong(
                case,
                &format!("{what}: {fate:?}, should be {due:?}: {because}"),
            );
        }
        if !ruling.passes() {
            self.forbidden.insert((step.to, step.sent.mark));
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
                    &format!("{place:?} was reached by {:?}", arrival.packet),
                );
            }
        }
    }

    fn wrong(&mut self, case: &Case, what: &str) {
        let number = case.number;
        self.failures.push(format!("case {number}: {what}\n{case}"));
    }
}

impl Flow {
    fn forth(&self, sent: Packet, arriving: Packet, state: State) -> Step {
        let Self { from, to, .. } = *self;
        Step {
            from,
            to,
            sent,
            leaving: sent,
            arriving,
            state,
        }
    }
}

/// The sender's rules first, then the receiver's.
fn ruling(case: &Case, step: Step, kernel: Kernel) -> Ruling {
    let judged = |place: Place, way, packet| {
        let machine = case.machine(place)?;
        let by_host = step.from == Place::Host;
        let state = step.state;
        let ruling = machine.judges(
            way,
            Seen {
                packet,
                state,
                by_host,
            },
            kernel,
        );
        let because = format!("{place:?}: {}", ruling.because);
        Some(Ruling { because, ..ruling })
    };
    let sender = judged(step.from, Way::From, step.leaving).filter(|ruling| !ruling.passes());
    let receiver = || judged(step.to, Way::To, step.arriving);
    sender
        .or_else(receiver)
        .unwrap_or_else(|| Ruling::new(Fate::Passes, "no rules"))
}
