//! The addresses of a bridge.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use nix::errno::Errno;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use super::BridgeError;
use crate::firewall::Network;
use crate::host::link::{Link, LinkError, Links};
use crate::types::{InvalidValue, LinkName};

/// An IPv4 address of an interface and the length of its network prefix: `10.0.3.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv4Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Cidr {
    /// Reads `a.b.c.d/n`: octets 0 to 255 without leading zeros (they would be octal elsewhere),
    /// prefix 0 to 32.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let malformed =
            || InvalidValue::new("must be an IPv4 address and a prefix like 10.0.3.1/24");
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let plain = (1..=2).contains(&prefix.len()) && prefix.chars().all(|c| c.is_ascii_digit());
        if !plain || (prefix.len() == 2 && prefix.starts_with('0')) {
            return Err(malformed());
        }
        let address = address.parse().map_err(|_| malformed())?;
        let prefix = prefix.parse().map_err(|_| malformed())?;
        if prefix > 32 {
            return Err(malformed());
        }
        Ok(Self { address, prefix })
    }

    /// The address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    fn message(self, index: u32) -> AddressMessage {
        AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(self.address, self.prefix)
            .build()
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        Self::parse(text)
    }
}

/// An address the kernel reports, of either family; `Display` gives `address/prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    /// The interface's own address.
    pub address: IpAddr,
    /// The prefix length in bits.
    pub prefix: u8,
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl InterfaceAddress {
    /// Of a point-to-point address only IFA_LOCAL is our end; IPv6 has IFA_ADDRESS alone.
    fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(local) => address = Some(*local),
                AddressAttribute::Address(other) => address = address.or(Some(*other)),
                _ => {}
            }
        }
        address.map(|address| Self {
            address,
            prefix: message.header.prefix_len,
        })
    }
}

/// Gives the bridge an address; it may have it already.
pub async fn assign_address(
    links: &Links,
    bridge: &LinkName,
    cidr: Ipv4Cidr,
) -> Result<(), BridgeError> {
    let index = links.find_bridge(bridge).await?.index;
    let request = RouteNetlinkMessage::NewAddress(cidr.message(index));
    match links
        .request(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        .await
    {
        Err(refusal) if refusal.errno() != Some(Errno::EEXIST) => {
            Err(refusal.of("giving an address to", bridge).into())
        }
        _ => Ok(()),
    }
}

/// Takes an address off the bridge; it may not have it.
pub async fn remove_address(
    links: &Links,
    bridge: &LinkName,
    cidr: Ipv4Cidr,
) -> Result<(), BridgeError> {
    let index = links.find_bridge(bridge).await?.index;
    let request = RouteNetlinkMessage::DelAddress(cidr.message(index));
    match links.request(request, NLM_F_ACK).await {
        Err(refusal) if refusal.errno() != Some(Errno::EADDRNOTAVAIL) => {
            Err(refusal.of("taking an address off", bridge).into())
        }
        _ => Ok(()),
    }
}

/// The bridge's addresses of both families.
pub async fn addresses(
    links: &Links,
    bridge: &LinkName,
) -> Result<Vec<InterfaceAddress>, BridgeError> {
    let index = links.find_bridge(bridge).await?.index;
    let all = all_addresses(links).await?.into_iter();
    Ok(all
        .filter(|(at, _)| *at == index)
        .map(|(_, found)| found)
        .collect())
}

impl From<InterfaceAddress> for Network {
    fn from(found: InterfaceAddress) -> Self {
        Self {
            address: found.address,
            prefix: found.prefix,
        }
    }
}

/// The addresses of these bridges, and of the one that the port is on; none if there is no such bridge.
pub async fn addresses_beside(
    links: &Links,
    port: &LinkName,
    bridges: &[&LinkName],
) -> Result<Option<Vec<InterfaceAddress>>, BridgeError> {
    let port = links.find(port).await?;
    let mut indices = Vec::from_iter(port.and_then(|port| port.master));
    for bridge in bridges {
        let bridge = links.find(bridge).await?.filter(Link::is_bridge);
        indices.extend(bridge.map(|bridge| bridge.index));
    }
    if indices.is_empty() {
        return Ok(None);
    }
    let all = all_addresses(links).await?.into_iter();
    let its = all.filter(|(at, _)| indices.contains(at));
    Ok(Some(its.map(|(_, found)| found).collect()))
}

/// Every interface's addresses of both families, each with the interface's index.
pub async fn all_addresses(links: &Links) -> Result<Vec<(u32, InterfaceAddress)>, BridgeError> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answers = links.request(question, NLM_F_DUMP).await;
    let answers = answers.map_err(|source| LinkError::List {
        what: "addresses",
        source,
    })?;
    let addresses = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(message) => {
            let address = InterfaceAddress::from_message(&message)?;
            Some((message.header.index, address))
        }
        _ => None,
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ip_address_prints() {
        for good in [
            "10.0.3.1/24",
            "0.0.0.0/0",
            "255.255.255.255/32",
            "1.2.3.4/8",
        ] {
            assert_eq!(Ipv4Cidr::parse(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn refuses_what_others_would_read_differently() {
        for bad in [
            "10.0.3.1",
            "10.0.3.1/",
            "10.0.3.1/33",
            "10.0.3.1/024",
            "10.0.3.1/08",
            "10.0.3.1/+8",
            "010.0.3.1/24",
            "256.0.0.1/24",
            "10.0.3/24",
            "10.0.3.1/24/8",
            " 10.0.3.1/24",
            "10.0.3.1/24\n",
            "::1/64",
            "10.0.3.1/255.255.255.0",
            "",
        ] {
            assert!(Ipv4Cidr::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
