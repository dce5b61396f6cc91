//! The monitor client against a QEMU played by the test: everything a real one does rarely.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use infinization_core::qmp::{
    DisplayProtocol, Link, MonitorEvent, QmpClient, QmpOptions, Reconnect, RunState,
};
use infinization_core::types::Secret;
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use kit::qmp::{Stage, event_named, within};

const SHORT: Duration = Duration::from_millis(50);

fn reconnecting(reconnect: Reconnect) -> QmpOptions {
    QmpOptions {
        reconnect,
        ..QmpOptions::default()
    }
}

fn while_alive() -> (QmpOptions, CancellationToken) {
    let gone = CancellationToken::new();
    let options = reconnecting(Reconnect::WhileAlive { gone: gone.clone() });
    (options, gone)
}

/// The code a call failed with.
fn code<T: std::fmt::Debug, E: Coded>(outcome: Result<T, E>) -> ErrorCode {
    outcome.unwrap_err().code()
}

#[tokio::test]
async fn f4_a_silent_monitor_and_an_absent_one_are_told_apart() {
    let stage = Stage::new();
    let options = QmpOptions {
        connect_timeout: SHORT,
        ..QmpOptions::default()
    };
    let silent = QmpClient::connect(&stage.path(), options.clone()).await;
    assert_eq!(code(silent), ErrorCode::QmpTimeout);

    let nowhere = stage.path().with_extension("absent");
    let error = QmpClient::connect(&nowhere, options).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::QmpConnectFailed);
    assert_eq!(error.context()["errno"], libc::ENOENT);
}

#[tokio::test]
async fn a_monitor_that_ends_in_the_handshake_is_a_disconnect() {
    let stage = Stage::new();
    let path = stage.path();
    let hang_up = async { drop(stage.accept().await) };
    let (outcome, ()) = tokio::join!(QmpClient::connect(&path, QmpOptions::default()), hang_up);
    assert_eq!(code(outcome), ErrorCode::QmpDisconnected);
}

#[tokio::test]
async fn nothing_before_the_first_command_is_missed() {
    let stage = Stage::new();
    let path = stage.path();
    let play = async {
        let mut peer = stage.accept().await;
        peer.event("EARLY", json!({})).await;
        peer.shake_hands().await;
        peer.event("LATE", json!({"x": 1})).await;
        peer
    };
    let (outcome, _peer) = tokio::join!(QmpClient::connect(&path, QmpOptions::default()), play);
    let (client, mut events) = outcome.unwrap();
    assert_eq!(client.greeting().unwrap().version.qemu.minor, 2);
    event_named(&mut events, "EARLY").await;
    let late = event_named(&mut events, "LATE").await;
    assert_eq!(late.data.get(), r#"{"x":1}"#);
}

#[tokio::test]
async fn f5_closing_mid_command_fails_every_pending_call() {
    let stage = Stage::new();
    let (client, mut events, mut peer) = stage.connected(QmpOptions::default()).await;
    let calls = async {
        tokio::join!(
            client.query_status(),
            client.execute("query-block", ()),
            client.stop(),
        )
    };
    let leave = async {
        for _ in 0..3 {
            peer.command().await;
        }
        drop(peer);
    };
    let (calls, ()) = tokio::join!(within(calls), leave);
    assert_eq!(code(calls.0), ErrorCode::QmpDisconnected);
    assert_eq!(code(calls.1), ErrorCode::QmpDisconnected);
    assert_eq!(code(calls.2), ErrorCode::QmpDisconnected);

    let last = within(events.next()).await;
    assert!(matches!(
        last,
        Some(MonitorEvent::Disconnected {
            will_reconnect: false
        })
    ));
    assert!(within(events.next()).await.is_none());
    assert_eq!(client.link(), Link::Closed);
    let later = within(client.query_status()).await;
    assert_eq!(code(later), ErrorCode::QmpDisconnected);
    assert!(within(client.subscribe().next()).await.is_none());
}

#[tokio::test]
async fn last_words_are_heard_even_if_qemu_no_longer_listens() {
    let stage = Stage::new();
    let (client, mut events, mut peer) = stage.connected(QmpOptions::default()).await;
    peer.event(
        "SHUTDOWN",
        json!({"guest": true, "reason": "guest-shutdown"}),
    )
    .await;
    drop(peer);
    let outcome = within(client.query_status()).await;
    assert_eq!(code(outcome), ErrorCode::QmpDisconnected);
    event_named(&mut events, "SHUTDOWN").await;
    within(client.quit()).await.unwrap();
}

#[tokio::test]
async fn f7_replies_find_their_calls_whatever_the_order() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let calls: Vec<_> = (0..8)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let answer = client.execute("echo", json!({ "number": number })).await;
                assert_eq!(answer.unwrap().get(), number.to_string());
            })
        })
        .collect();
    let mut commands = Vec::new();
    for _ in 0..8 {
        commands.push(peer.command().await);
    }
    for command in commands.iter().rev() {
        peer.say(r#"{"return":"nobody's","id":987654}"#).await;
        peer.say(r#"{"return":"nobody's","id":"text"}"#).await;
        peer.answer(command, command["arguments"]["number"].clone())
            .await;
        peer.answer(command, json!("a second answer")).await;
    }
    for call in calls {
        within(call).await.unwrap();
    }
}

#[tokio::test]
async fn f7_a_late_reply_answers_nobody() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let error = client.execute_with("slow", (), SHORT).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::QmpTimeout);
    assert_eq!(error.context()["command"], "slow");

    let slow = peer.command().await;
    let play = async {
        let quick = peer.command().await;
        peer.answer(&slow, json!("late")).await;
        peer.answer(&quick, json!("in time")).await;
    };
    let (answer, ()) = tokio::join!(within(client.execute("quick", ())), play);
    assert_eq!(answer.unwrap().get(), r#""in time""#);
    assert!(client.is_connected());
}

