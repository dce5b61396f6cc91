//! The place of a device on the host's PCI bus.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// A PCI function as `domain:bus:slot.function`; a missing domain is `0000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    slot: u8,
    function: u8,
}

impl PciAddress {
    /// Reads `[dddd:]bb:ss.f`, hex in either case, slot ≤ 1f and function ≤ 7 (PCI 3.0 §3.2.2.3).
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let malformed = || InvalidValue::new("must be a PCI address such as 0000:01:00.0");
        let (address, function) = text.rsplit_once('.').ok_or_else(malformed)?;
        let mut parts = address.split(':').rev();
        let slot = hex(parts.next(), 2).ok_or_else(malformed)?;
        let bus = hex(parts.next(), 2).ok_or_else(malformed)?;
        let domain = match parts.next() {
            Some(part) => hex(Some(part), 4).ok_or_else(malformed)?,
            None => 0,
        };
        let function = hex(Some(function), 1).ok_or_else(malformed)?;
        if parts.next().is_some() || slot > 0x1f || function > 7 {
            return Err(malformed());
        }
        Ok(Self {
            domain,
            bus: u8::try_from(bus).map_err(|_| malformed())?,
            slot: u8::try_from(slot).map_err(|_| malformed())?,
            function: u8::try_from(function).map_err(|_| malformed())?,
        })
    }
}

fn hex(part: Option<&str>, digits: usize) -> Option<u16> {
    let part = part.filter(|p| p.len() == digits && p.chars().all(|c| c.is_ascii_hexdigit()))?;
    u16::from_str_radix(part, 16).ok()
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            slot,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{slot:02x}.{function}")
    }
}

impl TryFrom<String> for PciAddress {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        Self::parse(&text)
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_the_missing_domain() {
        assert_eq!(
            PciAddress::parse("01:1F.7").unwrap().to_string(),
            "0000:01:1f.7"
        );
        assert_eq!(
            PciAddress::parse("00ab:01:00.0").unwrap().to_string(),
            "00ab:01:00.0"
        );
    }

    #[test]
    fn b35_refuses_malformed_addresses() {
        for bad in [
            "1:0.0",
            "0000:01:00.8",
            "0000:01:20.0",
            "01:00",
            "$(id)",
            "x0000:01:00.0",
            "",
        ] {
            assert!(PciAddress::parse(bad).is_err(), "{bad} was taken");
        }
    }
}
