//! Loading machines: whoever waits for the turn shares it, so that any number of changes at once are one
//! transaction.
//!
//! What is sent is no more than is needed: where all machines of a department get other department rules,
//! their chains stay as they are, and the one they share is replaced under them; and where it is known which
//! rule stands where, only those are touched that are others than before. That is done only as
//! long as what is known of the kernel is certain; what another process has loaded is loaded whole the first time. A kernel that refuses what was thought out so gets all
//! of it, and if it refuses that too, machine by machine, so that only the one it refuses fails.
//! Neighbours: [`super::known`] remembers, [`crate::firewall::Transaction`] is what is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot::{self, error::TryRecvError};

use super::known::Known;
use super::notice::OurTable;
use super::{Nft, NftError};
use crate::firewall::{ChainNames, Compiled, MAX_RULES, SharedChain, Transaction};

/// Machines that wait to be loaded.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Vec<Request>>);

/// One of them. If nobody waits for the answer any more, nothing is done.
#[derive(Debug)]
struct Request {
    compiled: Arc<Compiled>,
    answer: oneshot::Sender<Result<(), NftError>>,
}

/// What becomes of a request.
type Told = oneshot::Receiver<Result<(), NftError>>;

impl Waiting {
    fn push(&self, compiled: Arc<Compiled>) -> Told {
        let (answer, told) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(Request { compiled, answer });
        told
    }

    /// As many as make one transaction of a sensible size, in the order they came.
    fn take(&self) -> Vec<Request> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|request| !request.answer.is_closed());
        let (mut rules, mut shared) = (0, BTreeSet::new());
        let fits = |request: &&Request| {
            let ruleset = &request.compiled.ruleset;
            rules += ruleset.rules().count();
            for chain in &ruleset.shared {
                let is_new = shared.insert(chain.name.clone());
                rules += chain.rules.len() * usize::from(is_new);
            }
            rules <= MAX_RULES
        };
        let count = waiting.iter().take_while(fits).count();
        let count = count.max(1).min(waiting.len());
        waiting.drain(..count).collect()
    }
}

impl Nft {
    /// Loads everything of a VM in one transaction: table, hooks, chains, rules, dispatch; together with
    /// other machines that are to be loaded meanwhile. On an error the old rules are in force.
    pub async fn ensure_vm(&self, compiled: &Compiled) -> Result<(), NftError> {
        let told = self.journal.waiting.push(Arc::new(compiled.clone()));
        self.served(told).await
    }

    /// As [`Nft::ensure_vm`] of each, in one transaction; answers in the order of the machines.
    pub async fn ensure_vms(&self, all: &[Compiled]) -> Vec<Result<(), NftError>> {
        let all = all.iter().map(|it| Arc::new(it.clone()));
        let told: Vec<_> = all.map(|it| self.journal.waiting.push(it)).collect();
        let mut answers = Vec::new();
        for told in told {
            answers.push(self.served(told).await);
        }
        answers
    }

    /// Serves those who wait until this one is among them; another may have done it.
    async fn served(&self, mut told: Told) -> Result<(), NftError> {
        loop {
            match told.try_recv() {
                Err(TryRecvError::Empty) => self.serve().await?,
                answered => return answered.unwrap_or(Err(NftError::Interrupted)),
            }
        }
    }

    /// When its turn has come, loads all who wait; they may have been loaded in another's turn.
    async fn serve(&self) -> Result<(), NftError> {
        self.in_turn(|nft| async move {
            let requests = nft.journal.waiting.take();
            if !requests.is_empty() {
                nft.serve_all(requests).await;
            }
            Ok(())
        })
        .await
    }

