//! Executes plans: stage by stage, writing the ledger ahead, and rolling back what it did.
//!
//! It knows neither the host nor what the actions mean; [`Effects`] performs them. A failure, a
//! panic or a cancellation undoes exactly the entries this attempt added, newest first, and reports
//! both what failed and what could not be undone. The journal has each step before it is begun.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::action::{Action, Release};
use super::bench::Bench;
use super::cleanup::{Cleanup, Resource};
use super::journal::{Journal, Kind, Note, Phase};
use super::ledger::{Entry, Ledger};
use super::plan::{Lifetime, Plan, Step};
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;

/// Waits between the three attempts to release something.
const RETRY_DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// Performs actions on the real host and database, or on a test's own.
#[async_trait]
pub trait Effects: Send + Sync + std::fmt::Debug {
    /// Performs one action. Products (descriptors, the process, the monitor) go onto the bench.
    /// When it fails it has left nothing behind of its own.
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure>;

    /// Gives one thing back. What is absent has been given back.
    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure>;
}

/// What operations on one VM work with.
#[derive(Debug, Clone, Copy)]
pub struct Desk<'a> {
    /// Does it.
    pub effects: &'a dyn Effects,
    /// Remembers what is held.
    pub ledger: &'a Ledger,
    /// Tells what is done.
    pub journal: &'a Journal,
    /// What the steps make for each other.
    pub bench: &'a Bench,
}

/// One attempt at an operation of one VM.
#[derive(Debug)]
pub struct Run<'a> {
    desk: Desk<'a>,
    cancel: &'a CancellationToken,
}

/// A plan that failed.
#[derive(Debug)]
pub struct Undone {
    /// Why, and in `notUndone` what is left.
    pub failure: Failure,
    /// What became of what it had done.
    pub cleanup: Cleanup,
}

impl<'a> Run<'a> {
    /// Prepares an attempt.
    pub fn new(desk: Desk<'a>, cancel: &'a CancellationToken) -> Self {
        Self { desk, cancel }
    }

    /// Performs the whole plan, or nothing: after an error everything it did has been undone, but for
    /// what the error tells.
    pub async fn execute(&self, plan: &Plan) -> Result<(), Undone> {
        for (number, stage) in plan.stages.iter().enumerate() {
            if let Err(failure) = self.stage(stage).await {
                tracing::debug!(stage = number, error = %failure, "rolling back");
                return Err(self.roll_back(failure).await);
            }
        }
        Ok(())
    }

    async fn roll_back(&self, failure: Failure) -> Undone {
        let cleanup = undo_attempt(self.desk).await;
        if cleanup.is_complete() {
            return Undone { failure, cleanup };
        }
        let left: Vec<_> = cleanup
            .stuck()
            .map(|(stuck, failure)| json!({ "step": stuck.release.name(), "error": failure.to_string() }))
            .collect();
        let failure = failure.with("notUndone", left);
        Undone { failure, cleanup }
    }

    async fn stage(&self, steps: &[Step]) -> Result<(), Failure> {
        if self.cancel.is_cancelled() {
            return Err(Failure::new(
                ErrorCode::Aborted,
                "the operation was aborted",
            ));
        }
        let undos: Vec<_> = steps.iter().flat_map(|step| step.undo.clone()).collect();
        let numbers = self.desk.ledger.intend(&undos)?;
        for step in steps {
            let note = Note::of(Kind::Step).step(step.action.name());
            let note = note.phase(Phase::Begun).detail(step.action.subject());
            self.desk.journal.note(note);
        }
        self.desk.journal.written().await;

        let mut rest = numbers.as_slice();
        let attempts = steps.iter().map(|step| {
            let (mine, others) = rest.split_at(step.undo.len());
            rest = others;
            self.step(step, mine.to_vec())
        });
        // All are awaited even when one fails: only a finished step can be undone.
        let outcomes = join_all(attempts).await;
        outcomes.into_iter().collect::<Result<(), Failure>>()
    }

    async fn step(&self, step: &Step, numbers: Vec<u64>) -> Result<(), Failure> {
        let Desk {
            effects,
            ledger,
            bench,
            ..
        } = self.desk;
        let name = step.action.name();
        let work = effects.perform(&step.action, bench, self.cancel);
        let outcome = AssertUnwindSafe(work).catch_unwind().await;
        let outcome = match outcome {
            Ok(Ok(())) => Ok(ledger.hold(&numbers)?),
            Ok(Err(failure)) => {
                // It left nothing behind: its entries must not be undone, they may be another's.
                ledger.forget(&numbers)?;
                Err(failure.with("step", name))
            }
            // A panic may have left anything behind: its entries are undone like held ones.
            Err(_panic) => Err(Failure::new(
                ErrorCode::Internal,
                format!("a defect stopped the step {name}"),
            )),
        };
        self.tell(&step.action, &outcome);
        outcome
    }

    fn tell(&self, action: &Action, outcome: &Result<(), Failure>) {
        let journal = self.desk.journal;
        let note = Note::of(Kind::Step).step(action.name());
        let note = match (outcome, action, self.desk.bench.process()) {
            (Err(failure), _, _) => note.failure(failure),
            (Ok(()), Action::SpawnQemu(_), Some(process)) => {
                let pid = json!({ "pid": process.pid() });
                note.phase(Phase::Done).detail(pid)
            }
            (Ok(()), _, _) => note.phase(Phase::Done),
        };
        journal.note(note);
        if let (Ok(()), Some(status)) = (outcome, action.status()) {
            journal.status(status);
        }
    }
}

