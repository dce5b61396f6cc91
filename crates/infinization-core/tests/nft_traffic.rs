//! What the firewall does to real packets: guests on a bridge, in network namespaces.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use infinization_core::firewall::{ChainNames, VmFirewall};
use infinization_core::host::nft::Nft;
use infinization_core::types::{FirewallDefaultAction, LinkName};
use infinization_test_kit::{self as kit, firewall, guests};

use firewall::{address, compiled, network, rules, run, strongest, vm};
use guests::{
    Guest, arp, bridge, echo_udp, ethernet, host_is_blocked_from, host_reaches, icmpv6, serve_tcp,
    tagged, udp_answers, udp4,
};
use kit::in_private_network;

const EVERYBODY: &str = "ff:ff:ff:ff:ff:ff";

/// Two managed guests, `a` and `b`, on the host's bridge, without rules loaded.
struct Lan {
    nft: Nft,
    a: Guest,
    b: Guest,
}

impl Lan {
    async fn new() -> Self {
        bridge("br0", &["10.9.0.1/24", "fd09::1/64"]);
        let nft = Nft::new();
        nft.prepare().await.unwrap();
        Self {
            nft,
            a: plug("a", &["10.9.0.2/24", "fd09::2/64"]),
            b: plug("b", &["10.9.0.3/24", "fd09::3/64"]),
        }
    }

    /// Loads these rules for `id`.
    async fn apply(&self, id: &str, words: &[&str]) {
        self.load(VmFirewall {
            vm_rules: rules(words),
            ..vm(id)
        })
        .await;
    }

    async fn load(&self, vm: VmFirewall) {
        let capabilities = self.nft.capabilities().await.unwrap();
        let wanted = compiled(&VmFirewall {
            bridge_addresses: vec![network("10.9.0.1/24"), network("fd09::1/64")],
            ..strongest(capabilities, vm)
        });
        assert_eq!(wanted.failures, []);
        self.nft.ensure_vm(&wanted).await.unwrap();
    }
}

fn plug(id: &str, addresses: &[&str]) -> Guest {
    let vm = vm(id);
    Guest::plug("br0", vm.tap.as_str(), &vm.mac.to_string(), addresses)
}

fn open(id: &str) -> VmFirewall {
    VmFirewall {
        default_action: FirewallDefaultAction::Accept,
        ..vm(id)
    }
}

#[test]
fn f1_default_deny_blocks_everything_but_lets_neighbours_find_each_other() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.apply("a", &[]).await;
        lan.apply("b", &[]).await;
        lan.b.serves_tcp(80);
        for to in ["10.9.0.3", "fd09::3"] {
            assert!(lan.a.is_blocked_from(to, 80), "{to}");
            let neighbour = lan.a.sh(&format!("ip neigh show {to}"));
            assert!(neighbour.contains(&lan.b.mac), "{to}: {neighbour}");
        }
        assert!(host_is_blocked_from("10.9.0.3", 80));
        assert!(host_is_blocked_from("fd09::3", 80));
    });
}

#[test]
fn f1_an_allowed_port_passes_between_vms_and_no_other_does() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.apply("a", &["ACCEPT OUT tcp 80", "ACCEPT OUT tcp 81"])
            .await;
        lan.apply("b", &["ACCEPT IN tcp 80", "ACCEPT IN tcp 82"])
            .await;
        for port in [80, 81, 82] {
            lan.b.serves_tcp(port);
        }
        for to in ["10.9.0.3", "fd09::3"] {
            assert!(lan.a.reaches(to, 80), "{to}");
            assert!(
                lan.a.is_blocked_from(to, 81),
                "the receiver did not allow it"
            );
            assert!(
                lan.a.is_blocked_from(to, 82),
                "the sender was not allowed to"
            );
        }
    });
}

#[test]
fn f2_the_receivers_deny_beats_the_senders_accept() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.b.serves_tcp(80);
        lan.b.serves_tcp(81);
        // Loaded in both orders, as the earlier implementation let the first one win.
        for order in [["a", "b"], ["b", "a"]] {
            for id in order {
                let deny = if id == "b" {
                    "DROP IN tcp 80"
                } else {
                    "DROP IN tcp 1"
                };
                lan.nft
                    .remove_vm(&ChainNames::of(&vm(id).vm_id))
                    .await
                    .unwrap();
                lan.apply(id, &[deny, "ACCEPT INOUT all"]).await;
            }
            assert!(lan.a.reaches("10.9.0.3", 81));
            assert!(lan.a.is_blocked_from("10.9.0.3", 80));
        }
    });
}

