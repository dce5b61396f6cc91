//! Whose address a packet bears: a neighbour's, none, one of the link from far away.

use std::net::{IpAddr, Ipv6Addr};

use super::bypass::{Policy, STRANGER, Scene, icmpv6, tcp, udp};
use super::firewall::address;
use super::kit::in_private_network;
use super::kit::packets::Packet;
use super::kit::packets::Place::{A1, A2, B1, Host, Outside, Wire};
use super::kit::packets::What;
use super::kit::packets::frame;
use super::kit::packets::packet::{ACK, NEIGHBOUR_ADVERT, NEIGHBOUR_SOLICIT, SYN};

const OWN: [&str; 2] = ["10.1.0.2", "fd01::2"];
const EVERYBODY: &str = "255.255.255.255";

/// The frame of a packet of IPv6, with another source in its header: what it says in its body stays.
fn from_another(packet: &Packet, source: &str) -> Vec<u8> {
    let mut frame = frame::of(packet, A1.mac(), A2.mac());
    let IpAddr::V6(source) = address(source) else {
        panic!("{source} is not of IPv6");
    };
    frame[22..38].copy_from_slice(&Ipv6Addr::octets(&source));
    frame
}

#[test]
fn f4_a_machine_with_known_addresses_uses_no_other_in_any_disguise() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        scene.load_with(A1, Policy::Open, &[], Some(&OWN)).await;
        scene.load(A2, Policy::Open, &[]).await;
        let cases = [
            ("10.1.0.2", "10.1.0.3", udp(5000, 7000), true),
            ("10.1.0.2", "10.1.0.3", What::Arp, true),
            ("0.0.0.0", "10.1.0.3", What::Arp, true),
            ("fd01::2", "fd01::3", udp(5000, 7000), true),
            ("fe80::2", "fd01::3", udp(5000, 7000), true),
            ("fd01::2", "ff02::1", icmpv6(NEIGHBOUR_ADVERT), true),
            ("fe80::2", "ff02::1", icmpv6(NEIGHBOUR_ADVERT), true),
            // Those of Wire, which is on the link, and of nobody.
            ("10.1.0.9", "10.1.0.3", udp(5000, 7000), false),
            ("10.1.0.9", "10.1.0.3", tcp(22), false),
            ("10.1.0.9", "10.1.0.3", What::Arp, false),
            ("10.1.0.9", EVERYBODY, udp(5000, 7000), false),
            ("192.0.2.7", "10.1.0.3", udp(5000, 7000), false),
            ("fd01::9", "fd01::3", udp(5000, 7000), false),
            ("fd01::9", "ff02::1", icmpv6(NEIGHBOUR_ADVERT), false),
            ("fd99::9", "fd01::3", tcp(22), false),
        ];
        for (from, to, what, passes) in cases {
            let packet = scene.packet(from, to, what);
            scene.in_any_disguise((A1, A2), &packet, A1.mac(), passes);
            scene.in_any_disguise((A1, A2), &packet, STRANGER, false);
        }
    });
}

#[test]
fn f3_a_machine_with_known_addresses_advertises_and_asks_for_those_alone() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        scene.load(A2, Policy::Open, &[]).await;
        let advert = |scene: &mut Scene, about: &str, source: &str| {
            let packet = scene.packet(about, "fd01::3", icmpv6(NEIGHBOUR_ADVERT));
            from_another(&packet, source)
        };
        let probe = |scene: &mut Scene, about: &str| {
            let packet = scene.packet("fd01::2", about, icmpv6(NEIGHBOUR_SOLICIT));
            from_another(&packet, "::")
        };
        for (addresses, link_local) in [
            (&OWN[..], true),
            (&["fd01::2", "fe80::2"], false),
            (&["::"], true),
        ] {
            scene
                .load_with(A1, Policy::Open, &[], Some(addresses))
                .await;
            let has = addresses.contains(&"fd01::2");
            for (about, passes) in [
                ("fd01::2", has),
                ("fe80::2", true),
                ("fe80::9", link_local),
                ("fd01::9", false),
                ("fd01::3", false),
                ("fd01::1", false),
            ] {
                for source in ["fe80::2", if has { "fd01::2" } else { "fe80::2" }] {
                    let frame = advert(&mut scene, about, source);
                    let passed = scene.arrive(A1, &[frame], A2);
                    assert_eq!(passed, passes, "{addresses:?}: {source} for {about}");
                }
                let asks = probe(&mut scene, about);
                let passed = scene.arrive(A1, &[asks], A2);
                assert_eq!(passed, passes, "{addresses:?}: asks for {about}");
            }
        }
        // One whose addresses are not known is free to say whose it likes but the bridge's.
        scene.load(A1, Policy::Open, &[]).await;
        let frame = advert(&mut scene, "fd01::9", "fd01::2");
        assert!(scene.arrive(A1, &[frame], A2), "the frames were sound");
        let asks = probe(&mut scene, "fd01::9");
        assert!(scene.arrive(A1, &[asks], A2), "the frames were sound");
    });
}

