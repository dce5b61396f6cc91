//! Where the rules stand that are loaded, chain by chain: the kernel's numbers for them.
//!
//! No number is given twice in one table, so one rule of a thousand can be named. They are followed from commit
//! to commit. They do not say what a rule says, as one that is replaced keeps its number: that is remembered
//! beside them, as nft said it when nobody had touched the chain. Both are checked with all that is read.
//! Neighbour: [`super::beliefs`], which knows what the rules are to be.

use std::collections::{BTreeMap, BTreeSet};

use super::transport::{CommittedRule, Reading};
use crate::firewall::{Command, Transaction};

#[derive(Debug, Default)]
pub(super) struct Handles {
    /// Which table they are of: one that is made anew counts from the beginning.
    table: Option<u64>,
    /// In order. A chain of which nothing certain is known is not there.
    chains: BTreeMap<String, Vec<u64>>,
    /// A digest of what nft said of the chain, since it was changed last.
    said: BTreeMap<String, u64>,
}

impl Handles {
    /// The transaction was committed, and the kernel has confirmed these rules of it, in order.
    pub(super) fn follow(&mut self, transaction: &Transaction, confirmed: &[CommittedRule]) {
        let mut given = confirmed.iter().map(|rule| rule.handle);
        for command in &transaction.commands {
            if let Some(chain) = command.changed_chain() {
                self.said.remove(chain);
            }
            self.take(command, &mut given);
        }
    }

    fn take(&mut self, command: &Command, given: &mut impl Iterator<Item = u64>) {
        match command {
            Command::FlushChain(chain) | Command::CreateChain(chain) => {
                self.chains.insert(chain.clone(), Vec::new());
            }
            Command::DeleteChain(chain) => self.forget(chain),
            Command::RenameChain { chain, to } => {
                if let Some(handles) = self.chains.remove(chain) {
                    self.chains.insert(to.clone(), handles);
                }
            }
            Command::AddRule { chain, .. } => self.place(chain, None, given.next()),
            Command::AddDispatch(map) => self.place(map.hook().as_str(), None, given.next()),
            Command::InsertRule { chain, before, .. } => {
                self.place(chain, Some(*before), given.next());
            }
            Command::DeleteRule { chain, handle } => {
                if let Some(handles) = self.chains.get_mut(chain) {
                    handles.retain(|it| it != handle);
                }
            }
            Command::AddTable
            | Command::AddMap(_)
            | Command::AddBaseChain(_)
            | Command::AddChain(_)
            | Command::AddElement { .. }
            | Command::DeleteElement { .. } => {}
        }
    }

    fn place(&mut self, chain: &str, before: Option<u64>, handle: Option<u64>) {
        let Some(handles) = self.chains.get_mut(chain) else {
            return;
        };
        let at = match before {
            None => Some(handles.len()),
            Some(before) => handles.iter().position(|it| *it == before),
        };
        match at.zip(handle) {
            Some((at, handle)) => handles.insert(at, handle),
            None => self.forget(chain),
        }
    }

    /// Nobody knows what is in the chain now.
    pub(super) fn forget(&mut self, chain: &str) {
        self.chains.remove(chain);
        self.said.remove(chain);
    }

    /// Those of the chain's rules, in order, if they are known.
    pub(super) fn of(&self, chain: &str) -> Option<&[u64]> {
        self.chains.get(chain).map(Vec::as_slice)
    }

    /// Whether the chain says what it did when nobody had touched it; none if it was not read since.
    pub(super) fn is_as_seen(&self, chain: &str, reading: &Reading) -> Option<bool> {
        let said = self.said.get(chain)?;
        Some(reading.said.get(chain) == Some(said))
    }

    /// Whether the chain was read since it was changed last.
    pub(super) fn has_seen(&self, chain: &str) -> bool {
        self.said.contains_key(chain)
    }

    /// Forgets, and answers, the chains that were found otherwise. One that says what it said has other numbers where
    /// another process has loaded the same again.
    pub(super) fn check(&mut self, reading: &Reading) -> Vec<String> {
        let is_same_table = self.table.is_none() || self.table == reading.handle;
        self.table = reading.handle;
        if is_same_table {
            self.renumber(reading);
        }
        let is_same = |(chain, handles): &(&String, &Vec<u64>)| {
            is_same_table && reading.handles.get(*chain) == Some(*handles)
        };
        let moved = self.chains.iter().filter(|it| !is_same(it));
        let moved = moved.map(|(chain, _)| chain);
        let others = self.said.keys();
        let others = others.filter(|chain| self.is_as_seen(chain, reading) == Some(false));
        let others: BTreeSet<_> = moved.chain(others).cloned().collect();
        for chain in &others {
            self.forget(chain);
        }
        others.into_iter().collect()
    }

    fn renumber(&mut self, reading: &Reading) {
        let said = &self.said;
        let says_the_same =
            |chain: &str| said.contains_key(chain) && said.get(chain) == reading.said.get(chain);
        for (chain, handles) in &mut self.chains {
            match reading.handles.get(chain) {
                Some(now) if says_the_same(chain) => handles.clone_from(now),
                _ => {}
            }
        }
    }