#[test]
fn f5_a_refused_connection_is_answered_where_the_kernel_can() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.load(open("b")).await;
        lan.load(VmFirewall {
            vm_rules: rules(&["REJECT OUT tcp 81", "DROP IN all", "REJECT OUT udp 81"]),
            ..open("a")
        })
        .await;
        lan.b.serves_tcp(81);
        serve_tcp(81);
        let answered = lan.nft.capabilities().await.unwrap().reject;
        for to in ["10.9.0.1", "10.9.0.3", "fd09::3"] {
            assert_eq!(lan.a.is_refused_by(to, 81, answered), answered, "{to}");
        }
    });
}

#[test]
fn replies_pass_but_their_port_opens_no_way_back() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.apply("a", &["ACCEPT OUT tcp 80"]).await;
        lan.apply("b", &["ACCEPT IN tcp 80", "ACCEPT OUT all"])
            .await;
        lan.a.serves_tcp(5000);
        // Not even from the port the replies come from.
        let connect = "socat -u OPEN:/dev/null \
                       TCP:10.9.0.2:5000,sourceport=80,reuseaddr,connect-timeout=1";
        assert!(!lan.b.succeeds(connect));
        lan.b.serves_tcp(80);
        assert!(lan.a.reaches("10.9.0.3", 80));
        assert!(lan.b.is_blocked_from("10.9.0.2", 5000));

        lan.apply("a", &["ACCEPT IN tcp 5000"]).await;
        assert!(lan.b.reaches("10.9.0.2", 5000));
    });
}

#[test]
fn f1_the_host_offers_its_services_and_nothing_else() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.apply("a", &[]).await;
        for port in [53, 4000, 4001] {
            serve_tcp(port);
        }
        for to in ["10.9.0.1", "fd09::1"] {
            assert!(lan.a.reaches(to, 4000), "{to}");
            assert!(lan.a.reaches(to, 53), "{to}");
            assert!(lan.a.is_blocked_from(to, 4001), "{to}");
        }
        echo_udp(53);
        let dns = "10.9.0.1:53".parse().unwrap();
        assert!(lan.a.within(move || udp_answers(40_000, dns, true)));
    });
}

#[test]
fn f3_dhcp_reaches_the_host_and_comes_back() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.apply("a", &[]).await;
        echo_udp(67);
        echo_udp(69);
        lan.a.sh("ip route add default via 10.9.0.1");
        let server = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
        let (anybody, unicast, far) = (
            server("255.255.255.255:67"),
            server("10.9.0.1:67"),
            server("10.9.0.1:69"),
        );
        assert!(lan.a.within(move || udp_answers(68, anybody, true)));
        assert!(lan.a.within(move || udp_answers(68, unicast, true)));
        assert!(!lan.a.within(move || udp_answers(68, far, false)));
        assert!(!lan.a.within(move || udp_answers(66, unicast, false)));
    });
}

#[test]
fn f1_the_host_reaches_a_vm_where_a_rule_says_so() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.a.serves_tcp(22);
        lan.a.serves_tcp(23);
        lan.apply("a", &["ACCEPT IN tcp 22"]).await;
        for to in ["10.9.0.2", "fd09::2"] {
            assert!(host_reaches(to, 22), "{to}");
            assert!(host_is_blocked_from(to, 23), "{to}");
        }
    });
}

#[test]
fn f1_routed_traffic_is_filtered_too() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        let outside = Guest::apart("uplink0", "52:54:00:ff:ff:01");
        run("ip addr add 198.51.100.1/24 dev uplink0");
        run("sysctl -qw net.ipv4.ip_forward=1");
        outside.configure(&["198.51.100.2/24"]);
        outside.sh("ip route add default via 198.51.100.1");
        lan.a.sh("ip route add default via 10.9.0.1");
        outside.serves_tcp(80);
        outside.serves_tcp(81);
        lan.a.serves_tcp(80);

        lan.apply("a", &["ACCEPT OUT tcp 80"]).await;
        assert!(lan.a.reaches("198.51.100.2", 80));
        assert!(lan.a.is_blocked_from("198.51.100.2", 81));
        assert!(outside.is_blocked_from("10.9.0.2", 80));
        lan.apply("a", &["ACCEPT IN tcp 80"]).await;
        assert!(outside.reaches("10.9.0.2", 80));
        assert!(lan.a.is_blocked_from("198.51.100.2", 80));
    });
}