/// Undoes what the operation in the ledger has added, newest first.
pub(super) async fn undo_attempt(desk: Desk<'_>) -> Cleanup {
    let contents = desk.ledger.contents();
    let ours = contents
        .entries
        .into_iter()
        .filter(|entry| entry.number >= contents.attempt);
    release(desk, Kind::Undo, ours.collect(), Order::NewestFirst).await
}

/// Whether releases depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// One after the other, the newest acquisition first.
    NewestFirst,
    /// All at once: nothing uses anything of the others any more.
    AtOnce,
}

/// Releases what the ledger holds for at most `until` and forgets it.
pub(super) async fn release_up_to(desk: Desk<'_>, until: Lifetime, order: Order) -> Cleanup {
    let entries = desk
        .ledger
        .contents()
        .entries
        .into_iter()
        // What is for an attempt alone is undone with it, or not at all.
        .filter(|entry| entry.undo.lifetime != Lifetime::Attempt && entry.undo.lifetime <= until)
        .collect();
    release(desk, Kind::Release, entries, order).await
}

/// Releases the chosen entries at once, each tried a single time; what fails stays in the ledger.
pub(super) async fn try_release(desk: Desk<'_>, chosen: impl Fn(&Release) -> bool) {
    let entries = desk.ledger.contents().entries.into_iter();
    let entries: Vec<Entry> = entries
        .filter(|entry| chosen(&entry.undo.release))
        .collect();
    begin_releases(desk, Kind::Release, &entries).await;
    let attempts = entries.into_iter().map(|entry| async move {
        let released = attempt(desk, &entry.undo.release).await;
        let released = released.and_then(|()| Ok(desk.ledger.forget(&[entry.number])?));
        tell_release(desk, Kind::Release, &entry, released.as_ref().err());
        released
    });
    for error in join_all(attempts).await.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "not released early");
    }
}

async fn release(desk: Desk<'_>, kind: Kind, entries: Vec<Entry>, order: Order) -> Cleanup {
    let mut entries = without_covered(desk.ledger, entries);
    entries.reverse();
    let resources = match order {
        Order::AtOnce => {
            begin_releases(desk, kind, &entries).await;
            let each = entries.into_iter();
            join_all(each.map(|entry| release_one(desk, kind, entry))).await
        }
        Order::NewestFirst => {
            let mut resources = Vec::new();
            for entry in entries {
                let ends_qemu = entry.undo.release == Release::EndQemu;
                begin_releases(desk, kind, std::slice::from_ref(&entry)).await;
                let resource = release_one(desk, kind, entry).await;
                let qemu_lives = ends_qemu && resource.failure.is_some();
                resources.push(resource);
                if qemu_lives {
                    // It uses everything older.
                    break;
                }
            }
            resources
        }
    };
    Cleanup { resources }
}

/// Tells what is about to be given back, before any of it is.
async fn begin_releases(desk: Desk<'_>, kind: Kind, entries: &[Entry]) {
    for Entry { undo, .. } in entries {
        let note = Note::of(kind).step(undo.release.name());
        let note = note.phase(Phase::Begun).detail(undo.release.subject());
        desk.journal.note(note);
    }
    desk.journal.written().await;
}

fn tell_release(desk: Desk<'_>, kind: Kind, entry: &Entry, failure: Option<&Failure>) {
    let release = &entry.undo.release;
    let note = Note::of(kind).step(release.name());
    let done = match kind {
        Kind::Undo => Phase::Undone,
        _ => Phase::Done,
    };
    desk.journal.note(match failure {
        Some(failure) => note.failure(failure),
        None => note.phase(done),
    });
    if let (None, Release::RestoreStatus { status }) = (failure, release) {
        desk.journal.status(status);
    }
}

/// What another release does as well is not done twice. Should that one get stuck, it stays in the
/// ledger for both.
fn without_covered(ledger: &Ledger, entries: Vec<Entry>) -> Vec<Entry> {
    let covering: Vec<Release> = entries
        .iter()
        .map(|entry| entry.undo.release.clone())
        .collect();
    let is_covered = |entry: &Entry| {
        covering
            .iter()
            .any(|release| release.covers(&entry.undo.release))
    };
    let (covered, rest): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_covered);
    let numbers: Vec<u64> = covered.iter().map(|entry| entry.number).collect();
    if let Err(error) = ledger.forget(&numbers) {
        tracing::warn!(%error, "the ledger could not be written");
    }
    rest
}

/// One try. A defect in it is a failure like another: what is left to do does not depend on it.
async fn attempt(desk: Desk<'_>, release: &Release) -> Result<(), Failure> {
    let work = desk.effects.release(release, desk.bench);
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|_panic| {
        let message = "a defect stopped the clean-up";
        Err(Failure::new(ErrorCode::Internal, message))
    })
}

async fn release_one(desk: Desk<'_>, kind: Kind, entry: Entry) -> Resource {
    let mut delays = RETRY_DELAYS.into_iter();
    let mut attempts = 1;
    let failure = loop {
        let failure = match attempt(desk, &entry.undo.release).await {
            Ok(()) => {
                // A ledger that cannot be written is found again at the next start; the undo is
                // idempotent then.
                if let Err(error) = desk.ledger.forget(&[entry.number]) {
                    tracing::warn!(%error, "the ledger could not be written");
                }
                break None;
            }
            Err(failure) => failure,
        };
        let Some(delay) = delays.next() else {
            break Some(failure);
        };
        tracing::warn!(action = entry.undo.release.name(), error = %failure, "not released, trying again");
        tokio::time::sleep(delay).await;
        attempts += 1;
    };
    tell_release(desk, kind, &entry, failure.as_ref());
    Resource {
        release: entry.undo.release,
        attempts,
        failure,
        last_attempt_at: now_ms(),
    }
}

#[cfg(test)]
mod tests;
