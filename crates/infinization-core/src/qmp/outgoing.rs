//! The sending side of one monitor: shared by its handles and the task that owns the connection.
//!
//! Whoever calls writes his command himself when the socket takes it, so that it is on its way without
//! another thread having to wake up first; what the socket does not take is the task's to send. One
//! lock keeps the order in which calls were made. Callers are told after it was let go.
//!
//! Deadlines need no timer of their own: the task sleeps until one that is surely not too late, and is
//! woken only for a call that is due before. Neighbours: [`super::client`] makes the calls,
//! [`super::monitor`] is the task, [`super::calls`] matches the replies.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::calls::{Answered, Call, Calls, Loss, MAX_UNANSWERED, Request};
use super::stream::WriteHalf;
use super::wire::Reply;

/// Calls, from the moment they are made until they are answered.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    state: Mutex<State>,
    /// The task has something to do: to send what is left, or to sleep less long.
    stirred: Notify,
}

#[derive(Debug, Default)]
struct State {
    calls: Calls,
    /// Made, and not sent.
    queue: VecDeque<Request>,
    /// None while there is no connection.
    outbox: Option<Outbox>,
    /// When the task looks at the deadlines next.
    alarm: Option<Instant>,
}

/// The writing half of a connection, and what it has not taken yet of the line being sent.
#[derive(Debug)]
struct Outbox {
    writer: Arc<WriteHalf>,
    rest: Vec<u8>,
    /// The other side takes nothing more. Its last words (SHUTDOWN) may still be unread, so this
    /// alone does not end the connection.
    broken: bool,
}

/// What the task waits for besides the socket's messages.
#[derive(Debug)]
pub(super) struct Chores {
    /// Something is left to be sent to it, as soon as it takes more.
    pub(super) unsent: Option<Arc<WriteHalf>>,
    pub(super) alarm: Option<Instant>,
}

impl Outgoing {
    /// Sends a call, or lets it wait its turn. It fails at once where there is no connection.
    pub(super) fn send(&self, request: Request) {
        let mut state = self.state();
        let due = request.call.due();
        let lost = state.accept(request);
        let stir = state.sets_alarm(due) | state.has_unsent();
        drop(state);
        if stir {
            self.stirred.notify_one();
        }
        tell(lost);
    }

    /// Calls are sent to `writer` from now on.
    pub(super) fn connect(&self, writer: WriteHalf) {
        self.state().outbox = Some(Outbox {
            writer: Arc::new(writer),
            rest: Vec::new(),
            broken: false,
        });
    }

    /// Gives the connection up. Every call has failed; their callers are to be told.
    pub(super) fn disconnect(&self, loss: Loss) -> Vec<Answered> {
        let mut state = self.state();
        state.outbox = None;
        let mut lost = state.calls.fail_all(loss);
        lost.extend(state.fail_queue(loss));
        lost
    }

    /// Tells the caller whom a reply is for.
    pub(super) fn answer(&self, reply: Reply) {
        let answered = self.state().calls.answer(reply);
        tell(answered);
    }

    /// Sends what the socket takes now of what is left.
    pub(super) fn resume(&self) {
        let lost = self.state().send_queue();
        tell(lost);
    }

    /// Fails what is overdue, and finds out when to look again.
    pub(super) fn expire(&self) {
        let late = self.state().expire(Instant::now());
        tell(late);
    }

    /// What the task has to wait for now.
    pub(super) fn chores(&self) -> Chores {
        let state = self.state();
        let unsent = state.outbox.as_ref().filter(|_| state.has_unsent());
        Chores {
            unsent: unsent.map(|outbox| Arc::clone(&outbox.writer)),
            alarm: state.alarm,
        }
    }

    /// Resolves when [`Outgoing::chores`] may have changed.
    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn accept(&mut self, request: Request) -> Vec<Answered> {
        if self.queue.len() >= MAX_UNANSWERED {
            self.queue.retain(|request| !request.call.is_abandoned());
        }
        self.queue.push_back(request);
        self.send_queue()
    }

    /// Sends until the socket takes no more; gives back what can never be sent.
    fn send_queue(&mut self) -> Vec<Answered> {
        while let Some(outbox) = self.outbox.as_mut().filter(|outbox| !outbox.broken) {
            outbox.flush();
            if outbox.broken {
                break;
            }
            if !outbox.rest.is_empty() {
                return Vec::new();
            }
            match self.queue.pop_front() {
                Some(request) => outbox.rest = self.calls.admit(request),
                None => return Vec::new(),
            }
        }
        self.fail_queue(Loss::Ended)
    }

    fn fail_queue(&mut self, loss: Loss) -> Vec<Answered> {
        let queue = self.queue.drain(..);
        queue.map(|request| request.call.lose(loss)).collect()
    }

    fn has_unsent(&self) -> bool {
        let outbox = self.outbox.as_ref();
        outbox.is_some_and(|outbox| !outbox.rest.is_empty())
    }

    /// Notes a deadline; whether the task would sleep past it.
    fn sets_alarm(&mut self, due: Option<Instant>) -> bool {
        let sooner = due.filter(|due| self.alarm.is_none_or(|alarm| *due < alarm));
        self.alarm = sooner.or(self.alarm);
        sooner.is_some()
    }

    fn expire(&mut self, now: Instant) -> Vec<Answered> {
        let late = self.open().filter_map(|call| call.expire(now)).collect();
        self.queue.retain(|request| !request.call.is_abandoned());
        self.alarm = self.open().filter_map(|call| call.due()).min();
        late
    }

    fn open(&mut self) -> impl Iterator<Item = &mut Call> {
        let queued = self.queue.iter_mut().map(|request| &mut request.call);
        self.calls.unanswered().chain(queued)
    }
}

impl Outbox {
    fn flush(&mut self) {
        while !self.rest.is_empty() && !self.broken {
            match self.writer.try_write(&self.rest) {
                Ok(sent) if sent > 0 => drop(self.rest.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.broken = true;
                    self.rest.clear();
                }
            }
        }
    }
}

pub(super) fn tell(answers: impl IntoIterator<Item = Answered>) {
    answers.into_iter().for_each(Answered::tell);
}
