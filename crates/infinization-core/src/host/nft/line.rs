//! One machine's changes in the order they were asked for.
//!
//! Between asking and changing a ruleset is compiled, for which the host is asked questions; whoever is
//! answered first must not overtake. A place is taken at once and kept until it is dropped. A start reads
//! its rules long before it loads them; it holds no place meanwhile, but a [`Moment`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Nft;
use super::journal::Journal;
use crate::firewall::{ChainNames, Compiled};

/// Who waits, by visible chain. Whoever is first has been called.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<AllLines>);

type AllLines = HashMap<String, VecDeque<Arc<Notify>>>;

/// A moment between two loads: rules that are read now are older than those that are loaded later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment(pub(super) u64);

/// A place in a machine's line. Dropped, it is given up.
#[derive(Debug)]
pub struct Place {
    journal: Arc<Journal>,
    chain: String,
    called: Arc<Notify>,
}

impl Nft {
    /// Takes the last place in the machine's line.
    pub fn line_up(&self, names: &ChainNames) -> Place {
        let mut lines = self.journal.lines.all();
        self.place_in(&mut lines, names)
    }

    /// Takes the last place in each machine's line. Nobody comes between, so that of two who want the
    /// same machines one is first everywhere, and they cannot wait for each other.
    pub fn line_up_all<'a>(&self, all: impl IntoIterator<Item = &'a ChainNames>) -> Vec<Place> {
        let mut lines = self.journal.lines.all();
        let all: BTreeSet<_> = all.into_iter().collect();
        all.into_iter()
            .map(|names| self.place_in(&mut lines, names))
            .collect()
    }

    fn place_in(&self, lines: &mut AllLines, names: &ChainNames) -> Place {
        let called = Arc::default();
        let line = lines.entry(names.vm.clone()).or_default();
        line.push_back(Arc::clone(&called));
        Place {
            journal: Arc::clone(&self.journal),
            chain: names.vm.clone(),
            called,
        }
    }

    /// To be taken before rules are read.
    pub fn moment(&self) -> Moment {
        self.journal.known.moment()
    }

    /// The machine with the newest rules: these, which were read at `moment`, or others that were loaded
    /// since. Nobody else may load it meanwhile, so the caller's place in its line is reached.
    #[must_use]
    pub fn with_newest_rules(&self, compiled: &Compiled, moment: Moment) -> Compiled {
        let names = &compiled.ruleset.names;
        match self.journal.known.newer_than(moment, names) {
            Some(newer) if newer.ruleset.tap == compiled.ruleset.tap => {
                compiled.with_rules_of(&newer)
            }
            _ => compiled.clone(),
        }
    }
}

impl Place {
    /// Resolves when everybody before has left.
    pub async fn reached(&self) {
        while !self.is_first() {
            self.called.notified().await;
        }
    }

    fn is_first(&self) -> bool {
        let lines = self.journal.lines.all();
        let first = lines.get(&self.chain).and_then(VecDeque::front);
        first.is_some_and(|first| Arc::ptr_eq(first, &self.called))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.journal.lines.all();
        let Some(line) = lines.get_mut(&self.chain) else {
            return;
        };
        line.retain(|called| !Arc::ptr_eq(called, &self.called));
        match line.front() {
            Some(next) => next.notify_one(),
            None => drop(lines.remove(&self.chain)),
        }
    }
}

impl Lines {
    fn all(&self) -> MutexGuard<'_, AllLines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VmId;

    #[tokio::test]
    async fn places_are_served_in_the_order_they_were_taken_whoever_looks_first() {
        let nft = Nft::new();
        let names = ChainNames::of(&VmId::parse("in-line").unwrap());
        let places: Vec<_> = (0..4).map(|_| nft.line_up(&names)).collect();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (number, place) in places.into_iter().enumerate().rev() {
            let order = Arc::clone(&order);
            tasks.push(tokio::spawn(async move {
                if number == 2 {
                    // Gives up without having been called.
                    return;
                }
                place.reached().await;
                order.lock().unwrap().push(number);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 3]);
        assert!(!nft.journal.lines.all().contains_key(&names.vm));
    }
}
