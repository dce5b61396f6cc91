//! A guest agent's socket that somebody names before he connects to it: what
//! `new GuestAgentClient(path)` is.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{AgentError, AgentOptions, GuestAgent};

/// How long [`AgentSocket::disconnect`] waits for the connection to be gone.
const GOODBYE: Duration = Duration::from_secs(3);

/// A guest agent's socket, and the connection to it while there is one.
#[derive(Debug)]
pub struct AgentSocket {
    path: PathBuf,
    options: AgentOptions,
    agent: Mutex<Option<GuestAgent>>,
    connecting: tokio::sync::Mutex<()>,
}

impl AgentSocket {
    /// Touches nothing.
    pub fn new(path: PathBuf, options: AgentOptions) -> Self {
        Self {
            path,
            options,
            agent: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// Connects and makes sure that an agent answers; nothing happens when one did already and the
    /// connection to it stands. `cancel` gives the attempt up.
    pub async fn connect(&self, cancel: &CancellationToken) -> Result<(), AgentError> {
        let _one_at_a_time = self.connecting.lock().await;
        let connected = cancel.run_until_cancelled(self.connected()).await;
        let agent = connected.ok_or(AgentError::NotConnected {
            why: "disconnect() was called",
        })??;
        *self.slot() = Some(agent);
        Ok(())
    }

    async fn connected(&self) -> Result<GuestAgent, AgentError> {
        let before = self.slot().clone();
        match before {
            Some(agent) => agent.connect_again().await.map(|()| agent),
            None => GuestAgent::connect(&self.path, self.options.clone()).await,
        }
    }

    /// Ends the connection; a command that runs fails at once. It may be made anew.
    pub async fn disconnect(&self) {
        let closed = async {
            let _none_is_made = self.connecting.lock().await;
            let agent = self.slot().take();
            if let Some(agent) = agent {
                agent.close().await;
            }
        };
        if timeout(GOODBYE, closed).await.is_err() {
            tracing::warn!("a guest agent's connection did not end in time");
        }
    }

    /// The agent that [`AgentSocket::connect`] found.
    pub fn agent(&self) -> Result<GuestAgent, AgentError> {
        self.slot().clone().ok_or(AgentError::NotConnected {
            why: "connect() has not succeeded",
        })
    }

    /// Whether there is a connection, as far as is known: a loss shows with the next command.
    pub fn is_connected(&self) -> bool {
        self.slot().as_ref().is_some_and(GuestAgent::is_connected)
    }

    fn slot(&self) -> MutexGuard<'_, Option<GuestAgent>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