    async fn serve_all(&self, requests: Vec<Request>) {
        // Of one machine, what was asked for last.
        let last: BTreeMap<_, _> = requests
            .iter()
            .map(|it| (&it.compiled.ruleset.names.vm, &it.compiled))
            .collect();
        let all: Vec<_> = last.into_values().map(Arc::clone).collect();
        match self.load(&all).await {
            Err(NftError::Refused { .. } | NftError::Rejected(_)) if all.len() > 1 => {
                for request in requests {
                    let one = std::slice::from_ref(&request.compiled);
                    answer(request.answer, self.load(one).await);
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for request in requests {
                    answer(request.answer, Err(NftError::Together(Arc::clone(&error))));
                }
            }
            Ok(()) => {
                for request in requests {
                    answer(request.answer, Ok(()));
                }
            }
        }
    }

    /// In a turn: loads these machines in one transaction.
    async fn load(&self, all: &[Arc<Compiled>]) -> Result<(), NftError> {
        self.journal.catch_up();
        let known = &self.journal.known;
        let certain = self.journal.trusts(OurTable::Filter);
        let state = self.journal.generation().filter(|_| certain);
        let sparing = Plan::sparing(all, known, certain, state);
        match self.carry_out(&sparing, all).await {
            Err(NftError::Refused { .. } | NftError::Rejected(_)) if !sparing.is_whole => {
                self.carry_out(&Plan::whole(all), all).await
            }
            outcome => outcome,
        }
    }

    async fn carry_out(&self, plan: &Plan, all: &[Arc<Compiled>]) -> Result<(), NftError> {
        let learn = |known: &Known| {
            known.loaded_shared(plan.shared.iter().map(String::as_str));
            for compiled in all {
                let follows = plan.following.contains(&compiled.ruleset.names);
                known.loaded(compiled, follows);
            }
        };
        if plan.transaction.commands.is_empty() {
            learn(&self.journal.known);
            return Ok(());
        }
        self.commit_now(&plan.transaction, learn).await
    }
}

fn answer(to: oneshot::Sender<Result<(), NftError>>, outcome: Result<(), NftError>) {
    // Nobody waiting any more is no reason to fail.
    let _unheard = to.send(outcome);
}

/// How machines are loaded.
struct Plan {
    transaction: Transaction,
    /// The shared chains whose contents are in it.
    shared: BTreeSet<String>,
    /// Machines whose own chains stay as they are but for what is edited.
    following: BTreeSet<ChainNames>,
    /// Whether nothing is left out, and nothing done that is not needed.
    is_whole: bool,
}

impl Plan {
    /// Everything.
    fn whole(all: &[Arc<Compiled>]) -> Self {
        Self {
            transaction: Transaction::ensure_vms(all.iter().map(AsRef::as_ref)),
            shared: wanted_chains(all).into_keys().collect(),
            following: BTreeSet::new(),
            is_whole: true,
        }
    }

