//! What a monitor sends must not grow our memory. Alone in its process, so that its memory is
//! only its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use infinization_core::qmp::{MonitorEvent, QmpOptions};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use kit::qmp::{Peer, Stage, within};

const MIB: u64 = 1024 * 1024;

/// Memory of this process that is in RAM.
fn resident() -> u64 {
    let pages = procfs::process::Process::myself().unwrap().statm().unwrap();
    pages.resident * procfs::page_size()
}

/// Sends the same bytes again and again, until they are all sent or nobody takes them.
async fn pour(peer: &mut Peer, bytes: &[u8], times: usize) {
    for _ in 0..times {
        if within(peer.writer.write_all(bytes)).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn f7_f8_floods_and_endless_lines_are_bounded() {
    flood_of_events().await;
    endless_line().await;
}

async fn flood_of_events() {
    const EVENTS: u64 = 200_000;
    const BATCH: u64 = 100;
    let stage = Stage::new();
    let (client, mut slow, mut peer) = stage.connected(QmpOptions::default()).await;
    let mut other = client.subscribe();
    let other = tokio::spawn(async move {
        let mut seen = 0;
        while let Some(event) = other.next().await {
            seen += u64::from(matches!(event, MonitorEvent::Event(_)));
        }
        seen + other.missed()
    });

    let before = resident();
    let event = json!({ "event": "FLOOD", "data": { "x": "x".repeat(2000) } });
    let batch = format!("{event}\n").repeat(usize::try_from(BATCH).unwrap());
    let play = async {
        pour(&mut peer, batch.as_bytes(), 1000).await;
        // A call in the middle of the flood is answered.
        let command = peer.command().await;
        peer.answer(&command, json!({"running": false, "status": "io-error"}))
            .await;
        pour(&mut peer, batch.as_bytes(), 1000).await;
        drop(peer);
    };
    let (status, ()) = tokio::join!(within(client.query_status()), play);
    assert!(!status.unwrap().running);

    // Whoever keeps up, and whoever has not looked yet, accounts for every event.
    assert_eq!(within(other).await.unwrap(), EVENTS);
    let mut seen = 0;
    while let Some(event) = within(slow.next()).await {
        seen += u64::from(matches!(event, MonitorEvent::Event(_)));
    }
    assert_eq!(seen + slow.missed(), EVENTS);
    assert!(slow.missed() > EVENTS / 2);
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 * MIB, "400 MB of events left {grown} bytes");
}

async fn endless_line() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let before = resident();
    let chunk = vec![b'x'; 1024 * 1024];
    let play = async {
        peer.command().await;
        peer.send(b"{\"return\": \"").await;
        pour(&mut peer, &chunk, 64).await;
    };
    let (outcome, ()) = tokio::join!(within(client.query_status()), play);
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::QmpProtocol);
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 * MIB, "an endless line left {grown} bytes");
}
