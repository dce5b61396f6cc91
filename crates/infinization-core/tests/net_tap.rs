//! TAPs, with real devices, frames and QEMU in private network namespaces.

use infinization_core::host::link::Links;
use infinization_core::host::tap::{self, Queues, TapError, TapOptions};
use infinization_core::types::LinkName;
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;

use kit::in_private_network;
use kit::net::{Frame, Others, Queue, as_nobody, find, gone, name, queues, start_and_drop};

#[test]
fn is_persistent_and_can_be_reopened() {
    in_private_network(|| async {
        let (links, tap_name) = (Links::new(), name("vnet-persist"));
        let before = links.list().await.unwrap();
        let fds = tap::create(&tap_name, queues(1)).await.unwrap();
        assert_eq!(fds.len(), 1);
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let held = find(&links, &tap_name).await;
        assert!(held.is_tap() && held.carrier && !held.up && held.master.is_none());
        drop(fds);

        let idle = find(&links, &tap_name).await;
        let tun = idle.tun.clone().unwrap();
        assert!(tun.persist && tun.vnet_hdr && !tun.multi_queue && !idle.carrier);
        assert_eq!(tun.owner, None);
        drop(tap::open(&links, &tap_name, Queues::ONE).await.unwrap());
        assert_eq!(find(&links, &tap_name).await.index, idle.index);

        for _again in 0..2 {
            tap::delete(&links, &tap_name).await.unwrap();
            assert_eq!(links.list().await.unwrap(), before);
        }
    });
}

#[test]
fn t1_the_queue_mode_is_told_before_it_can_fail() {
    in_private_network(|| async {
        let links = Links::new();
        for made in 1..=4 {
            let tap_name = name(&format!("vnet-q{made}"));
            let fds = tap::create(&tap_name, queues(made)).await.unwrap();
            assert_eq!(fds.len(), made as usize);
            drop(fds);
            let tun = find(&links, &tap_name).await.tun.unwrap();
            assert_eq!(tun.multi_queue, made > 1);
            for wanted in 1..=4 {
                let wanted = Queues::new(wanted).unwrap();
                let opened = tap::open(&links, &tap_name, wanted).await;
                if wanted.is_multi() == (made > 1) {
                    assert_eq!(opened.unwrap().len(), wanted.count() as usize);
                } else {
                    let error = opened.unwrap_err();
                    assert_eq!(error.code(), ErrorCode::DeviceAlreadyExists);
                    let TapError::QueueModeDiffers { multi_queue, .. } = error else {
                        panic!("{error:?}");
                    };
                    assert_eq!(multi_queue, made > 1);
                }
            }
        }
    });
}

#[test]
fn t5_creating_never_touches_a_link_that_exists() {
    in_private_network(|| async {
        let links = Links::new();
        Others::new().veth("veth-a", "veth-b").await;
        drop(tap::create(&name("vnet-idle"), queues(1)).await.unwrap());
        let held = tap::create(&name("vnet-held"), queues(2)).await.unwrap();
        for taken in ["veth-a", "vnet-idle", "vnet-held", "lo"].map(name) {
            let before = find(&links, &taken).await;
            for count in [1, 2] {
                let error = tap::create(&taken, queues(count)).await.unwrap_err();
                assert!(matches!(error, TapError::AlreadyExists { .. }), "{error:?}");
                assert_eq!(error.code(), ErrorCode::DeviceAlreadyExists);
                assert_eq!(error.context()["device"], taken.as_str());
            }
            assert_eq!(find(&links, &taken).await, before);
        }
        drop(held);
    });
}

#[test]
fn t5_of_many_creators_one_wins() {
    in_private_network(|| async {
        let tap_name = name("vnet-race");
        let tasks = (0..8).map(|_| {
            let tap_name = tap_name.clone();
            tokio::spawn(async move { tap::create(&tap_name, queues(2)).await })
        });
        let mut won = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            match task.await.unwrap() {
                Ok(fds) => won.push(fds),
                Err(error) => assert!(matches!(error, TapError::AlreadyExists { .. })),
            }
        }
        assert_eq!(won.len(), 1);
        let tun = find(&Links::new(), &tap_name).await.tun.unwrap();
        assert!(tun.persist);
        assert_eq!(tun.queues, Some(2));
    });
}

