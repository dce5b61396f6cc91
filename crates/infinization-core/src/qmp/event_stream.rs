//! Bounded fan-out: a slow receiver loses the oldest events and is told how many.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};

use super::events::QmpEvent;
use super::replies::StatusInfo;

/// How many events wait for a receiver before the oldest goes. With [`MAX_EVENT`] this bounds a
/// monitor's memory to 4 MiB under the worst flood; real events have some hundred bytes.
const CAPACITY: usize = 64;
/// A longer event is not kept; receivers learn that they missed one. No event of QEMU comes near.
pub(super) const MAX_EVENT: usize = 64 * 1024;

/// What happens on a monitor's connection, in order.
#[derive(Debug, Clone)]
pub enum MonitorEvent {
    /// QEMU reported something.
    Event(Arc<QmpEvent>),
    /// Events were dropped here because the receiver was slow: ask `query-status` for the truth.
    Missed {
        /// How many.
        count: u64,
    },
    /// The connection broke; calls fail until [`MonitorEvent::Reconnected`].
    Disconnected {
        /// Whether another connection will be tried.
        will_reconnect: bool,
    },
    /// The connection is back. Events in between are lost; `status` is the truth now.
    Reconnected {
        /// QEMU's answer to `query-status` after the handshake.
        status: Box<StatusInfo>,
    },
    /// No further connection will be tried: attempts are used up, or the process is gone.
    GaveUp,
}

/// One subscriber's view of a monitor, from the moment it subscribed.
#[derive(Debug)]
pub struct EventReceiver {
    events: broadcast::Receiver<MonitorEvent>,
    missed: u64,
}

impl EventReceiver {
    /// The next event, or `None` once the client is closed or will never be connected again.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<MonitorEvent> {
        let event = match self.events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(count)) => MonitorEvent::Missed { count },
            Err(RecvError::Closed) => return None,
        };
        if let MonitorEvent::Missed { count } = event {
            self.missed += count;
        }
        Some(event)
    }

    /// How many events this receiver has missed in all.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

/// The monitor task's end. When it is dropped, every receiver's stream ends.
#[derive(Debug, Clone)]
pub(super) struct Publisher(broadcast::Sender<MonitorEvent>);

/// A handle's end: it can subscribe, but keeps no stream open.
#[derive(Debug, Clone)]
pub(super) struct Subscriptions(broadcast::WeakSender<MonitorEvent>);

impl Publisher {
    pub(super) fn new() -> (Self, EventReceiver) {
        let (sender, events) = broadcast::channel(CAPACITY);
        (Self(sender), EventReceiver { events, missed: 0 })
    }

    pub(super) fn publish(&self, event: MonitorEvent) {
        // Nobody listening is fine.
        let _unheard = self.0.send(event);
    }

    pub(super) fn subscriptions(&self) -> Subscriptions {
        Subscriptions(self.0.downgrade())
    }
}

impl Subscriptions {
    pub(super) fn subscribe(&self) -> EventReceiver {
        let events = match self.0.upgrade() {
            Some(sender) => sender.subscribe(),
            // The monitor is closed: a stream that has already ended.
            None => broadcast::channel(1).1,
        };
        EventReceiver { events, missed: 0 }
    }
}
