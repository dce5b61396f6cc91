//! What the library's own rules look at, kept once for all machines: every machine has these rules, and
//! they differ in little more than its addresses. Neighbour: [`super::beliefs`] keeps what was loaded.

use std::collections::HashSet;
use std::sync::Arc;

use crate::firewall::{Compiled, Match};

/// Below this it is not worth looking for those that no machine has any more.
const FEW: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Conditions {
    known: HashSet<Arc<[Match]>>,
    /// How many of them were in use when that was looked at last.
    used: usize,
}

impl Conditions {
    /// The same, with what its rules share with other machines' being the same in memory. The user's
    /// rules, in the visible chain, are left as they are: they may be many, and no two alike.
    pub(super) fn with_one_copy(&mut self, compiled: &Compiled) -> Compiled {
        let mut compiled = compiled.clone();
        let ruleset = &mut compiled.ruleset;
        for rule in ruleset.from.iter_mut().chain(&mut ruleset.to) {
            rule.matches = self.one_copy(&rule.matches);
        }
        self.forget_unused();
        compiled
    }

    fn one_copy(&mut self, matches: &Arc<[Match]>) -> Arc<[Match]> {
        if let Some(known) = self.known.get(matches) {
            return Arc::clone(known);
        }
        self.known.insert(Arc::clone(matches));
        Arc::clone(matches)
    }

    /// Looks at all of them only when there are twice as many, so that a load costs the same however many
    /// machines there are.
    fn forget_unused(&mut self) {
        if self.known.len() > FEW.max(2 * self.used) {
            self.known.retain(|matches| Arc::strong_count(matches) > 1);
            self.used = self.known.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{Field, NftRule, Verdict};

    fn rule(interface: &str) -> NftRule {
        let matches = [Match::is(Field::Iifname, interface)];
        NftRule::new(Verdict::Accept, "a rule").when(matches)
    }

    #[test]
    fn what_is_alike_is_kept_once_and_what_is_unused_forgotten() {
        let mut conditions = Conditions::default();
        let kept = conditions.one_copy(&rule("kept").matches);
        let again = conditions.one_copy(&rule("kept").matches);
        assert!(Arc::ptr_eq(&kept, &again));
        for number in 0..FEW {
            conditions.one_copy(&rule(&number.to_string()).matches);
        }
        conditions.forget_unused();
        assert_eq!(conditions.known.len(), 1);
    }
}
