//! `journal()`: what was done with the VMs, page by page; and what is there of it.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Manager, parse_id};
use crate::config::{JournalOptions, Parsed};
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::blocking;
use crate::vm::{JournalEntry, JournalReader};

/// How many entries a page has at most.
const PAGE: usize = 256;

/// Entries of a journal, and where reading it stands.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalPage {
    /// In order.
    pub entries: Vec<JournalEntry>,
    /// Nothing more will come, whatever is written.
    pub over: bool,
    /// What [`Manager::journal_changes`] stood at before the page was read: when it stands higher,
    /// there may be more.
    pub version: u64,
}

/// Somebody's place in the journals. Clones share it.
#[derive(Debug, Clone)]
pub struct JournalCursor(Arc<Mutex<JournalReader>>);

impl Manager {
    /// A place to read from, at the beginning of what is asked for.
    pub fn journal(&self, options: &Value) -> Result<JournalCursor, Failure> {
        let open = self.open()?;
        let Parsed { config, .. } = JournalOptions::parse(options)?;
        let directory = open.services.journals.directory().to_owned();
        let reader = JournalReader::new(directory, config);
        Ok(JournalCursor(Arc::new(Mutex::new(reader))))
    }

    /// The next entries; none when all there is now has been read.
    pub async fn journal_page(&self, cursor: &JournalCursor) -> Result<JournalPage, Failure> {
        let open = self.open()?;
        // What was done before the question is part of the answer.
        open.services.journals.written().await;
        let version = *open.services.journals.changes().borrow();
        let reader = Arc::clone(&cursor.0);
        let read = move || {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            let entries = reader.page(PAGE)?;
            let over = reader.is_over();
            Ok(JournalPage {
                entries,
                over,
                version,
            })
        };
        blocking(read).await?.map_err(unreadable)
    }

    /// Counts up whenever something was written.
    pub fn journal_changes(&self) -> Result<watch::Receiver<u64>, Failure> {
        Ok(self.open()?.services.journals.changes())
    }

    /// `getJournalRange`, or null.
    pub async fn journal_range(&self, vm_id: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let vm_id = parse_id(&vm_id)?;
        open.services.journals.written().await;
        let directory = open.services.journals.directory().to_owned();
        let id = vm_id.clone();
        let range = blocking(move || JournalReader::range(&directory, &id)).await?;
        let range = range.map_err(unreadable)?;
        Ok(range.map_or(
            Value::Null,
            |(first, last)| json!({ "vmId": vm_id, "firstSeq": first, "lastSeq": last }),
        ))
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what `map_err` hands over"
)]
fn unreadable(error: std::io::Error) -> Failure {
    let message = format!("a journal could not be read: {error}");
    Failure::new(ErrorCode::StateFile, message)
}
