//! What is believed of one machine's chains and dispatch, and what is wrong with what there is.
//!
//! A machine's chains are nobody else's: one whose rules another has touched is not sound, whatever it
//! looks like, unless it is known to look as before. Untouched ones that this process has loaded are told by their
//! comments, one of which is a hash of the contents.
//! Neighbours: [`super::known`] holds all of them, [`super::shared`] what they jump to.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::shared::Shared;
use super::transport::{Element, Listing, Reading};
use crate::firewall::{ChainNames, Compiled, SharedChain, Verdict, VerdictMap};
use crate::types::LinkName;

/// Which part of what was loaded is not there, or not as it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The whole table, or it is asleep (`flags dormant`).
    Table,
    /// A base chain: absent, with other rules, or with another policy.
    Hook,
    /// A machine's chain.
    Chain,
    /// A chain's rules. Without a machine it is a department's, which machines share.
    Rules,
    /// What leads from the hooks to a machine's chains.
    Dispatch,
    /// A bridge's masquerading.
    Masquerade,
}

/// Something another program took away or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The machine it is about; none for what all share.
    pub machine: Option<ChainNames>,
    /// What of it.
    pub part: Part,
    /// The table, chain, port or bridge.
    pub name: String,
}

/// One machine's chains and dispatch.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) names: ChainNames,
    pub(super) tap: LinkName,
    /// More ports that lead to the same chains.
    pub(super) others: BTreeSet<LinkName>,
    pub(super) rules: Rules,
    /// Whether the port leads to its chains. If not, nobody looks after them.
    pub(super) attached: bool,
    /// Which load its rules are of.
    pub(super) load: u64,
    /// Whether they are those that should be in force has yet to be found out.
    pub(super) unconfirmed: bool,
    /// Those of its chains whose rules another has touched since.
    pub(super) touched: BTreeSet<String>,
}

/// What is known of a machine's rules.
#[derive(Debug, Clone)]
pub(super) enum Rules {
    /// These were loaded.
    Ours(Arc<Compiled>),
    /// Whoever loaded them: those that are there.
    Found,
    /// None, as they were damaged and are not known: nothing may lead to the chains until they are
    /// loaded.
    Closed,
}

impl Loaded {
    pub(super) fn found(names: &ChainNames, tap: &LinkName) -> Self {
        Self {
            names: names.clone(),
            tap: tap.clone(),
            others: BTreeSet::new(),
            rules: Rules::Found,
            attached: true,
            load: 0,
            unconfirmed: false,
            touched: BTreeSet::new(),
        }
    }

    pub(super) fn ours(&self) -> Option<&Arc<Compiled>> {
        match &self.rules {
            Rules::Ours(compiled) => Some(compiled),
            Rules::Found | Rules::Closed => None,
        }
    }

    /// Whether its chains hold what this process has loaded and its port leads there, as far as is known.
    pub(super) fn is_as_loaded(&self) -> bool {
        self.attached && self.touched.is_empty()
    }

    pub(super) fn damages(&self, reading: &Reading, shared: &Shared) -> Vec<Damage> {
        let damage = |part, name: &str| Damage {
            machine: Some(self.names.clone()),
            part,
            name: name.to_owned(),
        };
        let mut found = Vec::new();
        if matches!(self.rules, Rules::Closed) {
            let mut elements = reading.listing.elements.iter();
            let open = elements.any(|element| self.is_reached_by(element));
            found.extend(open.then(|| damage(Part::Dispatch, self.tap.as_str())));
            return found;
        }
        for chain in self.names.all() {
            if !reading.chains.contains(chain) {
                found.push(damage(Part::Chain, chain));
            } else if !self.chain_is_sound(chain, reading, shared) {
                found.push(damage(Part::Rules, chain));
            }
        }
        let closed = self
            .ports()
            .filter(|tap| !self.leads_here(tap, &reading.listing));
        found.extend(closed.map(|tap| damage(Part::Dispatch, tap.as_str())));
        found
    }

    pub(super) fn chain_is_sound(&self, chain: &str, reading: &Reading, shared: &Shared) -> bool {
        if self.touched.contains(chain) {
            return false;
        }
        let jumps = reading.jumps.get(chain).map_or(&[][..], Vec::as_slice);
        let mut found = comments(&reading.listing).filter(|(name, _)| *name == chain);
        match &self.rules {
            Rules::Ours(compiled) => {
                let rules = compiled.ruleset.rules();
                let wanted = rules.map(|(name, rule)| (name, &*rule.comment));
                wanted.filter(|(name, _)| *name == chain).eq(found)
                    && jumps_alike(compiled, chain, jumps)
            }
            // Whoever loaded it, it ends in a verdict.
            _ if chain == self.names.vm => {
                found
                    .last()
                    .is_some_and(|(_, comment)| comment.starts_with("infinization-default-"))
                    && !jumps
                        .iter()
                        .any(|target| shared.is_suspect(target, reading))
            }
            _ => found.any(|(_, comment)| comment.starts_with("infinization-rules")),
        }
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = &LinkName> {
        [&self.tap].into_iter().chain(&self.others)
    }

    fn is_port(&self, element: &Element) -> bool {
        self.ports().any(|tap| element.tap == tap.as_str())
    }

    /// One of its ports was closed; whether there is another.
    pub(super) fn detach(&mut self, tap: &LinkName) -> bool {
        self.others.remove(tap);
        if self.tap != *tap {
            return self.attached;
        }
        match self.others.pop_first() {
            // The rules name no port: they are the other one's as well.
            Some(other) if self.attached => {
                if let Rules::Ours(compiled) = &mut self.rules {
                    Arc::make_mut(compiled).ruleset.tap = other.clone();
                }
                self.tap = other;
            }
            _ => self.attached = false,
        }
        self.attached
    }

    /// Whether the element is of the machine's ports, or leads to its chains.
    pub(super) fn is_reached_by(&self, element: &Element) -> bool {
        self.is_port(element) || element.leads_to(&self.names)
    }

    /// Whether the element leads one of the machine's ports elsewhere.
    pub(super) fn is_misled_by(&self, element: &Element) -> bool {
        let wanted = match element.map {
            VerdictMap::FromVm => &self.names.from,
            VerdictMap::ToVm => &self.names.to,
        };
        self.is_port(element) && element.chain != *wanted
    }

    fn leads_here(&self, tap: &LinkName, listing: &Listing) -> bool {
        let wanted = [
            (VerdictMap::FromVm, &self.names.from),
            (VerdictMap::ToVm, &self.names.to),
        ];
        let leads = |element: &Element, (map, chain): (VerdictMap, &String)| {
            element.map == map && element.tap == tap.as_str() && element.chain == *chain
        };
        wanted
            .into_iter()
            .all(|way| listing.elements.iter().any(|element| leads(element, way)))
    }
}

/// Whether the machine's chain jumps where it should.
fn jumps_alike(compiled: &Compiled, chain: &str, jumps: &[String]) -> bool {
    let rules = compiled.ruleset.rules().filter(|(name, _)| *name == chain);
    let targets = rules.filter_map(|(_, rule)| match &rule.verdict {
        Verdict::Jump(target) if SharedChain::is_name(target) => Some(target),
        _ => None,
    });
    targets.eq(jumps)
}

pub(super) fn comments(listing: &Listing) -> impl Iterator<Item = (&str, &str)> {
    let rules = listing.rules.iter();
    rules.map(|(chain, comment)| (&**chain, comment.as_deref().unwrap_or_default()))
}
