//! Masquerading with real packets: guests on bridges, an outside, and what the outside sees.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use std::time::Duration;

use infinization_core::firewall::{Masquerade, Subnet};
use infinization_core::host::nft::Nft;
use infinization_core::types::LinkName;
use infinization_core::{Coded as _, ErrorCode};
use infinization_test_kit::{self as kit, firewall, guests};
use nix::mount::MsFlags;

use firewall::{ruleset, run};
use guests::{Guest, bridge};
use kit::in_private_network;

const OUTSIDE: &str = "198.51.100.2";
const UPLINK: &str = "198.51.100.1";

/// Two departments and the world outside.
struct Site {
    nft: Nft,
    a: Guest,
    b: Guest,
    outside: Guest,
}

impl Site {
    fn new() -> Self {
        bridge("br-a", &["10.1.0.1/24"]);
        bridge("br-b", &["10.2.0.1/24"]);
        let outside = Guest::apart("uplink0", "52:54:00:ff:ff:01");
        run(&format!("ip addr add {UPLINK}/24 dev uplink0"));
        outside.configure(&["198.51.100.2/24"]);
        // It knows the ways back, so that what is not masqueraded is answered too.
        outside.sh(&format!("ip route add default via {UPLINK}"));
        Self {
            nft: Nft::new(),
            a: department("a", "10.1.0"),
            b: department("b", "10.2.0"),
            outside,
        }
    }

    /// The address the outside sees of this guest.
    fn seen(&self, guest: &Guest) -> String {
        asks(guest, OUTSIDE, tells_peers(&self.outside))
    }
}

fn department(name: &str, network: &str) -> Guest {
    let (br, port) = (format!("br-{name}"), format!("eth-{name}"));
    let address = format!("{network}.2/24");
    let guest = Guest::plug(&br, &port, &format!("52:54:00:00:0{name}:02"), &[&address]);
    guest.sh(&format!("ip route add default via {network}.1"));
    guest
}

/// Answers the next connection to this port with the address it comes from.
fn tells_peers(guest: &Guest) -> u16 {
    guest.within(move || {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            use std::io::Write;
            let (mut stream, peer) = listener.accept().unwrap();
            write!(stream, "{}", peer.ip()).unwrap();
        });
        port
    })
}

fn asks(guest: &Guest, address: &str, port: u16) -> String {
    let to = format!("{address}:{port}").parse().unwrap();
    guest.within(move || {
        use std::io::Read;
        let patience = std::time::Duration::from_secs(20);
        let mut stream = std::net::TcpStream::connect_timeout(&to, patience).unwrap();
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        seen
    })
}

fn masquerade(subnet: &str, bridge: &str) -> Masquerade {
    Masquerade {
        subnet: Subnet::parse(subnet).unwrap(),
        bridge: name(bridge),
    }
}

fn name(bridge: &str) -> LinkName {
    LinkName::parse(bridge).unwrap()
}

fn chain() -> String {
    run("nft list chain ip infinibay_nat postrouting")
}

#[test]
fn a_department_is_masqueraded_until_it_is_removed_and_no_other_is() {
    in_private_network(|| async {
        let site = Site::new();
        site.nft
            .masquerade(masquerade("10.1.0.0/24", "br-a"))
            .await
            .unwrap();
        assert_eq!(site.seen(&site.a), UPLINK);
        assert_eq!(
            site.seen(&site.b),
            "10.2.0.2",
            "another department is left alone"
        );
        // Inside, addresses stay what they are.
        let port = tells_peers(&site.b);
        assert_eq!(
            asks(&site.a, "10.2.0.2", port),
            "10.2.0.1",
            "it leaves by another bridge"
        );
        let port = tells_peers(&site.a);
        assert_eq!(asks(&site.b, "10.1.0.2", port), "10.2.0.2");

        site.nft.stop_masquerading(&name("br-a")).await.unwrap();
        assert_eq!(site.seen(&site.a), "10.1.0.2");
    });
}

#[test]
fn forwarding_is_switched_on_and_the_chain_is_what_its_readers_expect() {
    in_private_network(|| async {
        run("sysctl -qw net.ipv4.ip_forward=0");
        let nft = Nft::new();
        nft.prepare_nat().await.unwrap();
        assert_eq!(run("sysctl -n net.ipv4.ip_forward").trim(), "1");
        nft.masquerade(masquerade("10.1.0.77/24", "br-a"))
            .await
            .unwrap();
        let wanted = "table ip infinibay_nat {\n\tchain postrouting {\n\
            \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tiifname \"br-a\" ip saddr 10.1.0.0/24 oifname @departments accept comment \"between-br-a\"\n\
            \t\tip saddr 10.1.0.0/24 oifname != \"br-a\" masquerade comment \"dept-br-a\"\n\t}\n}\n";
        assert_eq!(chain(), wanted);
    });
}

