//! Where the rules of a department and of a VM stand: the VM's own in its chain, the department's once
//! for all VMs.
//!
//! In each direction the department's rules fall into *runs*: as many as follow each other before a
//! rule of the VM's own comes between. A run is a chain of its own, named by its contents, and the VM
//! jumps to it. So whatever the VMs have of their own, those for which the department's rules fall apart
//! in the same places share the same chains; usually there is one per direction.
//!
//! Invariants: the verdict on every packet is that of the merged list, first match wins. A chain's name
//! says its contents, so nobody who loads one can change what another machine has. A rule that refuses
//! returns to the VM's chain's caller, so it stands in the VM's chain and ends the run. The order of
//! directions does not matter, as no packet is in both.

use std::sync::Arc;

use super::digest::Digest;
use super::expr::{NftRule, Verdict};
use super::place::{Part, Way};

/// The comment of the jump to a department's rules.
const JUMP: &str = "infinization-department";

/// Department rules of one direction, which VMs jump to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedChain {
    /// [`SharedChain::IN`] or [`SharedChain::OUT`], and a digest of the rules.
    pub name: String,
    /// Never empty. None says which way.
    pub rules: Vec<NftRule>,
}

impl SharedChain {
    /// What the names of those for packets to VMs begin with.
    pub const IN: &str = "dept_in_";
    /// What the names of those for packets from VMs begin with.
    pub const OUT: &str = "dept_out_";

    /// Whether a chain of this name holds a department's rules.
    pub fn is_name(name: &str) -> bool {
        Self::kind(name).is_some()
    }

    /// The direction's part of the name.
    pub(super) fn kind(name: &str) -> Option<&'static str> {
        [Self::IN, Self::OUT]
            .into_iter()
            .find(|prefix| name.starts_with(prefix))
    }

    fn of(way: Way, rules: Vec<NftRule>) -> Self {
        let mut digest = Digest::default();
        digest.add(&rules);
        // As much as fits: names have up to 31 characters.
        let mut head = [0; 16];
        head[5..].copy_from_slice(&digest.head::<11>());
        let prefix = match way {
            Way::ToVm => Self::IN,
            Way::FromVm => Self::OUT,
        };
        let name = format!("{prefix}{:022x}", u128::from_be_bytes(head));
        Self { name, rules }
    }
}

/// What a VM's rules come to.
#[derive(Debug, Default)]
pub(super) struct Arranged {
    /// For `vm_x`, in order.
    pub(super) rules: Vec<NftRule>,
    /// For `vm_x`, after the rules: replies, when connections are not tracked.
    pub(super) mirror: Vec<NftRule>,
    /// For `to_x`.
    pub(super) reject_replies: Vec<NftRule>,
    /// What the rules and the mirror jump to, in order.
    pub(super) shared: Vec<Arc<SharedChain>>,
}

/// Puts the rules of one VM in their places, as they come.
#[derive(Default)]
pub(super) struct Arranging {
    /// Whether departments' rules are shared at all.
    shares: bool,
    rules: List,
    mirror: List,
    reject_replies: Vec<NftRule>,
}

/// Rules in order, and the runs that are not over yet.
#[derive(Default)]
struct List {
    rules: Vec<NftRule>,
    to_vm: Vec<NftRule>,
    from_vm: Vec<NftRule>,
    shared: Vec<Arc<SharedChain>>,
}

impl Arranging {
    pub(super) fn new(shares: bool) -> Self {
        Self {
            shares,
            ..Self::default()
        }
    }

    /// The next part of a rule: by priority, whoever's it is.
    pub(super) fn add(&mut self, part: Part, of_department: bool) {
        let is_shared = of_department && self.shares;
        if let Some(mirror) = part.mirror {
            let way = part.way.opposite();
            // All of them accept, so whose comes first makes no difference.
            if is_shared {
                self.mirror.run(way).push(mirror);
            } else {
                self.mirror.rules.push(going(way, mirror));
            }
        }
        self.reject_replies.extend(part.reject_replies);
        if is_shared && part.rule.verdict != Verdict::Return {
            self.rules.run(part.way).push(part.rule);
        } else {
            self.rules.end_run(part.way);
            self.rules.rules.push(going(part.way, part.rule));
        }
    }

    pub(super) fn end(mut self) -> Arranged {
        for way in [Way::ToVm, Way::FromVm] {
            self.rules.end_run(way);
            self.mirror.end_run(way);
        }
        Arranged {
            rules: self.rules.rules,
            mirror: self.mirror.rules,
            reject_replies: self.reject_replies,
            shared: [self.rules.shared, self.mirror.shared].concat(),
        }
    }
}

impl List {
    fn run(&mut self, way: Way) -> &mut Vec<NftRule> {
        match way {
            Way::ToVm => &mut self.to_vm,
            Way::FromVm => &mut self.from_vm,
        }
    }

    /// A jump stands for the run that is over.
    fn end_run(&mut self, way: Way) {
        let run = std::mem::take(self.run(way));
        if run.is_empty() {
            return;
        }
        let chain = SharedChain::of(way, run);
        let jump = NftRule::new(Verdict::Jump(chain.name.clone()), JUMP);
        self.rules.push(going(way, jump));
        self.shared.push(Arc::new(chain));
    }
}

/// The rule for packets that go this way.
fn going(way: Way, mut rule: NftRule) -> NftRule {
    let first = std::iter::once(way.going());
    rule.matches = first.chain(rule.matches.iter().cloned()).collect();
    rule
}

#[cfg(test)]
mod tests;
