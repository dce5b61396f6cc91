//! Delivers writes, VM by VM.
//!
//! Every VM with something kept or under way has a lane. A lane is worked off by a task of its own,
//! so that a caller who stops waiting stops nothing, and no write overtakes another even when the
//! one before hangs. A database that is away is looked for in `search`.

mod search;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::cause::Cause;
use super::lanes::{Notice, State, answer_all};
use super::queue::{Guard, Put, Write};
use super::{PATIENCE, no_answer};
use crate::db::{Database, DbError};
use crate::error::ErrorCode;
use crate::types::VmId;

/// How often a write is tried at once when it meets another (a deadlock).
const CONFLICT_ATTEMPTS: u32 = 3;

/// A question that is under way.
pub(super) type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, DbError>> + Send + 'a>>;

/// The ids of VMs of which something is still kept, and why: what the database says of them is old.
pub(super) type Behind = HashMap<String, DbError>;

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
                self.lock().is_slow(id);
                Ok(())
            }
        }
    }

    /// Delivers what is kept of a VM; the error is why it could not be.
    pub(super) async fn settle(&self, id: &VmId) -> Result<(), DbError> {
        self.bounded(self.delivery(id)).await?
    }

    /// As [`Courier::settle`], however long it takes.
    async fn delivery(&self, id: &VmId) -> Result<(), DbError> {
        match self.ask_for_delivery(id) {
            Some(answer) => answer.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    /// Ends the wait for a database that is away, but not sooner than it ever answered. One that is
    /// there has its own deadline.
    async fn bounded<T>(&self, work: impl Future<Output = T>) -> Result<T, DbError> {
        let patience = self.lock().patience();
        match patience {
            Some(patience) => timeout(patience, work)
                .await
                .map_err(|_elapsed| no_answer(patience)),
            None => Ok(work.await),
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

    /// A read of many VMs, after all that is kept but of those that the database does not take.
    pub(super) async fn read_all<'a, T>(
        &'a self,
        read: impl FnOnce(&'a dyn Database) -> Asked<'a, T>,
    ) -> Result<(T, Behind), DbError> {
        let patience = self.lock().longest_answer();
        let behind = self.settle_all(patience).await?;
        Ok((self.read(read).await?, behind))
    }

    /// A read of what is never kept. A database that is away is not waited for to the end.
    pub(super) async fn read<'a, T>(
        &'a self,
        read: impl FnOnce(&'a dyn Database) -> Asked<'a, T>,
    ) -> Result<T, DbError> {
        let asked = read(self.inner.as_ref());
        let answer = async {
            let began = Instant::now();
            let outcome = asked.await;
            self.heard(outcome, began)
        };
        self.bounded(answer).await?
    }

    /// A write whose maker needs the answer, after what is kept of the VM.
    pub(super) async fn claim<'a, T>(
        &'a self,
        id: &VmId,
        claim: impl FnOnce(&'a dyn Database) -> Asked<'a, T>,
    ) -> Result<T, DbError> {
        self.settle(id).await?;
        let began = Instant::now();
        let outcome = claim(self.inner.as_ref()).await;
        self.heard(outcome, began)
    }

    fn heard<T>(&self, outcome: Result<T, DbError>, began: Instant) -> Result<T, DbError> {
        match &outcome {
            Ok(_) => self.lock().answered_since(began),
            Err(error) if Cause::of(error) == Cause::Unreachable => {
                self.nobody_answers(error);
            }
            Err(_) => {}
        }
        outcome
    }

    pub(super) fn is_away(&self) -> bool {
        self.lock().is_down()
    }

    pub(super) fn nobody_answers(&self, error: &DbError) {
        if self.lock().is_silent(error) {
            self.begin_to_look();
        }
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
        let tried = timeout(patience, self.settle_all(patience)).await;
        let state = self.lock();
        for (vm, lane) in &state.lanes {
            let (writes, tried) = (lane.queue.names(), tried.is_ok());
            tracing::warn!(%vm, ?writes, tried, "the database did not take what happened to the VM; the next start makes its row true");
        }
    }

    /// Keeps a write, and has it delivered unless nobody answers anyway.
    fn put(&self, id: &VmId, write: Write) -> Option<Answer> {
        let mut state = self.lock();
        let is_down = state.is_down();
        let closed = state.closed;
        let lane = state.lane(id);
        let asks = closed || !(is_down || lane.is_slow);
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

    /// Delivers what is kept: of one VM, to see whether anybody answers, then of all others. An error
    /// is that nobody does.
    async fn settle_all(&self, patience: Duration) -> Result<Behind, DbError> {
        let kept = self.lock().oldest_first();
        let Some((oldest, others)) = kept.split_first() else {
            return Ok(Behind::new());
        };
        let first = self.delivered_within(patience, oldest).await;
        if self.lock().is_down() {
            return Err(first.map_or_else(|| no_answer(patience), |(_, error)| error));
        }
        let others = others.iter().map(|id| self.delivered_within(patience, id));
        let others = join_all(others).await.into_iter();
        let behind: Behind = others.chain([first]).flatten().collect();
        match behind.values().next() {
            Some(error) if self.lock().is_down() => Err(error.clone()),
            _ => Ok(behind),
        }
    }

    /// Why what is kept of a VM was not delivered, if it was not.
    async fn delivered_within(&self, patience: Duration, id: &VmId) -> Option<(String, DbError)> {
        let delivered = timeout(patience, self.delivery(id)).await;
        let delivered = delivered.unwrap_or_else(|_elapsed| Err(no_answer(patience)));
        delivered.err().map(|error| (id.to_string(), error))
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
    fn conclude(
        &self,
        id: &VmId,
        write: &Write,
        outcome: Result<(), (Cause, DbError)>,
        began: Instant,
    ) -> bool {
        let mut state = self.lock();
        let Err((cause, error)) = outcome else {
            state.delivered(id);
            state.answered_since(began);
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
}

impl Write {
    /// Asks the database for it.
    pub(super) fn send<'a>(&'a self, db: &'a dyn Database, id: &'a VmId) -> Asked<'a, ()> {
        match self {
            Self::Status { status, guard } => Box::pin(async move {
                let texts = |words: &'a [String]| words.iter().map(String::as_str).collect();
                match guard {
                    Guard::NotIn(words) => {
                        let words: Vec<&str> = texts(words);
                        db.update_machine_status(id, status, &words).await
                    }
                    Guard::Over(words) => {
                        let words: Vec<&str> = texts(words);
                        db.write_status_over(id, status, &words).await
                    }
                }
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
        let began = Instant::now();
        let outcome = courier.attempt(&id, &write).await;
        if !courier.conclude(&id, &write, outcome, began) {
            return;
        }
    }
}