/// Has the kernel's switch be read-only, as in a container. For the rest of the test: its mounts are its own.
fn seal_forwarding() {
    let switch = "/proc/sys/net/ipv4/ip_forward";
    let mount = |from: Option<&str>, to: &str, flags| {
        let none: Option<&str> = None;
        nix::mount::mount(from, to, none, flags, none).unwrap();
    };
    mount(None, "/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mount(Some(switch), switch, MsFlags::MS_BIND);
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None, switch, read_only);
}

#[test]
fn n5_forwarding_that_cannot_be_switched_on_is_an_error_and_nothing_is_set_up() {
    in_private_network(|| async {
        run("sysctl -qw net.ipv4.ip_forward=0");
        seal_forwarding();
        let nft = Nft::new();
        let wanted = || masquerade("10.1.0.0/24", "br-a");
        for failed in [
            nft.prepare_nat().await,
            nft.forward().await,
            nft.masquerade(wanted()).await,
        ] {
            let error = failed.unwrap_err();
            assert_eq!(error.code(), ErrorCode::ForwardingFailed, "{error}");
        }
        assert_eq!(ruleset(), "");
    });
    in_private_network(|| async {
        run("sysctl -qw net.ipv4.ip_forward=1");
        seal_forwarding();
        // It is on already: more than that nobody needs.
        Nft::new()
            .masquerade(masquerade("10.1.0.0/24", "br-a"))
            .await
            .unwrap();
        assert!(chain().contains("dept-br-a"));
    });
}

#[test]
fn n1_the_same_again_changes_and_costs_nothing() {
    in_private_network(|| async {
        let nft = Nft::new();
        for subnet in ["10.1.0.0/24", "10.1.0.1/32"] {
            nft.masquerade(masquerade(subnet, "br-a")).await.unwrap();
            let once = run("nft -a list ruleset");
            for _ in 0..3 {
                nft.masquerade(masquerade(subnet, "br-a")).await.unwrap();
            }
            // Nor through another handle.
            Nft::new()
                .masquerade(masquerade(subnet, "br-a"))
                .await
                .unwrap();
            assert_eq!(run("nft -a list ruleset"), once);
        }
    });
}

#[test]
fn n1_rules_of_an_earlier_process_are_recognised() {
    in_private_network(|| async {
        run("nft add table ip infinibay_nat");
        run(
            "nft add chain ip infinibay_nat postrouting { type nat hook postrouting priority srcnat ; }",
        );
        run(
            "nft add rule ip infinibay_nat postrouting ip saddr 10.1.0.0/24 oifname != br-a masquerade comment \"dept-br-a\"",
        );
        // An earlier release's: what goes between departments is put before it.
        let (nft, wanted) = (Nft::new(), masquerade("10.1.0.0/24", "br-a"));
        assert!(!nft.read_nat().await.unwrap().holds(&wanted));
        nft.masquerade(wanted.clone()).await.unwrap();
        assert!(nft.read_nat().await.unwrap().holds(&wanted));
        assert_eq!(chain().matches("dept-br-a").count(), 1);
        let before = run("nft -a list ruleset");
        drop(nft);
        Nft::new().masquerade(wanted).await.unwrap();
        assert_eq!(run("nft -a list ruleset"), before);
    });
}

#[test]
fn between_departments_addresses_stay_and_what_pretends_to_be_anothers_is_masqueraded() {
    in_private_network(|| async {
        let site = Site::new();
        bridge("br-c", &["10.3.0.1/24"]);
        for (subnet, bridge) in [
            ("10.1.0.0/24", "br-a"),
            ("10.2.0.0/24", "br-b"),
            ("10.3.0.0/24", "br-c"),
        ] {
            site.nft
                .masquerade(masquerade(subnet, bridge))
                .await
                .unwrap();
        }
        let port = tells_peers(&site.b);
        assert_eq!(asks(&site.a, "10.2.0.2", port), "10.1.0.2");
        let port = tells_peers(&site.a);
        assert_eq!(asks(&site.b, "10.1.0.2", port), "10.2.0.2");
        assert_eq!(site.seen(&site.a), UPLINK);
        assert_eq!(site.seen(&site.b), UPLINK);

        for link in ["all", "br-a"] {
            run(&format!("sysctl -qw net.ipv4.conf.{link}.rp_filter=0"));
        }
        site.a.sh("ip addr add 10.3.0.9/24 dev eth0");
        assert_eq!(sender_seen(&site, "10.3.0.9"), "10.2.0.1");
        assert_eq!(sender_seen(&site, "10.1.0.2"), "10.1.0.2");

        // Where the other one is none any more, it goes out as to anybody else.
        site.nft.stop_masquerading(&name("br-b")).await.unwrap();
        assert_eq!(sender_seen(&site, "10.1.0.2"), "10.2.0.1");
        for bridge in ["br-a", "br-c"] {
            site.nft.stop_masquerading(&name(bridge)).await.unwrap();
        }
        assert_eq!(site.nft.read_nat().await.unwrap().departments.len(), 0);
    });
}

