//! Where a console listens: an address, or a name that QEMU resolves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::types::InvalidValue;

/// Where a console listens: an IP address, or a host name that QEMU resolves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BindAddress {
    /// A literal address.
    Ip(IpAddr),
    /// A host name.
    Name(String),
}

impl BindAddress {
    /// `127.0.0.1`, the default.
    pub const LOOPBACK: Self = Self::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    /// `0.0.0.0`.
    pub const WILDCARD: Self = Self::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

    /// Reads an address or a host name; `*` is every IPv4 address.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text == "*" {
            return Ok(Self::WILDCARD);
        }
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        let name = text.len() <= 253
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
        // What looks like an IPv4 address but is none is a slip, not a host name.
        let digits = text.chars().all(|c| c.is_ascii_digit() || c == '.');
        if name && !digits {
            Ok(Self::Name(text.to_ascii_lowercase()))
        } else {
            Err(InvalidValue::new("must be an IP address or a host name"))
        }
    }

    /// Whether only this host can reach it.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.to_canonical().is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }

    /// Whether it means every address of the host.
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Ip(ip) if ip.to_canonical().is_unspecified())
    }

    /// The host name, unless it is `localhost`: whether that is an address of this host, the name
    /// service knows.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) if !self.is_loopback() => Some(name),
            _ => None,
        }
    }

    /// The address to use on a host that has `local`: itself where that works, else every address
    /// when a password guards the console, and loopback when none does. A moved or renumbered
    /// host keeps its VMs startable; the caller warns when the answer is another address. A name is
    /// never healed to more than loopback.
    #[must_use]
    pub fn healed(&self, local: &[IpAddr], has_password: bool) -> Self {
        match self {
            here if here.is_loopback() || here.is_wildcard() => here.clone(),
            Self::Ip(ip) if local.contains(ip) => self.clone(),
            Self::Ip(_) if has_password => Self::WILDCARD,
            _ => Self::LOOPBACK,
        }
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl TryFrom<String> for BindAddress {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        Self::parse(&text)
    }
}

impl From<BindAddress> for String {
    fn from(address: BindAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b33_reads_addresses_and_names() {
        for (text, loopback, wildcard) in [
            ("127.0.0.1", true, false),
            ("127.9.9.9", true, false),
            ("::1", true, false),
            ("::ffff:127.0.0.1", true, false),
            ("localhost", true, false),
            ("0.0.0.0", false, true),
            ("::", false, true),
            ("*", false, true),
            ("192.0.2.1", false, false),
            ("host.example", false, false),
        ] {
            let address = BindAddress::parse(text).unwrap();
            assert_eq!(address.is_loopback(), loopback, "{text}");
            assert_eq!(address.is_wildcard(), wildcard, "{text}");
        }
        for bad in [
            "",
            "256.0.0.1",
            "1.2.3",
            "a,b",
            "a=b",
            "a b",
            "-h",
            "[::1]",
            "fe80::1%eth0",
        ] {
            assert!(BindAddress::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn b33_an_address_that_left_the_host_is_healed() {
        let local = ["192.0.2.1".parse().unwrap()];
        let healed = |text: &str, password| {
            let address = BindAddress::parse(text).unwrap();
            address.healed(&local, password).to_string()
        };
        assert_eq!(healed("192.0.2.1", false), "192.0.2.1");
        assert_eq!(healed("::", true), "::");
        assert_eq!(healed("localhost", false), "localhost");
        assert_eq!(healed("192.0.2.2", true), "0.0.0.0");
        assert_eq!(healed("192.0.2.2", false), "127.0.0.1");
        assert_eq!(healed("old.example", true), "127.0.0.1");
    }
}
