//! What a monitor reports, taken to the journal and to what is known of the guest's condition. What
//! it means for the status is [`super::machine`]'s.

use std::sync::Arc;

use serde_json::Value;

use super::condition::Ailment;
use super::journal::{Actor, Kind, Note};
use super::machine::Machine;
use crate::qmp::{EventKind, QmpEvent};

impl Machine {
    /// Heeds an event: an answering QEMU, an entry, and what ails the guest from now on.
    pub(super) fn heed(&self, event: &QmpEvent) {
        let Some(live) = &self.live else { return };
        let view = Arc::clone(&live.view);
        self.context.answers(&view, true);
        let Some(actor) = author(&event.kind()) else {
            return;
        };
        let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
        let note = Note::of(Kind::Event).by(actor).step(event.event.clone());
        self.context.journal.event(note.detail(data));
        match event.kind() {
            EventKind::GuestPanicked { info, .. } => {
                let ailment = Ailment::GuestPanicked { info };
                self.context.guest_is(&view, Some(ailment), actor);
            }
            EventKind::Watchdog { action } => {
                let ailment = Ailment::Watchdog { action };
                self.context.guest_is(&view, Some(ailment), actor);
            }
            // It starts over.
            EventKind::Reset { .. } => self.context.guest_is(&view, None, actor),
            _ => {}
        }
    }

    /// The connection to the monitor is lost, or is there again.
    pub(super) fn heard_from_monitor(&self, what: &'static str, answers: bool) {
        let note = Note::of(Kind::Event).by(Actor::Monitor).step(what);
        self.context.journal.event(note);
        if let Some(live) = &self.live {
            self.context.answers(&live.view, answers);
        }
    }
}

/// Who did it, of the events a journal has.
fn author(event: &EventKind) -> Option<Actor> {
    match event {
        EventKind::Shutdown { guest, .. } | EventKind::Reset { guest, .. } => {
            Some(if *guest { Actor::Guest } else { Actor::Monitor })
        }
        EventKind::GuestPanicked { .. }
        | EventKind::Suspend
        | EventKind::Wakeup
        | EventKind::Watchdog { .. } => Some(Actor::Guest),
        EventKind::Powerdown | EventKind::Stop | EventKind::Resume | EventKind::BlockIoError(_) => {
            Some(Actor::Monitor)
        }
        EventKind::DeviceDeleted { .. } | EventKind::Other => None,
    }
}
