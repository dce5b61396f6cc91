//! Addresses that machines were given by a network of ours, and may not leave.
//!
//! Invariants: an address is one machine's; a machine keeps its own until another lease says otherwise, and is
//! never free again while there is the network, since neither what is read while the file is written nor a lease
//! that another was given may open anybody. Neighbours: `manager::networks` learns them from
//! leases, the firewall is compiled with them.

use std::collections::{BTreeSet, HashMap, HashSet};
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

type Addresses = HashMap<MacAddr, BTreeSet<Ipv4Addr>>;

/// What the machines on a bridge had at some time.
#[derive(Debug)]
pub struct Pinned(Addresses);

#[derive(Debug, Default)]
struct Known {
    bridges: HashMap<LinkName, Addresses>,
    changed: HashSet<MacAddr>,
}

impl Pins {
    /// The addresses of the machine on this bridge; none if it is free to choose. One that had its address taken
    /// may use no more than the unset one, by which it asks for another.
    pub fn of(&self, bridge: &LinkName, mac: MacAddr) -> Vec<IpAddr> {
        let known = self.known();
        match known.bridges.get(bridge).and_then(|all| all.get(&mac)) {
            None => Vec::new(),
            Some(its) if its.is_empty() => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            Some(its) => its.iter().copied().map(IpAddr::V4).collect(),
        }
    }

    /// These were given on this bridge: they are all that the machines among them have. Of an address that is
    /// given twice the later counts.
    pub fn learn(&self, bridge: &LinkName, given: impl IntoIterator<Item = (MacAddr, Ipv4Addr)>) {
        let (mut said, mut owners) = (Addresses::new(), HashMap::new());
        for (mac, address) in given {
            said.entry(mac).or_default();
            owners.insert(address, mac);
        }
        for (address, mac) in &owners {
            said.entry(*mac).or_default().insert(*address);
        }
        let mut known = self.known();
        let Known { bridges, changed } = &mut *known;
        let all = bridges.entry(bridge.clone()).or_default();
        for (mac, its) in all.iter_mut() {
            let kept = || its.iter().filter(|it| !owners.contains_key(it)).copied();
            let now = said.remove(mac).unwrap_or_else(|| kept().collect());
            if *its != now {
                *its = now;
                changed.insert(*mac);
            }
        }
        changed.extend(said.keys());
        all.extend(said);
        if !changed.is_empty() {
            self.0.told.notify_one();
        }
    }

    /// What the bridge's machines have.
    pub fn on(&self, bridge: &LinkName) -> Pinned {
        Pinned(
            self.known()
                .bridges
                .get(bridge)
                .cloned()
                .unwrap_or_default(),
        )
    }

    /// The bridge's machines have what they had, and nothing that was learned since.
    pub fn put_back(&self, bridge: &LinkName, Pinned(had): Pinned) {
        let mut known = self.known();
        let Known { bridges, changed } = &mut *known;
        let have = bridges.remove(bridge).unwrap_or_default();
        let differs = |mac: &&MacAddr| have.get(mac) != had.get(mac);
        changed.extend(have.keys().chain(had.keys()).filter(differs));
        bridges.insert(bridge.clone(), had);
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
        let nothing = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        assert_eq!((of(1), of(2)), (nothing.clone(), vec![IpAddr::V4(ip(1))]));
        assert_eq!(pins.changed().await, HashSet::from([mac(1), mac(2)]));
        assert!(
            pins.of(&LinkName::parse("br-b").unwrap(), mac(2))
                .is_empty()
        );
        pins.learn(&bridge, [(mac(3), ip(1)), (mac(2), ip(1))]);
        assert_eq!(of(3), nothing, "whose address is another's is not free");
        assert_eq!(pins.changed().await, HashSet::from([mac(3)]));
        pins.forget(&bridge);
        assert_eq!(
            pins.changed().await,
            HashSet::from([mac(1), mac(2), mac(3)])
        );
        assert!(of(1).is_empty() && of(2).is_empty());
    }

    #[tokio::test]
    async fn what_was_learned_for_nothing_is_taken_back() {
        let pins = Pins::default();
        let bridge = LinkName::parse("br-a").unwrap();
        let mac = |last: u8| MacAddr::new([2, 0, 0, 0, 0, last]).unwrap();
        let ip = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        pins.learn(&bridge, [(mac(1), ip(1)), (mac(2), ip(2))]);
        let had = pins.on(&bridge);
        pins.learn(&bridge, [(mac(1), ip(9)), (mac(3), ip(3))]);
        pins.changed().await;
        pins.put_back(&bridge, had);
        assert_eq!(pins.changed().await, HashSet::from([mac(1), mac(3)]));
        assert_eq!(pins.of(&bridge, mac(1)), [IpAddr::V4(ip(1))]);
        assert_eq!(pins.of(&bridge, mac(2)), [IpAddr::V4(ip(2))]);
        assert!(pins.of(&bridge, mac(3)).is_empty());
    }

    #[tokio::test]
    async fn a_machine_may_use_all_that_it_was_given() {
        let pins = Pins::default();
        let bridge = LinkName::parse("br-a").unwrap();
        let mac = MacAddr::new([2, 0, 0, 0, 0, 1]).unwrap();
        let ips = [9, 5].map(|last| Ipv4Addr::new(10, 0, 0, last));
        pins.learn(&bridge, ips.map(|ip| (mac, ip)));
        assert_eq!(
            pins.of(&bridge, mac),
            [IpAddr::V4(ips[1]), IpAddr::V4(ips[0])]
        );
        assert_eq!(pins.changed().await, HashSet::from([mac]));
        pins.learn(&bridge, [(mac, ips[0])]);
        assert_eq!(pins.of(&bridge, mac), [IpAddr::V4(ips[0])]);
        assert_eq!(pins.changed().await, HashSet::from([mac]));
    }
}
