//! Whether what this process believes of nftables is still so.
//!
//! A socket in the nftables multicast group gathers every commit of this network namespace. Ours are
//! told from others' by the port they were sent from, and one of another that touched a table of ours
//! raises a *doubt*. Who reads the kernel back settles the doubts there were before he read. While
//! there is none, memory is the truth, and "unchanged" costs no program.
//!
//! Invariant: whatever is lost (an overflow, a socket that cannot be opened, bytes that make no
//! sense) is a doubt, unless the state's number says that it was only ours. Neighbours: [`super::notice`] reads the messages, [`super::known`] is what is
//! believed.

mod state;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

pub(super) use state::listen;
use state::{Presence, State};
use tokio::sync::Notify;

use super::batch::Waiting;
use super::known::Known;
use super::line::Lines;
use super::notice::{Commit, OurTable};
use crate::host::readable::readable;

/// No datagram is longer: the kernel fills a page or two (`NLMSG_GOODSIZE`).
pub(super) const DATAGRAM: usize = 32 * 1024;

/// One per network namespace, as commits are. A process has one, its tests have many.
static JOURNALS: LazyLock<Mutex<HashMap<u64, Weak<Journal>>>> = LazyLock::new(Mutex::default);

/// What is known of one network namespace's nftables.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Of tests without a kernel: nothing is ever certain.
    blind: bool,
    state: Mutex<State>,
    doubted: Notify,
    /// What was loaded, and is believed to be in force.
    pub(super) known: Known,
    /// What is to be loaded next.
    pub(super) waiting: Waiting,
    /// Who is to change which machine next.
    pub(super) lines: Lines,
}

/// The doubts about a table that there were at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

/// A commit of ours that is under way. Dropped, it has ended and nobody knows how.
#[derive(Debug)]
pub(super) struct Committing<'a> {
    journal: &'a Journal,
    /// What it is to change.
    table: OurTable,
    /// The state's number when it began, if that is known.
    before: Option<u32>,
    /// More was told meanwhile than there was room for, and it need not have been ours.
    lost: bool,
    /// The state's number after it, where it was asked for and nobody else had committed.
    after: Option<u32>,
    ended: bool,
}

