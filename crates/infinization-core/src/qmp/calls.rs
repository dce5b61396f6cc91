//! The calls one monitor has not answered yet.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::QmpError;
use super::wire::{Command, Refusal, Reply};

/// Abandoned calls stay until QEMU answers them, because it answers in order; but no more of them.
pub(super) const MAX_UNANSWERED: usize = 1024;

/// What one call comes to.
pub(super) type Outcome = Result<Box<RawValue>, CallFailure>;

/// A call on its way to the monitor.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) call: Call,
}

/// A call as its caller sees it.
#[derive(Debug)]
pub(super) struct Call {
    caller: Caller,
    deadline: Duration,
    /// When the deadline is over; none where the clock does not go that far.
    due: Option<Instant>,
}

/// Who is told what a call came to.
pub(super) enum Caller {
    /// A future, as long as it is not dropped.
    Waits(oneshot::Sender<Outcome>),
    /// A function, which returns at once.
    Told(Box<dyn FnOnce(Outcome) + Send>),
    /// Nobody any more.
    Gone,
}

/// What one caller is to be told, once no lock is held.
#[derive(Debug)]
#[must_use]
pub(super) struct Answered {
    caller: Caller,
    outcome: Outcome,
}

impl Call {
    /// A call that begins now.
    pub(super) fn new(caller: Caller, deadline: Duration) -> Self {
        Self {
            caller,
            deadline,
            due: Instant::now().checked_add(deadline),
        }
    }

    /// When it has to be over, while somebody waits for it.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.is_abandoned())
    }

    pub(super) fn is_abandoned(&self) -> bool {
        match &self.caller {
            Caller::Waits(answer) => answer.is_closed(),
            Caller::Told(_) => false,
            Caller::Gone => true,
        }
    }

    pub(super) fn lose(self, loss: Loss) -> Answered {
        self.answer(Err(CallFailure::Lost(loss)))
    }

    /// If its deadline is over: that it is late. It is abandoned then.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Answered> {
        self.due().filter(|due| *due <= now)?;
        Some(Answered {
            caller: std::mem::replace(&mut self.caller, Caller::Gone),
            outcome: Err(CallFailure::Late(self.deadline)),
        })
    }

    fn answer(self, outcome: Outcome) -> Answered {
        Answered {
            caller: self.caller,
            outcome,
        }
    }
}

impl Answered {
    pub(super) fn tell(self) {
        match self.caller {
            Caller::Waits(answer) => drop(answer.send(self.outcome)),
            Caller::Told(told) => told(self.outcome),
            Caller::Gone => {}
        }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waits(_) => "Waits",
            Self::Told(_) => "Told",
            Self::Gone => "Gone",
        })
    }
}

/// How a call failed; the caller adds what it was.
#[derive(Debug)]
pub(super) enum CallFailure {
    Refused(Refusal),
    Lost(Loss),
    /// No answer came within this time.
    Late(Duration),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// By us.
    Closed,
    /// By the other side, or the socket failed.
    Ended,
    /// The other side does not speak QMP.
    Protocol(&'static str),
}

impl CallFailure {
    /// The error of the call that ran `command`.
    pub(super) fn of(self, command: &str) -> QmpError {
        match self {
            Self::Refused(Refusal { class, desc }) => QmpError::Command {
                command: command.to_owned(),
                class,
                desc,
            },
            Self::Lost(loss) => loss.of(command),
            Self::Late(deadline) => QmpError::Timeout {
                what: command.to_owned(),
                deadline,
            },
        }
    }
}

impl Loss {
    /// The error of the call that ran `command`.
    pub(super) fn of(self, command: &str) -> QmpError {
        match self {
            Self::Protocol(why) => QmpError::Protocol {
                why: why.to_owned(),
            },
            Self::Closed | Self::Ended => QmpError::Disconnected {
                what: command.to_owned(),
            },
        }
    }
}

/// Matches replies to calls by id. Ids are never used twice, over all connections of a client.
///
/// A call that is alone goes without its id. QEMU reads its monitor byte by byte (7.2, with a wait for
/// each), so that the ten bytes of an id are a quarter of a small call's time.
#[derive(Debug, Default)]
pub(super) struct Calls {
    last_id: u64,
    /// In the order they were sent, which is the order QEMU answers in.
    unanswered: BTreeMap<u64, Call>,
    /// The one of them that was sent without its id.
    unnamed: Option<u64>,
}

impl Calls {
    /// Takes a call in and gives the line to send; nothing for a call already abandoned.
    pub(super) fn admit(&mut self, Request { command, call }: Request) -> Vec<u8> {
        if call.is_abandoned() {
            return Vec::new();
        }
        if self.unanswered.len() >= MAX_UNANSWERED {
            self.unanswered.retain(|_, call| !call.is_abandoned());
        }
        self.last_id += 1;
        let id = self.last_id;
        let alone = self.unanswered.is_empty() && self.unnamed.is_none();
        self.unanswered.insert(id, call);
        self.unnamed = self.unnamed.or(alone.then_some(id));
        command.encode((!alone).then_some(id))
    }

