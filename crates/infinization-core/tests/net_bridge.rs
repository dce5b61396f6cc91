//! Bridges, with real links and frames in private network namespaces.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use infinization_core::host::bridge::{self, BridgeError, Ipv4Cidr};
use infinization_core::host::link::{LinkError, Links};
use infinization_core::host::tap;
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use nix::errno::Errno;
use rtnetlink::LinkBridge;

use kit::in_private_network;
use kit::net::{
    Frame, Others, PATIENCE, Queue, as_nobody, find, gone, name, queues, start_and_drop,
};

#[test]
fn is_made_up_and_destroyed() {
    in_private_network(|| async {
        let (links, br) = (Links::new(), name("infinibr-abc123"));
        let before = links.list().await.unwrap();
        assert!(!bridge::exists(&links, &br).await.unwrap());
        bridge::create(&links, &br).await.unwrap();
        assert!(bridge::exists(&links, &br).await.unwrap());
        let link = find(&links, &br).await;
        assert!(link.up && link.is_bridge());
        assert!(bridge::ports(&links, &br).await.unwrap().is_empty());
        for _again in 0..2 {
            bridge::destroy(&links, &br).await.unwrap();
            assert_eq!(links.list().await.unwrap(), before);
        }
    });
}

#[test]
fn f25_a_taken_name_is_refused_and_its_link_left_alone() {
    in_private_network(|| async {
        let links = Links::new();
        Others::new().veth("veth-a", "veth-b").await;
        bridge::create(&links, &name("br")).await.unwrap();
        for taken in ["br", "veth-a"].map(name) {
            let before = find(&links, &taken).await;
            let error = bridge::create(&links, &taken).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::BridgeAlreadyExists);
            assert_eq!(error.context()["device"], taken.as_str());
            assert_eq!(find(&links, &taken).await, before);
        }
    });
}

#[test]
fn ports_come_and_go_and_may_move() {
    in_private_network(|| async {
        let links = Links::new();
        let (one, two) = (name("br-1"), name("br-2"));
        bridge::create(&links, &one).await.unwrap();
        bridge::create(&links, &two).await.unwrap();
        Others::new().veth("veth-a", "veth-b").await;
        let port = name("veth-a");
        for _again in 0..2 {
            bridge::add_port(&links, &one, &port).await.unwrap();
            assert_eq!(bridge::ports(&links, &one).await.unwrap(), ["veth-a"]);
        }
        bridge::add_port(&links, &two, &port).await.unwrap();
        assert!(bridge::ports(&links, &one).await.unwrap().is_empty());

        // Only its own bridge lets it go.
        bridge::remove_port(&links, &one, &port).await.unwrap();
        assert_eq!(bridge::ports(&links, &two).await.unwrap(), ["veth-a"]);
        for _again in 0..2 {
            bridge::remove_port(&links, &two, &port).await.unwrap();
            assert!(bridge::ports(&links, &two).await.unwrap().is_empty());
        }
        let absent = name("absent");
        bridge::remove_port(&links, &two, &absent).await.unwrap();
        bridge::remove_port(&links, &absent, &port).await.unwrap();
        let error = bridge::add_port(&links, &two, &absent).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DeviceNotFound);
    });
}

#[test]
fn f23_attaching_to_a_missing_bridge_is_bridge_not_found() {
    in_private_network(|| async {
        let (links, port) = (Links::new(), name("vnet-f23"));
        drop(tap::create(&port, queues(1)).await.unwrap());
        let before = links.list().await.unwrap();
        let missing = name("br-gone");
        for error in [
            bridge::add_port(&links, &missing, &port).await.unwrap_err(),
            bridge::ports(&links, &missing).await.unwrap_err(),
            bridge::addresses(&links, &missing).await.unwrap_err(),
        ] {
            assert_eq!(error.code(), ErrorCode::BridgeNotFound);
            assert_eq!(error.context()["device"], "br-gone");
        }
        assert_eq!(links.list().await.unwrap(), before);
        tap::delete(&links, &port).await.unwrap();
    });
}

