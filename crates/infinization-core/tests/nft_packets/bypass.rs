//! The ways around a firewall: forged senders, guests that play the host, and packets that are not
//! what they look like.

use std::net::IpAddr;

use infinization_core::config::MachineAddresses;
use infinization_core::db::RuleSplit;
use infinization_core::manager::{Firewall, Wanted};
use infinization_core::types::{FirewallDefaultAction, VmNames};
use serde_json::json;

use super::firewall::{address, rules};
use super::kit::in_private_network;
use super::kit::packets::Place::{self, A1, A2, B1, Wire};
use super::kit::packets::disguise;
use super::kit::packets::frame::{self, EVERYBODY, EXPERIMENTAL, Mac, SERVICE_VLAN, VLAN};
use super::kit::packets::packet::{NEIGHBOUR_ADVERT, REDIRECT, ROUTER_ADVERT, SYN};
use super::kit::packets::{Packet, Site, What};
use super::model::Kernel;
use super::{call_iptables, service};

pub(super) const STRANGER: Mac = [0x52, 0x54, 0, 0x66, 0x66, 0x66];

/// The site with the firewall it is tried with.
pub(super) struct Scene {
    pub(super) site: Site,
    firewall: Firewall,
    pub(super) kernel: Kernel,
}

/// What a machine's packets meet beside its rules.
#[derive(Debug, Clone, Copy)]
pub(super) enum Policy {
    Open,
    Closed,
}

impl Scene {
    pub(super) async fn new() -> Self {
        call_iptables(false);
        let (firewall, kernel) = service().await;
        let site = Site::new().await;
        Self {
            site,
            firewall,
            kernel,
        }
    }

    /// Loads rules in the kit's words.
    pub(super) async fn load(&self, place: Place, policy: Policy, words: &[&str]) {
        self.load_with(place, policy, words, None).await;
    }

    /// As [`Scene::load`], for a machine that may use these addresses alone.
    pub(super) async fn load_with(
        &self,
        place: Place,
        policy: Policy,
        words: &[&str],
        addresses: Option<&[&str]>,
    ) {
        let vm_id = place.vm_id();
        let wanted = Wanted {
            addresses: addresses.map(|own| MachineAddresses::parse(&json!(own)).unwrap()),
            tap: VmNames::of(&vm_id).tap,
            vm_id,
            rules: RuleSplit {
                department_rules: Vec::new(),
                vm_rules: rules(words),
            },
            default_action: match policy {
                Policy::Open => FirewallDefaultAction::Accept,
                Policy::Closed => FirewallDefaultAction::Drop,
            },
        };
        self.firewall.apply(wanted).await.unwrap();
    }

    pub(super) fn packet(&mut self, from: &str, to: &str, what: What) -> Packet {
        let mark = self.site.mark();
        let (from, to) = (address(from), address(to));
        Packet {
            from,
            to,
            what,
            mark,
        }
    }

    /// Whether all these frames get from one machine's cable to another's.
    pub(super) fn arrive(&mut self, from: Place, frames: &[Vec<u8>], at: Place) -> bool {
        self.site.take();
        for frame in frames {
            self.site.send_frame(from, frame);
        }
        let sender = &frames[0][6..12];
        let all = self.site.take().into_iter();
        let theirs =
            all.filter(|(place, arrival)| *place == at && arrival.frame.get(6..12) == Some(sender));
        theirs.count() >= frames.len()
    }

    /// Fails unless what is sent plainly passes or not, as said, and no disguise makes a difference.
    pub(super) fn in_any_disguise(
        &mut self,
        way: (Place, Place),
        packet: &Packet,
        from: Mac,
        passes: bool,
    ) {
        let (sender, receiver) = way;
        let to = match packet.to {
            IpAddr::V4(to) if to.is_broadcast() => EVERYBODY,
            IpAddr::V6(to) if to.is_multicast() => [0x33, 0x33, 0, 0, 0, 1],
            _ => receiver.mac(),
        };
        for disguise in disguise::all(packet, from, to) {
            // Nobody sends these but to get past a filter (RFC 7112, RFC 6980).
            let discovery = matches!(
                packet.what,
                What::Icmp {
                    kind: 133..=137,
                    ..
                }
            );
            let hidden =
                disguise.name == "in a later fragment" || discovery && disguise.frames.len() > 1;
            let passes = passes && (self.kernel.tracks || !hidden);
            let arrived = self.arrive(sender, &disguise.frames, receiver);
            // Connection tracking puts fragments together before, and loses some: that is no way in.
            let lost = passes && self.kernel.tracks && disguise.name != "plain";
            let name = disguise.name;
            assert!(
                arrived == passes || lost,
                "{packet}, {name}, from {sender:?}: arrived at {receiver:?}: {arrived}"
            );
        }
    }
}

