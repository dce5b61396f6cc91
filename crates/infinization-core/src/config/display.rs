//! The display, its address and its password.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{BindAddress, words};
use crate::types::{InvalidValue, Secret};

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
    pub(super) const NEEDS_PASSWORD: &str = "is required unless displayAddr is a loopback address";

    /// Where to listen on a host that has the addresses `local`: the configured address, healed
    /// ([`BindAddress::healed`]). Refused when others could then watch without a password.
    pub fn bind_on(&self, local: &[IpAddr]) -> Result<BindAddress, InvalidValue> {
        let address = self.address.healed(local, self.password.is_some());
        if self.is_open_to_all(&address) {
            Err(InvalidValue::new(Self::NEEDS_PASSWORD))
        } else {
            Ok(address)
        }
    }

    /// Whether others than this host could watch at `address` without a password.
    pub(super) fn is_open_to_all(&self, address: &BindAddress) -> bool {
        self.password.is_none() && !address.is_loopback()
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

impl DisplayProtocol {
    /// The last TCP port it can listen on: VNC speaks of displays 0 to 99, which are the ports
    /// from 5900 on.
    pub const fn last_port(self) -> u16 {
        match self {
            Self::Spice => u16::MAX,
            Self::Vnc => 5999,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b33_nobody_watches_without_a_password() {
        let local = ["192.0.2.1".parse().unwrap()];
        let bind = |text: &str, password: Option<&str>| {
            let display = DisplayConfig {
                protocol: DisplayProtocol::Vnc,
                port: 5900,
                address: BindAddress::parse(text).unwrap(),
                password: password.map(Secret::new),
            };
            display.bind_on(&local).map(|address| address.to_string())
        };
        assert_eq!(bind("127.0.0.1", None).unwrap(), "127.0.0.1");
        assert_eq!(bind("192.0.2.9", None).unwrap(), "127.0.0.1");
        assert_eq!(bind("192.0.2.9", Some("x")).unwrap(), "0.0.0.0");
        assert_eq!(bind("192.0.2.1", Some("x")).unwrap(), "192.0.2.1");
        assert!(bind("192.0.2.1", None).is_err());
        assert!(bind("0.0.0.0", None).is_err());
    }
}
