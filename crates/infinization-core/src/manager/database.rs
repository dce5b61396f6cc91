//! The database itself, for whoever reads and writes rows beside the verbs.

use std::sync::Arc;

use super::Manager;
use crate::db::Database;
use crate::error::Failure;

impl Manager {
    /// The database this manager works with. A write is made or fails; what the library could not
    /// write yet of the machine goes first.
    pub fn database(&self) -> Result<Arc<dyn Database>, Failure> {
        Ok(self.open()?.services.outbox.answering())
    }
}