pub(super) fn tcp(to: u16) -> What {
    What::Tcp {
        from: 3333,
        to,
        flags: SYN,
    }
}

pub(super) fn udp(from: u16, to: u16) -> What {
    What::Udp { from, to }
}

pub(super) fn icmpv6(kind: u8) -> What {
    What::Icmp { kind, id: 9 }
}

#[test]
fn f4_a_machine_speaks_for_itself_alone_in_any_disguise() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        for place in [A1, A2] {
            scene.load(place, Policy::Open, &[]).await;
        }
        let everybody = "255.255.255.255";
        let honest = [
            ("10.1.0.2", "10.1.0.3", udp(5000, 7000)),
            ("10.1.0.2", everybody, udp(5000, 7000)),
            ("10.1.0.2", "10.1.0.3", What::Arp),
            ("fd01::2", "fd01::3", udp(5000, 7000)),
            ("fd01::2", "ff02::1", icmpv6(NEIGHBOUR_ADVERT)),
        ];
        let rogue = [
            ("10.1.0.1", "10.1.0.3", What::Arp),
            ("10.1.0.1", "10.1.0.3", udp(53, 7000)),
            ("10.1.0.1", everybody, udp(4000, 7000)),
            ("10.1.0.2", "10.1.0.3", udp(67, 68)),
            ("10.1.0.2", everybody, udp(67, 68)),
            ("fd01::1", "fd01::3", udp(53, 7000)),
            ("fd01::1", "ff02::1", icmpv6(NEIGHBOUR_ADVERT)),
            ("fe80::2", "ff02::1", icmpv6(ROUTER_ADVERT)),
            ("fe80::2", "fd01::3", icmpv6(ROUTER_ADVERT)),
            ("fe80::2", "fd01::3", icmpv6(REDIRECT)),
            ("fe80::2", "fd01::3", udp(547, 546)),
        ];
        for at in [A2, Wire] {
            for (from, to, what) in honest {
                let packet = scene.packet(from, to, what);
                scene.in_any_disguise((A1, at), &packet, A1.mac(), true);
                scene.in_any_disguise((A1, at), &packet, STRANGER, false);
            }
            for (from, to, what) in rogue {
                let packet = scene.packet(from, to, what);
                scene.in_any_disguise((A1, at), &packet, A1.mac(), false);
            }
        }
    });
}

#[test]
fn f4_an_arp_packet_names_its_own_sender() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        for place in [A1, A2] {
            scene.load(place, Policy::Open, &[]).await;
        }
        for (sender, passes) in [(A1.mac(), true), (STRANGER, false), (A2.mac(), false)] {
            let packet = scene.packet("10.1.0.2", "10.1.0.3", What::Arp);
            let arp = frame::ethernet(EVERYBODY, A1.mac(), 0x0806, &frame::arp(&packet, sender));
            for frame in [frame::tagged(&arp, VLAN), arp] {
                assert_eq!(scene.arrive(A1, &[frame], A2), passes, "from {sender:x?}");
            }
        }
    });
}

#[test]
fn f1_a_rule_holds_in_any_disguise_at_either_end() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        let ends = [
            (
                A1,
                ["DROP OUT tcp 22", "DROP OUT udp 7000", "DROP OUT icmp"],
            ),
            (A2, ["DROP IN tcp 22", "DROP IN udp 7000", "DROP IN icmp"]),
        ];
        for (end, denied) in ends {
            for place in [A1, A2] {
                let rules = if place == end { &denied[..] } else { &[] };
                scene.load(place, Policy::Open, rules).await;
            }
            for v4 in [true, false] {
                let [from, to] = [A1, A2].map(|place| place.address(v4).to_string());
                let echo = Packet::echo_request(v4, 9);
                for what in [tcp(22), udp(5000, 7000), echo] {
                    let packet = scene.packet(&from, &to, what);
                    scene.in_any_disguise((A1, A2), &packet, A1.mac(), false);
                }
                for what in [tcp(80), udp(5000, 7001)] {
                    let packet = scene.packet(&from, &to, what);
                    scene.in_any_disguise((A1, A2), &packet, A1.mac(), true);
                }
            }
        }
    });
}

