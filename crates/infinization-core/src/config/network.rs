//! The one network card and where it is plugged in.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{elements, string};
use super::words;
use crate::types::{InvalidValue, LinkName, MacAddr};

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
    /// What its packets may come from.
    #[serde(default, skip_serializing_if = "MachineAddresses::is_empty")]
    pub addresses: MachineAddresses,
}

impl NetworkConfig {
    /// More than this many queue pairs gain nothing here; the public contract stops there too.
    pub const MOST_QUEUES: u8 = 4;
}

/// The addresses that a machine may use, in order, each once.
///
/// In a family of which none is among them it is free to choose; the unset address (`0.0.0.0`, `::`) leaves it none of its
/// family but link-local ones of IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct MachineAddresses(Vec<IpAddr>);

impl MachineAddresses {
    /// More a machine cannot have: a rule of the kernel's holds so many comparisons and no more.
    pub const MOST: usize = 32;

    /// Reads a list of addresses.
    pub fn parse(list: &Value) -> Result<Self, InvalidValue> {
        let texts = elements(list)?
            .iter()
            .map(|it| string(it).map(str::to_owned));
        Self::try_from(texts.collect::<Result<Vec<_>, _>>()?)
    }

    /// Each of them.
    pub fn as_slice(&self) -> &[IpAddr] {
        &self.0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Vec<String>> for MachineAddresses {
    type Error = InvalidValue;
    fn try_from(texts: Vec<String>) -> Result<Self, InvalidValue> {
        if texts.len() > Self::MOST {
            let most = Self::MOST;
            return Err(InvalidValue::new(format!(
                "must hold at most {most} addresses"
            )));
        }
        let read = |(index, text): (usize, &String)| {
            let address = text.parse().ok().filter(is_one_machine_s);
            address.ok_or_else(|| {
                InvalidValue::new(format!(
                    "must hold IPv4 and IPv6 addresses that one machine can have; that at {index} is none"
                ))
            })
        };
        let read: Result<BTreeSet<_>, _> = texts.iter().enumerate().map(read).collect();
        Ok(Self(read?.into_iter().collect()))
    }
}

fn is_one_machine_s(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_loopback() && v6.to_ipv4_mapped().is_none(),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_read_strictly_and_kept_in_order_each_once() {
        let list = json!([
            "fd00::5",
            "10.0.0.5",
            "FD00:0::5",
            "0.0.0.0",
            "fe80::7",
            "::"
        ]);
        let read = MachineAddresses::parse(&list).unwrap();
        let kept = json!(["0.0.0.0", "10.0.0.5", "::", "fd00::5", "fe80::7"]);
        assert_eq!(serde_json::to_value(&read).unwrap(), kept);
        assert_eq!(
            serde_json::from_value::<MachineAddresses>(kept).unwrap(),
            read
        );
        for bad in [
            "010.0.0.5",
            "10.0.0",
            "10.0.0.5/32",
            " 10.0.0.5",
            "224.0.0.1",
            "255.255.255.255",
            "127.0.0.1",
            "::1",
            "ff02::1",
            "::ffff:10.0.0.5",
            "fe80::1%eth0",
            "",
            "host",
        ] {
            assert!(
                MachineAddresses::parse(&json!(["10.0.0.5", bad])).is_err(),
                "{bad:?} was taken"
            );
        }
        for bad in [
            json!("10.0.0.5"),
            json!([5]),
            json!({}),
            json!(vec!["10.0.0.5"; 33]),
        ] {
            assert!(MachineAddresses::parse(&bad).is_err(), "{bad}");
        }
    }
}
