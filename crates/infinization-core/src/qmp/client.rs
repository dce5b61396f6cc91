//! The handle to a monitor: options, calls, subscriptions. The socket itself belongs to
//! [`super::monitor`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::calls::{Call, CallFailure, Caller, Loss, Outcome, Request};
use super::copies::Turns;
use super::error::QmpError;
use super::event_stream::{EventReceiver, Subscriptions};
use super::monitor::{self, Session};
use super::outgoing::Outgoing;
use super::replies::Greeting;
use super::wire::Command;
use crate::config::QmpClientOptions;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct QmpOptions {
    /// For connecting and the handshake together. Default 5 s.
    pub connect_timeout: Duration,
    /// For a command that names no deadline of its own. Default 30 s.
    pub command_timeout: Duration,
    /// What happens when the connection breaks. Default [`Reconnect::Never`].
    pub reconnect: Reconnect,
}

impl Default for QmpOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(30),
            reconnect: Reconnect::Never,
        }
    }
}

impl From<&QmpClientOptions> for QmpOptions {
    fn from(given: &QmpClientOptions) -> Self {
        let attempts = Reconnect::Attempts {
            most: given.max_reconnect_attempts,
            delay: given.reconnect_delay,
        };
        Self {
            connect_timeout: given.connect_timeout,
            command_timeout: given.command_timeout,
            reconnect: if given.reconnect {
                attempts
            } else {
                Reconnect::Never
            },
        }
    }
}

/// What happens when an established connection breaks.
#[derive(Debug, Clone)]
pub enum Reconnect {
    /// The client ends.
    Never,
    /// A number of attempts, a fixed time apart.
    Attempts {
        /// How many.
        most: u32,
        /// Before each.
        delay: Duration,
    },
    /// As long as the process lives: first after 50 ms, then backing off to one attempt in 5 s.
    WhileAlive {
        /// Cancelled once the QEMU process is gone.
        gone: CancellationToken,
    },
}

/// Where a client's connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Commands are answered.
    Connected,
    /// Commands fail at once; another connection is being tried.
    Reconnecting,
    /// For good.
    Closed,
}

/// A connection to one QEMU monitor. Clones share it; it ends when the last one is dropped.
///
/// QEMU serves one client per monitor socket: a second connection would hang without a greeting.
#[derive(Debug, Clone)]
pub struct QmpClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    outgoing: Arc<Outgoing>,
    subscriptions: Subscriptions,
    link: watch::Receiver<Link>,
    closing: CancellationToken,
    greeting: Option<Greeting>,
    command_timeout: Duration,
    turns: Turns,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl QmpClient {
    /// Connects, reads the greeting and leaves negotiation mode. The receiver is subscribed before
    /// the first byte is read: it misses nothing.
    pub async fn connect(
        path: &Path,
        options: QmpOptions,
    ) -> Result<(Self, EventReceiver), QmpError> {
        let command_timeout = options.command_timeout;
        let (session, events) = monitor::start(path, options).await?;
        Ok((Self::of(session, command_timeout), events))
    }

    /// A client of a monitor that does not answer now: [`Link::Reconnecting`], as after a lost
    /// connection. Needs a runtime.
    pub fn reach(path: &Path, options: &QmpOptions) -> (Self, EventReceiver) {
        let (session, events) = monitor::reach(path, options);
        (Self::of(session, options.command_timeout), events)
    }

    fn of(session: Session, command_timeout: Duration) -> Self {
        let shared = Shared {
            outgoing: session.outgoing,
            subscriptions: session.subscriptions,
            link: session.link,
            closing: session.closing,
            greeting: session.greeting,
            command_timeout,
            turns: Turns::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Another view of the events, from now on.
    pub fn subscribe(&self) -> EventReceiver {
        self.shared.subscriptions.subscribe()
    }

    /// Runs a command by name. `arguments` must serialise to a JSON object, or `()` for none.
    /// Dropping the future forgets the answer; a command not yet sent is then never sent.
    pub async fn execute(
        &self,
        command: &str,
        arguments: impl Serialize,
    ) -> Result<Box<RawValue>, QmpError> {
        self.execute_with(command, arguments, self.shared.command_timeout)
            .await
    }

    /// [`QmpClient::execute`] with a deadline of its own.
    pub async fn execute_with(
        &self,
        command: &str,
        arguments: impl Serialize,
        deadline: Duration,
    ) -> Result<Box<RawValue>, QmpError> {
        let (waits, answer) = oneshot::channel();
        let request = Command::new(command, arguments)?;
        self.begin(request, Caller::Waits(waits), deadline);
        let outcome = answer.await;
        // A caller is dropped untold only where the other end panicked.
        outcome
            .unwrap_or(Err(CallFailure::Lost(Loss::Closed)))
            .map_err(|failure| failure.of(command))
    }

    /// [`QmpClient::execute`] for who cannot wait: the command is on its way when this returns, and
    /// `answered` is told what it came to. It must return at once itself, as other answers of the
    /// monitor wait for it. A command that is refused here is never sent, and never told of.
    pub fn submit(
        &self,
        command: &str,
        arguments: impl Serialize,
        answered: impl FnOnce(Result<Box<RawValue>, QmpError>) + Send + 'static,
    ) -> Result<(), QmpError> {
        let request = Command::new(command, arguments)?;
        let name = command.to_owned();
        let told = move |outcome: Outcome| answered(outcome.map_err(|failure| failure.of(&name)));
        let caller = Caller::Told(Box::new(told));
        self.begin(request, caller, self.shared.command_timeout);
        Ok(())
    }

    fn begin(&self, command: Command, caller: Caller, deadline: Duration) {
        let call = Call::new(caller, deadline);
        self.shared.outgoing.send(Request { command, call });
    }

    pub(super) fn turns(&self) -> &Turns {
        &self.shared.turns
    }

    /// What QEMU said of itself in [`QmpClient::connect`]; `None` after [`QmpClient::reach`].
    pub fn greeting(&self) -> Option<&Greeting> {
        self.shared.greeting.as_ref()
    }

    /// Where the connection stands now.
    pub fn link(&self) -> Link {
        *self.shared.link.borrow()
    }

    /// Resolves when no connection is being made any more: there is one, or none for good.
    pub async fn settled(&self) {
        let mut link = self.shared.link.clone();
        // An error means that the task is gone, which is for good, too.
        let _gone = link.wait_for(|link| *link != Link::Reconnecting).await;
    }

    /// Whether commands are answered now.
    pub fn is_connected(&self) -> bool {
        self.link() == Link::Connected
    }

    /// Ends the connection for good, for every clone: pending calls fail at once, receivers end,
    /// and no reconnect revives it. Returns when the socket is closed.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        let mut link = self.shared.link.clone();
        // An error means that the task is gone, which is what we wait for.
        let _gone = link.wait_for(|link| *link == Link::Closed).await;
    }
}
