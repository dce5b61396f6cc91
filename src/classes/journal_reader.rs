//! What `infinization.journal()` reads from.

use std::sync::OnceLock;

use infinization_core::Failure;
use infinization_core::manager::{JournalCursor, Manager};
use napi::bindgen_prelude::spawn;
use napi_derive::napi;

use super::Infinization;
use crate::argument::Argument;
use crate::events::Deliver;
use crate::outcome::{Outcome, checked, data};

/// Reads journals page by page: `js/journal.js` makes an async iterator of it.
#[napi]
#[derive(Debug)]
pub struct JournalReader {
    manager: Manager,
    options: Argument,
    cursor: OnceLock<JournalCursor>,
}

#[napi]
impl JournalReader {
    #[napi(constructor)]
    pub fn new(owner: &Infinization, options: Argument) -> Self {
        Self {
            manager: owner.manager(),
            options,
            cursor: OnceLock::new(),
        }
    }

    /// `{ entries, over, version }`.
    #[napi]
    pub async fn next(&self) -> Outcome {
        data(async { self.manager.journal_page(&self.cursor()?).await }).await
    }
}

impl JournalReader {
    fn cursor(&self) -> Result<JournalCursor, Failure> {
        if let Some(cursor) = self.cursor.get() {
            return Ok(cursor.clone());
        }
        let options = self.options.clone().object("options")?;
        let cursor = self.manager.journal(&options)?;
        Ok(self.cursor.get_or_init(|| cursor).clone())
    }
}

/// Calls `deliver` with a number that grows whenever something was written, until the instance is
/// shut down. It keeps no process alive.
#[napi]
pub fn follow_journal(owner: &Infinization, deliver: Deliver) -> Outcome {
    let changes = owner.manager().journal_changes();
    checked(changes.map(|mut changes| {
        spawn(async move {
            loop {
                let version = changes.borrow_and_update().to_string();
                let delivered = deliver.call_async_catch(version).await;
                if delivered.is_err() || changes.changed().await.is_err() {
                    return;
                }
            }
        });
    }))
}
