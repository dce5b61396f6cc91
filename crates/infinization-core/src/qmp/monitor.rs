//! The one task that owns a monitor's socket.
//!
//! ```text
//! start ── dial ──> serve ──(connection breaks)──> reconnect ──> serve …
//!                     └──(closed, or never again)──> end      └──> end
//! reach ──────────────────────────────────────────> reconnect
//! ```
//!
//! Every call gets one answer: its reply, how its connection was lost, or that it is late. Neighbours:
//! [`super::client`] starts it, [`super::outgoing`] holds the calls, [`super::dial`] makes the
//! connections, [`super::event_stream`] takes the events away.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::calls::Loss;
use super::client::{Link, QmpOptions, Reconnect};
use super::dial::{Dialer, Inbox, Wire};
use super::error::QmpError;
use super::event_stream::{EventReceiver, MonitorEvent, Publisher, Subscriptions};
use super::outgoing::{Chores, Outgoing, tell};
use super::replies::{Greeting, StatusInfo};
use super::stream::WriteHalf;
use super::wire::Message;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// What a handle needs of a started monitor.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) subscriptions: Subscriptions,
    pub(super) link: watch::Receiver<Link>,
    pub(super) closing: CancellationToken,
    pub(super) greeting: Option<Greeting>,
}

/// Connects once and hands the socket to a task of its own.
pub(super) async fn start(
    path: &Path,
    options: QmpOptions,
) -> Result<(Session, EventReceiver), QmpError> {
    let (dialer, receiver) = dialer(path, &options);
    let (wire, greeting) = dialer.dial().await?;
    let mut session = spawn(dialer, options.reconnect, Some(wire));
    session.greeting = Some(greeting);
    Ok((session, receiver))
}

/// Leaves connecting to the task, which goes about it as after a lost connection.
pub(super) fn reach(path: &Path, options: &QmpOptions) -> (Session, EventReceiver) {
    let (dialer, receiver) = dialer(path, options);
    let session = spawn(dialer, options.reconnect.clone(), None);
    (session, receiver)
}

fn dialer(path: &Path, options: &QmpOptions) -> (Dialer, EventReceiver) {
    let (events, receiver) = Publisher::new();
    let dialer = Dialer {
        path: path.to_owned(),
        timeout: options.connect_timeout,
        events,
    };
    (dialer, receiver)
}

fn spawn(dialer: Dialer, policy: Reconnect, wire: Option<Wire>) -> Session {
    let (link_sender, link) = watch::channel(match wire {
        Some(_) => Link::Connected,
        None => Link::Reconnecting,
    });
    let session = Session {
        outgoing: Arc::default(),
        subscriptions: dialer.events.subscriptions(),
        link,
        closing: CancellationToken::new(),
        greeting: None,
    };
    let monitor = Monitor {
        dialer,
        outgoing: Arc::clone(&session.outgoing),
        link: link_sender,
        closing: session.closing.clone(),
        policy,
    };
    // Before anybody can call.
    let wire = wire.map(|wire| monitor.connect(wire));
    tokio::spawn(monitor.run(wire).in_current_span());
    session
}

struct Monitor {
    dialer: Dialer,
    outgoing: Arc<Outgoing>,
    link: watch::Sender<Link>,
    closing: CancellationToken,
    policy: Reconnect,
}