/// As one is that is on a network which pins addresses, and has no lease.
#[test]
fn a_machine_without_any_address_asks_for_one_and_says_nothing_else() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        let none = ["0.0.0.0", "::"];
        scene.load_with(A1, Policy::Open, &[], Some(&none)).await;
        scene.load(A2, Policy::Open, &[]).await;
        for (from, to, what, passes) in [
            ("0.0.0.0", EVERYBODY, udp(68, 67), true),
            ("0.0.0.0", "10.1.0.3", What::Arp, true),
            ("fe80::2", "ff02::2", icmpv6(NEIGHBOUR_ADVERT), true),
            ("10.1.0.2", "10.1.0.3", udp(5000, 7000), false),
            ("10.1.0.2", "10.1.0.3", What::Arp, false),
            ("10.1.0.9", EVERYBODY, udp(5000, 7000), false),
            ("fd01::2", "fd01::3", udp(5000, 7000), false),
            ("fd01::2", "ff02::1", icmpv6(NEIGHBOUR_ADVERT), false),
        ] {
            let packet = scene.packet(from, to, what);
            // The machine's own hardware address is what a request for a lease is made for.
            let frame = match what {
                What::Udp { to: 67, .. } => request(&packet),
                _ => frame::of(&packet, A1.mac(), A2.mac()),
            };
            let passed = scene.arrive(A1, &[frame], A2);
            assert_eq!(passed, passes, "{packet}");
        }
        // The answer reaches it, from the link.
        let answer = scene.packet("10.1.0.9", "10.1.0.2", udp(67, 68));
        scene.site.send(Wire, A1, &answer);
        assert!(scene.site.arrival(A1, answer.mark).is_some());
    });
}

/// A DHCP request's frame: its hardware address is where the packet's payload has it.
fn request(packet: &Packet) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (packet.from, packet.to) else {
        panic!("DHCP is of IPv4: {packet}");
    };
    let (protocol, segment) = frame::segment(packet);
    let body = [&[0; 28][..], &A1.mac(), &[0; 10]].concat();
    let length = u16::try_from(8 + body.len()).unwrap().to_be_bytes();
    let segment = [&segment[..4], &length, &[0, 0], &body].concat();
    let ip = frame::ipv4(from, to, protocol, [0, 0], &segment);
    frame::ethernet(frame::EVERYBODY, A1.mac(), 0x0800, &ip)
}

/// Only where connections are tracked does a packet pass for belonging to one.
#[test]
fn f4_a_machine_with_known_addresses_cannot_join_a_neighbours_connection() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        if !scene.kernel.tracks {
            return;
        }
        scene.load(A1, Policy::Closed, &["ACCEPT OUT all"]).await;
        let opened = scene.packet("10.1.0.2", "10.1.0.9", tcp(80));
        let asked = scene.packet("10.1.0.2", "10.1.0.9", udp(5000, 7000));
        let (sent, told) = (scene.site.mark(), scene.site.mark());
        for (request, mark) in [(opened, sent), (asked, told)] {
            scene.site.send(A1, Wire, &request);
            assert!(scene.site.arrival(Wire, request.mark).is_some());
            let answer = request.reply(mark).unwrap();
            scene.site.send(Wire, A1, &answer);
            assert!(scene.site.arrival(A1, mark).is_some());
        }
        let own = ["10.1.0.3", "fd01::3"];
        for (addresses, passes) in [(None, true), (Some(&own[..]), false)] {
            scene.load_with(A2, Policy::Closed, &[], addresses).await;
            // As A1 to whom it speaks with, and as that to A1.
            let joins = What::Tcp {
                from: 3333,
                to: 80,
                flags: ACK,
            };
            for (from, to, at, what) in [
                ("10.1.0.2", "10.1.0.9", Wire, joins),
                ("10.1.0.2", "10.1.0.9", Wire, udp(5000, 7000)),
                ("10.1.0.9", "10.1.0.2", A1, udp(7000, 5000)),
            ] {
                let packet = scene.packet(from, to, what);
                scene
                    .site
                    .send_frame(A2, &frame::of(&packet, A2.mac(), at.mac()));
                let arrived = scene.site.arrival(at, packet.mark).is_some();
                assert_eq!(arrived, passes, "{packet}, addresses {addresses:?}");
            }
        }
    });
}