#[test]
fn f13_a_drop_without_addresses_stops_ipv6_too() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.load(VmFirewall {
            vm_rules: rules(&["DROP IN tcp 23"]),
            ..open("a")
        })
        .await;
        lan.a.serves_tcp(23);
        lan.a.serves_tcp(24);
        for to in ["10.9.0.2", "fd09::2"] {
            assert!(host_reaches(to, 24), "{to}");
            assert!(host_is_blocked_from(to, 23), "{to}");
        }
    });
}

#[test]
fn f4_another_mac_is_blocked() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.load(open("a")).await;
        serve_tcp(80);
        assert!(lan.a.reaches("10.9.0.1", 80));
        lan.a.sh("ip link set eth0 address 52:54:00:66:66:66");
        assert!(lan.a.is_blocked_from("10.9.0.1", 80));
        lan.a.sh(&format!("ip link set eth0 address {}", lan.a.mac));
        assert!(lan.a.reaches("10.9.0.1", 80));
    });
}

#[test]
fn f4_forged_frames_do_not_get_past_the_sender() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        // Nothing else is in the way.
        lan.load(open("a")).await;
        lan.load(open("b")).await;
        let own = lan.a.mac.clone();
        let frame = |protocol, payload: &[u8]| ethernet(EVERYBODY, &own, protocol, payload);
        let everybody = [255; 4];

        let honest = [
            frame(0x0806, &arp(&own, [10, 9, 0, 2])),
            frame(0x0800, &udp4(([10, 9, 0, 2], 67), (everybody, 69))),
            frame(0x0800, &dhcp_request(&own)),
            frame(
                0x86dd,
                &icmpv6("fd09::2", "ff02::1", 136, &target("fd09::2")),
            ),
            tagged(&frame(0x0806, &arp(&own, [10, 9, 0, 2]))),
        ];
        let forged = [
            ethernet(EVERYBODY, "52:54:00:66:66:66", 0x88b5, b"another MAC"),
            frame(0x0806, &arp("52:54:00:66:66:66", [10, 9, 0, 2])),
            frame(0x0806, &arp(&own, [10, 9, 0, 1])),
            tagged(&frame(0x0806, &arp(&own, [10, 9, 0, 1]))),
            frame(0x0800, &udp4(([10, 9, 0, 1], 53), (everybody, 4000))),
            frame(0x0800, &udp4(([10, 9, 0, 2], 67), (everybody, 68))),
            frame(0x0800, &dhcp_request(&lan.b.mac)),
            frame(0x0800, &more_follow(dhcp_request(&own))),
            frame(0x86dd, &icmpv6("fe80::2", "ff02::1", 134, &[0; 12])),
            frame(
                0x86dd,
                &icmpv6("fe80::2", "ff02::1", 136, &target("fd09::1")),
            ),
            tagged(&frame(0x86dd, &icmpv6("fe80::2", "ff02::1", 134, &[0; 12]))),
            frame(0x86dd, &icmpv6("fd09::1", "ff02::1", 128, &[0; 4])),
        ];
        let b = lan.b.listens();
        for (n, probe) in honest.iter().enumerate() {
            assert!(b.sees(&lan.a, probe), "honest frame {n} is missing");
        }
        for (n, probe) in forged.iter().enumerate() {
            assert!(!b.sees(&lan.a, probe), "forged frame {n} arrived");
        }
    });
}

/// A DHCP request made for this hardware address. Nobody on the way looks at UDP's checksum, or its length.
fn dhcp_request(client: &str) -> Vec<u8> {
    let mut request = [&[1, 1, 6, 0][..], &[0; 24]].concat();
    request.extend(
        client
            .split(':')
            .map(|octet| u8::from_str_radix(octet, 16).unwrap()),
    );
    request.resize(240, 0);
    let mut packet = udp4(([0; 4], 68), ([255; 4], 67));
    packet.truncate(28);
    packet.extend(request);
    let length = u16::try_from(packet.len()).unwrap();
    set_word(&mut packet, 2, length);
    packet
}

/// It says that it is the first fragment.
fn more_follow(mut packet: Vec<u8>) -> Vec<u8> {
    set_word(&mut packet, 6, 0x2000);
    packet
}

