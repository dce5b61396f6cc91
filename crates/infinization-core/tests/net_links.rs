//! Links over rtnetlink, with real links in private network namespaces.

use infinization_core::host::link::{LinkError, LinkEvent, Links, OperState};
use infinization_core::host::{bridge, tap};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use nix::errno::Errno;
use rtnetlink::LinkMacVlan;
use rtnetlink::packet_route::link::MacVlanMode;

use kit::in_private_network;
use kit::net::{Others, PATIENCE, Queue, as_nobody, find, name, queues};

#[test]
fn finds_and_lists_links_of_any_kind() {
    in_private_network(|| async {
        let links = Links::new();
        Others::new().veth("veth-a", "veth-b").await;
        let all = links.list().await.unwrap();
        let names: Vec<_> = all.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names.first(), Some(&"lo"));
        assert!(names.contains(&"veth-a") && names.contains(&"veth-b"));

        let veth = find(&links, &name("veth-a")).await;
        assert_eq!(Some(&veth), all.iter().find(|link| link.name == "veth-a"));
        assert_eq!(veth.kind.as_deref(), Some("veth"));
        assert_eq!((veth.mtu, veth.master, veth.up), (1500, None, false));
        assert_eq!(veth.operstate, OperState::Down);
        assert!(veth.mac.is_some() && veth.tun.is_none());
        assert_eq!(find(&links, &name("lo")).await.kind, None);
        assert_eq!(links.find(&name("absent")).await.unwrap(), None);
    });
}

#[test]
fn raises_takes_down_and_deletes() {
    in_private_network(|| async {
        let (links, link) = (Links::new(), name("veth-a"));
        Others::new().veth("veth-a", "veth-b").await;
        for _again in 0..2 {
            links.set_up(&link).await.unwrap();
            assert!(find(&links, &link).await.up);
        }
        for _again in 0..2 {
            links.set_down(&link).await.unwrap();
            assert!(!find(&links, &link).await.up);
        }
        for _again in 0..2 {
            links.delete(&link).await.unwrap();
            assert_eq!(links.find(&link).await.unwrap(), None);
        }
    });
}

#[test]
fn errors_name_the_link_and_the_errno() {
    in_private_network(|| async {
        let links = Links::new();
        let error = links.set_up(&name("absent")).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DeviceNotFound);
        assert_eq!(error.context()["device"], "absent");
        assert_eq!(error.context()["errno"], Errno::ENODEV as i32);

        // The loopback cannot be deleted.
        let error = links.delete(&name("lo")).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NetlinkFailed);
        assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP));
        assert_eq!(error.to_string(), "deleting lo failed");
    });
}

#[test]
fn the_kernels_own_words_are_kept() {
    in_private_network(|| async {
        let (links, inner) = (Links::new(), name("br-inner"));
        bridge::create(&links, &name("br-outer")).await.unwrap();
        bridge::create(&links, &inner).await.unwrap();
        let error = links.set_master(&inner, &name("br-outer")).await;
        let error = infinization_core::Failure::from(error.unwrap_err());
        assert!(
            error
                .to_string()
                .contains("Can not enslave a bridge to a bridge"),
            "{error}"
        );
    });
}

#[test]
fn without_privilege_it_is_permission_denied() {
    in_private_network(|| async {
        let denied = as_nobody(async || Links::new().set_up(&name("lo")).await);
        let error = denied.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NetPermissionDenied);
        assert_eq!(error.errno(), Some(Errno::EPERM));
    });
}

#[test]
fn f26_a_busy_link_is_an_error_after_a_few_tries() {
    in_private_network(|| async {
        let links = Links::new();
        let others = Others::new();
        others.veth("veth-a", "veth-b").await;
        let lower = find(&links, &name("veth-a")).await.index;
        others
            .add(LinkMacVlan::new("macvlan", lower, MacVlanMode::Bridge).build())
            .await;
        bridge::create(&links, &name("br")).await.unwrap();
        let error = links.set_master(&name("veth-a"), &name("br")).await;
        let error = error.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EBUSY));
        assert_eq!(error.code(), ErrorCode::NetlinkFailed);
        assert_eq!(find(&links, &name("veth-a")).await.master, None);
    });
}

