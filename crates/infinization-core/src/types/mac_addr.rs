//! Ethernet addresses, and those that are derived from ids.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// A unicast Ethernet address, written as six lower-case hex pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// Takes six octets; the group bit and the all-zero address are refused.
    pub fn new(octets: [u8; 6]) -> Result<Self, InvalidValue> {
        if octets[0] & 1 == 1 {
            return Err(InvalidValue::new("must be a unicast address"));
        }
        if octets == [0; 6] {
            return Err(InvalidValue::new("must not be all zero"));
        }
        Ok(Self(octets))
    }

    /// Reads `aa:bb:cc:dd:ee:ff` in either case.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let malformed = || InvalidValue::new("must be six hex pairs joined by ':'");
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().ok_or_else(malformed)?;
            let hex = pair.len() == 2 && pair.chars().all(|c| c.is_ascii_hexdigit());
            *octet = hex
                .then(|| u8::from_str_radix(pair, 16).ok())
                .flatten()
                .ok_or_else(malformed)?;
        }
        if pairs.next().is_some() {
            return Err(malformed());
        }
        Self::new(octets)
    }

    /// QEMU guests' prefix `52:54` and four octets: always a unicast address.
    pub(crate) fn of_guest([c, d, e, f]: [u8; 4]) -> Self {
        Self([0x52, 0x54, c, d, e, f])
    }

    /// A bridge of ours: locally administered, unicast, and not the prefix of guests.
    pub(crate) fn of_bridge([c, d, e, f]: [u8; 4]) -> Self {
        Self([0x0a, 0x69, c, d, e, f])
    }

    /// The six octets, in transmission order.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|octet| write!(f, ":{octet:02x}"))
    }
}

impl FromStr for MacAddr {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        Self::parse(text)
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        Self::parse(&text)
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_lower_case() {
        assert_eq!(
            MacAddr::parse("52:54:00:AB:cd:0F").unwrap().to_string(),
            "52:54:00:ab:cd:0f"
        );
    }

    #[test]
    fn b31_refuses_malformed_multicast_and_zero() {
        for bad in [
            "ZZ:54:00:00:00:01",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "52:54:00:00:00",
            "52:54:00:00:00:01:02",
            "52-54-00-00-00-01",
            "+2:54:00:00:00:01",
            "",
        ] {
            assert!(MacAddr::parse(bad).is_err(), "{bad} was taken");
        }
    }
}
