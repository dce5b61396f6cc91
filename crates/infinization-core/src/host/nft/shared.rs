//! What is believed of the chains that machines share.
//!
//! Another process may load the same chain, and does no harm: its name says its contents. So one that
//! was touched is sound if nft still says of it what it said before, and is loaded again otherwise.
//! Neighbour: [`super::known`], which knows who jumps where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use super::machine::{Damage, Part, comments};
use super::transport::Reading;
use crate::firewall::{Compiled, SharedChain};

#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Another has touched their rules since they were loaded or found sound.
    touched: BTreeSet<String>,
    /// What nft said of them when nobody had touched them.
    words: BTreeMap<String, String>,
    /// Chains that others' machines jump to, as far as was read, each with the chains of those machines.
    elsewhere: BTreeMap<String, BTreeSet<String>>,
    /// One copy of each is enough for all machines.
    copies: BTreeMap<String, Weak<SharedChain>>,
}

impl Shared {
    pub(super) fn touched(&mut self, chain: &str) {
        self.touched.insert(chain.to_owned());
    }

    pub(super) fn loaded(&mut self, chain: &str) {
        self.touched.remove(chain);
        // Messages and `nft` need not put it in the same words.
        self.words.remove(chain);
    }

    /// Takes in what there is, and what machines of others jump to.
    pub(super) fn saw<'a>(&mut self, reading: &Reading, others: impl Iterator<Item = &'a String>) {
        self.elsewhere.clear();
        for jumper in others {
            for target in reading.jumps.get(jumper).into_iter().flatten() {
                let jumpers = self.elsewhere.entry(target.clone()).or_default();
                jumpers.insert(jumper.clone());
            }
        }
        self.touched
            .retain(|chain| reading.shared.contains_key(chain));
        self.words
            .retain(|chain, _| reading.shared.contains_key(chain));
        for (chain, said) in &reading.shared {
            if !self.touched.contains(chain) {
                self.words
                    .entry(chain.clone())
                    .or_insert_with(|| said.clone());
            }
        }
    }

    /// The machine with this chain was loaded: where it jumps is known otherwise from now on.
    pub(super) fn is_ours(&mut self, jumper: &str) {
        self.elsewhere.retain(|_, jumpers| {
            jumpers.remove(jumper);
            !jumpers.is_empty()
        });
    }

    pub(super) fn is_used_elsewhere(&self, chain: &str) -> bool {
        self.elsewhere.contains_key(chain)
    }

    /// Whether it says something else than it did when nobody had touched it. One that was touched
    /// before it was first read is what it was found as.
    pub(super) fn is_suspect(&self, chain: &str, reading: &Reading) -> bool {
        let said = self.words.get(chain);
        self.touched.contains(chain) && said.is_some_and(|it| reading.shared.get(chain) != Some(it))
    }

    /// What is wrong with the chain, which is to be there.
    pub(super) fn damage(&mut self, chain: &SharedChain, reading: &Reading) -> Option<Damage> {
        let damage = |part| Damage {
            machine: None,
            part,
            name: chain.name.clone(),
        };
        let Some(words) = reading.shared.get(&chain.name) else {
            return Some(damage(Part::Chain));
        };
        let sound = if self.touched.contains(&chain.name) {
            self.words.get(&chain.name) == Some(words)
        } else {
            holds(chain, reading)
        };
        if !sound {
            return Some(damage(Part::Rules));
        }
        self.touched.remove(&chain.name);
        None
    }

    /// The same, with the chains it shares with others being the same in memory.
    pub(super) fn with_one_copy(&mut self, compiled: &Arc<Compiled>) -> Arc<Compiled> {
        if compiled.ruleset.shared.is_empty() {
            return Arc::clone(compiled);
        }
        self.copies.retain(|_, copy| copy.strong_count() > 0);
        let mut compiled = Compiled::clone(compiled);
        for chain in &mut compiled.ruleset.shared {
            if let Some(copy) = self.copies.get(&chain.name).and_then(Weak::upgrade) {
                *chain = copy;
            } else {
                let copy = Arc::downgrade(chain);
                self.copies.insert(chain.name.clone(), copy);
            }
        }
        Arc::new(compiled)
    }
}

fn holds(chain: &SharedChain, reading: &Reading) -> bool {
    let found = comments(&reading.listing).filter(|(name, _)| *name == chain.name);
    let wanted = chain.rules.iter().map(|rule| &*rule.comment);
    wanted.eq(found.map(|(_, comment)| comment))
}
