//! What all VMs of one manager share.

use std::sync::Arc;

use crate::config::ManagerConfig;
use crate::db::Database;
use crate::db::sqlite::SqliteDatabase;
use crate::events::EventBus;
use crate::host::display_port::DisplayPorts;
use crate::host::link::Links;
use crate::host::nft::Nft;

/// The manager's settings and its connections to the host and the database.
#[derive(Debug)]
pub struct Services {
    /// Directories and defaults.
    pub config: ManagerConfig,
    /// The user's database, or the embedded one.
    pub database: Arc<dyn Database>,
    /// The embedded one, when it is in use: rows are then made and deleted by us.
    pub embedded: Option<Arc<SqliteDatabase>>,
    /// Tells listeners.
    pub events: EventBus,
    /// Netlink.
    pub links: Links,
    /// nftables.
    pub nft: Nft,
    /// Display ports of this process' VMs.
    pub display_ports: DisplayPorts,
}
