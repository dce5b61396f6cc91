//! What taking stock found, told: to the journal, and to what is known of a QEMU's condition.
//! Neighbour: [`super::recover`] takes stock.

use std::sync::Arc;

use serde_json::json;

use super::condition::diagnose;
use super::journal::{Actor, Kind, Note};
use super::ledger::Contents;
use super::machine::Machine;
use super::recover::Recovered;
use crate::error::Failure;
use crate::qmp::StatusInfo;

impl Machine {
    /// What was found is an entry of its own, unless it is what was found before.
    pub(super) fn tell_found(&mut self, contents: &Contents, found: &Result<Recovered, Failure>) {
        let told = match found {
            Ok(Recovered::Nothing) => return,
            Ok(found) => {
                let (word, why) = found.told();
                let mut told = json!({ "found": word, "interrupted": contents.operation });
                if let Some(why) = why {
                    told["why"] = why.into();
                }
                if *found == Recovered::Alive {
                    // A change that was made but not told any more starts from here.
                    told["status"] = self.shown.as_str().into();
                    self.context.journal.found_status(self.shown.as_str());
                }
                told
            }
            Err(failure) => json!({ "found": "failure", "why": failure.to_string() }),
        };
        if self.found.as_ref() != Some(&told) {
            let note = Note::of(Kind::Event).step("taking stock");
            self.context.journal.note(note.detail(told.clone()));
            self.found = Some(told);
        }
    }

    /// What ails a QEMU that was just taken back.
    pub(super) async fn examine(&mut self, status: Option<&StatusInfo>) {
        let Some(view) = self.live.as_ref().map(|live| Arc::clone(&live.view)) else {
            return;
        };
        match status {
            None => self.context.answers(&view, false),
            Some(status) => {
                let ailment = diagnose(&view.qmp, status, None).await;
                self.context.guest_is(&view, ailment, Actor::Monitor);
            }
        }
    }
}

impl Recovered {
    /// The word of the journal, and the reason.
    fn told(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Nothing => ("nothing", None),
            Self::Alive => ("alive", None),
            Self::Off => ("off", None),
            Self::Undone => ("undone", None),
            Self::Skipped(why) => ("unknown", Some(why)),
        }
    }
}
