//! What is told and done when the database is away, and when it is back.
//!
//! The outbox keeps what happens meanwhile (`db/outbox`). Machines go on, and so do their clean-ups;
//! what needs an answer of the database is refused. When it is back, the kept writes have been
//! delivered, and what could not be judged without it is looked at again.

use std::sync::Weak;

use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Open;
use crate::db::outbox::Notice;
use crate::error::Coded as _;
use crate::events::{EventBus, Source, now_ms};

/// Follows the outbox for as long as it exists.
pub(super) async fn follow(
    open: Weak<Open>,
    events: EventBus,
    mut notices: UnboundedReceiver<Notice>,
) {
    let mut since = now_ms();
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::Away { error } => {
                since = now_ms();
                let error = json!({ "code": error.code().as_str(), "message": error.message });
                let data = json!({ "error": error, "timestamp": since });
                events.publish(Source::HealthMonitor, "database-outage", None, data);
            }
            Notice::Back { delivered, lost } => {
                let data = json!({
                    "startedAt": since,
                    "delivered": delivered,
                    "lost": lost,
                    "timestamp": now_ms(),
                });
                events.publish(Source::HealthMonitor, "database-restored", None, data);
                if let Some(open) = open.upgrade() {
                    tokio::spawn(async move { open.catch_up().await });
                }
            }
            Notice::Lost {
                vm_id,
                write,
                error,
            } => {
                let data = json!({ "vmId": vm_id, "event": write, "error": error.to_string() });
                events.publish(Source::EventHandler, "error", Some(&vm_id), data);
            }
        }
    }
}

impl Open {
    /// Looks again at what could not be judged while the database was away.
    async fn catch_up(&self) {
        let closing = self.services.closing.clone();
        let work = async {
            let _one_at_a_time = self.restoring.lock().await;
            if let Err(error) = self.find_out().await {
                tracing::warn!(%error, "not everything was looked at after the outage");
            }
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = work => {}
        }
    }
}
