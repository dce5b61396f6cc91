//! Alone in its process, because it counts the process' descriptors and threads.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use std::time::Instant;

use infinization_core::host::bridge;
use infinization_core::host::link::Links;
use infinization_core::host::tap::{self, Queues};
use infinization_test_kit as kit;

use kit::in_private_network;
use kit::net::{PATIENCE, name, queues};

#[test]
fn nothing_is_left_after_many_lives_of_a_tap() {
    in_private_network(|| async {
        live_once().await;
        settled(0).await;
        let fds = open_descriptors();
        let before = Links::new().list().await.unwrap();
        for _life in 0..10 {
            live_once().await;
        }
        settled(fds).await;
        assert_eq!(Links::new().list().await.unwrap(), before);
    });
}

async fn live_once() {
    let (links, br, port) = (Links::new(), name("br"), name("vnet-life"));
    bridge::create(&links, &br).await.unwrap();
    drop(tap::create(&port, queues(2)).await.unwrap());
    tap::create(&port, queues(1)).await.unwrap_err();
    tap::open(&links, &port, Queues::ONE).await.unwrap_err();
    let fds = tap::open(&links, &port, queues(2).queues).await.unwrap();
    bridge::add_port(&links, &br, &port).await.unwrap();
    links.set_up(&port).await.unwrap();
    let up = links.wait_until(
        &port,
        |link| link.is_some_and(|link| link.lower_up),
        PATIENCE,
    );
    up.await.unwrap();
    drop(fds);
    tap::delete(&links, &port).await.unwrap();
    bridge::destroy(&links, &br).await.unwrap();
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn netlink_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "netlink").count()
}

/// Waits until the threads of dropped handles have ended and, unless `fds` is 0, no more than that
/// many descriptors are open. A thread's end is no event we could wait for.
async fn settled(fds: usize) {
    let start = Instant::now();
    while netlink_threads() > 0 || (fds > 0 && open_descriptors() > fds) {
        let (threads, open) = (netlink_threads(), open_descriptors());
        assert!(
            start.elapsed() < PATIENCE,
            "{threads} netlink threads and {open} descriptors (of {fds}) are left"
        );
        tokio::task::yield_now().await;
    }
}
