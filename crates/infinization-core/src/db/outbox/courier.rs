//! Delivers writes, VM by VM, and looks for a database that is away.
//!
//! Every VM with something kept or under way has a lane. A lane is worked off by a task of its own,
//! so that a caller who stops waiting stops nothing, and no write overtakes another even when the
//! one before hangs. While the database is away one more task tries again, with growing pauses;
//! whoever else hears from the database wakes it at once.

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
use super::queue::{Dropped, Put, Queue, Write};
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

type Reply = oneshot::Sender<Result<(), DbError>>;
type Answer = oneshot::Receiver<Result<(), DbError>>;

/// What whoever owns an outbox is told, in order.
#[derive(Debug, Clone)]
pub enum Notice {
    /// The database cannot be reached, or does not take everything.
    Away {
        /// What showed it.
        error: DbError,
    },
    /// It answers, and nothing is kept any more.
    Back {
        /// How many writes were delivered late.
        delivered: usize,
        /// How many were lost, each of which was told.
        lost: usize,
    },
    /// A write that nobody waits for any more will not be made.
    Lost {
        /// Whose.
        vm_id: VmId,
        /// The status it would have written, or the operation's name.
        write: String,
        /// Why.
        error: DbError,
    },
}

#[derive(Debug)]
pub(super) struct Courier {
    inner: Arc<dyn Database>,
    /// How long a write is tried that a database refuses without a reason.
    gives_up_after: Duration,
    state: Mutex<State>,
    wake: Arc<Notify>,
    me: Weak<Courier>,
}

#[derive(Debug)]
struct State {
    lanes: HashMap<VmId, Lane>,
    away: Option<Away>,
    /// Numbers the lanes, oldest first.
    next: u64,
    /// A task looks for the database.
    looking: bool,
    /// Nothing is kept any more.
    closed: bool,
    notices: mpsc::UnboundedSender<Notice>,
}

/// The database does not take everything.
#[derive(Debug, Default)]
struct Away {
    /// Somebody answers.
    answers: bool,
    delivered: usize,
    lost: usize,
}

/// What is kept of one VM.
#[derive(Debug)]
struct Lane {
    number: u64,
    /// With whoever waits for each write.
    queue: Queue<Vec<Reply>>,
    /// Whoever waits for all of them.
    waiting: Vec<Reply>,
    at_work: bool,
    /// Since when its first write is refused without a reason by a database that answers.
    refused_since: Option<Instant>,
}