    /// As little as will do. What is replaced under machines is replaced in this `state` only: another
    /// process may have led machines of its own there since.
    fn sparing(all: &[Arc<Compiled>], known: &Known, certain: bool, state: Option<u32>) -> Self {
        let wanted = wanted_chains(all);
        let replaced = if state.is_some() {
            replacements(all, known, &wanted)
        } else {
            Replaced::new()
        };
        let follows = |it: &&Arc<Compiled>| follows(it, known, &replaced);
        let (mut following, reloaded): (Vec<_>, Vec<_>) = all.iter().partition(follows);
        let new: BTreeSet<_> = replaced.values().map(|chain| chain.name.as_str()).collect();
        // A chain has its new name only when all is over: nobody who is loaded with it can jump there.
        let mut names = reloaded.iter().flat_map(|it| it.ruleset.shared_names());
        if names.any(|name| new.contains(name)) {
            return Self::sparing(all, known, certain, None);
        }
        let is_there = |name: &str| certain && known.has_loaded_shared(name);
        let missing = wanted.values();
        let missing = missing.filter(|it| !is_there(&it.name) && !new.contains(it.name.as_str()));
        let missing: Vec<_> = missing.collect();
        let (edited, reloaded) = edits(reloaded, known, state);
        following.extend(edited.iter().map(|(compiled, _)| compiled));
        let edited: Vec<_> = edited.into_iter().map(|(_, edits)| edits).collect();
        let unused = unused_after(all, known, &wanted, &replaced);
        let given = missing.iter().map(|chain| chain.name.as_str()).chain(new);
        Self {
            is_whole: following.is_empty() && unused.is_empty() && missing.len() == wanted.len(),
            shared: given.map(str::to_owned).collect(),
            following: following
                .iter()
                .map(|it| it.ruleset.names.clone())
                .collect(),
            transaction: Transaction {
                generation: state.filter(|_| !replaced.is_empty() || !edited.is_empty()),
                ..transaction(known, &replaced, &missing, (edited, &reloaded), &unused)
            },
        }
    }
}

/// Chains, by their old names, and what is to be in their places.
type Replaced = BTreeMap<String, Arc<SharedChain>>;

/// Machines with what makes their chains what they are to be, in a known state of the kernel; and those that
/// have to be loaded whole.
#[expect(clippy::type_complexity, reason = "both halves of one list")]
fn edits<'a>(
    machines: Vec<&'a Arc<Compiled>>,
    known: &Known,
    state: Option<u32>,
) -> (
    Vec<(&'a Arc<Compiled>, Transaction)>,
    Vec<&'a Arc<Compiled>>,
) {
    let (mut edited, mut whole) = (Vec::new(), Vec::new());
    for compiled in machines {
        match state.and_then(|_| known.change(compiled)) {
            Some(edits) => edited.push((compiled, edits)),
            None => whole.push(compiled),
        }
    }
    (edited, whole)
}

fn transaction(
    known: &Known,
    replaced: &Replaced,
    missing: &[&Arc<SharedChain>],
    (edited, reloaded): (Vec<Transaction>, &[&Arc<Compiled>]),
    unused: &[String],
) -> Transaction {
    let mut all = if reloaded.is_empty() {
        Transaction::default()
    } else {
        Transaction::table()
    };
    for (old, chain) in replaced {
        if let Some(old) = known.shared(old) {
            known.replace(&mut all, &old, chain);
        }
    }
    for chain in missing {
        all.load_shared(chain);
    }
    for edits in edited {
        all.commands.extend(edits.commands);
    }
    for compiled in reloaded {
        all.load_vm(&compiled.ruleset);
    }
    all.delete_shared(unused);
    all
}

/// The shared chains that these machines want, by name.
fn wanted_chains(all: &[Arc<Compiled>]) -> BTreeMap<String, Arc<SharedChain>> {
    let chains = all.iter().flat_map(|it| &it.ruleset.shared);
    chains
        .map(|chain| (chain.name.clone(), Arc::clone(chain)))
        .collect()
}

/// What each of the machine's shared chains, by name, is to be instead; none if more than that changes.
fn changes(known: &Known, new: &Compiled) -> Option<Vec<(String, Arc<SharedChain>)>> {
    let names = &new.ruleset.names;
    let old = known.compiled(names)?;
    let (old, is_alike) = (&old.ruleset.shared, old.says_the_same_of_its_own(new));
    let pairs = old.iter().zip(&new.ruleset.shared);
    let pairs = pairs.map(|(old, new)| (old.name.clone(), Arc::clone(new)));
    (is_alike && old.len() == new.ruleset.shared.len()).then(|| pairs.collect())
}

/// Chains whose every machine wants the same other one in its place: by their old names.
fn replacements(
    all: &[Arc<Compiled>],
    known: &Known,
    wanted: &BTreeMap<String, Arc<SharedChain>>,
) -> Replaced {
    let mut successors: BTreeMap<String, Option<Arc<SharedChain>>> = BTreeMap::new();
    let mut movers: BTreeMap<String, BTreeSet<&ChainNames>> = BTreeMap::new();
    for compiled in all {
        for (old, new) in changes(known, compiled).into_iter().flatten() {
            let users = movers.entry(old.clone()).or_default();
            users.insert(&compiled.ruleset.names);
            let successor = successors
                .entry(old)
                .or_insert_with(|| Some(Arc::clone(&new)));
            if successor.as_ref().is_some_and(|it| it.name != new.name) {
                *successor = None;
            }
        }
    }
    let mut taken = BTreeSet::new();
    let certain = successors.into_iter().filter_map(|(old, successor)| {
        let users = known.only_users(&old)?;
        let all_move = users.iter().all(|names| movers[&old].contains(names));
        let is_free = |new: &Arc<SharedChain>| known.shared(&new.name).is_none();
        let new = successor.filter(|new| all_move && is_free(new))?;
        let is_first = !wanted.contains_key(&old) && taken.insert(new.name.clone());
        is_first.then_some((old, new))
    });
    certain.collect()
}

/// Whether the machine has what it wants as soon as chains are replaced, and not before.
fn follows(compiled: &Compiled, known: &Known, replaced: &Replaced) -> bool {
    let Some(changes) = changes(known, compiled) else {
        return false;
    };
    let is_replaced = |(old, new): &(String, Arc<SharedChain>)| {
        replaced
            .get(old)
            .is_some_and(|chain| chain.name == new.name)
    };
    changes.iter().any(is_replaced)
        && changes
            .iter()
            .all(|change| is_replaced(change) || change.0 == change.1.name)
}

/// Shared chains that nothing known jumps to any more when all this is done.
fn unused_after(
    all: &[Arc<Compiled>],
    known: &Known,
    wanted: &BTreeMap<String, Arc<SharedChain>>,
    replaced: &Replaced,
) -> Vec<String> {
    let names = all.iter().map(|it| &it.ruleset.names);
    let unused = known.unused_without(&names.collect());
    let stays = |old: &String| wanted.contains_key(old) || replaced.contains_key(old);
    unused.into_iter().filter(|old| !stays(old)).collect()
}
