//! One connection to an agent, and being in step with it.
//!
//! The agent's replies carry no id (agents before 4.0 refuse one): what answers a command is the
//! next line. That only holds after `guest-sync-delimited`, whose answer follows a 0xFF byte that
//! no JSON contains, and as long as nothing else came. When a call is abandoned or stray bytes
//! wait, the connection is out of step, and the next call synchronises first.

use std::path::Path;

use futures_util::FutureExt;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use uuid::Uuid;

use super::error::AgentError;
use crate::qmp::lines::{LineError, Lines};
use crate::qmp::wire::{Command, Message, Refusal, parse};

/// The longest line taken from a guest: a program's output over some 7 MB is refused.
const MAX_LINE: usize = 10 * 1024 * 1024;
/// Resets the JSON parser of whoever reads it, and marks where a synchronised stream begins.
const SENTINEL: u8 = 0xff;

#[derive(Debug)]
pub(super) struct Link {
    lines: Lines<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    in_step: bool,
}

/// Why a connection can no longer be used.
#[derive(Debug)]
pub(super) enum Broken {
    Ended,
    Protocol(&'static str),
}

impl Broken {
    /// The error of the call that ran `command`.
    pub(super) fn of(self, command: &str) -> AgentError {
        match self {
            Self::Ended => AgentError::Disconnected {
                what: command.to_owned(),
            },
            Self::Protocol(why) => AgentError::Protocol {
                why: why.to_owned(),
            },
        }
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        tracing::debug!(%error, "the guest agent's socket failed");
        Self::Ended
    }
}

impl Link {
    pub(super) async fn connect(path: &Path) -> std::io::Result<Self> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        Ok(Self {
            lines: Lines::new(reader, MAX_LINE),
            writer,
            in_step: false,
        })
    }

    /// The connection, unless it is seen to be broken without waiting.
    pub(super) fn if_standing(mut self) -> Option<Self> {
        if let Some(Ok(false) | Err(_)) = self.lines.fill().now_or_never() {
            return None;
        }
        self.in_step &= self.lines.is_empty();
        Some(self)
    }

    /// Gets in step, unless it is. Safe to drop: the next call begins anew.
    pub(super) async fn synchronise(&mut self) -> Result<(), Broken> {
        if self.in_step {
            return Ok(());
        }
        // 31 bits: every JSON reader keeps them exactly. Unlike a counter it differs from what an
        // earlier session left in the channel.
        let token = Uuid::new_v4().as_fields().0 >> 1;
        let arguments = json!({ "id": token });
        let sync = Command::new("guest-sync-delimited", arguments)
            .map_err(|_| Broken::Protocol("guest-sync-delimited cannot be written"))?;
        self.writer.write_all(&[SENTINEL]).await?;
        self.writer.write_all(&sync.encode(None)).await?;
        while self.delimited_line().await?.as_deref().map(RawValue::get)
            != Some(token.to_string().as_str())
        {}
        self.in_step = true;
        Ok(())
    }

    /// The return value in the next line, if that line follows a sentinel.
    async fn delimited_line(&mut self) -> Result<Option<Box<RawValue>>, Broken> {
        let line = self.line().await?;
        let Some(sentinel) = line.iter().rposition(|&byte| byte == SENTINEL) else {
            return Ok(None);
        };
        match parse(&line[sentinel + 1..]) {
            Ok(Message::Reply(reply)) => Ok(reply.outcome.ok()),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Sends one command and takes its answer. The connection must be in step.
    pub(super) async fn converse(
        &mut self,
        command: &Command,
    ) -> Result<Result<Box<RawValue>, Refusal>, Broken> {
        self.in_step = false;
        self.writer.write_all(&command.encode(None)).await?;
        loop {
            match parse(self.line().await?).map_err(Broken::Protocol)? {
                Message::Reply(reply) if reply.id.is_none() => {
                    self.in_step = self.lines.is_empty();
                    return Ok(reply.outcome);
                }
                _ => tracing::debug!("a line from the guest that answers nothing was dropped"),
            }
        }
    }

    async fn line(&mut self) -> Result<&[u8], Broken> {
        match self.lines.fill().await {
            Ok(true) => Ok(self.lines.take().unwrap_or_default()),
            Ok(false) => Err(Broken::Ended),
            Err(LineError::TooLong) => Err(Broken::Protocol("a line is too long")),
            Err(LineError::Io(error)) => Err(error.into()),
        }
    }
}