#[test]
fn f2_nothing_gets_out_of_a_closed_machine_or_into_one() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        for (a1, a2) in [
            (Policy::Closed, Policy::Open),
            (Policy::Open, Policy::Closed),
        ] {
            scene.load(A1, a1, &[]).await;
            scene.load(A2, a2, &[]).await;
            for (name, frame) in oddities() {
                assert!(!scene.arrive(A1, &[frame], A2), "{name}, {a1:?} to {a2:?}");
            }
            let everybody = "255.255.255.255";
            for (from, to, what) in [
                ("10.1.0.2", "10.1.0.3", tcp(22)),
                ("10.1.0.2", everybody, udp(5000, 7000)),
                ("10.1.0.2", "224.0.0.251", udp(5353, 5353)),
                ("fd01::2", "fd01::3", udp(5000, 7000)),
                ("fd01::2", "ff02::fb", udp(5353, 5353)),
                ("fd01::2", "fd01::3", icmpv6(128)),
            ] {
                let packet = scene.packet(from, to, what);
                scene.in_any_disguise((A1, A2), &packet, A1.mac(), false);
            }
        }
        // The same frames pass where both are open, so they were sound.
        scene.load(A1, Policy::Open, &[]).await;
        scene.load(A2, Policy::Open, &[]).await;
        for (name, frame) in oddities() {
            assert!(scene.arrive(A1, &[frame], A2), "{name}, open to open");
        }
    });
}

#[test]
fn f2_a_second_port_of_a_machine_is_as_closed_as_the_first() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        scene.load(A2, Policy::Open, &[]).await;
        scene.load(A1, Policy::Closed, &["ACCEPT OUT tcp 80"]).await;
        // The port of a machine that has no rules yet, on the other department's bridge.
        let second = VmNames::of(&B1.vm_id()).tap;
        scene.firewall.attach(&A1.vm_id(), &second).await.unwrap();
        let by_host = B1.link().1;
        for (mac, what) in [
            (A1.mac(), udp(5000, 7000)),
            (A1.mac(), tcp(22)),
            (B1.mac(), udp(5000, 7000)),
            (STRANGER, tcp(80)),
        ] {
            let packet = scene.packet("10.2.0.2", "10.1.0.3", what);
            scene.site.send_frame(B1, &frame::of(&packet, mac, by_host));
            let arrival = scene.site.arrival(A2, packet.mark);
            assert!(arrival.is_none(), "{packet} from {mac:x?}");
        }
        let packet = scene.packet("10.1.0.3", "10.2.0.2", tcp(80));
        scene.site.send(A2, B1, &packet);
        assert!(scene.site.arrival(B1, packet.mark).is_none());
        // It does not take the first port's way.
        let packet = scene.packet("10.1.0.2", "10.1.0.3", tcp(80));
        scene.site.send(A1, A2, &packet);
        assert!(scene.site.arrival(A2, packet.mark).is_some());
    });
}

/// Frames that are not, or not at first sight, of IP.
fn oddities() -> Vec<(&'static str, Vec<u8>)> {
    let framed = |ether_type, payload: &[u8]| {
        let frame = frame::ethernet(A2.mac(), A1.mac(), ether_type, payload);
        [frame, vec![0; 46]].concat()
    };
    let broadcast = frame::ethernet(EVERYBODY, A1.mac(), EXPERIMENTAL, &[7; 46]);
    let ip = |protocol| {
        let ends = ([10, 1, 0, 2].into(), [10, 1, 0, 3].into());
        framed(
            0x0800,
            &frame::ipv4(ends.0, ends.1, protocol, [0, 0], &[9; 24]),
        )
    };
    let double = frame::tagged(&frame::tagged(&ip(17), VLAN), SERVICE_VLAN);
    vec![
        ("an unknown protocol", framed(EXPERIMENTAL, &[7; 46])),
        ("an unknown protocol to everybody", broadcast),
        ("LLC", framed(46, &[0x42, 0x42, 3])),
        ("PPPoE", framed(0x8864, &[0x11, 0, 0, 1, 0, 4, 0, 0x21])),
        ("MPLS", framed(0x8847, &[0, 0, 0x11, 64])),
        ("two tags", double.clone()),
        ("three tags", frame::tagged(&double, SERVICE_VLAN)),
        ("GRE", ip(47)),
        ("SCTP", ip(132)),
        ("IPv6 in IPv4", ip(41)),
        ("a reserved protocol", ip(255)),
        ("IPv4 that says it is IPv6", framed(0x86dd, &ip(17)[14..])),
    ]
}
