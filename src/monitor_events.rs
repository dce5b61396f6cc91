//! What one monitor reports, on its way to the `QMPClient` somebody asked for.
//!
//! As [`events`](crate::events), but of one connection: QEMU's own JSON, one call per event. The core
//! drops the oldest for a reader that is too slow, and the callback keeps no process alive.

use std::sync::Arc;

use infinization_core::qmp::{EventReceiver, MonitorEvent, QmpEvent};
use napi::bindgen_prelude::spawn;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::events::Deliver;

/// An event as `js/qmp-client.js` reads it.
#[derive(Serialize)]
#[serde(untagged)]
enum Crossing<'a> {
    /// QEMU's own.
    Event {
        event: &'a str,
        data: &'a RawValue,
        timestamp: Timestamp,
    },
    /// The connection's: `disconnect`, `reconnect`, `reconnect_failed`.
    Link { link: &'static str },
    /// So many were dropped, because they came faster than they were taken.
    Lost { lost: u64 },
}

#[derive(Serialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

impl<'a> Crossing<'a> {
    fn of(event: &'a MonitorEvent) -> Self {
        let link = |link| Self::Link { link };
        match event {
            MonitorEvent::Event(event) => Self::reported(event),
            MonitorEvent::Disconnected { .. } => link("disconnect"),
            MonitorEvent::Reconnected { .. } => link("reconnect"),
            MonitorEvent::GaveUp => link("reconnect_failed"),
            MonitorEvent::Missed { count } => {
                tracing::warn!(count, "a slow reader of a monitor missed events");
                Self::Lost { lost: *count }
            }
        }
    }

    fn reported(event: &'a QmpEvent) -> Self {
        Self::Event {
            event: &event.event,
            data: &event.data,
            timestamp: Timestamp {
                seconds: event.timestamp.seconds,
                microseconds: event.timestamp.microseconds,
            },
        }
    }
}

/// Carries events until the connection is closed for good, which is told as a `disconnect`, or the
/// JavaScript side is gone.
pub(crate) fn carry(mut events: EventReceiver, deliver: Arc<Deliver>) {
    spawn(async move {
        let mut connected = true;
        while let Some(event) = events.next().await {
            match event {
                MonitorEvent::Disconnected { .. } => connected = false,
                MonitorEvent::Reconnected { .. } => connected = true,
                _ => {}
            }
            if !send(&deliver, &Crossing::of(&event)).await {
                return;
            }
        }
        if connected {
            send(&deliver, &Crossing::Link { link: "disconnect" }).await;
        }
    });
}

/// False when nobody is there to take it.
async fn send(deliver: &Deliver, crossing: &Crossing<'_>) -> bool {
    match serde_json::to_string(crossing) {
        Ok(text) => deliver.call_async_catch(text).await.is_ok(),
        Err(error) => {
            tracing::error!(%error, "an event has no JSON form");
            true
        }
    }
}
