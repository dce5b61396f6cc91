//! The one task that owns a monitor's socket.
//!
//! ```text
//! start ── dial ──> serve ──(connection breaks)──> reconnect ──> serve …
//!                     └──(closed, or never again)──> end      └──> end
//! reach ──────────────────────────────────────────> reconnect
//! ```
//!
//! Every call gets one answer: its reply, or how its connection was lost. Neighbours:
//! [`super::client`] sends requests here, [`super::dial`] makes the connections,
//! [`super::event_stream`] takes the events away.

use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::calls::{Calls, Loss, Request};
use super::client::{Link, QmpOptions, Reconnect};
use super::dial::{Dialer, Inbox, Wire};
use super::error::QmpError;
use super::event_stream::{EventReceiver, MonitorEvent, Publisher, Subscriptions};
use super::replies::{Greeting, StatusInfo};
use super::wire::Message;

/// Calls waiting to be sent; further callers wait in line, within their own deadlines.
const QUEUE: usize = 64;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// What a handle needs of a started monitor.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) requests: mpsc::Sender<Request>,
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
    let (request_sender, requests) = mpsc::channel(QUEUE);
    let (link_sender, link) = watch::channel(match wire {
        Some(_) => Link::Connected,
        None => Link::Reconnecting,
    });
    let session = Session {
        requests: request_sender,
        subscriptions: dialer.events.subscriptions(),
        link,
        closing: CancellationToken::new(),
        greeting: None,
    };
    let monitor = Monitor {
        dialer,
        requests,
        link: link_sender,
        closing: session.closing.clone(),
        policy,
        calls: Calls::default(),
    };
    tokio::spawn(monitor.run(wire).in_current_span());
    session
}

struct Monitor {
    dialer: Dialer,
    requests: mpsc::Receiver<Request>,
    link: watch::Sender<Link>,
    closing: CancellationToken,
    policy: Reconnect,
    calls: Calls,
}

impl Monitor {
    async fn run(mut self, mut wire: Option<Wire>) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            if let Some(wire) = wire.take() {
                let connected = Instant::now();
                let loss = self.serve(wire).await;
                if !self.break_off(loss) {
                    return;
                }
                // A peer that breaks off right after each handshake is not asked at full speed.
                if connected.elapsed() > LAST_BACKOFF {
                    backoff = FIRST_BACKOFF;
                }
            }
            let Some((next, status)) = self.reconnect(&mut backoff).await else {
                self.give_up();
                return;
            };
            self.link.send_replace(Link::Connected);
            self.publish(MonitorEvent::Reconnected { status });
            wire = Some(next);
        }
    }

    /// Runs one connection to its end.
    async fn serve(&mut self, wire: Wire) -> Loss {
        let Wire {
            mut inbox,
            mut outbox,
        } = wire;
        loop {
            tokio::select! {
                () = self.closing.cancelled() => return Loss::Closed,
                filled = inbox.fill() => {
                    if let Err(loss) = filled.and_then(|()| self.take_replies(&mut inbox)) {
                        return loss;
                    }
                }
                () = outbox.flush(), if !outbox.is_empty() => {}
                request = self.requests.recv(), if outbox.is_empty() => match request {
                    Some(request) if outbox.is_broken() => request.fail(Loss::Ended),
                    Some(request) => outbox.put(self.calls.admit(request)),
                    None => return Loss::Closed,
                },
            }
        }
    }

    fn take_replies(&mut self, inbox: &mut Inbox) -> Result<(), Loss> {
        while let Some(message) = inbox.take()? {
            if let Message::Reply(reply) = message {
                self.calls.answer(reply);
            }
        }
        Ok(())
    }

    /// Tells everybody that the connection is lost; whether another is to be tried.
    fn break_off(&mut self, loss: Loss) -> bool {
        let reconnect = loss != Loss::Closed && self.policy.wants_another();
        self.link.send_replace(if reconnect {
            Link::Reconnecting
        } else {
            Link::Closed
        });
        self.calls.fail_all(loss);
        if loss != Loss::Closed {
            tracing::debug!(?loss, reconnect, "the monitor connection broke");
            self.publish(MonitorEvent::Disconnected {
                will_reconnect: reconnect,
            });
        }
        reconnect
    }

    /// Tries to connect again, failing calls meanwhile; `None` when there is no point any more.
    async fn reconnect(&mut self, backoff: &mut Duration) -> Option<(Wire, StatusInfo)> {
        let attempts = self.policy.attempts(&self.dialer, backoff);
        tokio::pin!(attempts);
        loop {
            tokio::select! {
                () = self.closing.cancelled() => return None,
                connected = &mut attempts => return connected,
                request = self.requests.recv() => request?.fail(Loss::Ended),
            }
        }
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
