//! Delivers writes, VM by VM, and looks for a database that is away.
//!
//! Every VM with something kept or under way has a lane. A lane is worked off by a task of its own,
//! so that a caller who stops waiting stops nothing, and no write overtakes another even when the
//! one before hangs. While the database is away one more task tries again, with growing pauses;
//! whoever else hears from the database wakes it at once.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use super::cause::Cause;
use super::lanes::{Notice, State, answer_all};
use super::queue::{Put, Write};
use super::{PATIENCE, no_answer};
use crate::db::{Database, DbError};
use crate::error::ErrorCode;
use crate::types::VmId;

/// Before the first attempt after a failure; doubled with each that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Between attempts at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often a write is tried at once when it meets another (a deadlock).
const CONFLICT_ATTEMPTS: u32 = 3;

/// A question that is under way.
pub(super) type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, DbError>> + Send + 'a>>;

type Answer = oneshot::Receiver<Result<(), DbError>>;

#[derive(Debug)]
pub(super) struct Courier {
    inner: Arc<dyn Database>,
    /// How long a write is tried that a database refuses without a reason.
    gives_up_after: Duration,
    state: Mutex<State>,
    wake: Arc<Notify>,
    me: Weak<Courier>,
}

impl Courier {
    pub(super) fn new(
        inner: Arc<dyn Database>,
        gives_up_after: Duration,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Notice>) {
        let (notices, told) = mpsc::unbounded_channel();
        let wake: Arc<Notify> = Arc::default();
        let courier = Arc::new_cyclic(|me| Self {
            inner,
            gives_up_after,
            state: Mutex::new(State::new(notices, Arc::clone(&wake))),
            wake,
            me: Weak::clone(me),
        });
        (courier, told)
    }