impl Courier {
    pub(super) fn new(
        inner: Arc<dyn Database>,
        gives_up_after: Duration,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Notice>) {
        let (notices, told) = mpsc::unbounded_channel();
        let state = State {
            lanes: HashMap::new(),
            away: None,
            next: 0,
            looking: false,
            closed: false,
            notices,
        };
        let courier = Arc::new_cyclic(|me| Self {
            inner,
            gives_up_after,
            state: Mutex::new(state),
            wake: Arc::default(),
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
                self.lock().is_away(false, &no_answer(), self);
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
                self.lock().is_away(false, &no_answer(), self);
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
            Ok(_) => self.lock().answered(self),
            Err(error) if Cause::of(error) == Cause::Unreachable => {
                self.lock().is_away(false, error, self);
            }
            Err(_) => {}
        }
        outcome
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
        let error = match self.ask_for(id, write).await {
            Err(error) => error,
            Ok(()) => return Ok(()),
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
            state.answered(self);
            return true;
        };
        if state.may_try_again(id, cause, self.gives_up_after) {
            state.is_away(cause != Cause::Unreachable, &error, self);
            state.rests(id, &error);
            return false;
        }
        state.refused(id, write, &error);
        state.answered(self);
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
                self.lock().answered(self);
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

impl State {
    fn lane(&mut self, id: &VmId) -> &mut Lane {
        let next = &mut self.next;
        self.lanes.entry(id.clone()).or_insert_with(|| {
            *next += 1;
            Lane {
                number: *next,
                queue: Queue::new(),
                waiting: Vec::new(),
                at_work: false,
                refused_since: None,
            }
        })
    }

    fn oldest_first(&self) -> Vec<VmId> {
        let mut lanes: Vec<(u64, &VmId)> = self
            .lanes
            .iter()
            .map(|(id, lane)| (lane.number, id))
            .collect();
        lanes.sort();
        lanes.into_iter().map(|(_, id)| id.clone()).collect()
    }

    fn is_down(&self) -> bool {
        self.away.as_ref().is_some_and(|away| !away.answers)
    }

    /// The database does not take everything; `answers` says whether it is there at all.
    fn is_away(&mut self, answers: bool, error: &DbError, courier: &Courier) {
        if self.away.is_none() {
            tracing::warn!(%error, "the database is away: what happens is kept until it is back");
            self.tell(Notice::Away {
                error: error.clone(),
            });
        }
        self.away.get_or_insert_default().answers = answers;
        if !self.closed && !std::mem::replace(&mut self.looking, true) {
            let (me, wake) = (Weak::clone(&courier.me), Arc::clone(&courier.wake));
            tokio::spawn(look_for_it(me, wake));
        }
    }

    /// The database answers.
    fn answered(&mut self, courier: &Courier) {
        if let Some(away) = &mut self.away
            && !std::mem::replace(&mut away.answers, true)
        {
            courier.wake.notify_one();
        }
        self.may_be_back();
    }

    fn may_be_back(&mut self) {
        let back = self.lanes.is_empty();
        let Some(Away {
            delivered, lost, ..
        }) = self.away.take_if(|away| away.answers && back)
        else {
            return;
        };
        tracing::warn!(delivered, lost, "the database is back");
        self.tell(Notice::Back { delivered, lost });
    }

    fn delivered(&mut self, id: &VmId) {
        let Some(lane) = self.lanes.get_mut(id) else {
            return;
        };
        lane.refused_since = None;
        answer_all(lane.queue.done().unwrap_or_default(), &Ok(()));
        if let Some(away) = &mut self.away {
            away.delivered += 1;
        }
    }

    /// A database that refuses without a reason is not asked for ever.
    fn may_try_again(&mut self, id: &VmId, cause: Cause, patience: Duration) -> bool {
        let Some(lane) = self.lanes.get_mut(id) else {
            return false;
        };
        if cause != Cause::Doubtful {
            return cause.may_pass();
        }
        let since = lane.refused_since.get_or_insert_with(Instant::now);
        since.elapsed() < patience
    }

    /// The lane's writes are kept: nobody waits for them any more.
    fn rests(&mut self, id: &VmId, error: &DbError) {
        let kept = if self.closed {
            Err(error.clone())
        } else {
            Ok(())
        };
        let Some(lane) = self.lanes.get_mut(id) else {
            return;
        };
        lane.at_work = false;
        lane.queue.back();
        for replies in lane.queue.beside() {
            answer_all(std::mem::take(replies), &kept);
        }
        let behind = DbError {
            code: ErrorCode::DbConnectionError,
            message: format!(
                "the database has not taken yet what happened to VM {id}: {}",
                error.message
            ),
            details: error.details.clone(),
        };
        answer_all(std::mem::take(&mut lane.waiting), &Err(behind));
    }

    /// The write will not be made: whoever waits for it is told, else the owner.
    fn refused(&mut self, id: &VmId, write: &Write, error: &DbError) {
        let Some(lane) = self.lanes.get_mut(id) else {
            return;
        };
        lane.refused_since = None;
        let waiting = lane.queue.done().unwrap_or_default();
        if answer_all(waiting, &Err(error.clone())) {
            return;
        }
        // The row of a machine that was deleted meanwhile needs no truth.
        if error.code == ErrorCode::MachineNotFound {
            tracing::debug!(vm = %id, write = write.name(), "the row is gone");
        } else {
            self.lose(id, write, error);
        }
    }

    fn lose(&mut self, id: &VmId, write: &Write, error: &DbError) {
        let write = write.name().to_owned();
        tracing::error!(vm = %id, write, %error, "a write that was kept is lost");
        if let Some(away) = &mut self.away {
            away.lost += 1;
        }
        self.tell(Notice::Lost {
            vm_id: id.clone(),
            write,
            error: error.clone(),
        });
    }

    fn tell_dropped(&mut self, id: &VmId, dropped: Dropped) {
        match dropped {
            Dropped::Covered(count) => {
                tracing::warn!(vm = %id, count, "too much is kept of the VM: only the newest of what its row shows will be written");
            }
            Dropped::Truth(write) => {
                let message = "too much was kept of the VM";
                let error = DbError::new(ErrorCode::UpdateFailed, message);
                self.lose(id, &write, &error);
            }
        }
    }

    fn tell(&self, notice: Notice) {
        let _nobody_listens = self.notices.send(notice);
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

/// Whether anybody heard it.
fn answer_all(replies: Vec<Reply>, outcome: &Result<(), DbError>) -> bool {
    let heard = replies
        .into_iter()
        .map(|reply| reply.send(outcome.clone()).is_ok());
    heard.fold(false, |one, other| one | other)
}
