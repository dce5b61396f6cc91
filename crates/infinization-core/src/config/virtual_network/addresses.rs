//! Addresses of a virtual network, as text and beside each other.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::config::fields::string;
use crate::types::{InvalidValue, Ipv4Subnet};

pub(super) fn subnet(value: &Value) -> Result<Ipv4Subnet, InvalidValue> {
    let subnet = Ipv4Subnet::parse(string(value)?)?;
    if !(8..=29).contains(&subnet.prefix()) {
        return Err(InvalidValue::new("must have a prefix of 8 to 29 bits"));
    }
    let first = subnet.network();
    if first.is_loopback()
        || first.is_multicast()
        || first.octets()[0] == 0
        || first.octets()[0] >= 240
    {
        return Err(InvalidValue::new("must be a network of unicast addresses"));
    }
    Ok(subnet)
}

pub(super) fn address(value: &Value) -> Result<Ipv4Addr, InvalidValue> {
    let text = string(value)?;
    text.parse()
        .map_err(|_| InvalidValue::new("must be an IPv4 address like 10.20.0.1"))
}

pub(super) fn host_of(subnet: Ipv4Subnet, address: Ipv4Addr) -> Result<Ipv4Addr, InvalidValue> {
    if subnet.is_host(address) {
        return Ok(address);
    }
    let why = format!("must be a machine's address in {subnet}");
    Err(InvalidValue::new(why))
}

pub(super) fn after(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address).saturating_add(1))
}