    /// Makes a write, or keeps it. An error is one that will not pass.
    pub(super) async fn write(&self, id: &VmId, write: Write) -> Result<(), DbError> {
        let Some(answer) = self.put(id, write) else {
            return Ok(());
        };
        match timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_forgotten)) => Ok(()),
            Err(_elapsed) => {
                self.nobody_answers(&no_answer());
                Ok(())
            }
        }
    }

    /// Delivers what is kept of a VM; the error is why it could not be.
    pub(super) async fn settle(&self, id: &VmId) -> Result<(), DbError> {
        let Some(answer) = self.ask_for_delivery(id) else {
            return Ok(());
        };
        match timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_forgotten)) => Ok(()),
            Err(_elapsed) => {
                self.nobody_answers(&no_answer());
                Err(no_answer())
            }
        }
    }

    /// A read of one VM, after what is kept of it.
    pub(super) async fn read_of<'a, T>(
        &'a self,
        id: &VmId,
        read: impl FnOnce(&'a dyn Database) -> Asked<'a, T>,
    ) -> Result<T, DbError> {
        self.settle(id).await?;
        self.read(read).await
    }

    /// A read of many VMs, after all that is kept.
    pub(super) async fn read_all<'a, T>(
        &'a self,
        read: impl FnOnce(&'a dyn Database) -> Asked<'a, T>,
    ) -> Result<T, DbError> {
        self.settle_all().await?;
        self.read(read).await
    }

    /// A read of what is never kept. A database that is away is not waited for to the end.
    pub(super) async fn read<'a, T>(
        &'a self,
        read: impl FnOnce(&'a dyn Database) -> Asked<'a, T>,
    ) -> Result<T, DbError> {
        let asked = read(self.inner.as_ref());
        let outcome = if self.lock().is_down() {
            let answer = timeout(PATIENCE, asked).await;
            answer.unwrap_or_else(|_elapsed| Err(no_answer()))
        } else {
            asked.await
        };
        self.heard(outcome)
    }

    /// A write whose maker needs the answer, after what is kept of the VM.
    pub(super) async fn claim<'a, T>(
        &'a self,
        id: &VmId,
        claim: impl FnOnce(&'a dyn Database) -> Asked<'a, T>,
    ) -> Result<T, DbError> {
        self.settle(id).await?;
        let outcome = claim(self.inner.as_ref()).await;
        self.heard(outcome)
    }

    fn heard<T>(&self, outcome: Result<T, DbError>) -> Result<T, DbError> {
        match &outcome {
            Ok(_) => self.lock().answered(),
            Err(error) if Cause::of(error) == Cause::Unreachable => {
                self.nobody_answers(error);
            }
            Err(_) => {}
        }
        outcome
    }

    fn nobody_answers(&self, error: &DbError) {
        if self.lock().is_silent(error) {
            self.begin_to_look();
        }
    }

    fn begin_to_look(&self) {
        let (me, wake) = (Weak::clone(&self.me), Arc::clone(&self.wake));
        tokio::spawn(look_for_it(me, wake));
    }

    /// Drops what is kept of a VM, but for what is under way.
    pub(super) fn forget(&self, id: &VmId) {
        let mut state = self.lock();
        let Some(lane) = state.lanes.get_mut(id) else {
            return;
        };
        lane.queue.clear();
        if !lane.at_work {
            state.lanes.remove(id);
            state.may_be_back();
        }
    }

    pub(super) fn keeps(&self, id: &VmId) -> bool {
        let state = self.lock();
        state.lanes.get(id).is_some_and(|lane| lane.queue.len() > 0)
    }

    pub(super) fn kept(&self) -> usize {
        let state = self.lock();
        state.lanes.values().map(|lane| lane.queue.len()).sum()
    }

    pub(super) async fn close(&self, patience: Duration) {
        self.lock().closed = true;
        self.wake.notify_one();
        let tried = timeout(patience, self.settle_all()).await;
        let state = self.lock();
        for (vm, lane) in &state.lanes {
            let (writes, tried) = (lane.queue.names(), tried.is_ok());
            tracing::warn!(%vm, ?writes, tried, "the database did not take what happened to the VM; the next start makes its row true");
        }
    }

    /// Keeps a write, and has it delivered unless nobody answers anyway.
    fn put(&self, id: &VmId, write: Write) -> Option<Answer> {
        let mut state = self.lock();
        let asks = state.closed || !state.is_down();
        let lane = state.lane(id);
        let put = lane.queue.put(write);
        let dropped = match put {
            Put::Last => lane.queue.make_room(),
            Put::Same => None,
        };
        let answer = asks.then(|| {
            let (reply, answer) = oneshot::channel();
            if let Some(waiting) = lane.queue.beside().next_back() {
                waiting.push(reply);
            }
            answer
        });
        if asks && !std::mem::replace(&mut lane.at_work, true) {
            self.send_for(id);
        }
        if let Some(dropped) = dropped {
            state.tell_dropped(id, dropped);
        }
        answer
    }

    /// `None` when nothing is kept of the VM.
    fn ask_for_delivery(&self, id: &VmId) -> Option<Answer> {
        let mut state = self.lock();
        let lane = state.lanes.get_mut(id)?;
        let (reply, answer) = oneshot::channel();
        lane.waiting.push(reply);
        if !std::mem::replace(&mut lane.at_work, true) {
            self.send_for(id);
        }
        Some(answer)
    }

    /// Delivers what is kept: of one VM, to see whether anybody answers, then of all others.
    async fn settle_all(&self) -> Result<(), DbError> {
        let kept = self.lock().oldest_first();
        let Some((oldest, others)) = kept.split_first() else {
            return Ok(());
        };
        let first = self.settle(oldest).await;
        if self.lock().is_down() {
            return first.and_then(|()| Err(no_answer()));
        }
        let others = join_all(others.iter().map(|id| self.settle(id))).await;
        others.into_iter().fold(first, Result::and)
    }

    /// Works off the VM's lane. The lane has been marked as being worked on.
    fn send_for(&self, id: &VmId) {
        if let Some(courier) = self.me.upgrade() {
            tokio::spawn(deliver(courier, id.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next write of a lane; without one the lane is closed.
    fn begin(&self, id: &VmId) -> Option<Write> {
        let mut state = self.lock();
        if let Some(write) = state.lanes.get_mut(id)?.queue.begin() {
            return Some(write);
        }
        if let Some(lane) = state.lanes.remove(id) {
            answer_all(lane.waiting, &Ok(()));
        }
        state.may_be_back();
        None
    }

    /// Tries a write, and finds out what an error means: a database that refuses without a reason is
    /// asked something else.
    async fn attempt(&self, id: &VmId, write: &Write) -> Result<(), (Cause, DbError)> {
        let Err(error) = self.ask_for(id, write).await else {
            return Ok(());
        };
        let cause = match Cause::of(&error) {
            Cause::Doubtful if self.inner.find_machine(id).await.is_err() => Cause::Unreachable,
            cause => cause,
        };
        Err((cause, error))
    }

    /// Asks the database for a write; one that met another is made again.
    async fn ask_for(&self, id: &VmId, write: &Write) -> Result<(), DbError> {
        let mut attempts = CONFLICT_ATTEMPTS;
        loop {
            let asked = AssertUnwindSafe(write.send(self.inner.as_ref(), id));
            let outcome = asked.catch_unwind().await.unwrap_or_else(|_panic| {
                let message = "a defect stopped the write";
                Err(DbError::new(ErrorCode::Internal, message))
            });
            attempts -= 1;
            let again = |error: &DbError| Cause::of(error) == Cause::Trouble;
            if attempts == 0 || !outcome.as_ref().is_err_and(again) {
                return outcome;
            }
        }
    }

    /// What came of a write. False when the lane is to rest.
    fn conclude(&self, id: &VmId, write: &Write, outcome: Result<(), (Cause, DbError)>) -> bool {
        let mut state = self.lock();
        let Err((cause, error)) = outcome else {
            state.delivered(id);
            state.answered();
            return true;
        };
        if state.may_try_again(id, cause, self.gives_up_after) {
            let must_look = match cause {
                Cause::Unreachable => state.is_silent(&error),
                _ => state.is_behind(&error),
            };
            state.rests(id, &error);
            if must_look {
                self.begin_to_look();
            }
            return false;
        }
        state.refused(id, write, &error);
        state.answered();
        true
    }

    /// One attempt to find the database, or to deliver what it has not taken.
    async fn look(&self) -> Result<(), DbError> {
        if !self.lock().lanes.is_empty() {
            return self.settle_all().await;
        }
        let asked = self.inner.find_machines_by_statuses(&["starting"]);
        let answer = timeout(PATIENCE, asked).await;
        match answer.unwrap_or_else(|_elapsed| Err(no_answer())) {
            Err(error) if matches!(Cause::of(&error), Cause::Unreachable | Cause::Trouble) => {
                Err(error)
            }
            // Whatever it says, it answers.
            _ => {
                self.lock().answered();
                Ok(())
            }
        }
    }

    /// Whether there is nothing to look for any more.
    fn has_found(&self) -> bool {
        let mut state = self.lock();
        let found = state.away.is_none() || state.closed;
        state.looking = !found;
        found
    }
}

impl Write {
    /// Asks the database for it.
    pub(super) fn send<'a>(&'a self, db: &'a dyn Database, id: &'a VmId) -> Asked<'a, ()> {
        match self {
            Self::Status {
                status,
                only_if_not_in,
            } => Box::pin(async move {
                let guard: Vec<&str> = only_if_not_in.iter().map(String::as_str).collect();
                db.update_machine_status(id, status, &guard).await
            }),
            Self::Configuration(update) => db.update_machine_configuration(id, (**update).clone()),
            Self::Clear => db.clear_machine_configuration(id),
            Self::ClearVolatile => db.clear_volatile_machine_configuration(id),
        }
    }
}

/// Works off one VM's lane until it is empty or the database does not take a write.
async fn deliver(courier: Arc<Courier>, id: VmId) {
    while let Some(write) = courier.begin(&id) {
        let outcome = courier.attempt(&id, &write).await;
        if !courier.conclude(&id, &write, outcome) {
            return;
        }
    }
}

/// Looks for the database until it has taken everything.
async fn look_for_it(courier: Weak<Courier>, wake: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let _woken = timeout(pause, wake.notified()).await;
        let Some(courier) = courier.upgrade() else {
            return;
        };
        let looked = courier.look().await;
        if courier.has_found() {
            return;
        }
        pause = match looked {
            Ok(()) => FIRST_PAUSE,
            Err(_) => LONGEST_PAUSE.min(pause * 2),
        };
    }
}
