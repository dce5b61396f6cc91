//! Follows what the guest and its monitor say of the run state.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{LAST_WORDS, Machine, note_ending};
use crate::events::now_ms;
use crate::qmp::{EventKind, MonitorEvent, QmpEvent, StatusInfo};
use crate::vm::condition::diagnose;
use crate::vm::journal::{Actor, Kind, Note};
use crate::vm::status::{FOLLOWED, OURS, Status, of_run_state};

impl Machine {
    /// Acts on what the monitor reports while no verb runs.
    pub(in crate::vm) async fn on_event(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::Event(event) => self.on_guest_event(&event).await,
            MonitorEvent::Disconnected { will_reconnect } => {
                // The end of a QEMU shows here first; the exit tells it.
                if timeout(LAST_WORDS, self.exited()).await.is_err() {
                    let data = json!({ "vmId": self.context.vm_id, "timestamp": now_ms(), "transient": will_reconnect });
                    self.context.emit("vm:disconnect", data);
                    self.heard_from_monitor("disconnected", false);
                }
            }
            MonitorEvent::Reconnected { status } => {
                self.heard_from_monitor("reconnected", true);
                self.context
                    .emit("vm:reconnect", json!({ "vmId": self.context.vm_id }));
                let running = status.running;
                // What happened meanwhile is told as if it happened now.
                self.take_in(*status, None, &Value::Null).await;
                Box::pin(self.try_to_settle_pivots(running)).await;
                Box::pin(self.end_left_copies()).await;
            }
            MonitorEvent::Missed { count } => {
                let note = Note::of(Kind::Event).by(Actor::Monitor).step("missed");
                self.context
                    .journal
                    .event(note.detail(json!({ "count": count })));
                self.ask_and_follow(None, &Value::Null).await;
            }
            MonitorEvent::GaveUp => self.context.emit(
                "vm:stale",
                json!({ "vmId": self.context.vm_id, "reason": "qmp_reconnect_failed" }),
            ),
        }
    }

    async fn on_guest_event(&mut self, event: &QmpEvent) {
        let Some(live) = &mut self.live else { return };
        note_ending(live, event);
        self.heed(event);
        let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
        match event.kind() {
            EventKind::Stop => self.ask_and_follow(Some(&event.event), &data).await,
            EventKind::Resume => {
                self.ask_and_follow(Some(&event.event), &data).await;
                Box::pin(self.try_to_settle_pivots(true)).await;
            }
            EventKind::Suspend => self.becomes(Status::Suspended, &event.event, &data).await,
            EventKind::Wakeup => {
                self.becomes(Status::Running, &event.event, &data).await;
                Box::pin(self.try_to_settle_pivots(true)).await;
            }
            EventKind::Powerdown | EventKind::Reset { .. } => {
                self.context
                    .guest_event(&event.event, &self.shown, &self.shown, &data);
            }
            // The exit follows a SHUTDOWN at once; off is told when the disks are free.
            _ => {}
        }
    }

    /// STOP and RESUME do not say why: `query-status` does. A QEMU that hangs must not hold up the
    /// VM's verbs; its state is asked for again when it goes on.
    pub(in crate::vm) async fn ask_and_follow(&mut self, event: Option<&str>, data: &Value) {
        let Some(live) = &self.live else { return };
        let view = Arc::clone(&live.view);
        if let Some(status) = self.context.ask_run_state(&view).await {
            self.take_in(status, event, data).await;
        }
    }

    /// What QEMU says it is, which may show as well how an interrupted launch ended.
    async fn take_in(&mut self, status: StatusInfo, event: Option<&str>, data: &Value) {
        let status = match Box::pin(self.finish_launch(status.clone())).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(vm = %self.context.vm_id, %error, "an interrupted launch was not settled");
                status
            }
        };
        self.follow(&status, event, data).await;
    }

    /// Follows QEMU's state; without an event's name, the one that goes with the new state is told.
    async fn follow(&mut self, status: &StatusInfo, event: Option<&str>, data: &Value) {
        let new = if status.running {
            Status::Running
        } else {
            of_run_state(status.status.as_str())
        };
        if let Some(live) = &self.live {
            let view = Arc::clone(&live.view);
            let known = view.health.of_guest().filter(|_| event != Some("RESUME"));
            let ailment = diagnose(&view.qmp, status, known).await;
            self.context.guest_is(&view, ailment, Actor::Monitor);
        }
        // `shutdown` and the launch states are told by the exit and by the launch itself.
        if matches!(new, Status::Off | Status::Starting) {
            return;
        }
        let event = event.unwrap_or(match new {
            Status::Running => "RESUME",
            _ => "STOP",
        });
        self.becomes(new, event, data).await;
    }

    /// The guest changed its state by itself: the row first, then the listeners.
    pub(in crate::vm) async fn becomes(&mut self, new: Status, event: &str, data: &Value) {
        if new == self.shown {
            return;
        }
        let fails = new == Status::Error && self.row_is_no_error().await;
        // Of a guest that goes on, the error that said why it stood still is over.
        let over = self.overwritten();
        self.context.write_status(new.as_str(), over).await;
        self.owns_error = fails;
        let previous = std::mem::replace(&mut self.shown, new.clone());
        let told = self.told_instead_of(new).await;
        self.context.journal.status(told.as_str());
        self.context.guest_event(event, &previous, &told, data);
    }

    /// What a status of a living guest is written over.
    fn overwritten(&self) -> &'static [&'static str] {
        if self.owns_error { &OURS } else { &FOLLOWED }
    }

    /// Without an answer it may be somebody's error already.
    async fn row_is_no_error(&self) -> bool {
        let row = self.context.row_status().await;
        matches!(row, Ok(Some(row)) if row != Status::Error)
    }

    /// Somebody's claim, or an error, stays in the row; listeners hear what it says. A row that is not
    /// written yet says nothing new.
    pub(super) async fn told_instead_of(&self, new: Status) -> Status {
        if self.context.services.outbox.keeps(&self.context.vm_id) {
            return new;
        }
        match self.context.row_status().await {
            Ok(Some(row)) => row,
            Ok(None) | Err(_) => new,
        }
    }
}
