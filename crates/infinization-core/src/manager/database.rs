//! The database itself, for whoever reads and writes rows beside the verbs.

use std::sync::Arc;

use super::Manager;
use crate::db::Database;
use crate::error::Failure;

impl Manager {
    /// The database this manager works with.
    pub fn database(&self) -> Result<Arc<dyn Database>, Failure> {
        Ok(Arc::clone(&self.open()?.services.database))
    }
}