#[tokio::test]
async fn an_error_without_id_ends_the_call_it_is_for() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let play = async {
        peer.command().await;
        peer.say(r#"{"error":{"class":"GenericError","desc":"JSON parse error"}}"#)
            .await;
    };
    let (outcome, ()) = tokio::join!(within(client.execute("eject", ())), play);
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), ErrorCode::QmpCommandFailed);
    assert_eq!(error.context()["desc"], "JSON parse error");
}

#[tokio::test]
async fn f7_text_split_inside_a_character_arrives_whole() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let text = "Grüße, 世界 🐧";
    let play = async {
        let command = peer.command().await;
        let reply = json!({ "return": text, "id": command["id"] }).to_string();
        for byte in reply.into_bytes() {
            peer.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
        peer.send(b"\n").await;
    };
    let (answer, ()) = tokio::join!(within(client.execute("echo", ())), play);
    assert_eq!(answer.unwrap().get(), format!("\"{text}\""));
}

#[tokio::test]
async fn f7_what_is_not_qmp_ends_the_connection() {
    for nonsense in [
        b"\xff\xfe{}\n".as_slice(),
        b"{\"return\": \"\xc3(\", \"id\": 1}\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"{\"return\": {}\n",
        b"[]\n",
    ] {
        let stage = Stage::new();
        let (client, mut events, mut peer) = stage.connected(QmpOptions::default()).await;
        let play = async {
            peer.command().await;
            peer.send(nonsense).await;
            peer.hung_up().await;
        };
        let (outcome, ()) = tokio::join!(within(client.query_status()), play);
        assert_eq!(code(outcome), ErrorCode::QmpProtocol);
        let last = within(events.next()).await;
        assert!(matches!(last, Some(MonitorEvent::Disconnected { .. })));
    }
}

#[tokio::test]
async fn f7_an_answer_of_another_shape_is_a_protocol_error() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let play = async {
        let command = peer.command().await;
        peer.answer(&command, json!({ "running": "perhaps" })).await;
    };
    let (outcome, ()) = tokio::join!(within(client.query_status()), play);
    assert_eq!(code(outcome), ErrorCode::QmpProtocol);
    assert!(client.is_connected());
}

#[tokio::test]
async fn an_oversized_event_is_missed_not_kept() {
    let stage = Stage::new();
    let (_client, mut events, mut peer) = stage.connected(QmpOptions::default()).await;
    peer.event("HUGE", json!({ "x": "x".repeat(100_000) }))
        .await;
    let first = within(events.next()).await;
    assert!(matches!(first, Some(MonitorEvent::Missed { count: 1 })));
    peer.event("SMALL", json!({})).await;
    event_named(&mut events, "SMALL").await;
    assert_eq!(events.missed(), 1);
}