#[test]
fn f3_no_host_elsewhere_passes_for_a_dhcp_server_of_the_link() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        for link in ["all", "default", "uplink0", "infinibr-a", "infinibr-b"] {
            let filter = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
            std::fs::write(filter, "0").unwrap();
        }
        scene.load(A1, Policy::Closed, &[]).await;
        scene.load(A2, Policy::Open, &[]).await;
        scene.load(B1, Policy::Open, &[]).await;
        let far = [
            ("10.1.0.77", "10.1.0.2", udp(67, 68)),
            ("10.1.0.9", "10.1.0.2", udp(67, 68)),
            ("fd01::77", "fd01::2", udp(547, 546)),
            ("203.0.113.9", "10.1.0.2", udp(67, 68)),
        ];
        for from in [Outside, B1] {
            for (source, to, what) in far {
                let packet = scene.packet(source, to, what);
                scene.site.send(from, A1, &packet);
                let arrived = scene.site.arrival(A1, packet.mark);
                assert!(arrived.is_none(), "{packet} from {from:?}");
            }
        }
        // They are routed: who lets everything in gets them.
        for (source, to, what) in [
            ("10.1.0.77", "10.1.0.3", udp(67, 68)),
            ("fd01::77", "fd01::3", udp(547, 546)),
        ] {
            let packet = scene.packet(source, to, what);
            scene.site.send(Outside, A2, &packet);
            assert!(scene.site.arrival(A2, packet.mark).is_some(), "{packet}");
        }
        // Servers on the link, and the host, answer as before.
        for (from, source, to, what) in [
            (Wire, "10.1.0.9", "10.1.0.2", udp(67, 68)),
            (Wire, "10.1.0.77", EVERYBODY, udp(67, 68)),
            (Wire, "fd01::9", "fd01::2", udp(547, 546)),
            (Wire, "fe80::9", "fd01::2", udp(547, 546)),
            (Host, "10.1.0.1", "10.1.0.2", udp(67, 68)),
            (Host, "fd01::1", "fd01::2", udp(547, 546)),
        ] {
            let packet = scene.packet(source, to, what);
            scene.site.send(from, A1, &packet);
            let arrived = scene.site.arrival(A1, packet.mark);
            assert!(arrived.is_some(), "{packet} from {from:?}");
        }
        // A rule of the machine's own lets it in.
        scene.load(A1, Policy::Closed, &["ACCEPT IN udp 68"]).await;
        let packet = scene.packet("10.1.0.77", "10.1.0.2", udp(67, 68));
        scene.site.send(Outside, A1, &packet);
        assert!(scene.site.arrival(A1, packet.mark).is_some());
    });
}

#[test]
fn between_departments_a_rule_by_the_senders_address_works() {
    in_private_network(|| async {
        let mut scene = Scene::new().await;
        for (place, own) in [(A1, "10.1.0.2"), (A2, "10.1.0.3")] {
            scene
                .load_with(place, Policy::Open, &[], Some(&[own]))
                .await;
        }
        scene
            .load(B1, Policy::Closed, &["ACCEPT IN tcp 22 from 10.1.0.2"])
            .await;
        for (place, source, passes) in [
            (A1, "10.1.0.2", true),
            (A2, "10.1.0.3", false),
            (A2, "10.1.0.2", false),
        ] {
            let packet = scene.packet(source, "10.2.0.2", tcp(22));
            scene.site.send(place, B1, &packet);
            let arrived = scene.site.arrival(B1, packet.mark);
            let seen = arrived.and_then(|it| it.packet).map(|it| it.from);
            let wanted = passes.then(|| address(source));
            assert_eq!(seen, wanted, "{place:?} as {source}");
        }
        // And so does the answer.
        let asks = scene.packet("10.1.0.2", "10.2.0.2", tcp(22));
        scene.site.send(A1, B1, &asks);
        assert!(scene.site.arrival(B1, asks.mark).is_some());
        let mark = scene.site.mark();
        let answer = asks.reply(mark).unwrap();
        assert!(matches!(answer.what, What::Tcp { flags, .. } if flags == SYN | ACK));
        scene.site.send(B1, A1, &answer);
        let answer = scene.site.arrival(A1, mark).and_then(|it| it.packet);
        assert_eq!(answer.map(|it| it.from), Some(address("10.2.0.2")));
    });
}
