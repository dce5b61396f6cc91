//! The agent inside the guest (`qemu-ga`), over the socket of its virtio-serial port
//! `org.qemu.guest_agent.0`.
//!
//! One command at a time; a lost connection is made again by the next command. The guest is not
//! trusted: what it sends is bounded, and whatever it does, a call ends by its deadline.
//! Neighbours: `link` keeps one connection in step, `verbs` are the agent's commands, `thawing` insists,
//! `socket` is connected to later, or anew.

mod error;
mod link;
mod socket;
mod thawing;
mod verbs;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::wire::{Command, Refusal};
use crate::config::GuestAgentClientOptions;
use link::Link;

pub use error::AgentError;
pub use socket::AgentSocket;
pub use thawing::ask_to_thaw;
pub use verbs::{ExecOutput, FreezeStatus};

const SYNC: &str = "guest-sync-delimited";

/// How long to wait for a guest's agent.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// For connecting and the first `guest-sync-delimited` together. Default 5 s.
    pub connect_timeout: Duration,
    /// For a command that names no deadline of its own. Default 30 s.
    pub command_timeout: Duration,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(30),
        }
    }
}

impl From<&GuestAgentClientOptions> for AgentOptions {
    fn from(given: &GuestAgentClientOptions) -> Self {
        Self {
            connect_timeout: given.connect_timeout,
            command_timeout: given.command_timeout,
        }
    }
}

/// A guest's agent. Clones share the connection; their commands run one after another.
#[derive(Debug, Clone)]
pub struct GuestAgent {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    options: AgentOptions,
    link: Mutex<Option<Link>>,
    closing: CancellationToken,
}

impl GuestAgent {
    /// Connects and makes sure that an agent answers. QEMU accepts the connection by itself, so a
    /// guest without a running agent shows as [`AgentError::Timeout`].
    pub async fn connect(path: &Path, options: AgentOptions) -> Result<Self, AgentError> {
        let shared = Shared {
            path: path.to_owned(),
            options,
            link: Mutex::new(None),
            closing: CancellationToken::new(),
        };
        let agent = Self {
            shared: Arc::new(shared),
        };
        agent.connect_again().await?;
        Ok(agent)
    }

    /// Makes sure that an agent answers, by another connection if the one there was is lost. Nothing
    /// happens while a command runs, which does as much.
    async fn connect_again(&self) -> Result<(), AgentError> {
        let Ok(mut slot) = self.shared.link.try_lock() else {
            return Ok(());
        };
        let deadline = self.shared.options.connect_timeout;
        let ready = timeout(deadline, self.ready(&mut slot)).await;
        ready
            .unwrap_or_else(|_elapsed| Err(timed_out(SYNC, deadline)))
            .map(drop)
    }

    /// Runs a command. `arguments` must serialise to a JSON object, or `()` for none. A command
    /// without an answer (`guest-shutdown`) ends in [`AgentError::Timeout`] or `Disconnected`.
    pub async fn execute(
        &self,
        command: &str,
        arguments: impl Serialize,
    ) -> Result<Box<RawValue>, AgentError> {
        let deadline = self.shared.options.command_timeout;
        self.execute_with(command, arguments, deadline).await
    }

    /// [`GuestAgent::execute`] with a deadline of its own. It includes waiting for other commands,
    /// and connecting again.
    pub async fn execute_with(
        &self,
        command: &str,
        arguments: impl Serialize,
        deadline: Duration,
    ) -> Result<Box<RawValue>, AgentError> {
        let request = Command::new(command, arguments)?;
        tokio::select! {
            biased;
            () = self.shared.closing.cancelled() => Err(AgentError::Disconnected {
                what: command.to_owned(),
            }),
            answer = timeout(deadline, self.talk(command, &request)) => {
                answer.unwrap_or_else(|_elapsed| Err(timed_out(command, deadline)))
            }
        }
    }

    /// Whether there is a connection, as far as is known: a loss shows with the next command.
    pub fn is_connected(&self) -> bool {
        let busy_or_connected = |link: Option<bool>| link.unwrap_or(true);
        let link = self.shared.link.try_lock().ok();
        !self.shared.closing.is_cancelled() && busy_or_connected(link.map(|link| link.is_some()))
    }

    /// Ends the connection for good, for every clone; a command that runs fails at once.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.link.lock().await.take();
    }

    /// This agent; one of the same socket when it was closed.
    async fn reopened(&self) -> Result<Self, AgentError> {
        if !self.shared.closing.is_cancelled() {
            return Ok(self.clone());
        }
        // Only once the old connection is gone does the socket take another.
        self.shared.link.lock().await.take();
        Self::connect(&self.shared.path, self.shared.options.clone()).await
    }

    async fn talk(&self, name: &str, command: &Command) -> Result<Box<RawValue>, AgentError> {
        let mut slot = self.shared.link.lock().await;
        let link = self.ready(&mut slot).await?;
        match link.converse(command).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Refusal { class, desc })) => Err(AgentError::Command {
                command: name.to_owned(),
                class,
                desc,
            }),
            Err(broken) => {
                *slot = None;
                Err(broken.of(name))
            }
        }
    }

    /// A connection that is in step: the one there is, or another.
    async fn ready<'a>(&self, slot: &'a mut Option<Link>) -> Result<&'a mut Link, AgentError> {
        let mut link = match slot.take().and_then(Link::if_standing) {
            Some(link) => link,
            None => self.dial().await?,
        };
        let synchronised = link.synchronise().await;
        synchronised.map_err(|broken| broken.of(SYNC))?;
        Ok(slot.insert(link))
    }

    async fn dial(&self) -> Result<Link, AgentError> {
        let path = &self.shared.path;
        let connected = Link::connect(path).await;
        connected.map_err(|source| AgentError::Connect {
            path: path.clone(),
            source,
        })
    }
}

fn timed_out(what: &str, deadline: Duration) -> AgentError {
    AgentError::Timeout {
        what: what.to_owned(),
        deadline,
    }
}