#[tokio::test]
async fn a_broken_connection_comes_back_with_the_truth() {
    let stage = Stage::new();
    let (options, _gone) = while_alive();
    let (client, mut events, mut peer) = stage.connected(options).await;
    let first = tokio::join!(within(client.stop()), async {
        peer.command().await;
        drop(peer);
    });
    assert_eq!(code(first.0), ErrorCode::QmpDisconnected);
    let broken = within(events.next()).await;
    assert!(matches!(
        broken,
        Some(MonitorEvent::Disconnected {
            will_reconnect: true
        })
    ));
    assert_eq!(client.link(), Link::Reconnecting);
    let meanwhile = within(client.query_status()).await;
    assert_eq!(code(meanwhile), ErrorCode::QmpDisconnected);

    // QEMU is not ready at once: two attempts come to nothing.
    drop(stage.accept().await);
    drop(stage.accept().await);
    let mut peer = stage.accept_qmp().await;
    let query = peer.command().await;
    assert_eq!(query["execute"], "query-status");
    peer.event("RESUME", json!({})).await;
    peer.answer(&query, json!({ "running": true, "status": "running" }))
        .await;
    event_named(&mut events, "RESUME").await;
    let Some(MonitorEvent::Reconnected { status }) = within(events.next()).await else {
        panic!("not reconnected");
    };
    assert_eq!(status.status, RunState::Running);
    assert!(client.is_connected());

    let play = async {
        let command = peer.command().await;
        peer.answer(&command, json!({})).await;
    };
    tokio::join!(within(client.stop()), play).0.unwrap();
}

#[tokio::test]
async fn reconnecting_ends_when_the_process_is_gone() {
    let stage = Stage::new();
    let (options, gone) = while_alive();
    let (client, mut events, peer) = stage.connected(options).await;
    drop(peer);
    let broken = within(events.next()).await;
    assert!(matches!(broken, Some(MonitorEvent::Disconnected { .. })));
    gone.cancel();
    assert!(matches!(
        within(events.next()).await,
        Some(MonitorEvent::GaveUp)
    ));
    assert!(within(events.next()).await.is_none());
    assert_eq!(client.link(), Link::Closed);
}

#[tokio::test]
async fn reconnecting_ends_when_the_attempts_are_used_up() {
    let stage = Stage::new();
    let attempts = Reconnect::Attempts {
        most: 2,
        delay: Duration::from_millis(5),
    };
    let (_client, mut events, peer) = stage.connected(reconnecting(attempts)).await;
    drop(peer);
    for _ in 0..2 {
        drop(stage.accept().await);
    }
    let broken = within(events.next()).await;
    assert!(matches!(broken, Some(MonitorEvent::Disconnected { .. })));
    assert!(matches!(
        within(events.next()).await,
        Some(MonitorEvent::GaveUp)
    ));
}

#[tokio::test]
async fn closing_cancels_a_reconnect_for_good() {
    let stage = Stage::new();
    let (options, _gone) = while_alive();
    let (client, mut events, peer) = stage.connected(options).await;
    drop(peer);
    let broken = within(events.next()).await;
    assert!(matches!(broken, Some(MonitorEvent::Disconnected { .. })));
    // The handshake of the next connection is in flight when the client is closed.
    let mut peer = stage.accept().await;
    within(client.close()).await;
    peer.hung_up().await;
    assert_eq!(client.link(), Link::Closed);
    assert!(within(events.next()).await.is_none());
    let later = within(client.query_status()).await;
    assert_eq!(code(later), ErrorCode::QmpDisconnected);
    within(client.close()).await;
}

#[tokio::test]
async fn closing_fails_pending_calls_at_once() {
    let stage = Stage::new();
    let (client, mut events, mut peer) = stage.connected(QmpOptions::default()).await;
    let close = async {
        peer.command().await;
        within(client.close()).await;
    };
    let (outcome, ()) = tokio::join!(within(client.query_status()), close);
    assert_eq!(code(outcome), ErrorCode::QmpDisconnected);
    peer.hung_up().await;
    assert!(within(events.next()).await.is_none());
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_connection() {
    let stage = Stage::new();
    let (options, _gone) = while_alive();
    let (client, mut events, mut peer) = stage.connected(options).await;
    let clone = client.clone();
    drop(client);
    let play = async {
        let command = peer.command().await;
        peer.answer(&command, json!({})).await;
    };
    let (outcome, ()) = tokio::join!(within(clone.cont()), play);
    outcome.unwrap();
    drop(clone);
    peer.hung_up().await;
    assert!(within(events.next()).await.is_none());
}

#[tokio::test]
async fn f3_a_monitor_that_reads_nothing_delays_nobody_beyond_deadlines() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let blob = json!({ "blob": "x".repeat(1024 * 1024) });
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let (client, blob) = (client.clone(), blob.clone());
            tokio::spawn(async move { client.execute_with("eat", blob, SHORT).await })
        })
        .collect();
    for call in calls {
        assert_eq!(code(within(call).await.unwrap()), ErrorCode::QmpTimeout);
    }
    within(client.close()).await;
    peer.hung_up().await;
}

