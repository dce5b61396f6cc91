//! Rules of the console.

use super::{Door, Rules};
use crate::config::draft::Draft;
use crate::config::fields::within;
use crate::config::{BindAddress, DisplayConfig, DisplayProtocol};
use crate::types::Secret;

impl Rules<'_> {
    pub(super) fn display(&self, draft: &Draft) -> Option<DisplayConfig> {
        let protocol = draft.protocol?;
        if let Some(password) = &draft.password {
            self.password(protocol, password);
        }
        let display = DisplayConfig {
            protocol,
            port: self.port(protocol, draft.port?),
            address: draft.address.clone().unwrap_or(BindAddress::LOOPBACK),
            password: draft.password.clone(),
        };
        let can_be_healed = self.door == Door::Stored && !display.address.is_wildcard();
        if !can_be_healed && display.is_open_to_all(&display.address) {
            self.report
                .refuse("displayPassword", DisplayConfig::NEEDS_PASSWORD);
        }
        Some(display)
    }

    /// A port that is none becomes the first one (the contract's fallback; 0 asks for it).
    fn port(&self, protocol: DisplayProtocol, wanted: i64) -> u16 {
        let range = i64::from(DisplayConfig::FIRST_PORT)..=i64::from(u16::MAX);
        let Ok(port) = within::<u16>(wanted, &range) else {
            if wanted != 0 {
                self.report
                    .warn("displayPort", "is 5900: it must be from 5900 to 65535");
            }
            return DisplayConfig::FIRST_PORT;
        };
        if port > protocol.last_port() {
            self.report
                .refuse("displayPort", "must be from 5900 to 5999 for vnc");
        }
        port
    }

    fn password(&self, protocol: DisplayProtocol, password: &Secret) {
        let text = password.reveal();
        // DES keys of RFB have 8 bytes, a SPICE ticket has 60.
        let most = match protocol {
            DisplayProtocol::Vnc => 8,
            DisplayProtocol::Spice => 60,
        };
        let plain = text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        if text.is_empty() || text.len() > most || !plain || text.contains([',', '=']) {
            let message = format!(
                "must have 1 to {most} printable ASCII characters other than ',' and '=' for {}",
                protocol.as_str()
            );
            self.report.refuse("displayPassword", message);
        }
    }
}