#[test]
fn b32_a_link_that_is_no_bridge_is_refused_untouched() {
    in_private_network(|| async {
        let links = Links::new();
        Others::new().veth("veth-a", "veth-b").await;
        Others::new().veth("veth-c", "veth-d").await;
        let before = links.list().await.unwrap();
        let cidr = Ipv4Cidr::parse("10.9.0.1/24").unwrap();
        for (other, kind) in [(name("veth-a"), Some("veth")), (name("lo"), None)] {
            assert!(!bridge::exists(&links, &other).await.unwrap());
            for error in [
                bridge::add_port(&links, &other, &name("veth-c")).await,
                bridge::assign_address(&links, &other, cidr).await,
                bridge::destroy(&links, &other).await,
            ] {
                let error = error.unwrap_err();
                assert_eq!(error.code(), ErrorCode::BridgeNotFound);
                let BridgeError::Link(LinkError::NotABridge { kind: is, .. }) = error else {
                    panic!("{error:?}");
                };
                assert_eq!(is.as_deref(), kind);
            }
        }
        assert_eq!(links.list().await.unwrap(), before);
    });
}

#[test]
fn f25_a_full_bridge_is_bridge_full() {
    in_private_network(|| async {
        let (links, others, br) = (Links::new(), Others::new(), name("br"));
        bridge::create(&links, &br).await.unwrap();
        // The kernel numbers ports 1 to 1023; each pair of veths takes two.
        for pair in 0..511 {
            let ends = [format!("a{pair}"), format!("b{pair}")];
            others.veth(&ends[0], &ends[1]).await;
            for end in &ends {
                links.set_master(&name(end), &br).await.unwrap();
            }
        }
        others.veth("last", "extra").await;
        links.set_master(&name("last"), &br).await.unwrap();
        let error = bridge::add_port(&links, &br, &name("extra")).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), ErrorCode::BridgeFull);
        assert_eq!(error.errno(), Some(Errno::EXFULL));
        assert_eq!(find(&links, &name("extra")).await.master, None);
        assert_eq!(bridge::ports(&links, &br).await.unwrap().len(), 1023);
    });
}

#[test]
fn addresses_are_assigned_and_removed_idempotently() {
    in_private_network(|| async {
        let (links, br) = (Links::new(), name("br"));
        bridge::create(&links, &br).await.unwrap();
        let listed = async || {
            let all = bridge::addresses(&links, &br).await.unwrap();
            let v4 = all.iter().filter(|address| address.address.is_ipv4());
            v4.map(ToString::to_string).collect::<Vec<_>>()
        };
        let (one, two) = ("10.9.0.1/24", "192.168.77.1/32");
        for cidr in [one, two, one, two] {
            let cidr = Ipv4Cidr::parse(cidr).unwrap();
            bridge::assign_address(&links, &br, cidr).await.unwrap();
        }
        assert_eq!(listed().await, [one, two]);
        for _again in 0..2 {
            let cidr = Ipv4Cidr::parse(one).unwrap();
            bridge::remove_address(&links, &br, cidr).await.unwrap();
            assert_eq!(listed().await, [two]);
        }
        // Another prefix is another address.
        let wider = Ipv4Cidr::parse("192.168.77.1/24").unwrap();
        bridge::remove_address(&links, &br, wider).await.unwrap();
        assert_eq!(listed().await, [two]);
    });
}

#[test]
fn ipv6_addresses_are_listed() {
    in_private_network(|| async {
        let (links, br) = (Links::new(), name("br"));
        bridge::create(&links, &br).await.unwrap();
        let port = name("vnet-v6");
        let fds = tap::create(&port, queues(1)).await.unwrap();
        bridge::add_port(&links, &br, &port).await.unwrap();
        links.set_up(&port).await.unwrap();
        // The kernel gives an up bridge with a carrier its link-local address.
        let up = links.wait_until(&br, |link| link.is_some_and(|link| link.lower_up), PATIENCE);
        up.await.unwrap();
        let all = bridge::addresses(&links, &br).await.unwrap();
        let local = all
            .iter()
            .find(|address| address.address.is_ipv6())
            .unwrap();
        assert!(local.to_string().starts_with("fe80::"), "{local}");
        assert_eq!(local.prefix, 64);
        drop(fds);
    });
}

