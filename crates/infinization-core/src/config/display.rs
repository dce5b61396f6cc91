use serde::{Deserialize, Serialize};

use super::{BindAddress, words};
use crate::types::Secret;

/// The console and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DisplayConfig {
    /// SPICE or VNC.
    pub protocol: DisplayProtocol,
    /// The wanted TCP port, 5900 or above; the next free one is taken when it is in use.
    pub port: u16,
    /// Where it listens. Not loopback only together with a password.
    pub address: BindAddress,
    /// Told to QEMU over its monitor; never part of an argv, a log or the spec file.
    #[serde(skip)]
    pub password: Option<Secret>,
}

impl DisplayConfig {
    /// The first port, and the one that replaces a wanted port outside the range.
    pub const FIRST_PORT: u16 = 5900;
    /// VNC speaks of displays 0 to 99, which are the ports from 5900 on.
    pub const LAST_VNC_PORT: u16 = 5999;

    /// The last port the protocol can listen on.
    pub fn last_port(&self) -> u16 {
        match self.protocol {
            DisplayProtocol::Spice => u16::MAX,
            DisplayProtocol::Vnc => Self::LAST_VNC_PORT,
        }
    }
}

words! {
    /// The console's protocol.
    pub enum DisplayProtocol {
        /// With a QXL card, sound and copy-and-paste.
        Spice = "spice",
        /// With a standard VGA card.
        Vnc = "vnc",
    }
}
