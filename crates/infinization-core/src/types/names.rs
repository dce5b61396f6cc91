//! The names a machine's things have on the host, derived from its id so that they are found again.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{LinkName, MacAddr, VmId};

/// The host names a VM's id stands for: its TAP, its default MAC and its nftables chain.
///
/// All three are cut from the hex SHA-256 of the id, so they survive a lost database and can be
/// compared across hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmNames {
    /// `vnet-` and the digest's first 10 hex digits.
    pub tap: LinkName,
    /// `52:54:` (the prefix QEMU guests use) and the digest's first four octets.
    pub mac: MacAddr,
    /// `vm_` and the digest's first 24 hex digits.
    pub chain: String,
}

impl VmNames {
    /// Derives the names of `vm_id`.
    pub fn of(vm_id: &VmId) -> Self {
        let digest = Sha256::digest(vm_id.as_str().as_bytes());
        let mut hex = String::with_capacity(24);
        for octet in digest.iter().take(12) {
            // Writing to a String cannot fail.
            let _infallible = write!(hex, "{octet:02x}");
        }
        Self {
            tap: LinkName::of_tap(&hex[..10]),
            mac: MacAddr::of_guest([digest[0], digest[1], digest[2], digest[3]]),
            chain: format!("vm_{hex}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_golden_names() {
        let golden = [
            (
                "vm-1",
                "vnet-2d62b0035f",
                "52:54:2d:62:b0:03",
                "vm_2d62b0035f348790d3b99c33",
            ),
            (
                "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b",
                "vnet-65b147d4b8",
                "52:54:65:b1:47:d4",
                "vm_65b147d4b8bc001d0688e813",
            ),
        ];
        for (id, tap, mac, chain) in golden {
            let names = VmNames::of(&VmId::parse(id).unwrap());
            assert_eq!(names.tap.as_str(), tap);
            assert_eq!(names.mac.to_string(), mac);
            assert_eq!(names.chain, chain);
        }
    }
}