    /// Takes in the chain as it was found, which is as it should be.
    pub(super) fn saw(&mut self, chain: &str, reading: &Reading) {
        if let Some(handles) = reading.handles.get(chain) {
            self.chains.insert(chain.to_owned(), handles.clone());
        }
        if let Some(said) = reading.said.get(chain) {
            self.said.insert(chain.to_owned(), *said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{NftRule, Verdict};

    fn rule() -> NftRule {
        NftRule::new(Verdict::Drop, "x")
    }

    fn confirmed(handles: &[u64]) -> Vec<CommittedRule> {
        let rule = |handle: &u64| CommittedRule {
            chain: String::new(),
            comment: String::new(),
            handle: *handle,
        };
        handles.iter().map(rule).collect()
    }

    fn follow(handles: &mut Handles, commands: Vec<Command>, given: &[u64]) {
        let transaction = Transaction {
            commands,
            ..Transaction::default()
        };
        handles.follow(&transaction, &confirmed(given));
    }

    fn add(chain: &str) -> Command {
        Command::AddRule {
            chain: chain.to_owned(),
            rule: rule(),
        }
    }

    fn insert(chain: &str, before: u64) -> Command {
        Command::InsertRule {
            chain: chain.to_owned(),
            rule: rule(),
            before,
        }
    }

    #[test]
    fn they_are_followed_from_commit_to_commit() {
        let mut handles = Handles::default();
        let flush = |chain: &str| Command::FlushChain(chain.to_owned());
        // What is added to a chain that nobody knows leaves it unknown.
        follow(
            &mut handles,
            vec![add("b"), flush("a"), add("a"), add("a")],
            &[7, 8, 9],
        );
        assert_eq!(
            (handles.of("a"), handles.of("b")),
            (Some(&[8, 9][..]), None)
        );
        let delete = Command::DeleteRule {
            chain: "a".to_owned(),
            handle: 8,
        };
        follow(
            &mut handles,
            vec![insert("a", 9), delete, insert("a", 9), add("a")],
            &[10, 11, 12],
        );
        assert_eq!(handles.of("a"), Some(&[10, 11, 9, 12][..]));
        let rename = Command::RenameChain {
            chain: "a".to_owned(),
            to: "c".to_owned(),
        };
        follow(&mut handles, vec![rename], &[]);
        assert_eq!(
            (handles.of("a"), handles.of("c").map(<[_]>::len)),
            (None, Some(4))
        );
        follow(&mut handles, vec![insert("c", 99)], &[13]);
        assert_eq!(handles.of("c"), None, "nobody knows where that is");
        follow(
            &mut handles,
            vec![flush("c"), Command::DeleteChain("c".to_owned())],
            &[],
        );
        assert_eq!(handles.of("c"), None);
    }

    #[test]
    fn what_a_chain_said_is_known_until_it_is_changed() {
        let reading = |said| Reading {
            said: BTreeMap::from([("a".to_owned(), said)]),
            ..Reading::default()
        };
        let mut handles = Handles::default();
        handles.saw("a", &reading(1));
        let is = |handles: &Handles, said| handles.is_as_seen("a", &reading(said));
        assert_eq!(
            (is(&handles, 1), is(&handles, 2)),
            (Some(true), Some(false))
        );
        follow(&mut handles, vec![add("b")], &[1]);
        assert_eq!(is(&handles, 1), Some(true));
        follow(&mut handles, vec![add("a")], &[2]);
        assert_eq!(is(&handles, 1), None);
        handles.saw("a", &reading(1));
        assert_eq!(handles.check(&reading(2)), ["a"]);
        assert_eq!(is(&handles, 2), None);
    }

    #[test]
    fn a_chain_that_another_has_loaded_again_says_the_same_under_other_numbers() {
        let reading = |table, said, numbers: &[u64]| Reading {
            handle: Some(table),
            said: BTreeMap::from([("a".to_owned(), said)]),
            handles: BTreeMap::from([("a".to_owned(), numbers.to_vec())]),
            ..Reading::default()
        };
        for (found, expected) in [
            (reading(1, 7, &[3, 4]), Some(&[3, 4][..])),
            (reading(1, 8, &[3, 4]), None),
            (reading(2, 7, &[3, 4]), None),
        ] {
            let mut handles = Handles::default();
            let first = reading(1, 7, &[1, 2]);
            handles.check(&first);
            handles.saw("a", &first);
            let forgotten = handles.check(&found);
            assert_eq!(forgotten.is_empty(), expected.is_some());
            assert_eq!(handles.of("a"), expected);
        }
    }

    #[test]
    fn what_is_found_otherwise_or_in_another_table_is_forgotten() {
        let reading = |table, chains: &[(&str, &[u64])]| Reading {
            handle: Some(table),
            handles: chains
                .iter()
                .map(|(chain, list)| ((*chain).to_owned(), list.to_vec()))
                .collect(),
            ..Reading::default()
        };
        let mut handles = Handles::default();
        let whole = reading(1, &[("a", &[1, 2]), ("b", &[3])]);
        for chain in ["a", "b", "c"] {
            handles.saw(chain, &whole);
        }
        assert_eq!(handles.check(&whole), [] as [&str; 0]);
        let both = |handles: &Handles| ["a", "b", "c"].map(|chain| handles.of(chain).is_some());
        assert_eq!(both(&handles), [true, true, false]);
        assert_eq!(
            handles.check(&reading(1, &[("a", &[2, 1]), ("b", &[3])])),
            ["a"]
        );
        assert_eq!(both(&handles), [false, true, false]);
        assert_eq!(handles.check(&reading(2, &[("b", &[3])])), ["b"]);
        assert_eq!(both(&handles), [false; 3]);
    }
}
