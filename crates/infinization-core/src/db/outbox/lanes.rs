//! What is known of the database and kept of each VM, and what an outcome does to it. Nothing here
//! waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::PATIENCE;
use super::cause::Cause;
use super::queue::{Dropped, Queue, Write};
use crate::db::DbError;
use crate::error::ErrorCode;
use crate::types::VmId;

/// Somebody who waits for a write, or for all of a VM's.
pub(super) type Reply = oneshot::Sender<Result<(), DbError>>;

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
pub(super) struct State {
    pub(super) lanes: HashMap<VmId, Lane>,
    pub(super) away: Option<Away>,
    /// Numbers the lanes, oldest first.
    next: u64,
    /// The longest that a question has taken that was answered.
    slowest: Duration,
    /// A task looks for the database.
    pub(super) looking: bool,
    /// Nothing is kept any more.
    pub(super) closed: bool,
    /// Wakes whoever looks.
    wake: Arc<Notify>,
    notices: mpsc::UnboundedSender<Notice>,
}

/// The database does not take everything.
#[derive(Debug, Default)]
pub(super) struct Away {
    /// Somebody answers.
    answers: bool,
    delivered: usize,
    lost: usize,
}

/// What is kept of one VM.
#[derive(Debug)]
pub(super) struct Lane {
    number: u64,
    /// With whoever waits for each write.
    pub(super) queue: Queue<Vec<Reply>>,
    /// Whoever waits for all of them.
    pub(super) waiting: Vec<Reply>,
    pub(super) at_work: bool,
    /// Somebody has waited long enough for what is under way: nobody else does.
    pub(super) is_slow: bool,
    /// Since when its first write is refused without a reason by a database that answers.
    refused_since: Option<Instant>,
}

impl State {
    pub(super) fn new(notices: mpsc::UnboundedSender<Notice>, wake: Arc<Notify>) -> Self {
        Self {
            lanes: HashMap::new(),
            away: None,
            next: 0,
            slowest: Duration::ZERO,
            looking: false,
            closed: false,
            wake,
            notices,
        }
    }

    pub(super) fn lane(&mut self, id: &VmId) -> &mut Lane {
        let next = &mut self.next;
        self.lanes.entry(id.clone()).or_insert_with(|| {
            *next += 1;
            Lane {
                number: *next,
                queue: Queue::new(),
                waiting: Vec::new(),
                at_work: false,
                is_slow: false,
                refused_since: None,
            }
        })
    }

    pub(super) fn oldest_first(&self) -> Vec<VmId> {
        let mut lanes: Vec<(u64, &VmId)> = self
            .lanes
            .iter()
            .map(|(id, lane)| (lane.number, id))
            .collect();
        lanes.sort();
        lanes.into_iter().map(|(_, id)| id.clone()).collect()
    }

    pub(super) fn is_down(&self) -> bool {
        self.away.as_ref().is_some_and(|away| !away.answers)
    }

    /// Nobody answers. True when somebody must begin to look for it.
    pub(super) fn is_silent(&mut self, error: &DbError) -> bool {
        self.away(error).answers = false;
        self.must_look()
    }

    /// It answers, and does not take everything. True when somebody must begin to look.
    pub(super) fn is_behind(&mut self, error: &DbError) -> bool {
        self.away(error).answers = true;
        self.must_look()
    }

    fn away(&mut self, error: &DbError) -> &mut Away {
        if self.away.is_none() {
            tracing::warn!(%error, "the database is away: what happens is kept until it is back");
            self.tell(Notice::Away {
                error: error.clone(),
            });
        }
        self.away.get_or_insert_default()
    }

    fn must_look(&mut self) -> bool {
        !self.closed && !std::mem::replace(&mut self.looking, true)
    }

    /// How long a caller waits for a database that is away; `None` while it is there.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.is_down().then(|| self.longest_answer())
    }

    /// How long an answer may be expected to take: twice as long as one ever took.
    pub(super) fn longest_answer(&self) -> Duration {
        PATIENCE.max(self.slowest * 2)
    }

    /// Somebody has waited long enough for a write of the VM.
    pub(super) fn is_slow(&mut self, id: &VmId) {
        if let Some(lane) = self.lanes.get_mut(id) {
            lane.is_slow = true;
        }
    }

    /// The database has answered a question that was asked at `began`.
    pub(super) fn answered_since(&mut self, began: Instant) {
        self.slowest = self.slowest.max(began.elapsed());
        self.answered();
    }

    /// The database answers.
    pub(super) fn answered(&mut self) {
        if let Some(away) = &mut self.away
            && !std::mem::replace(&mut away.answers, true)
        {
            self.wake.notify_one();
        }
        self.may_be_back();
    }

    pub(super) fn may_be_back(&mut self) {
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

    pub(super) fn delivered(&mut self, id: &VmId) {
        let Some(lane) = self.lanes.get_mut(id) else {
            return;
        };
        lane.refused_since = None;
        lane.is_slow = false;
        answer_all(lane.queue.done().unwrap_or_default(), &Ok(()));
        if let Some(away) = &mut self.away {
            away.delivered += 1;
        }
    }

    /// A database that refuses without a reason is not asked for ever.
    pub(super) fn may_try_again(&mut self, id: &VmId, cause: Cause, patience: Duration) -> bool {
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
    pub(super) fn rests(&mut self, id: &VmId, error: &DbError) {
        let kept = if self.closed {
            Err(error.clone())
        } else {
            Ok(())
        };
        let Some(lane) = self.lanes.get_mut(id) else {
            return;
        };
        lane.at_work = false;
        lane.is_slow = false;
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
    pub(super) fn refused(&mut self, id: &VmId, write: &Write, error: &DbError) {
        let Some(lane) = self.lanes.get_mut(id) else {
            return;
        };
        lane.refused_since = None;
        lane.is_slow = false;
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

    pub(super) fn tell_dropped(&mut self, id: &VmId, dropped: Dropped) {
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

/// Whether anybody heard it.
pub(super) fn answer_all(replies: Vec<Reply>, outcome: &Result<(), DbError>) -> bool {
    let heard = replies
        .into_iter()
        .map(|reply| reply.send(outcome.clone()).is_ok());
    heard.fold(false, |one, other| one | other)
}
