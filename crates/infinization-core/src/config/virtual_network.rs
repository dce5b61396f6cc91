//! What a virtual network shall be: `VirtualNetworkConfig`, with everything chosen that was left open.
//!
//! Invariant: whoever holds a [`VirtualNetwork`] need not check it again: every address is in the subnet and
//! nobody else's, and every name is one word. Neighbour: [`crate::network`] plans with it.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `source` | reading one, field by field |
//! | `changes` | changing one |
//! | `dhcp` | the part about machines' addresses |
//! | `addresses`, `names` | what an address and a name must be |

mod addresses;
mod changes;
mod dhcp;
mod names;
mod source;
#[cfg(test)]
mod tests;

pub use names::{DnsName, NetworkName};

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::source::Source;
use super::fields::{Fields, Report};
use super::{ConfigError, Parsed, words};
use crate::types::{Ipv4Subnet, LinkName, MacAddr};

words! {
    /// How a network reaches further than its bridge.
    pub enum NetworkMode {
        /// Out under the host's address.
        Nat = "nat",
        /// Out and in under its own addresses.
        Routed = "routed",
        /// Nowhere but to the host.
        Isolated = "isolated",
    }
}

/// A network with everything chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualNetwork {
    /// What it is called.
    pub name: NetworkName,
    /// Its bridge.
    pub bridge: LinkName,
    /// Its addresses; 8 to 29 bits of prefix.
    pub subnet: Ipv4Subnet,
    /// The bridge's own.
    pub gateway: Ipv4Addr,
    /// How far it reaches.
    pub mode: NetworkMode,
    /// Addresses for machines; none for none.
    #[serde(with = "or_false")]
    pub dhcp: Option<Dhcp>,
    /// Names for machines; none for none.
    #[serde(with = "or_false")]
    pub dns: Option<NetworkDns>,
    /// Whether `initialize()` starts it.
    pub autostart: bool,
    /// Whether machines may only use the address they were given.
    pub pin_addresses: bool,
}

/// Addresses for machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dhcp {
    /// The first that is given away.
    pub start: Ipv4Addr,
    /// The last.
    pub end: Ipv4Addr,
    /// Seconds.
    pub lease_time: u32,
    /// Machines with an address of their own.
    pub hosts: Vec<DhcpHost>,
}

/// A machine with an address of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpHost {
    /// Whose.
    pub mac: MacAddr,
    /// Which.
    pub ip: Ipv4Addr,
    /// What it is called, in one label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<DnsName>,
}

/// Names for machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDns {
    /// Whether the gateway answers.
    pub enabled: bool,
    /// Whom it asks, or the machines where it does not answer.
    pub servers: Vec<Ipv4Addr>,
    /// The machines' domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<DnsName>,
}

/// In JSON, what is switched off is `false`.
mod or_false {
    use serde::de::{DeserializeOwned, Error};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::Value;

    #[expect(clippy::ref_option, reason = "serde hands the field over so")]
    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(false) => Ok(None),
            value => serde_json::from_value(value)
                .map(Some)
                .map_err(D::Error::custom),
        }
    }
}

impl VirtualNetwork {
    /// Reads `VirtualNetworkConfig`, and chooses what it leaves open. What is no option is refused: a misspelt
    /// mode would be a network that is open.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        let report = Report::default();
        let network = Fields::of("config", value, &report).and_then(|fields| {
            Source {
                fields,
                report: &report,
            }
            .read()
        });
        report.conclude(network)
    }
}
