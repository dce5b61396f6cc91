//! Where a TAP stands: on a bridge, off it for a reason, or due back on one. Decides, and asks nobody.

use std::collections::{HashMap, HashSet};

use crate::host::link::Link;
use crate::types::LinkName;
use crate::vm::{NetworkLoss, Seat};

/// Which TAP was last seen on which bridge.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taps: HashMap<String, Seat>,
    bridges: HashMap<u32, String>,
}

/// Where a TAP stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// On a bridge, whichever it is.
    Seated,
    /// On none, and nothing is to be done now. `bridge` is the one it left.
    Lost { reason: NetworkLoss, bridge: String },
    /// The bridge it was on is gone, and there is another one of that name, with this index.
    Returns { bridge: LinkName, index: u32 },
}

impl Seats {
    /// Takes in all links, as the kernel lists them. What is known of a TAP that is on no bridge stays. Answers the
    /// TAPs that went from one bridge to another.
    pub(super) fn learn(&mut self, links: &[Link]) -> HashSet<String> {
        self.bridges.clear();
        let mut moved = HashSet::new();
        // A bridge may be listed after its ports.
        for link in links.iter().chain(links) {
            if self.changed(link) {
                moved.insert(link.name.clone());
            }
        }
        let is_there = |tap: &String| links.iter().any(|link| link.name == *tap);
        self.taps.retain(|tap, _| is_there(tap));
        moved
    }

    /// Takes in what has become of one link. Whether it is a TAP that went from one bridge to another.
    pub(super) fn changed(&mut self, link: &Link) -> bool {
        if link.is_bridge() {
            self.bridges.insert(link.index, link.name.clone());
        }
        let Some(index) = link.master.filter(|_| link.is_tap()) else {
            return false;
        };
        let before = self.taps.get(&link.name).map(|seat| seat.index);
        match self.bridges.get(&index) {
            Some(name) if before != Some(index) => {
                let name = name.clone();
                self.taps.insert(link.name.clone(), Seat { index, name });
                before.is_some()
            }
            _ => false,
        }
    }

    /// Takes in that the TAP was put on this bridge.
    pub(super) fn seated(&mut self, tap: &LinkName, index: u32, bridge: &LinkName) {
        let name = bridge.to_string();
        self.taps.insert(tap.to_string(), Seat { index, name });
    }

    /// Takes in where an earlier process has seen a TAP that this one has not seen on any bridge.
    pub(super) fn recall(&mut self, tap: &LinkName, seat: Seat) {
        self.taps.entry(tap.to_string()).or_insert(seat);
    }

    /// Where the TAP was seen last.
    pub(super) fn of(&self, tap: &LinkName) -> Option<&Seat> {
        self.taps.get(tap.as_str())
    }

    /// Takes in that a link is gone.
    pub(super) fn gone(&mut self, link: &Link) {
        self.bridges.remove(&link.index);
        self.taps.remove(&link.name);
    }

    /// Whether the TAP was last seen on the bridge with this index.
    pub(super) fn is_on(&self, tap: &LinkName, bridge: u32) -> bool {
        let seat = self.taps.get(tap.as_str());
        seat.is_some_and(|seat| seat.index == bridge)
    }

    /// The bridge the TAP waits for, if it is on none; `expected` is where it was started.
    pub(super) fn awaited<'a>(&'a self, tap: &LinkName, expected: &'a LinkName) -> &'a str {
        let seat = self.taps.get(tap.as_str());
        seat.map_or(expected.as_str(), |seat| &seat.name)
    }

