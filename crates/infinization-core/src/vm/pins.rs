//! Addresses that machines were given by a network of ours, and may not leave.
//!
//! Invariants: on a bridge whose machines are held to their addresses, one of which none is known may use none: it asks
//! for one. An address is one machine's; a machine keeps its own until another lease says otherwise, since neither
//! what is read while the file is written nor a lease that another was given may open anybody. What a lease that has
//! ended gave is forgotten with this process: the machine asks again. These networks have no IPv6, so that their
//! machines have no such addresses but link-local ones. Neighbours: `manager::networks` learns them from
//! leases, the firewall is compiled with them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::config::NetworkConfig;
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

/// What the machines on a bridge had at some time, if they were held to it.
#[derive(Debug)]
pub struct Pinned(Option<Addresses>);

#[derive(Debug, Default)]
struct Known {
    bridges: HashMap<LinkName, Addresses>,
    changed: Changed,
}

/// Whose addresses have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// These machines', whatever bridge they are on.
    pub macs: HashSet<MacAddr>,
    /// Those of all machines on these bridges.
    pub bridges: HashSet<LinkName>,
}

impl Changed {
    fn is_empty(&self) -> bool {
        self.macs.is_empty() && self.bridges.is_empty()
    }

    /// Whether the machine's are among them.
    pub fn concerns(&self, network: &NetworkConfig) -> bool {
        self.macs.contains(&network.mac) || self.bridges.contains(&network.bridge)
    }
}

