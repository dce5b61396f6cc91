//! Virtual networks, as far as they can be decided without a host. Pure.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `dnsmasq` | dnsmasq's configuration file |
//! | `leases` | its file of leases |
//! | `guard` | what may be forwarded from and to the bridges |
//!
//! Invariant: everything that reaches a file of dnsmasq's or nft's is a checked value, printed by us.
//! Neighbours: [`crate::config`] reads what a user wants; `manager::networks` makes it so.

mod dnsmasq;
mod guard;
mod leases;

pub use dnsmasq::dnsmasq_conf;
pub use guard::{guard_removal, guard_table, guard_text};
pub use leases::{Lease, parse_leases};

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::config::{NetworkName, VirtualNetwork};
use crate::types::{Ipv4Subnet, MacAddr};

/// The bridge's hardware address, by which it is known to be ours: the kernel gives it to the bridge as it
/// makes it, and nobody else does. Also, machines then find the same gateway whatever is plugged in.
pub fn bridge_mac(state_dir: &Path, network: &VirtualNetwork) -> MacAddr {
    let mut hash = Sha256::new();
    hash.update(state_dir.as_os_str().as_encoded_bytes());
    hash.update([0]);
    hash.update(network.name.as_str());
    let digest = hash.finalize();
    MacAddr::of_bridge([digest[0], digest[1], digest[2], digest[3]])
}

/// The cgroup that a network's dnsmasq is in. Its name is no other's: the last 8 digits are the directory's.
pub fn scope_name(state_dir: &Path, name: &NetworkName) -> String {
    format!("dnsmasq-{name}-{}.scope", tag(state_dir))
}

/// What tells the networks of one directory from those of others: 8 hex digits.
fn tag(state_dir: &Path) -> String {
    let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
    let [a, b, c, d] = std::array::from_fn(|octet| digest[octet]);
    format!("{a:02x}{b:02x}{c:02x}{d:02x}")
}

/// The first of these whose subnet has addresses of `network`'s.
pub fn overlapping<'a>(
    network: &VirtualNetwork,
    others: impl IntoIterator<Item = &'a VirtualNetwork>,
) -> Option<&'a VirtualNetwork> {
    let mut others = others.into_iter();
    others.find(|other| other.name != network.name && other.subnet.overlaps(network.subnet))
}

/// The first of the host's own networks that has addresses of `network`'s.
pub fn overlapping_host(network: &VirtualNetwork, host: &[Ipv4Subnet]) -> Option<Ipv4Subnet> {
    host.iter()
        .copied()
        .find(|subnet| subnet.overlaps(network.subnet))
}