impl Journal {
    /// The journal of the calling thread's network namespace.
    pub(super) fn of_this_network() -> Arc<Self> {
        let network = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |ns| ns.ino());
        let mut journals = JOURNALS.lock().unwrap_or_else(PoisonError::into_inner);
        journals.retain(|_, journal| journal.strong_count() > 0);
        if let Some(journal) = journals.get(&network).and_then(Weak::upgrade) {
            return journal;
        }
        let journal = Arc::new(Self::default());
        journals.insert(network, Arc::downgrade(&journal));
        journal
    }

    /// One that hears nothing and trusts nothing.
    pub(super) fn blind() -> Arc<Self> {
        Arc::new(Self {
            blind: true,
            ..Self::default()
        })
    }

    /// Takes in what was committed since the last look; while a commit of ours is under way, it is only
    /// gathered.
    pub(super) fn catch_up(&self) {
        self.look(|state| {
            if !state.committing {
                self.attribute(state, None, |_| ());
            }
        });
    }

    /// The number of nftables' state that everything known is about, if it is known.
    pub(super) fn generation(&self) -> Option<u32> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.generation
    }

    /// The number of the state in which there is no table of the filter's, if that was told.
    pub(super) fn gone_in(&self) -> Option<u32> {
        let state = self.state();
        state.generation.filter(|_| state.table == Presence::Gone)
    }

    /// Whether it may not have been told that the filter's table is gone.
    pub(super) fn may_have_missed_table(&self) -> bool {
        !self.blind && self.state().table == Presence::Unknown
    }

    /// The kernel was asked for the filter's table after `mark` was taken, and had it. What was told of or lost
    /// since is newer.
    pub(super) fn saw_table(&self, mark: Mark) {
        let mut state = self.state();
        if state.table == Presence::Unknown && state.filter.doubts == mark.0 {
            state.table = Presence::There;
        }
    }

    /// A commit of ours to the table begins: what was told until now is of others.
    pub(super) fn begin_commit(&self, table: OurTable) -> Committing<'_> {
        let mut before = None;
        self.look(|state| {
            self.attribute(state, None, |_| ());
            state.committing = true;
            before = state.generation;
        });
        Committing {
            journal: self,
            table,
            before,
            lost: false,
            after: None,
            ended: false,
        }
    }

    /// The commit of ours that came from the port `own` has ended, from which there is something to `learn`.
    fn end_commit(
        &self,
        committing: &Committing<'_>,
        own: Option<u32>,
        learn: impl FnOnce(&Known),
    ) {
        if self.blind {
            return learn(&self.known);
        }
        self.look(|state| {
            state.committing = false;
            state.lost |= committing.lost;
            state.generation = committing.after.or(state.generation);
            let own = own.map(|own| (committing.table, own));
            self.attribute(state, own, learn);
        });
    }

    /// Gathers what was told, and has `then` make something of it.
    fn look(&self, then: impl FnOnce(&mut State)) {
        if self.blind {
            return;
        }
        let mut state = self.state();
        let before = state.doubts();
        if let Err(error) = state.gather() {
            tracing::debug!(%error, "nftables cannot be listened to");
            state.socket = None;
            state.lost();
        }
        then(&mut state);
        if state.doubts() != before {
            self.doubted.notify_waiters();
        }
    }

    /// Takes in what was gathered, in its order. `own` is the table that a commit of ours was to, and the port it
    /// came from: what others did before, it has overwritten; what they did since counts.
    fn attribute(
        &self,
        state: &mut State,
        own: Option<(OurTable, u32)>,
        learn: impl FnOnce(&Known),
    ) {
        let mut commits = std::mem::take(&mut state.gathered);
        let lost = std::mem::take(&mut state.lost);
        if lost {
            state.generation = None;
            state.doubt_all();
            self.known.missed();
        } else if let Some(last) = commits.last() {
            state.generation = last.generation;
        }
        let since = since_ours(&mut commits, own.map(|(_, port)| port), lost);
        self.note(state, commits);
        // Where one of ours to it was taken, there is the table.
        if own.is_some_and(|(table, _)| table == OurTable::Filter) {
            state.table = Presence::There;
        }
        learn(&self.known);
        self.note(state, since);
        if lost {
            state.table = Presence::Unknown;
        }
    }

    fn note(&self, state: &mut State, foreign: Vec<Commit>) {
        for Commit { touched, .. } in foreign {
            state.table = match touched.gone {
                Some(true) => Presence::Gone,
                Some(false) => Presence::There,
                None => state.table,
            };
            for table in touched.tables {
                state.trust_mut(table).doubts += 1;
            }
            for chain in touched.chains {
                self.known.touched(&chain);
            }
        }
    }

    /// Something happened whose outcome is not known.
    pub(super) fn doubt_all(&self) {
        self.state().doubt_all();
        self.doubted.notify_waiters();
    }

    /// Somebody wants to be sure of the table, for a reason of his own.
    pub(super) fn doubt(&self, table: OurTable) {
        self.state().trust_mut(table).doubts += 1;
        self.doubted.notify_waiters();
    }

    /// Whether the table is as it was believed to be, at the last look.
    pub(super) fn trusts(&self, table: OurTable) -> bool {
        !self.blind && self.state().trust(table).is_firm()
    }

    /// To be taken before reading the kernel.
    pub(super) fn mark(&self, table: OurTable) -> Mark {
        Mark(self.state().trust(table).doubts)
    }

    /// The kernel was read after `mark` was taken, and is as believed.
    pub(super) fn settle(&self, table: OurTable, mark: Mark) {
        let mut state = self.state();
        let trust = state.trust_mut(table);
        trust.settled = trust.settled.max(mark.0);
    }

    /// The filter was read in this state, and taken in was what was told until after that.
    /// What was told of since is newer.
    pub(super) fn saw_generation(&self, generation: Option<u32>) {
        let mut state = self.state();
        if state.filter.is_firm() {
            state.generation = state.generation.or(generation);
        }
    }

    /// Resolves when the table is in doubt and something is known of it; given a mark, when it came into
    /// doubt again since. An error where the kernel cannot be listened to.
    pub(super) async fn in_doubt(&self, table: OurTable, since: Option<Mark>) -> io::Result<()> {
        let listener = readable(Arc::new(self.listener()?))?;
        loop {
            // Before the look, so that no doubt falls between the two.
            let doubted = self.doubted.notified();
            self.catch_up();
            if self.is_in_doubt(table, since) {
                return Ok(());
            }
            tokio::select! {
                ready = listener.readable() => {
                    let mut ready = ready?;
                    // Emptied first: what comes after that is readable again.
                    self.catch_up();
                    ready.clear_ready();
                }
                () = doubted => {}
            }
        }
    }

    fn is_in_doubt(&self, table: OurTable, since: Option<Mark>) -> bool {
        let is_used = table == OurTable::Filter || !self.known.all_masquerades().is_empty();
        is_used && !self.trusts(table) && since != Some(self.mark(table))
    }

    /// The same socket under a descriptor of its own, for whoever waits.
    fn listener(&self) -> io::Result<OwnedFd> {
        let mut state = self.state();
        state.listening()?.try_clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Committing<'_> {
    /// Takes in what was told of it; whether that was more than there was room for. Who asks for the
    /// state's number after this tells whether all of it was ours: what others commit from here on is
    /// heard again.
    pub(super) fn has_overflowed(&mut self) -> bool {
        let lost = &mut self.lost;
        self.journal
            .look(|state| *lost |= std::mem::take(&mut state.lost));
        self.lost
    }

    /// It is confirmed, and the state has this number now. If that is the next one, nobody else has committed, and
    /// what was lost was ours.
    pub(super) fn made(&mut self, generation: Option<u32>) {
        // The kernel leaves zero out.
        let next = self.before.map(|it| it.wrapping_add(1).max(1));
        if generation.is_some() && generation == next {
            self.lost = false;
            self.after = generation;
        }
    }

    /// It has ended; `own` is the port it came from, if that is known.
    pub(super) fn ended(mut self, own: Option<u32>, learn: impl FnOnce(&Known)) {
        self.ended = true;
        self.journal.end_commit(&self, own, learn);
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.journal.end_commit(self, None, |_| ());
        }
    }
}

/// Takes out what others have done since the commit that came from the port `own`, and that commit. Where it
/// or anything else is missing, all of the others may have been done since.
fn since_ours(commits: &mut Vec<Commit>, own: Option<u32>, lost: bool) -> Vec<Commit> {
    let Some(own) = own else { return Vec::new() };
    let ours = commits.iter().rposition(|it| it.sender == own);
    let before = ours.filter(|_| !lost).unwrap_or_default();
    let mut since = commits.split_off(before);
    // What we have loaded ourselves nobody has touched.
    since.retain(|it| it.sender != own);
    since
}

#[cfg(test)]
mod tests;
