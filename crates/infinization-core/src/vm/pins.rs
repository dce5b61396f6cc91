//! Addresses that machines were given by a network of ours, and may not leave.
//!
//! Invariants: an address is one machine's; a machine keeps its own until another lease says otherwise, since
//! what is read while the file is written must open nobody. Neighbours: `manager::networks` learns them from
//! leases, the firewall is compiled with them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::types::{LinkName, MacAddr};

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pins(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Known {
    bridges: HashMap<LinkName, HashMap<MacAddr, Ipv4Addr>>,
    changed: HashSet<MacAddr>,
}

impl Pins {
    /// The address of the machine on this bridge; none if it is free to choose.
    pub fn of(&self, bridge: &LinkName, mac: MacAddr) -> Vec<IpAddr> {
        let known = self.known();
        let found = known.bridges.get(bridge).and_then(|all| all.get(&mac));
        found
            .map(|address| IpAddr::V4(*address))
            .into_iter()
            .collect()
    }

    /// These were given on this bridge.
    pub fn learn(&self, bridge: &LinkName, given: impl IntoIterator<Item = (MacAddr, Ipv4Addr)>) {
        let mut known = self.known();
        let Known { bridges, changed } = &mut *known;
        let all = bridges.entry(bridge.clone()).or_default();
        for (mac, address) in given {
            if all.get(&mac) == Some(&address) {
                continue;
            }
            let before = all.iter().find(|(_, its)| **its == address);
            if let Some(before) = before.map(|(other, _)| *other) {
                all.remove(&before);
                changed.insert(before);
            }
            all.insert(mac, address);
            changed.insert(mac);
        }
        if !changed.is_empty() {
            self.0.told.notify_one();
        }
    }

    /// The bridge's machines are free.
    pub fn forget(&self, bridge: &LinkName) {
        let mut known = self.known();
        if let Some(all) = known.bridges.remove(bridge) {
            known.changed.extend(all.into_keys());
            self.0.told.notify_one();
        }
    }

    /// Whose address has changed since this was asked last; waits until there is one. For one asker.
    pub async fn changed(&self) -> HashSet<MacAddr> {
        loop {
            let changed = std::mem::take(&mut self.known().changed);
            if !changed.is_empty() {
                return changed;
            }
            self.0.told.notified().await;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_one_machine_s_and_stays_until_it_is_given_another() {
        let pins = Pins::default();
        let bridge = LinkName::parse("br-a").unwrap();
        let mac = |last: u8| MacAddr::new([2, 0, 0, 0, 0, last]).unwrap();
        let ip = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        let of = |last: u8| pins.of(&bridge, mac(last));
        pins.learn(&bridge, [(mac(1), ip(1)), (mac(2), ip(2))]);
        assert_eq!(pins.changed().await, HashSet::from([mac(1), mac(2)]));
        pins.learn(&bridge, []);
        assert_eq!(
            of(1),
            [IpAddr::V4(ip(1))],
            "a file that is half written frees nobody"
        );
        pins.learn(&bridge, [(mac(2), ip(1))]);
        assert_eq!((of(1), of(2)), (vec![], vec![IpAddr::V4(ip(1))]));
        assert_eq!(pins.changed().await, HashSet::from([mac(1), mac(2)]));
        assert!(
            pins.of(&LinkName::parse("br-b").unwrap(), mac(2))
                .is_empty()
        );
        pins.forget(&bridge);
        assert_eq!(pins.changed().await, HashSet::from([mac(2)]));
        assert!(of(2).is_empty());
    }
}
