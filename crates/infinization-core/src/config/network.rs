//! The one network card and where it is plugged in.

use serde::{Deserialize, Serialize};

use super::words;
use crate::types::{LinkName, MacAddr};

/// The network card and the bridge its TAP joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// An existing bridge.
    pub bridge: LinkName,
    /// The card's address: given, or derived from the VM's id.
    pub mac: MacAddr,
    /// The card.
    pub model: NetworkModel,
    /// Pairs of queues, 1 to [`NetworkConfig::MOST_QUEUES`]; always 1 unless the card is virtio.
    /// The TAP is made multi-queue if and only if this is more than 1.
    pub queues: u8,
}

impl NetworkConfig {
    /// More than this many queue pairs gain nothing here; the public contract stops there too.
    pub const MOST_QUEUES: u8 = 4;
}

words! {
    /// The network card the guest sees.
    pub enum NetworkModel {
        /// virtio. The default.
        VirtioNetPci = "virtio-net-pci",
        /// Intel 82540EM, for guests without virtio drivers.
        E1000 = "e1000",
    }
}
