//! The core's events on their way to JavaScript: one task, one callback, in order.
//!
//! Events that wait travel together as one JSON array, and the next batch goes when JavaScript has
//! taken the last one. So a busy JavaScript thread never makes a queue grow: the core's bounded
//! channel drops the oldest, and how many is told as a `lost` event. The callback is weak: an idle
//! instance does not keep the process alive (fault F10).

use std::sync::Arc;

use infinization_core::events::{Event, Source};
use napi::Status;
use napi::bindgen_prelude::spawn;
use napi::threadsafe_function::ThreadsafeFunction;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

/// `deliver(batch: string)` of `index.js`.
pub type Deliver = ThreadsafeFunction<String, (), String, Status, false, true>;

/// How many events cross together at most.
const BATCH: usize = 256;

/// An event as `js/events.js` reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Crossing<'a> {
    seq: Option<u64>,
    vm_id: Option<&'a str>,
    source: &'static str,
    kind: &'a str,
    timestamp: Option<u64>,
    data: &'a Value,
}

impl<'a> From<&'a Event> for Crossing<'a> {
    fn from(event: &'a Event) -> Self {
        Self {
            seq: Some(event.seq),
            vm_id: event.vm_id.as_ref().map(AsRef::as_ref),
            source: source_name(event.source),
            kind: &event.kind,
            timestamp: Some(event.timestamp_ms),
            data: &event.data,
        }
    }
}

fn source_name(source: Source) -> &'static str {
    match source {
        Source::EventHandler => "eventHandler",
        Source::HealthMonitor => "healthMonitor",
        Source::Crud => "crud",
    }
}

/// Carries events until `stop` fires (what waits then is still delivered), the manager is gone, or
/// the JavaScript side is.
pub(crate) fn carry(events: Receiver<Arc<Event>>, deliver: Deliver, stop: CancellationToken) {
    spawn(async move {
        let mut pump = Pump {
            events,
            batch: Vec::new(),
        };
        while pump.fill(&stop).await {
            if deliver.call_async_catch(pump.take()).await.is_err() {
                return;
            }
        }
        if !pump.batch.is_empty() {
            let _last = deliver.call_async_catch(pump.take()).await;
        }
    });
}

struct Pump {
    events: Receiver<Arc<Event>>,
    batch: Vec<String>,
}

impl Pump {
    /// Waits for an event and takes what else is there. False when no more will come.
    async fn fill(&mut self, stop: &CancellationToken) -> bool {
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => {
                while self.take_waiting() {}
                return false;
            }
            first = self.events.recv() => first,
        };
        match first {
            Ok(event) => self.push(&Crossing::from(&*event)),
            Err(RecvError::Lagged(count)) => self.push_lost(count),
            Err(RecvError::Closed) => return false,
        }
        while self.batch.len() < BATCH && self.take_waiting() {}
        true
    }

    fn take_waiting(&mut self) -> bool {
        match self.events.try_recv() {
            Ok(event) => self.push(&Crossing::from(&*event)),
            Err(TryRecvError::Lagged(count)) => self.push_lost(count),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return false,
        }
        true
    }

    fn push_lost(&mut self, count: u64) {
        let data = json!({ "count": count });
        self.push(&Crossing {
            seq: None,
            vm_id: None,
            source: "manager",
            kind: "lost",
            timestamp: None,
            data: &data,
        });
    }

    fn push(&mut self, event: &Crossing<'_>) {
        match serde_json::to_string(event) {
            Ok(text) => self.batch.push(text),
            Err(error) => tracing::error!(%error, kind = event.kind, "event has no JSON form"),
        }
    }

    fn take(&mut self) -> String {
        format!("[{}]", std::mem::take(&mut self.batch).join(","))
    }
}
