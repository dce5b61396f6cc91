//! Which database a manager works with, and the database itself for whoever reads and writes rows
//! beside the verbs.

use std::sync::Arc;

use super::Manager;
use crate::config::ManagerConfig;
use crate::db::injected::InjectedDatabase;
use crate::db::port::Port;
use crate::db::prisma::PrismaDatabase;
use crate::db::{Database, DbError};
use crate::error::{ErrorCode, Failure};

/// Where the machines' rows are.
#[derive(Debug, Clone, Default)]
pub enum DatabaseChoice {
    /// In the embedded store, under the state directory.
    #[default]
    Embedded,
    /// In the user's database, behind his Prisma client.
    Prisma(Arc<dyn Port>),
    /// Wherever the user's own adapter object has them.
    Injected(Arc<dyn Port>),
    /// The same, beside the rows of other engines: rows of machines that have left nothing in the state directory are
    /// theirs to settle.
    Beside(Arc<dyn Port>),
}

/// The user's own database.
pub(super) struct Theirs {
    pub(super) database: Arc<dyn Database>,
    /// Whether a machine that is not found by its internal name has no row at all. Not so when only
    /// one node's machines are looked at.
    pub(super) is_whole: bool,
    /// Whether there are rows that other engines settle.
    pub(super) is_shared: bool,
    /// What showed that it cannot be reached now.
    pub(super) away: Option<DbError>,
}

impl DatabaseChoice {
    /// The user's database, if he gave one; its schema is looked at first. One that cannot be reached
    /// now is told and used later: the VMs of this host are watched all the same.
    pub(super) async fn open(&self, config: &ManagerConfig) -> Result<Option<Theirs>, Failure> {
        let deadline = config.database_timeout;
        match self {
            Self::Embedded => Ok(None),
            Self::Injected(port) | Self::Beside(port) => {
                let database = InjectedDatabase::new(Arc::clone(port)).answering_within(deadline);
                database.probe().await?;
                Ok(Some(Theirs {
                    database: Arc::new(database),
                    is_whole: false,
                    is_shared: matches!(self, Self::Beside(_)),
                    away: None,
                }))
            }
            Self::Prisma(port) => {
                let database = PrismaDatabase::new(Arc::clone(port), config.node_id.clone())
                    .answering_within(deadline);
                let away = match database.probe().await {
                    Err(error) if error.code == ErrorCode::DbConnectionError => {
                        tracing::warn!(%error, "the database cannot be reached now");
                        Some(error)
                    }
                    probed => probed.map(|()| None)?,
                };
                Ok(Some(Theirs {
                    database: Arc::new(database),
                    is_whole: config.node_id.is_none(),
                    is_shared: false,
                    away,
                }))
            }
        }
    }
}

impl Manager {
    /// The database this manager works with. A write is made or fails; what the library could not
    /// write yet of the machine goes first.
    pub fn database(&self) -> Result<Arc<dyn Database>, Failure> {
        Ok(self.open()?.services.outbox.answering())
    }
}