    /// Where the TAP stands among all links of the host.
    pub(super) fn standing(&self, tap: &LinkName, expected: &LinkName, links: &[Link]) -> Standing {
        let named = |name: &str| links.iter().find(|link| link.name == name);
        let bridge = self.awaited(tap, expected);
        let lost = |reason| Standing::Lost {
            reason,
            bridge: bridge.to_owned(),
        };
        let Some(port) = named(tap.as_str()) else {
            return lost(NetworkLoss::TapGone);
        };
        if port.master.is_some() {
            return Standing::Seated;
        }
        let there = named(bridge).filter(|link| link.is_bridge());
        let stayed = match self.taps.get(tap.as_str()) {
            Some(seat) => links.iter().any(|link| link.index == seat.index),
            // Nobody saw it leave. The kernel counts links up: a bridge older than the TAP was there all along.
            None => there.is_some_and(|bridge| bridge.index < port.index),
        };
        if stayed {
            return lost(NetworkLoss::TakenOff);
        }
        let returns = there.and_then(|link| {
            let bridge = LinkName::parse(link.name.as_str()).ok()?;
            let index = link.index;
            Some(Standing::Returns { bridge, index })
        });
        returns.unwrap_or_else(|| lost(NetworkLoss::BridgeGone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::link::{OperState, TunInfo};

    fn link(index: u32, name: &str, kind: &str, master: Option<u32>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            alias: None,
            kind: Some(kind.to_owned()),
            master,
            mac: None,
            mtu: 1500,
            up: true,
            lower_up: true,
            carrier: true,
            operstate: OperState::Up,
            tun: (kind == "tun").then(|| TunInfo {
                tap: true,
                ..TunInfo::default()
            }),
        }
    }

    fn bridge(index: u32, name: &str) -> Link {
        link(index, name, "bridge", None)
    }

    fn tap(master: Option<u32>) -> Link {
        link(7, "vnet-1", "tun", master)
    }

    fn lost(reason: NetworkLoss, bridge: &str) -> Standing {
        let bridge = bridge.to_owned();
        Standing::Lost { reason, bridge }
    }

    fn returns(bridge: &str, index: u32) -> Standing {
        let bridge = LinkName::parse(bridge).unwrap();
        Standing::Returns { bridge, index }
    }

    fn standing(seats: &Seats, links: &[Link]) -> Standing {
        let name = |name: &str| LinkName::parse(name).unwrap();
        seats.standing(&name("vnet-1"), &name("br0"), links)
    }

    #[test]
    fn f24_a_tap_that_was_seen_on_a_bridge() {
        use NetworkLoss::{BridgeGone, TakenOff, TapGone};
        let mut seats = Seats::default();
        seats.learn(&[tap(Some(9)), bridge(9, "br0")]);
        let off = || tap(None);
        let table = [
            (vec![tap(Some(9)), bridge(9, "br0")], Standing::Seated),
            // Somebody has moved it.
            (
                vec![tap(Some(5)), bridge(5, "br5"), bridge(9, "br0")],
                Standing::Seated,
            ),
            (vec![off(), bridge(9, "br0")], lost(TakenOff, "br0")),
            (vec![off(), bridge(9, "br-new")], lost(TakenOff, "br0")),
            (vec![off(), bridge(5, "br5")], lost(BridgeGone, "br0")),
            (
                vec![off(), link(11, "br0", "veth", None)],
                lost(BridgeGone, "br0"),
            ),
            (vec![off(), bridge(11, "br0")], returns("br0", 11)),
            // A bridge that was there under another name, and has an older number.
            (vec![off(), bridge(2, "br0")], returns("br0", 2)),
            (vec![bridge(9, "br0")], lost(TapGone, "br0")),
        ];
        for (links, expected) in table {
            assert_eq!(standing(&seats, &links), expected, "{links:?}");
        }
    }

    #[test]
    fn f24_a_tap_that_was_moved_returns_to_where_it_was_last() {
        let mut seats = Seats::default();
        seats.learn(&[tap(Some(9)), bridge(9, "br0"), bridge(10, "br-b")]);
        seats.changed(&tap(Some(10)));
        let links = [tap(None), bridge(9, "br0")];
        assert_eq!(
            standing(&seats, &links),
            lost(NetworkLoss::BridgeGone, "br-b")
        );
        let links = [tap(None), bridge(9, "br0"), bridge(12, "br-b")];
        assert_eq!(standing(&seats, &links), returns("br-b", 12));
    }

    #[test]
    fn f24_a_renamed_bridge_keeps_its_ports_and_its_name_is_waited_for() {
        let mut seats = Seats::default();
        seats.learn(&[tap(Some(9)), bridge(9, "br0")]);
        seats.changed(&bridge(9, "br-old"));
        seats.changed(&tap(Some(9)));
        let links = [tap(None), bridge(12, "br0")];
        assert_eq!(standing(&seats, &links), returns("br0", 12));
    }

    #[test]
    fn f24_of_a_tap_that_nobody_saw_leave_the_bridges_age_tells() {
        let seats = Seats::default();
        let table = [
            (vec![tap(None)], lost(NetworkLoss::BridgeGone, "br0")),
            (vec![tap(None), bridge(12, "br0")], returns("br0", 12)),
            (
                vec![tap(None), bridge(2, "br0")],
                lost(NetworkLoss::TakenOff, "br0"),
            ),
        ];
        for (links, expected) in table {
            assert_eq!(standing(&seats, &links), expected, "{links:?}");
        }
    }

    #[test]
    fn f24_where_an_earlier_process_saw_it_counts_before_the_bridges_age() {
        let seat = Seat {
            index: 12,
            name: "br0".to_owned(),
        };
        let name = LinkName::parse("vnet-1").unwrap();
        for (links, expected) in [
            (
                vec![tap(None), bridge(12, "br0")],
                lost(NetworkLoss::TakenOff, "br0"),
            ),
            (vec![tap(None), bridge(13, "br0")], returns("br0", 13)),
            (vec![tap(Some(13)), bridge(13, "br0")], Standing::Seated),
        ] {
            let mut seats = Seats::default();
            seats.learn(&links);
            seats.recall(&name, seat.clone());
            assert_eq!(standing(&seats, &links), expected, "{links:?}");
        }
    }

    #[test]
    fn a_tap_that_goes_from_one_bridge_to_another_is_told() {
        let mut seats = Seats::default();
        seats.learn(&[tap(Some(9)), bridge(9, "br0"), bridge(11, "br1")]);
        for (master, has_moved) in [
            (Some(9), false),
            (None, false),
            (Some(9), false),
            (Some(11), true),
            (Some(11), false),
            (None, false),
            (Some(9), true),
        ] {
            assert_eq!(seats.changed(&tap(master)), has_moved, "{master:?}");
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut seats = Seats::default();
        let name = LinkName::parse("vnet-1").unwrap();
        seats.learn(&[tap(Some(9)), bridge(9, "br0")]);
        assert!(seats.is_on(&name, 9));
        seats.gone(&tap(None));
        assert!(!seats.is_on(&name, 9));
        seats.learn(&[bridge(9, "br0"), tap(Some(9))]);
        seats.learn(&[bridge(9, "br0")]);
        assert!(!seats.is_on(&name, 9));
    }
}