    /// The call a reply belongs to, answered; a reply to no call of ours, or to one already answered,
    /// is dropped.
    pub(super) fn answer(&mut self, reply: Reply) -> Option<Answered> {
        let id = match (reply.id, &reply.outcome) {
            (Some(id), _) if self.unnamed == Some(id) => None,
            (Some(id), _) => Some(id),
            // Its own, or QEMU could not read the command and cannot name it: it is the oldest one.
            (None, Err(_)) => self.unnamed.take().or(self.oldest()),
            (None, Ok(_)) => self.unnamed.take(),
        };
        let Some(call) = id.and_then(|id| self.unanswered.remove(&id)) else {
            tracing::debug!(id = reply.id, "a reply to no call was dropped");
            return None;
        };
        Some(call.answer(reply.outcome.map_err(CallFailure::Refused)))
    }

    fn oldest(&self) -> Option<u64> {
        self.unanswered.keys().next().copied()
    }

    /// Every call, failed, as its connection is lost.
    pub(super) fn fail_all(&mut self, loss: Loss) -> Vec<Answered> {
        self.unnamed = None;
        let unanswered = std::mem::take(&mut self.unanswered);
        unanswered
            .into_values()
            .map(|call| call.lose(loss))
            .collect()
    }

    /// The calls not answered yet.
    pub(super) fn unanswered(&mut self) -> impl Iterator<Item = &mut Call> {
        self.unanswered.values_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(calls: &mut Calls) -> (String, oneshot::Receiver<Outcome>) {
        let (request, answer) = request();
        let line = calls.admit(request);
        (String::from_utf8(line).unwrap(), answer)
    }

    fn request() -> (Request, oneshot::Receiver<Outcome>) {
        let (waits, answer) = oneshot::channel();
        let command = Command::new("stop", ()).unwrap();
        let call = Call::new(Caller::Waits(waits), Duration::from_secs(1));
        (Request { command, call }, answer)
    }

    fn answer(calls: &mut Calls, reply: Reply) {
        calls.answer(reply).into_iter().for_each(Answered::tell);
    }

    fn no(desc: &str) -> Result<Box<RawValue>, Refusal> {
        Err(Refusal {
            class: "GenericError".into(),
            desc: desc.into(),
        })
    }

    fn outcome(answer: &mut oneshot::Receiver<Outcome>) -> Option<String> {
        let outcome = answer.try_recv().ok()?;
        Some(match outcome {
            Ok(value) => value.get().to_owned(),
            Err(failure) => failure.of("stop").to_string(),
        })
    }

    #[test]
    fn f7_only_the_right_id_answers_and_only_once() {
        let mut calls = Calls::default();
        let (_, mut first) = call(&mut calls);
        let (line, mut second) = call(&mut calls);
        assert_eq!(line, "{\"execute\":\"stop\",\"id\":2}\n");
        for id in [0, 1, 99, 2, 2] {
            answer(
                &mut calls,
                Reply {
                    id: Some(id),
                    outcome: no("two"),
                },
            );
        }
        assert_eq!(outcome(&mut first), None);
        assert!(outcome(&mut second).unwrap().contains("two"));
        calls
            .fail_all(Loss::Ended)
            .into_iter()
            .for_each(Answered::tell);
        assert!(outcome(&mut first).unwrap().contains("connection ended"));
    }

    #[test]
    fn f7_a_call_that_is_alone_has_no_id_and_its_answer_is_the_one_without() {
        let mut calls = Calls::default();
        let without_id = || Reply {
            id: None,
            outcome: Ok(RawValue::from_string("7".to_owned()).unwrap()),
        };
        // As over two connections: an id is not used again.
        let mut ids = Vec::new();
        for _ in 0..2 {
            let (line, mut alone) = call(&mut calls);
            assert_eq!(line, "{\"execute\":\"stop\"}\n");
            let (line, mut other) = call(&mut calls);
            assert!(line.contains("\"id\":"), "{line}");
            ids.push(line);
            for _ in 0..2 {
                answer(&mut calls, without_id());
            }
            assert_eq!(outcome(&mut alone).unwrap(), "7");
            assert_eq!(outcome(&mut other), None);
            calls
                .fail_all(Loss::Ended)
                .into_iter()
                .for_each(Answered::tell);
        }
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn the_late_answer_to_an_abandoned_call_is_no_other_call_s() {
        let mut calls = Calls::default();
        drop(call(&mut calls));
        for _ in 0..2 * MAX_UNANSWERED {
            drop(call(&mut calls));
        }
        let (line, mut waiting) = call(&mut calls);
        assert!(line.contains("\"id\":"), "{line}");
        answer(
            &mut calls,
            Reply {
                id: None,
                outcome: no("for the first"),
            },
        );
        assert_eq!(outcome(&mut waiting), None);
    }

    #[test]
    fn an_error_without_id_is_the_oldest_calls() {
        let mut calls = Calls::default();
        let (_, abandoned) = call(&mut calls);
        let (_, mut waiting) = call(&mut calls);
        drop(abandoned);
        for desc in ["for the abandoned one", "for the waiting one", "for nobody"] {
            answer(
                &mut calls,
                Reply {
                    id: None,
                    outcome: no(desc),
                },
            );
        }
        assert!(outcome(&mut waiting).unwrap().contains("for the waiting"));
    }

    #[test]
    fn an_abandoned_call_is_not_sent_and_old_ones_do_not_pile_up() {
        let mut calls = Calls::default();
        let (request, answer) = request();
        drop(answer);
        assert!(calls.admit(request).is_empty());
        for _ in 0..3 * MAX_UNANSWERED {
            drop(call(&mut calls));
        }
        assert!(calls.unanswered.len() <= MAX_UNANSWERED);
    }
}