/// The address that B sees of a datagram A sends from `source`.
fn sender_seen(site: &Site, source: &str) -> String {
    let ears = site
        .b
        .within(|| std::net::UdpSocket::bind("10.2.0.2:0").unwrap());
    ears.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let (to, source) = (ears.local_addr().unwrap(), format!("{source}:0"));
    site.a.within(move || {
        let mouth = std::net::UdpSocket::bind(source).unwrap();
        mouth.send_to(b"?", to).unwrap();
    });
    let (_, peer) = ears.recv_from(&mut [0; 8]).unwrap();
    peer.ip().to_string()
}

#[test]
fn n2_n3_only_the_bridges_own_rule_is_replaced_or_removed() {
    in_private_network(|| async {
        let nft = Nft::new();
        nft.prepare_nat().await.unwrap();
        run(
            "nft add rule ip infinibay_nat postrouting ip saddr 192.0.2.0/24 masquerade comment \"dept-\"",
        );
        run("nft add rule ip infinibay_nat postrouting ip saddr 192.0.2.7 counter");
        let foreign = chain();
        nft.masquerade(masquerade("10.12.0.0/16", "x12"))
            .await
            .unwrap();
        nft.masquerade(masquerade("10.1.0.0/16", "x1"))
            .await
            .unwrap();
        nft.masquerade(masquerade("10.3.0.0/16", "x1"))
            .await
            .unwrap();
        let all = chain();
        assert!(
            !all.contains("10.1.0.0") && all.contains("10.3.0.0/16"),
            "{all}"
        );
        assert_eq!(
            nft.read_nat().await.unwrap().bridges(),
            [name("x12"), name("x1")]
        );
        nft.stop_masquerading(&name("x1")).await.unwrap();
        nft.stop_masquerading(&name("x")).await.unwrap();
        assert_eq!(nft.read_nat().await.unwrap().bridges(), [name("x12")]);
        nft.stop_masquerading(&name("x12")).await.unwrap();
        assert_eq!(chain(), foreign);
    });
}

#[test]
fn n4_a_table_that_was_deleted_is_made_again() {
    in_private_network(|| async {
        let nft = Nft::new();
        nft.masquerade(masquerade("10.1.0.0/24", "br-a"))
            .await
            .unwrap();
        let good = ruleset();
        for gone in [
            "nft flush ruleset",
            "nft delete table ip infinibay_nat",
            "nft flush table ip infinibay_nat",
        ] {
            run(gone);
            assert_eq!(nft.read_nat().await.unwrap().bridges(), []);
            nft.masquerade(masquerade("10.1.0.0/24", "br-a"))
                .await
                .unwrap();
            assert_eq!(ruleset(), good, "{gone}");
        }
        run("nft flush ruleset");
        assert_eq!(nft.repair_nat().await.unwrap(), [name("br-a")]);
        assert_eq!(nft.repair_nat().await.unwrap(), []);
        assert_eq!(ruleset(), good);
        nft.stop_masquerading(&name("br-a")).await.unwrap();
        run("nft flush ruleset");
        nft.stop_masquerading(&name("br-a")).await.unwrap();
        assert_eq!(nft.repair_nat().await.unwrap(), []);
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn bridges_that_are_added_at_once_are_all_there() {
    in_private_network(|| async {
        let nft = Nft::new();
        let adding = (0..20u8).map(|n| {
            let rule = masquerade(&format!("10.{}.0.0/16", n % 10), &format!("br{}", n % 10));
            nft.masquerade(rule)
        });
        for added in futures_util::future::join_all(adding).await {
            added.unwrap();
        }
        assert_eq!(nft.read_nat().await.unwrap().bridges().len(), 10);
    });
}