#[tokio::test]
async fn a_dropped_call_is_forgotten() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    {
        let forgotten = client.execute("forgotten", ());
        let sent = async { peer.command().await };
        tokio::select! {
            _ = forgotten => panic!("nobody answered"),
            command = sent => assert_eq!(command["execute"], "forgotten"),
        }
    }
    let play = async {
        let command = peer.command().await;
        peer.answer(&command, json!(7)).await;
    };
    let (answer, ()) = tokio::join!(within(client.execute("next", ())), play);
    assert_eq!(answer.unwrap().get(), "7");
}

#[tokio::test]
async fn b43_nothing_malformed_is_sent() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let inject = r#"stop"} {"execute":"quit"#;
    assert_eq!(
        code(client.execute(inject, ()).await),
        ErrorCode::QmpArguments
    );
    assert_eq!(
        code(client.execute("eject", json!([inject])).await),
        ErrorCode::QmpArguments
    );
    let play = async {
        let command = peer.command().await;
        peer.answer(&command, json!({})).await;
        command
    };
    let arguments = json!({ "id": inject });
    let (outcome, command) = tokio::join!(within(client.execute("eject", arguments)), play);
    outcome.unwrap();
    assert_eq!(command["execute"], "eject");
    assert_eq!(command["arguments"]["id"], inject);
}

#[tokio::test]
async fn a_password_is_in_no_error() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let password = Secret::new("hunter2");
    let play = async {
        let command = peer.command().await;
        assert_eq!(command["arguments"]["password"], "hunter2");
        assert_eq!(command["arguments"]["connected"], "keep");
        let refusal = json!({ "class": "GenericError", "desc": "Could not set password" });
        peer.say(&json!({ "error": refusal, "id": command["id"] }).to_string())
            .await;
        peer.command().await;
    };
    let calls = async {
        let refused = client.set_password(DisplayProtocol::Vnc, &password).await;
        let arguments = json!({ "password": password.reveal() });
        let silent = client.execute_with("set_password", arguments, SHORT).await;
        [refused.unwrap_err(), silent.unwrap_err()]
    };
    let (errors, ()) = tokio::join!(within(calls), play);
    for error in errors {
        let told = format!("{error} {error:?} {:?}", error.context());
        assert!(!told.contains("hunter2"), "{told}");
    }
}

/// The target of a backup's job is on a server that has gone.
#[tokio::test(start_paused = true)]
async fn f22_a_copy_that_cannot_be_ended_is_given_up() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let play = async {
        loop {
            let command = peer.command().await;
            let answer = match command["execute"].as_str().unwrap() {
                "query-jobs" => {
                    json!([{ "id": "infz-bk-1-0", "type": "backup", "status": "aborting" }])
                }
                _ => json!({}),
            };
            peer.answer(&command, answer).await;
        }
    };
    let ended = tokio::select! {
        ended = client.end_left_copies() => ended,
        () = play => unreachable!(),
    };
    assert_eq!(code(ended), ErrorCode::QmpTimeout);
}

/// Each machine that is taken back is asked.
#[tokio::test]
async fn copies_that_nobody_has_left_are_looked_for_in_two_turns() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let play = async {
        let jobs = peer.command().await;
        peer.answer(&jobs, json!([])).await;
        let rest = [peer.command().await, peer.command().await];
        for command in &rest {
            peer.answer(command, json!([])).await;
        }
        [&jobs, &rest[0], &rest[1]].map(|command| command["execute"].clone())
    };
    let (ended, asked) = within(async { tokio::join!(client.end_left_copies(), play) }).await;
    assert!(!ended.unwrap());
    assert_eq!(asked, ["query-jobs", "query-named-block-nodes", "qom-list"]);
}

#[tokio::test]
async fn one_at_a_time_has_the_turn_to_copy_and_nobody_once_it_is_closed() {
    let stage = Stage::new();
    let (client, _events, _peer) = stage.connected(QmpOptions::default()).await;
    let turn = client.turn_to_copy().await.unwrap();
    let mut next = std::pin::pin!(client.turn_to_copy());
    assert!(tokio::time::timeout(SHORT, &mut next).await.is_err());
    // While somebody has it, nothing is left of others: QEMU is not asked.
    client.end_left_copies().await.unwrap();
    let closing = tokio::spawn({
        let client = client.clone();
        async move { client.end_copying().await }
    });
    within(turn.ending().cancelled()).await;
    assert!(within(next).await.is_none());
    assert!(!closing.is_finished(), "it waits for the one who has it");
    drop(turn);
    within(closing).await.unwrap();
    assert!(client.turn_to_copy().await.is_none());
}
