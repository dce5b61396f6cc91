//! Getting a connection to a monitor into command mode, the first time and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::calls::{CallFailure, Loss};
use super::commands::decode;
use super::error::QmpError;
use super::event_stream::{MAX_EVENT, MonitorEvent, Publisher};
use super::lines::{LineError, Lines};
use super::replies::{Greeting, StatusInfo};
use super::stream::{self, ReadHalf, WriteHalf};
use super::wire::{Command, Message, parse};

/// The longest line taken. QEMU's longest known answer, `query-qmp-schema`, has 207 kB.
const MAX_LINE: usize = 16 * 1024 * 1024;

/// How to reach one monitor.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) path: PathBuf,
    /// For everything until command mode.
    pub(super) timeout: Duration,
    pub(super) events: Publisher,
}

/// A connection in command mode.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) inbox: Inbox,
    pub(super) writer: WriteHalf,
}

/// The reading half: events go to their subscribers, everything else to the caller.
#[derive(Debug)]
pub(super) struct Inbox {
    lines: Lines<ReadHalf>,
    events: Publisher,
}

impl Dialer {
    /// Connects, reads the greeting and leaves negotiation mode.
    pub(super) async fn dial(&self) -> Result<(Wire, Greeting), QmpError> {
        self.in_time(self.handshake()).await
    }

    /// [`Dialer::dial`], then asks what was missed meanwhile.
    pub(super) async fn redial(&self) -> Result<(Wire, StatusInfo), QmpError> {
        self.in_time(async {
            let (mut wire, _greeting) = self.handshake().await?;
            let status = wire.call("query-status").await?;
            Ok((wire, decode("query-status", &status)?))
        })
        .await
    }

    async fn in_time<T>(
        &self,
        handshake: impl Future<Output = Result<T, QmpError>>,
    ) -> Result<T, QmpError> {
        let timeout = tokio::time::timeout(self.timeout, handshake);
        timeout.await.unwrap_or_else(|_elapsed| {
            Err(QmpError::Timeout {
                what: "the handshake".to_owned(),
                deadline: self.timeout,
            })
        })
    }

    async fn handshake(&self) -> Result<(Wire, Greeting), QmpError> {
        let mut wire = self.connect().await?;
        let greeting = loop {
            let message = wire.inbox.next().await;
            let message = message.map_err(|loss| loss.of("the handshake"))?;
            if let Message::Greeting(greeting) = message {
                break greeting;
            }
            tracing::debug!("a line before the greeting was dropped");
        };
        wire.call("qmp_capabilities").await?;
        Ok((wire, greeting))
    }

    async fn connect(&self) -> Result<Wire, QmpError> {
        let stream = stream::connect(&self.path).await;
        let (reader, writer) = stream.map_err(|source| QmpError::Connect {
            path: self.path.clone(),
            source,
        })?;
        let inbox = Inbox {
            lines: Lines::new(reader, MAX_LINE),
            events: self.events.clone(),
        };
        Ok(Wire { inbox, writer })
    }
}

impl Wire {
    /// Runs one command while nothing else uses the connection.
    async fn call(&mut self, name: &'static str) -> Result<Box<RawValue>, QmpError> {
        let line = Command::new(name, ())?.encode(Some(0));
        let sent = self.writer.write_all(&line).await;
        sent.map_err(|_broken| Loss::Ended.of(name))?;
        loop {
            let message = self.inbox.next().await.map_err(|loss| loss.of(name))?;
            if let Message::Reply(reply) = message {
                let refused = |refusal| CallFailure::Refused(refusal).of(name);
                return reply.outcome.map_err(refused);
            }
            tracing::debug!("a line that is no reply was dropped");
        }
    }
}

impl Inbox {
    /// Waits until [`Inbox::take`] has something. Dropping the future loses nothing.
    pub(super) async fn fill(&mut self) -> Result<(), Loss> {
        match self.lines.fill().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Loss::Ended),
            Err(LineError::TooLong) => Err(Loss::Protocol("a line is too long")),
            Err(LineError::Io(error)) => {
                tracing::debug!(%error, "the monitor socket failed");
                Err(Loss::Ended)
            }
        }
    }

    /// The next message received, other than events.
    pub(super) fn take(&mut self) -> Result<Option<Message>, Loss> {
        while let Some(line) = self.lines.take() {
            let size = line.len();
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event = match parse(line).map_err(Loss::Protocol)? {
                Message::Event(_) if size > MAX_EVENT => MonitorEvent::Missed { count: 1 },
                Message::Event(event) => MonitorEvent::Event(Arc::new(event)),
                message => return Ok(Some(message)),
            };
            self.events.publish(event);
        }
        Ok(None)
    }

    async fn next(&mut self) -> Result<Message, Loss> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }
}
