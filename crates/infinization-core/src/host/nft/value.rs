//! What fields are compared with, in the bytes the kernel compares. Pure; [`super::encode`] puts them into
//! expressions.

use std::net::IpAddr;

use crate::firewall::{Field, Item, Transport};

/// `IFNAMSIZ`: the length of a port's name as a key.
const PORT_NAME: usize = 16;

/// `nft`'s number for the type of the field's values.
pub(super) fn data_type(field: Field) -> u32 {
    match field {
        Field::Iifname | Field::Oifname => 41,
        Field::Iif | Field::Oif => 20,
        Field::EtherSource | Field::ArpSenderEther => 9,
        Field::Protocol => 10,
        Field::L4Proto | Field::FragmentNext => 12,
        Field::Ip(_) | Field::ArpSenderIp => 7,
        Field::Ip6(_) => 8,
        Field::Port(Transport::Tcp | Transport::Udp, _) => 13,
        Field::TcpSynAck | Field::TcpRst => 15,
        Field::IcmpType => 14,
        Field::Icmpv6Type => 29,
        Field::NdTarget
        | Field::NdTargetNetwork
        | Field::FragmentMore
        | Field::Ip4FragmentMore
        | Field::DhcpClient => 4,
        Field::CtState => 26,
        Field::Mark(_) => 19,
    }
}

/// A single value, as the register holds the field.
pub(super) fn value(field: Field, item: &Item) -> Option<Vec<u8>> {
    match item {
        Item::Number(number) if is_octet(field) => Some(vec![u8::try_from(*number).ok()?]),
        Item::Number(number) => Some(number.to_be_bytes().to_vec()),
        Item::Word(word) => word_value(field, word),
        Item::Range(..) | Item::Prefix(..) => None,
    }
}

fn is_octet(field: Field) -> bool {
    matches!(field, Field::FragmentNext | Field::FragmentMore)
}

fn word_value(field: Field, word: &str) -> Option<Vec<u8>> {
    match field {
        Field::Iifname | Field::Oifname => match word.strip_suffix('*') {
            Some(prefix) => Some(prefix.as_bytes().to_vec()),
            None => Some(port_name(word).to_vec()),
        },
        Field::EtherSource | Field::ArpSenderEther => mac(word),
        Field::Protocol => {
            let number: u16 = match word {
                "ip" => 0x0800,
                "arp" => 0x0806,
                "ip6" => 0x86dd,
                _ => return None,
            };
            Some(number.to_be_bytes().to_vec())
        }
        Field::Ip(_) | Field::ArpSenderIp | Field::Ip6(_) => match word.parse().ok()? {
            IpAddr::V4(address) => Some(address.octets().to_vec()),
            IpAddr::V6(address) => Some(address.octets().to_vec()),
        },
        Field::NdTarget => {
            let digits = word.strip_prefix("0x")?;
            Some(
                u128::from_str_radix(digits, 16)
                    .ok()?
                    .to_be_bytes()
                    .to_vec(),
            )
        }
        Field::NdTargetNetwork => {
            let network = u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()?;
            Some(network.to_be_bytes().to_vec())
        }
        Field::DhcpClient => {
            let digits = word.strip_prefix("0x")?;
            let client = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
            Some(client[2..].to_vec())
        }
        Field::CtState => {
            let state: u32 = match word {
                "invalid" => 1,
                "established" => 2,
                "related" => 4,
                "new" => 8,
                _ => return None,
            };
            Some(state.to_ne_bytes().to_vec())
        }
        Field::Mark(_) => {
            let mark = u32::from_str_radix(word.strip_prefix("0x")?, 16).ok()?;
            Some(mark.to_ne_bytes().to_vec())
        }
        Field::Iif | Field::Oif => Some(word.parse::<u32>().ok()?.to_ne_bytes().to_vec()),
        Field::L4Proto | Field::TcpSynAck | Field::TcpRst => octet(word),
        Field::IcmpType => (word == "destination-unreachable").then(|| vec![3]),
        Field::Icmpv6Type => icmpv6_type(word),
        Field::Port(..) | Field::FragmentNext | Field::FragmentMore | Field::Ip4FragmentMore => {
            None
        }
    }
}

fn octet(word: &str) -> Option<Vec<u8>> {
    let number = match word {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "ipv6-icmp" => 58,
        "syn" => 0x02,
        "rst" => 0x04,
        _ => return None,
    };
    Some(vec![number])
}

fn icmpv6_type(word: &str) -> Option<Vec<u8>> {
    let number = match word {
        "destination-unreachable" => 1,
        "mld-listener-query" => 130,
        "mld-listener-report" => 131,
        "mld-listener-done" => 132,
        "nd-router-solicit" => 133,
        "nd-router-advert" => 134,
        "nd-neighbor-solicit" => 135,
        "nd-neighbor-advert" => 136,
        "nd-redirect" => 137,
        "mld2-listener-report" => 143,
        _ => return None,
    };
    Some(vec![number])
}

fn mac(word: &str) -> Option<Vec<u8>> {
    let octets = word
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).ok());
    octets
        .collect::<Option<Vec<_>>>()
        .filter(|mac| mac.len() == 6)
}

pub(super) fn port_name(name: &str) -> [u8; PORT_NAME] {
    let mut key = [0; PORT_NAME];
    let length = name.len().min(PORT_NAME);
    key[..length].copy_from_slice(&name.as_bytes()[..length]);
    key
}

/// A network and its mask, in bytes.
pub(super) fn masked(network: IpAddr, length: u8) -> (Vec<u8>, Vec<u8>) {
    let length = u32::from(length);
    match network {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let network = u32::from(address) & mask;
            (network.to_be_bytes().to_vec(), mask.to_be_bytes().to_vec())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            let network = u128::from(address) & mask;
            (network.to_be_bytes().to_vec(), mask.to_be_bytes().to_vec())
        }
    }
}
