//! What happened, told once and in order.
//!
//! Everything the outside may learn goes through one [`EventBus`]. Whoever publishes has already
//! stored the state the event speaks of, so that a listener who reads the database sees it.
//! Sequence numbers have no gaps; a listener who falls behind is told how many it missed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::types::VmId;

/// How many events a slow listener may be behind before it misses some.
const BACKLOG: usize = 4096;

/// Which of the public emitters an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// `getEventHandler()`: what the guest and its monitor did.
    EventHandler,
    /// `getHealthMonitor()`: crashes, orphans, checks.
    HealthMonitor,
    /// `eventManager.emitCRUD('machines', kind, vmId, data)`.
    Crud,
}

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Counts up by one with every event of this process.
    pub seq: u64,
    /// The VM it is about.
    pub vm_id: Option<VmId>,
    /// Who is said to emit it.
    pub source: Source,
    /// The event's public name (`vm:event`, `crash`, `power_on`).
    pub kind: String,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: u64,
    /// The public payload.
    pub data: Value,
}

/// What QEMU said a guest did, and what the row says since.
#[derive(Debug, Clone, Copy)]
pub struct GuestEvent<'a> {
    /// QEMU's name for it (`STOP`).
    pub event: &'a str,
    /// The status before.
    pub previous: &'a str,
    /// The status now.
    pub new: &'a str,
    /// What QEMU said with it.
    pub qmp: &'a Value,
    /// Why it is off, if it is and that is known.
    pub cause: Option<&'a Value>,
}

/// The one channel from the core to its listeners. Clones share it.
#[derive(Debug, Clone)]
pub struct EventBus {
    sender: broadcast::Sender<Arc<Event>>,
    next: Arc<Mutex<u64>>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            next: Arc::default(),
        }
    }
}

impl EventBus {
    /// Hears everything published from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// Tells all listeners. Nobody listening is fine.
    pub fn publish(&self, source: Source, kind: &str, vm_id: Option<&VmId>, data: Value) {
        // Held while sending, so that the order of numbers is the order of arrival.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event {
            seq: *next,
            vm_id: vm_id.cloned(),
            source,
            kind: kind.to_owned(),
            timestamp_ms: now_ms(),
            data,
        };
        *next += 1;
        let _unheard = self.sender.send(Arc::new(event));
    }

    /// Tells what a guest did: the event by its own name, the resulting status if it is another, and
    /// `vm:event`.
    pub fn publish_guest(&self, vm_id: &VmId, guest: GuestEvent<'_>) {
        let GuestEvent {
            event,
            previous,
            new,
            qmp,
            cause,
        } = guest;
        let mut data = json!({
            "vmId": vm_id,
            "event": event,
            "previousStatus": previous,
            "newStatus": new,
            "timestamp": now_ms(),
            "qmpData": qmp,
        });
        if let Some(cause) = cause {
            data["cause"] = cause.clone();
        }
        let emit = |kind: &str| self.publish(Source::EventHandler, kind, Some(vm_id), data.clone());
        emit(&format!("vm:{}", event.to_ascii_lowercase()));
        if previous != new && ["off", "suspended", "running"].contains(&new) {
            emit(&format!("vm:{new}"));
        }
        emit("vm:event");
    }
}

/// The wall clock, for time stamps only; deadlines use monotonic time.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_in_the_order_of_their_numbers() {
        let bus = EventBus::default();
        let mut hears = bus.subscribe();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let bus = bus.clone();
                std::thread::spawn(move || {
                    for _ in 0..100 {
                        bus.publish(Source::Crud, "create", None, Value::Null);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let numbers: Vec<u64> = std::iter::from_fn(|| hears.try_recv().ok())
            .map(|e| e.seq)
            .collect();
        assert_eq!(numbers, (0..400).collect::<Vec<_>>());
    }
}