#[test]
fn many_tasks_share_a_handle() {
    in_private_network(|| async {
        let links = Links::new();
        let tasks = (0..16).map(|number| {
            let (links, bridge) = (links.clone(), name(&format!("br-{number}")));
            tokio::spawn(async move {
                bridge::create(&links, &bridge).await.unwrap();
                assert_eq!(find(&links, &bridge).await.name, bridge.as_str());
                links.list().await.unwrap();
                bridge::destroy(&links, &bridge).await.unwrap();
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let left = links.list().await.unwrap();
        assert!(left.iter().all(|link| !link.is_bridge()), "{left:?}");
    });
}

#[test]
fn a_handle_works_from_another_runtime() {
    in_private_network(|| async {
        let links = Links::new();
        links.list().await.unwrap();
        let elsewhere = std::thread::spawn(move || {
            kit::runtime().block_on(async { links.find(&name("lo")).await })
        });
        let found = tokio::task::spawn_blocking(|| elsewhere.join().unwrap()).await;
        assert!(found.unwrap().unwrap().is_some());
    });
}

#[test]
fn the_carrier_is_waited_for_by_event() {
    in_private_network(|| async {
        let (links, tap_name) = (Links::new(), name("vnet-carrier"));
        drop(tap::create(&tap_name, queues(1)).await.unwrap());
        links.set_up(&tap_name).await.unwrap();
        let link = find(&links, &tap_name).await;
        assert!(link.up && !link.lower_up && !link.carrier);

        let waiting = {
            let (links, tap_name) = (links.clone(), tap_name.clone());
            tokio::spawn(async move {
                links
                    .wait_until(
                        &tap_name,
                        |link| link.is_some_and(|link| link.lower_up),
                        PATIENCE,
                    )
                    .await
            })
        };
        let fds = tap::open(&links, &tap_name, queues(1).queues).await;
        let link = waiting.await.unwrap().unwrap().unwrap();
        assert!(link.carrier);
        assert_eq!(link.operstate.to_string(), "UP");
        drop(fds);
        let without = |link: Option<&infinization_core::host::link::Link>| {
            link.is_some_and(|link| !link.carrier)
        };
        links
            .wait_until(&tap_name, without, PATIENCE)
            .await
            .unwrap();
    });
}

#[test]
fn absence_can_be_waited_for_and_a_deadline_ends_waiting() {
    in_private_network(|| async {
        let (links, link) = (Links::new(), name("veth-a"));
        Others::new().veth("veth-a", "veth-b").await;
        let brief = std::time::Duration::from_millis(20);
        let error = links.wait_until(&link, |link| link.is_none(), brief).await;
        let error = error.unwrap_err();
        assert!(matches!(error, LinkError::Unchanged { .. }));
        assert_eq!(error.code(), ErrorCode::NetTimeout);

        let absent = links.wait_until(&link, |link| link.is_none(), PATIENCE);
        let (absent, deleted) = tokio::join!(absent, links.delete(&link));
        deleted.unwrap();
        assert_eq!(absent.unwrap(), None);
    });
}

#[test]
fn f26_lost_announcements_are_reported() {
    in_private_network(|| async {
        let (links, others) = (Links::new(), Others::new());
        others.veth("veth-a", "veth-b").await;
        let mut watch = links.watch().unwrap();
        // More announcements than the socket's buffer holds, while nobody reads it.
        for round in 0..2000 {
            others.set_mtu("veth-a", 1400 + round % 2).await;
        }
        let missed = async { while watch.next().await.unwrap() != LinkEvent::Missed {} };
        let seen = tokio::time::timeout(PATIENCE, missed).await;
        seen.expect("an overrun was not noticed");

        // The subscription goes on afterwards.
        others.set_mtu("veth-b", 1234).await;
        let changed = async {
            loop {
                if let LinkEvent::Changed(link) = watch.next().await.unwrap()
                    && link.name == "veth-b"
                    && link.mtu == 1234
                {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, changed).await.unwrap();
    });
}

#[test]
fn frames_flow_while_attached_and_not_while_detached() {
    in_private_network(|| async {
        let (links, br) = (Links::new(), name("br"));
        bridge::create(&links, &br).await.unwrap();
        let mut ends = Vec::new();
        for tap_name in ["vnet-a", "vnet-b"].map(name) {
            let fd = tap::create(&tap_name, queues(1)).await.unwrap().remove(0);
            links.set_up(&tap_name).await.unwrap();
            links.set_master(&tap_name, &br).await.unwrap();
            ends.push(Queue::new(fd));
        }
        let [a, b] = ends.try_into().ok().unwrap();
        let send = |text: &str| a.send(&kit::net::Frame::broadcast(text.as_bytes()));
        send("one");
        let frame = b.receive(kit::net::Frame::is_experimental).await;
        assert!(frame.payload().starts_with(b"one"));

        // Frames keep their order: had "two" been let through, it would come before "three".
        links.set_nomaster(&name("vnet-a")).await.unwrap();
        send("two");
        links.set_master(&name("vnet-a"), &br).await.unwrap();
        send("three");
        let frame = b.receive(kit::net::Frame::is_experimental).await;
        assert!(frame.payload().starts_with(b"three"));
    });
}