#[test]
fn b1_a_bridge_that_cannot_be_configured_is_removed() {
    in_private_network(|| async {
        let (links, br) = (Links::new(), name("br-half"));
        // The netlink connection has privileges and makes the bridge; the threads that come after
        // it have none, so the checksum offload cannot be turned off.
        let before = links.list().await.unwrap();
        let error = as_nobody(async || bridge::create(&links, &br).await).unwrap_err();
        assert!(matches!(error, BridgeError::Offload { .. }), "{error:?}");
        assert_eq!(error.code(), ErrorCode::NetPermissionDenied);
        assert_eq!(links.list().await.unwrap(), before);
    });
}

#[test]
fn b1_a_creation_nobody_waits_for_is_undone() {
    in_private_network(|| async {
        let (links, br) = (Links::new(), name("br-dropped"));
        let before = links.list().await.unwrap();
        let mut watch = links.watch().unwrap();
        while !start_and_drop(bridge::create(&links, &br)).await {
            bridge::destroy(&links, &br).await.unwrap();
        }
        gone(&mut watch, &br).await;
        assert_eq!(links.list().await.unwrap(), before);
    });
}

/// What the guest's network driver can do.
#[derive(PartialEq)]
enum Guest {
    /// No offload: the frame must be finished when it leaves the TAP.
    Plain,
    /// A virtio driver had QEMU turn the TAP's own offload on.
    FinishesChecksums,
}

/// Sends what a DHCP server on this host would, and gives the frame that reaches the guest's TAP.
async fn offer_through(links: &Links, br: &str, guest: Guest) -> Frame {
    let (br, port) = (name(br), name(&format!("vnet-{br}")));
    let queue = Queue::new(tap::create(&port, queues(1)).await.unwrap().remove(0));
    if guest == Guest::FinishesChecksums {
        queue.offload_checksums();
    }
    bridge::add_port(links, &br, &port).await.unwrap();
    links.set_up(&port).await.unwrap();
    let cidr = Ipv4Cidr::parse("10.9.0.1/24").unwrap();
    bridge::assign_address(links, &br, cidr).await.unwrap();
    let up = links.wait_until(&br, |link| link.is_some_and(|link| link.lower_up), PATIENCE);
    up.await.unwrap();

    let server = tokio::net::UdpSocket::bind("0.0.0.0:67").await.unwrap();
    server.set_broadcast(true).unwrap();
    server.bind_device(Some(br.as_str().as_bytes())).unwrap();
    let sent = server.send_to(b"OFFER", "255.255.255.255:68").await;
    assert_eq!(sent.unwrap(), 5);
    queue.receive(|frame| is_udp_to(frame, 68)).await
}

fn is_udp_to(frame: &Frame, port: u16) -> bool {
    let ether = frame.ether();
    ether[12..14] == [8, 0] && ether[23] == 17 && ether[36..38] == port.to_be_bytes()
}

/// The sum over the pseudo header and datagram is all ones exactly if the checksum is right.
fn udp_checksum_is_right(frame: &Frame) -> bool {
    let ip = &frame.ether()[14..];
    let udp = &ip[20..usize::from(u16::from_be_bytes([ip[2], ip[3]]))];
    let length = u32::try_from(udp.len()).unwrap();
    let words = ip[12..20].chunks(2).chain(udp.chunks(2));
    let mut sum = words.fold(17 + length, |sum, word| {
        sum + u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))
    });
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

#[test]
fn t6_frames_of_a_dhcp_server_have_their_checksum() {
    in_private_network(|| async {
        let links = Links::new();
        // A bridge as others make it hands unfinished frames over: the test can tell.
        let plain = LinkBridge::new("br-plain").up().build();
        Others::new().add(plain).await;
        let frame = offer_through(&links, "br-plain", Guest::FinishesChecksums).await;
        assert!(frame.needs_checksum() && !udp_checksum_is_right(&frame));
        bridge::destroy(&links, &name("br-plain")).await.unwrap();

        bridge::create(&links, &name("br-ours")).await.unwrap();
        let frame = offer_through(&links, "br-ours", Guest::FinishesChecksums).await;
        assert!(!frame.needs_checksum() && udp_checksum_is_right(&frame));
    });
}

#[test]
fn t6_frames_to_a_plain_guest_are_finished_by_the_tap() {
    in_private_network(|| async {
        let links = Links::new();
        let plain = LinkBridge::new("br-plain").up().build();
        Others::new().add(plain).await;
        let frame = offer_through(&links, "br-plain", Guest::Plain).await;
        assert!(!frame.needs_checksum() && udp_checksum_is_right(&frame));
    });
}