#[test]
fn a_tap_in_use_is_not_opened_again() {
    in_private_network(|| async {
        let links = Links::new();
        for count in [1, 2] {
            let (tap_name, options) = (name(&format!("vnet-busy{count}")), queues(count));
            let fds = tap::create(&tap_name, options).await.unwrap();
            let error = tap::open(&links, &tap_name, options.queues).await;
            let error = error.unwrap_err();
            assert!(matches!(error, TapError::InUse { .. }), "{error:?}");
            assert_eq!(error.code(), ErrorCode::DeviceAlreadyExists);
            // The holder has lost nothing.
            let tun = find(&links, &tap_name).await.tun.unwrap();
            assert!(tun.queues.is_none_or(|attached| attached == count));
            drop(fds);
            tap::open(&links, &tap_name, options.queues).await.unwrap();
        }
    });
}

#[test]
fn what_is_no_tap_is_neither_opened_nor_deleted() {
    in_private_network(|| async {
        let links = Links::new();
        Others::new().veth("veth-a", "veth-b").await;
        let before = links.list().await.unwrap();
        let absent = tap::open(&links, &name("absent"), Queues::ONE).await;
        assert_eq!(absent.unwrap_err().code(), ErrorCode::DeviceNotFound);
        for error in [
            tap::open(&links, &name("veth-a"), Queues::ONE)
                .await
                .unwrap_err(),
            tap::delete(&links, &name("veth-a")).await.unwrap_err(),
        ] {
            assert!(matches!(error, TapError::NotATap { .. }), "{error:?}");
            assert_eq!(error.code(), ErrorCode::DeviceNotFound);
        }
        assert_eq!(links.list().await.unwrap(), before);
    });
}

#[test]
fn b32_a_name_the_kernel_would_cut_is_no_name() {
    assert!(LinkName::parse("vnet-0123456789").is_ok());
    assert!(LinkName::parse("vnet-0123456789a").is_err());
}

#[test]
fn t2_it_may_have_an_owner() {
    in_private_network(|| async {
        let (links, tap_name) = (Links::new(), name("vnet-owned"));
        let options = TapOptions {
            queues: Queues::ONE,
            owner: Some(65534),
        };
        drop(tap::create(&tap_name, options).await.unwrap());
        assert_eq!(
            find(&links, &tap_name).await.tun.unwrap().owner,
            Some(65534)
        );
    });
}

#[test]
fn without_privilege_it_is_permission_denied() {
    in_private_network(|| async {
        let denied = as_nobody(async || tap::create(&name("vnet-nobody"), queues(1)).await);
        let error = denied.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NetPermissionDenied);
        assert_eq!(error.context()["device"], "vnet-nobody");
    });
}

#[test]
fn a_creation_nobody_waits_for_is_undone() {
    in_private_network(|| async {
        let (links, tap_name) = (Links::new(), name("vnet-dropped"));
        let before = links.list().await.unwrap();
        let mut watch = links.watch().unwrap();
        while !start_and_drop(tap::create(&tap_name, queues(4))).await {
            tap::delete(&links, &tap_name).await.unwrap();
        }
        gone(&mut watch, &tap_name).await;
        assert_eq!(links.list().await.unwrap(), before);
    });
}

#[test]
fn each_queue_carries_frames() {
    in_private_network(|| async {
        let links = Links::new();
        let (a, b) = (name("vnet-a"), name("vnet-b"));
        let br = name("br");
        infinization_core::host::bridge::create(&links, &br)
            .await
            .unwrap();
        let senders = tap::create(&a, queues(2)).await.unwrap();
        let receiver = tap::create(&b, queues(1)).await.unwrap().remove(0);
        for port in [&a, &b] {
            links.set_master(port, &br).await.unwrap();
            links.set_up(port).await.unwrap();
        }
        let receiver = Queue::new(receiver);
        for (number, sender) in senders.into_iter().map(Queue::new).enumerate() {
            let text = format!("queue {number}");
            sender.send(&Frame::broadcast(text.as_bytes()));
            let frame = receiver.receive(Frame::is_experimental).await;
            assert!(frame.payload().starts_with(text.as_bytes()));
        }
    });
}
