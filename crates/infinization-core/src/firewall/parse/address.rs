//! Addresses and masks, IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr};

use crate::firewall::rule::{Network, RuleError};

/// Reads an address and its mask; an absent or empty address is no network, whatever the mask.
///
/// `std` refuses leading zeros, which nft would read as octal.
pub(in crate::firewall) fn network(
    address: Option<&str>,
    mask: Option<&str>,
) -> Result<Option<Network>, RuleError> {
    let Some(text) = given(address) else {
        return Ok(None);
    };
    let address: IpAddr = text
        .parse()
        .map_err(|_| RuleError::Address(text.to_owned()))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match given(mask) {
        None => longest,
        Some(mask) => prefix_length(mask, address).ok_or_else(|| RuleError::Mask {
            mask: mask.to_owned(),
            address,
        })?,
    };
    Ok(Some(Network { address, prefix }))
}

/// A mask as a prefix length: a plain number, or (IPv4 only) dotted and without holes.
pub(in crate::firewall) fn prefix_length(mask: &str, address: IpAddr) -> Option<u8> {
    let canonical = |length: &u8| length.to_string() == mask;
    match (mask.parse::<u8>().ok().filter(canonical), address) {
        (Some(length), IpAddr::V4(_)) => (length <= 32).then_some(length),
        (Some(length), IpAddr::V6(_)) => (length <= 128).then_some(length),
        (None, IpAddr::V4(_)) => dotted_length(mask),
        (None, IpAddr::V6(_)) => None,
    }
}

fn dotted_length(mask: &str) -> Option<u8> {
    let bits = u32::from(mask.parse::<Ipv4Addr>().ok()?);
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then(|| u8::try_from(ones).ok())?
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}
