//! What a snapshot's images have no room for, in a file beside the VM's spec.
//!
//! Nothing depends on it but comfort: a note that is lost costs a description and a check.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::context::VmContext;
use crate::config::SnapshotOptions;
use crate::host::blocking::blocking;
use crate::host::qemu_img::SnapshotName;
use crate::host::state_file::{self, Durability};

const FILE: &str = "snapshots.json";

/// All notes, by the snapshot's name.
pub(super) type Notes = BTreeMap<String, Note>;

/// One snapshot's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The user's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// What the machine was made of when its memory was saved; empty without memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) hardware: Vec<String>,
}

impl VmContext {
    pub(super) async fn notes(&self) -> Notes {
        let directory = self.directory.clone();
        let read = blocking(move || read(&directory)).await;
        read.unwrap_or_default()
    }

    pub(super) async fn note_of(&self, name: &SnapshotName) -> Option<Note> {
        self.notes().await.remove(name.as_str())
    }

    pub(super) async fn note(
        &self,
        name: &SnapshotName,
        options: &SnapshotOptions,
        hardware: Option<Vec<String>>,
    ) {
        let note = Note {
            description: options.description.clone(),
            hardware: hardware.unwrap_or_default(),
        };
        let name = name.as_str().to_owned();
        self.change_notes(move |notes| {
            // One of a snapshot that others deleted speaks of another.
            notes.remove(&name);
            if note != Note::default() {
                notes.insert(name, note);
            }
        })
        .await;
    }

    pub(super) async fn forget_note(&self, name: &SnapshotName) {
        let name = name.as_str().to_owned();
        self.change_notes(move |notes| drop(notes.remove(&name)))
            .await;
    }

    async fn change_notes(&self, change: impl FnOnce(&mut Notes) + Send + 'static) {
        let directory = self.directory.clone();
        let vm = self.vm_id.clone();
        let written = blocking(move || {
            let before = read(&directory);
            let mut notes = before.clone();
            change(&mut notes);
            if notes != before {
                write(&directory, &notes);
            }
        });
        if written.await.is_err() {
            tracing::warn!(%vm, "a snapshot's description could not be kept");
        }
    }
}

fn read(directory: &Path) -> Notes {
    let body = state_file::read(&directory.join(FILE)).unwrap_or_else(|error| {
        tracing::warn!(%error, "the snapshots' descriptions could not be read");
        None
    });
    body.and_then(|body| serde_json::from_slice(&body).ok())
        .unwrap_or_default()
}

fn write(directory: &Path, notes: &Notes) {
    let body = serde_json::to_vec(notes).unwrap_or_default();
    let written = std::fs::create_dir_all(directory)
        .map_err(|error| error.to_string())
        .and_then(|()| {
            state_file::write(&directory.join(FILE), &body, Durability::HostCrash)
                .map_err(|error| error.to_string())
        });
    if let Err(error) = written {
        tracing::warn!(error, "the snapshots' descriptions could not be kept");
    }
}