impl Monitor {
    async fn run(self, mut connection: Option<Inbox>) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            if let Some(inbox) = connection.take() {
                let connected = Instant::now();
                let loss = self.serve(inbox).await;
                if !self.break_off(loss) {
                    return;
                }
                // A peer that breaks off right after each handshake is not asked at full speed.
                if connected.elapsed() > LAST_BACKOFF {
                    backoff = FIRST_BACKOFF;
                }
            }
            // Boxed: what reconnecting needs is not kept while the connection stands.
            let reconnected = Box::pin(self.reconnect(&mut backoff)).await;
            let Some((next, status)) = reconnected else {
                self.give_up();
                return;
            };
            connection = Some(self.connect(next));
            self.link.send_replace(Link::Connected);
            self.publish(MonitorEvent::Reconnected {
                status: Box::new(status),
            });
        }
    }

    /// From now on calls are sent; what is left is to read.
    fn connect(&self, Wire { inbox, writer }: Wire) -> Inbox {
        self.outgoing.connect(writer);
        inbox
    }

    /// Runs one connection to its end.
    async fn serve(&self, mut inbox: Inbox) -> Loss {
        loop {
            let Chores { unsent, alarm } = self.outgoing.chores();
            tokio::select! {
                () = self.closing.cancelled() => return Loss::Closed,
                filled = inbox.fill() => {
                    if let Err(loss) = filled.and_then(|()| self.take_replies(&mut inbox)) {
                        return loss;
                    }
                }
                () = room(unsent) => self.outgoing.resume(),
                () = ring(alarm) => self.outgoing.expire(),
                () = self.outgoing.stirred() => {}
            }
        }
    }

    fn take_replies(&self, inbox: &mut Inbox) -> Result<(), Loss> {
        while let Some(message) = inbox.take()? {
            if let Message::Reply(reply) = message {
                self.outgoing.answer(reply);
            }
        }
        Ok(())
    }

    /// Tells everybody that the connection is lost; whether another is to be tried.
    fn break_off(&self, loss: Loss) -> bool {
        let reconnect = loss != Loss::Closed && self.policy.wants_another();
        let lost = self.outgoing.disconnect(loss);
        self.link.send_replace(if reconnect {
            Link::Reconnecting
        } else {
            Link::Closed
        });
        tell(lost);
        if loss != Loss::Closed {
            tracing::debug!(?loss, reconnect, "the monitor connection broke");
            self.publish(MonitorEvent::Disconnected {
                will_reconnect: reconnect,
            });
        }
        reconnect
    }

    /// Tries to connect again; `None` when there is no point any more.
    async fn reconnect(&self, backoff: &mut Duration) -> Option<(Wire, StatusInfo)> {
        let attempts = self.policy.attempts(&self.dialer, backoff);
        self.closing.run_until_cancelled(attempts).await.flatten()
    }

    fn give_up(&self) {
        self.link.send_replace(Link::Closed);
        if !self.closing.is_cancelled() {
            self.publish(MonitorEvent::GaveUp);
        }
    }

    fn publish(&self, event: MonitorEvent) {
        self.dialer.events.publish(event);
    }
}

impl Drop for Monitor {
    /// A task that is dropped with its runtime ends no other way than one that has run to its end.
    fn drop(&mut self) {
        let lost = self.outgoing.disconnect(Loss::Closed);
        self.link.send_replace(Link::Closed);
        tell(lost);
    }
}

/// Resolves once `writer` may take more.
async fn room(writer: Option<Arc<WriteHalf>>) {
    match writer {
        // Without a descriptor to watch by, it is tried again at the next call or deadline.
        Some(writer) if writer.writable().await.is_ok() => {}
        Some(_) | None => pending().await,
    }
}

async fn ring(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => sleep_until(alarm).await,
        None => pending().await,
    }
}

impl Reconnect {
    fn wants_another(&self) -> bool {
        match self {
            Self::Never => false,
            Self::Attempts { most, .. } => *most > 0,
            Self::WhileAlive { gone } => !gone.is_cancelled(),
        }
    }

    async fn attempts(
        &self,
        dialer: &Dialer,
        backoff: &mut Duration,
    ) -> Option<(Wire, StatusInfo)> {
        match self {
            Self::Never => None,
            Self::Attempts { most, delay } => {
                for _ in 0..*most {
                    if let Some(connected) = attempt(dialer, *delay).await {
                        return Some(connected);
                    }
                }
                None
            }
            Self::WhileAlive { gone } => {
                gone.run_until_cancelled(keep_trying(dialer, backoff)).await
            }
        }
    }
}

async fn keep_trying(dialer: &Dialer, backoff: &mut Duration) -> (Wire, StatusInfo) {
    loop {
        let delay = *backoff;
        *backoff = (delay * 2).min(LAST_BACKOFF);
        if let Some(connected) = attempt(dialer, delay).await {
            return connected;
        }
    }
}

/// One connection, after a pause: nothing tells us when QEMU would accept again.
async fn attempt(dialer: &Dialer, delay: Duration) -> Option<(Wire, StatusInfo)> {
    sleep(delay).await;
    match dialer.redial().await {
        Ok(connected) => Some(connected),
        Err(error) => {
            tracing::debug!(%error, "reconnecting to the monitor failed");
            None
        }
    }
}
