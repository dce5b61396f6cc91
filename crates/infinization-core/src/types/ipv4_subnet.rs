//! IPv4 networks by address and prefix.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// An IPv4 network as it is written: `10.20.0.0/24`, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Subnet {
    network: u32,
    prefix: u8,
}

impl Ipv4Subnet {
    /// Reads `a.b.c.d/n`: octets without leading zeros (they would be octal elsewhere), prefix 0 to 32.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let malformed = || InvalidValue::new("must be an IPv4 network like 10.20.0.0/24");
        let (address, length) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let prefix: u8 = length.parse().map_err(|_| malformed())?;
        if prefix.to_string() != length || prefix > 32 {
            return Err(malformed());
        }
        let subnet = Self::around(address, prefix);
        if subnet.network() != address {
            let why = format!("must not have host bits: {subnet} is the network");
            return Err(InvalidValue::new(why));
        }
        Ok(subnet)
    }

    /// The network of this prefix that an address is in. Prefixes above 32 are 32.
    pub fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        let network = u32::from(address) & mask(prefix);
        Self { network, prefix }
    }

    /// Its first address, which names it.
    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    /// Its last address, which everybody hears.
    pub fn broadcast(self) -> Ipv4Addr {
        (self.network | !mask(self.prefix)).into()
    }

    /// Its mask.
    pub fn netmask(self) -> Ipv4Addr {
        mask(self.prefix).into()
    }

    /// The prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether a machine of the network may have this address.
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network() && address != self.broadcast()
    }

    /// Whether the address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Ipv4Subnet {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Ipv4Subnet {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        Self::parse(&text)
    }
}

impl From<Ipv4Subnet> for String {
    fn from(subnet: Ipv4Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Ipv4Subnet {
        Ipv4Subnet::parse(text).unwrap()
    }

    #[test]
    fn b25_a_network_is_read_strictly() {
        for good in ["10.20.0.0/24", "0.0.0.0/0", "192.0.2.1/32"] {
            assert_eq!(subnet(good).to_string(), good);
        }
        for bad in [
            "10.20.0.1/24",
            "10.20.0.0",
            "10.20.0.0/33",
            "10.20.0.0/024",
            "010.0.0.0/8",
            "10.20.0.0/+8",
            " 10.0.0.0/8",
            "10.0.0.0/255.0.0.0",
            "fd00::/64",
            "",
        ] {
            assert!(Ipv4Subnet::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn its_ends_are_no_hosts() {
        let net = subnet("10.20.0.0/29");
        assert_eq!(net.broadcast(), Ipv4Addr::new(10, 20, 0, 7));
        assert_eq!(net.netmask(), Ipv4Addr::new(255, 255, 255, 248));
        let hosts = (0..=8).filter(|&octet| net.is_host(Ipv4Addr::new(10, 20, 0, octet)));
        assert_eq!(hosts.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn networks_overlap_when_one_is_in_the_other() {
        for (one, other, overlap) in [
            ("10.0.0.0/8", "10.20.0.0/24", true),
            ("10.20.0.0/24", "10.20.1.0/24", false),
            ("10.20.0.0/24", "10.20.0.0/24", true),
            ("0.0.0.0/0", "192.0.2.0/24", true),
        ] {
            assert_eq!(
                subnet(one).overlaps(subnet(other)),
                overlap,
                "{one} {other}"
            );
            assert_eq!(
                subnet(other).overlaps(subnet(one)),
                overlap,
                "{other} {one}"
            );
        }
    }
}
