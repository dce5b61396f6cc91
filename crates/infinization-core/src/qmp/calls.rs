//! The calls one monitor has not answered yet.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::error::QmpError;
use super::wire::{Command, Refusal, Reply};

/// Abandoned calls stay until QEMU answers them, because it answers in order; but no more of them.
const MAX_UNANSWERED: usize = 1024;

/// What one call comes to.
pub(super) type Outcome = Result<Box<RawValue>, CallFailure>;

/// A call on its way to the monitor's task.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Outcome>,
}

impl Request {
    pub(super) fn fail(self, loss: Loss) {
        let _abandoned = self.reply.send(Err(CallFailure::Lost(loss)));
    }
}

/// How a call failed; the caller adds what it was.
#[derive(Debug)]
pub(super) enum CallFailure {
    Refused(Refusal),
    Lost(Loss),
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
#[derive(Debug, Default)]
pub(super) struct Calls {
    last_id: u64,
    /// In the order they were sent, which is the order QEMU answers in.
    unanswered: BTreeMap<u64, oneshot::Sender<Outcome>>,
}

impl Calls {
    /// Takes a call in and gives the line to send; nothing for a call already abandoned.
    pub(super) fn admit(&mut self, request: Request) -> Vec<u8> {
        let Request { command, reply } = request;
        if reply.is_closed() {
            return Vec::new();
        }
        if self.unanswered.len() >= MAX_UNANSWERED {
            self.unanswered.retain(|_, reply| !reply.is_closed());
        }
        self.last_id += 1;
        self.unanswered.insert(self.last_id, reply);
        command.encode(Some(self.last_id))
    }

    /// Answers the call a reply belongs to; a reply to no call of ours, or to one already answered,
    /// is dropped.
    pub(super) fn answer(&mut self, reply: Reply) {
        let call = match (reply.id, &reply.outcome) {
            (Some(id), _) => self.unanswered.remove(&id),
            // QEMU could not read the command, so it cannot name it: it is the oldest one.
            (None, Err(_)) => self.unanswered.pop_first().map(|(_, call)| call),
            (None, Ok(_)) => None,
        };
        let Some(call) = call else {
            tracing::debug!(id = reply.id, "a reply to no call was dropped");
            return;
        };
        let _abandoned = call.send(reply.outcome.map_err(CallFailure::Refused));
    }

    /// Fails every call, as its connection is lost.
    pub(super) fn fail_all(&mut self, loss: Loss) {
        for call in std::mem::take(&mut self.unanswered).into_values() {
            let _abandoned = call.send(Err(CallFailure::Lost(loss)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(calls: &mut Calls) -> (String, oneshot::Receiver<Outcome>) {
        let (reply, answer) = oneshot::channel();
        let command = Command::new("stop", ()).unwrap();
        let line = calls.admit(Request { command, reply });
        (String::from_utf8(line).unwrap(), answer)
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
        let (line, mut first) = call(&mut calls);
        assert_eq!(line, "{\"execute\":\"stop\",\"id\":1}\n");
        let (_, mut second) = call(&mut calls);
        for id in [0, 99, 2, 2] {
            calls.answer(Reply {
                id: Some(id),
                outcome: no("two"),
            });
        }
        assert_eq!(outcome(&mut first), None);
        assert!(outcome(&mut second).unwrap().contains("two"));
        calls.fail_all(Loss::Ended);
        assert!(outcome(&mut first).unwrap().contains("connection ended"));
    }

    #[test]
    fn an_error_without_id_is_the_oldest_calls() {
        let mut calls = Calls::default();
        let (_, abandoned) = call(&mut calls);
        let (_, mut waiting) = call(&mut calls);
        drop(abandoned);
        for desc in ["for the abandoned one", "for the waiting one", "for nobody"] {
            calls.answer(Reply {
                id: None,
                outcome: no(desc),
            });
        }
        assert!(outcome(&mut waiting).unwrap().contains("for the waiting"));
    }

    #[test]
    fn an_abandoned_call_is_not_sent_and_old_ones_do_not_pile_up() {
        let mut calls = Calls::default();
        let (reply, answer) = oneshot::channel();
        drop(answer);
        let command = Command::new("stop", ()).unwrap();
        assert!(calls.admit(Request { command, reply }).is_empty());
        for _ in 0..3 * MAX_UNANSWERED {
            drop(call(&mut calls));
        }
        assert!(calls.unanswered.len() <= MAX_UNANSWERED);
    }
}