/// Sets a word of an IPv4 header, and its checksum.
fn set_word(packet: &mut [u8], at: usize, word: u16) {
    packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
    packet[10..12].fill(0);
    let words = packet[..20].chunks(2);
    let sum: u32 = words
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The body of a neighbour message about this address.
fn target(address: &str) -> Vec<u8> {
    let target = address.parse::<std::net::Ipv6Addr>().unwrap().octets();
    [&[0; 4][..], &target].concat()
}

#[test]
fn f4_known_addresses_are_pinned() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.load(VmFirewall {
            known_addresses: vec![address("10.9.0.2"), address("fd09::2")],
            ..open("a")
        })
        .await;
        serve_tcp(80);
        assert!(lan.a.reaches("10.9.0.1", 80));
        assert!(lan.a.reaches("fd09::1", 80));
        lan.a.sh("ip addr flush dev eth0");
        lan.a.configure(&["10.9.0.77/24", "fd09::77/64"]);
        assert!(lan.a.is_blocked_from("10.9.0.1", 80));
        assert!(lan.a.is_blocked_from("fd09::1", 80));
    });
}

#[test]
fn a_managed_port_without_rules_is_closed_and_a_foreign_one_is_left_alone() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        lan.load(open("a")).await;
        serve_tcp(80);
        lan.a.serves_tcp(80);
        let unknown = &lan.b;
        let foreign = Guest::plug("br0", "eth-lan", "52:54:00:00:00:99", &["10.9.0.9/24"]);
        foreign.serves_tcp(80);

        assert!(unknown.is_blocked_from("10.9.0.1", 80));
        assert!(unknown.is_blocked_from("10.9.0.9", 80));
        unknown.serves_tcp(80);
        assert!(host_is_blocked_from("10.9.0.3", 80));
        assert!(foreign.reaches("10.9.0.1", 80));
        assert!(foreign.reaches("10.9.0.2", 80));
        assert!(lan.a.reaches("10.9.0.9", 80));
    });
}

#[test]
fn f2_f4_a_second_port_of_a_machine_meets_the_same_rules_both_ways() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        for served in [23, 8000] {
            serve_tcp(served);
        }
        let vm = VmFirewall {
            vm_rules: rules(&["DROP IN tcp 22", "DROP OUT tcp 23"]),
            ..open("a")
        };
        // The bridge takes a MAC address to be where it was seen last.
        lan.a.sh("ip link set eth0 down");
        // Of any name, as it is the machine's port because it leads to its chains.
        for (port, address) in [("vnet-second", "10.9.0.4"), ("tap-third", "10.9.0.5")] {
            lan.load(vm.clone()).await;
            let mac = vm.mac.to_string();
            let own = format!("{address}/24");
            let second = Guest::plug("br0", port, &mac, &[own.as_str()]);
            let names = ChainNames::of(&vm.vm_id);
            let port = LinkName::parse(port).unwrap();
            lan.nft.attach(&names, &port).await.unwrap();
            for served in [22, 80] {
                second.serves_tcp(served);
            }
            for way in ["attached", "loaded again", "put back"] {
                match way {
                    "loaded again" => lan.load(vm.clone()).await,
                    "put back" => {
                        run("nft flush ruleset");
                        lan.nft.repair().await.unwrap();
                    }
                    _ => {}
                }
                assert!(host_reaches(address, 80), "{way}");
                assert!(host_is_blocked_from(address, 22), "{way}");
                assert!(second.reaches("10.9.0.1", 8000), "{way}");
                assert!(second.is_blocked_from("10.9.0.1", 23), "{way}");
            }
            second.sh("ip link set eth0 address 52:54:00:11:22:33");
            assert!(second.is_blocked_from("10.9.0.1", 8000), "forged");
            second.sh(&format!("ip link set eth0 address {mac}"));
            assert!(second.reaches("10.9.0.1", 8000));
            lan.nft.detach(&port).await.unwrap();
            run(&format!("ip link delete {port}"));
        }
    });
}

#[test]
fn a_detached_port_is_closed_until_it_is_attached() {
    in_private_network(|| async {
        let lan = Lan::new().await;
        let vm = open("a");
        lan.load(vm.clone()).await;
        lan.a.serves_tcp(80);
        assert!(host_reaches("10.9.0.2", 80));
        lan.nft.detach(&vm.tap).await.unwrap();
        assert!(host_is_blocked_from("10.9.0.2", 80));
        let names = ChainNames::of(&vm.vm_id);
        lan.nft.attach(&names, &vm.tap).await.unwrap();
        assert!(host_reaches("10.9.0.2", 80));
        lan.nft
            .flush_vm(&names, FirewallDefaultAction::Drop)
            .await
            .unwrap();
        assert!(host_is_blocked_from("10.9.0.2", 80));
        lan.nft.remove_vm(&names).await.unwrap();
        assert!(host_is_blocked_from("10.9.0.2", 80));
    });
}