impl Pins {
    /// The addresses of the machine on this bridge; none if it is free to choose. One that has none, or had its
    /// address taken, may use no more than the unset ones, by which it asks for another.
    pub fn of(&self, bridge: &LinkName, mac: MacAddr) -> Vec<IpAddr> {
        let known = self.known();
        let Some(all) = known.bridges.get(bridge) else {
            return Vec::new();
        };
        let its = all.get(&mac).into_iter().flatten().copied();
        let mut its: Vec<_> = its.map(IpAddr::V4).collect();
        if its.is_empty() {
            its.push(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        }
        its.push(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        its
    }

    /// All addresses that the machine is held to: those it is configured with, and those of its bridge's.
    pub fn known_to(&self, network: &NetworkConfig) -> Vec<IpAddr> {
        self.beside(network.addresses.as_slice(), network)
    }

    /// As [`Pins::known_to`], with these in place of those it is configured with.
    pub fn beside(&self, own: &[IpAddr], network: &NetworkConfig) -> Vec<IpAddr> {
        let mut all = own.to_vec();
        all.extend(self.of(&network.bridge, network.mac));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// From here on the bridge's machines are held to the addresses that are known of.
    pub fn hold(&self, bridge: &LinkName) {
        let mut known = self.known();
        if !known.bridges.contains_key(bridge) {
            known.bridges.insert(bridge.clone(), Addresses::new());
            known.changed.bridges.insert(bridge.clone());
            self.0.told.notify_one();
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
        if !bridges.contains_key(bridge) {
            changed.bridges.insert(bridge.clone());
        }
        let all = bridges.entry(bridge.clone()).or_default();
        for (mac, its) in all.iter_mut() {
            let kept = || its.iter().filter(|it| !owners.contains_key(it)).copied();
            let now = said.remove(mac).unwrap_or_else(|| kept().collect());
            if *its != now {
                *its = now;
                changed.macs.insert(*mac);
            }
        }
        changed.macs.extend(said.keys());
        all.extend(said);
        if !changed.is_empty() {
            self.0.told.notify_one();
        }
    }

    /// What the bridge's machines have.
    pub fn on(&self, bridge: &LinkName) -> Pinned {
        Pinned(self.known().bridges.get(bridge).cloned())
    }

    /// The bridge's machines have what they had, and nothing that was learned since.
    pub fn put_back(&self, bridge: &LinkName, Pinned(had): Pinned) {
        let Some(had) = had else {
            return self.forget(bridge);
        };
        let mut known = self.known();
        let Known { bridges, changed } = &mut *known;
        match bridges.remove(bridge) {
            None => drop(changed.bridges.insert(bridge.clone())),
            Some(have) => {
                let differs = |mac: &&MacAddr| have.get(mac) != had.get(mac);
                changed
                    .macs
                    .extend(have.keys().chain(had.keys()).filter(differs));
            }
        }
        bridges.insert(bridge.clone(), had);
        if !changed.is_empty() {
            self.0.told.notify_one();
        }
    }

    /// The bridge's machines are free.
    pub fn forget(&self, bridge: &LinkName) {
        let mut known = self.known();
        if known.bridges.remove(bridge).is_some() {
            known.changed.bridges.insert(bridge.clone());
            self.0.told.notify_one();
        }
    }

    /// Whose addresses have changed since this was asked last; waits until there is one. For one asker.
    pub async fn changed(&self) -> Changed {
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
    use serde_json::json;

    use super::*;
    use crate::config::{MachineAddresses, NetworkModel};

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last]).unwrap()
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn bridge() -> LinkName {
        LinkName::parse("br-a").unwrap()
    }

    /// What one has that may use these, and of IPv6 none.
    fn only<const N: usize>(own: [u8; N]) -> Vec<IpAddr> {
        let mut own: Vec<_> = own.map(|last| IpAddr::V4(ip(last))).into();
        if own.is_empty() {
            own.push(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        }
        own.push(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        own
    }

    fn machines<const N: usize>(macs: [u8; N]) -> Changed {
        Changed {
            macs: macs.map(mac).into(),
            bridges: HashSet::new(),
        }
    }

    async fn all_have_changed(pins: &Pins) -> bool {
        pins.changed().await.bridges.contains(&bridge())
    }

    #[tokio::test]
    async fn an_address_is_one_machine_s_and_stays_until_it_is_given_another() {
        let (pins, bridge) = (Pins::default(), bridge());
        let of = |last: u8| pins.of(&bridge, mac(last));
        pins.learn(&bridge, [(mac(1), ip(1)), (mac(2), ip(2))]);
        assert!(all_have_changed(&pins).await);
        pins.learn(&bridge, []);
        assert_eq!(of(1), only([1]), "a file that is half written frees nobody");
        pins.learn(&bridge, [(mac(2), ip(1))]);
        assert_eq!((of(1), of(2)), (only([]), only([1])));
        assert_eq!(pins.changed().await, machines([1, 2]));
        let elsewhere = LinkName::parse("br-b").unwrap();
        assert!(pins.of(&elsewhere, mac(2)).is_empty());
        pins.learn(&bridge, [(mac(3), ip(1)), (mac(2), ip(1))]);
        assert_eq!(of(3), only([]), "whose address is another's is not free");
        assert_eq!(pins.changed().await, machines([3]));
        pins.forget(&bridge);
        assert!(all_have_changed(&pins).await);
        assert!(of(1).is_empty() && of(2).is_empty());
    }

    #[tokio::test]
    async fn one_of_which_no_address_is_known_has_none() {
        let (pins, bridge) = (Pins::default(), bridge());
        pins.hold(&bridge);
        assert!(all_have_changed(&pins).await);
        assert_eq!(pins.of(&bridge, mac(1)), only([]));
        pins.hold(&bridge);
        pins.learn(&bridge, [(mac(1), ip(1))]);
        assert_eq!(pins.changed().await, machines([1]));
        pins.hold(&bridge);
        assert_eq!(pins.of(&bridge, mac(1)), only([1]));
        assert_eq!(pins.of(&bridge, mac(2)), only([]));
        let network = NetworkConfig {
            bridge,
            mac: mac(1),
            model: NetworkModel::E1000,
            queues: 1,
            addresses: MachineAddresses::parse(&json!(["10.0.0.9", "10.0.0.1"])).unwrap(),
        };
        let unset = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let both = vec![IpAddr::V4(ip(1)), IpAddr::V4(ip(9)), unset];
        assert_eq!(pins.known_to(&network), both);
    }

    #[tokio::test]
    async fn what_was_learned_for_nothing_is_taken_back() {
        let (pins, bridge) = (Pins::default(), bridge());
        pins.learn(&bridge, [(mac(1), ip(1)), (mac(2), ip(2))]);
        let had = pins.on(&bridge);
        pins.learn(&bridge, [(mac(1), ip(9)), (mac(3), ip(3))]);
        pins.changed().await;
        pins.put_back(&bridge, had);
        assert_eq!(pins.changed().await, machines([1, 3]));
        assert_eq!(pins.of(&bridge, mac(1)), only([1]));
        assert_eq!(pins.of(&bridge, mac(2)), only([2]));
        assert_eq!(pins.of(&bridge, mac(3)), only([]));
        let elsewhere = LinkName::parse("br-b").unwrap();
        let free = pins.on(&elsewhere);
        pins.hold(&elsewhere);
        pins.put_back(&elsewhere, free);
        assert!(pins.of(&elsewhere, mac(1)).is_empty());
    }

    #[tokio::test]
    async fn a_machine_may_use_all_that_it_was_given() {
        let (pins, bridge) = (Pins::default(), bridge());
        pins.hold(&bridge);
        assert!(all_have_changed(&pins).await);
        pins.learn(&bridge, [9, 5].map(|last| (mac(1), ip(last))));
        assert_eq!(pins.of(&bridge, mac(1)), only([5, 9]));
        assert_eq!(pins.changed().await, machines([1]));
        pins.learn(&bridge, [(mac(1), ip(9))]);
        assert_eq!(pins.of(&bridge, mac(1)), only([9]));
        assert_eq!(pins.changed().await, machines([1]));
    }
}
