//! Commands handed to the monitor by who does not wait for them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use infinization_core::qmp::{QmpClient, QmpError, QmpOptions};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use kit::qmp::{Stage, within};

/// What a numbered call came to.
type Told = (usize, Result<String, ErrorCode>);

/// Where submitted calls are told to.
fn ear() -> (UnboundedSender<Told>, UnboundedReceiver<Told>) {
    unbounded_channel()
}

fn submit(client: &QmpClient, number: usize, arguments: Value, ear: &UnboundedSender<Told>) {
    let ear = ear.clone();
    let told = move |answer: Result<Box<serde_json::value::RawValue>, QmpError>| {
        let answer = answer.map(|json| json.get().to_owned());
        ear.send((number, answer.map_err(|error| error.code())))
            .unwrap();
    };
    client.submit("note", arguments, told).unwrap();
}

#[tokio::test]
async fn commands_arrive_in_the_order_they_were_made() {
    let stage = Stage::new();
    let (client, _events, mut peer) = stage.connected(QmpOptions::default()).await;
    let (told, mut heard) = ear();
    // Together far more than a socket takes: most of them wait for the monitor to read.
    let page = "x".repeat(64 * 1024);
    for number in 0..100 {
        submit(
            &client,
            number,
            json!({ "number": number, "page": page }),
            &told,
        );
    }
    for number in 0..100 {
        let command = within(peer.command()).await;
        assert_eq!(command["arguments"]["number"], number);
        peer.answer(&command, json!(number)).await;
        assert_eq!(
            within(heard.recv()).await.unwrap(),
            (number, Ok(number.to_string()))
        );
    }
}

#[tokio::test]
async fn f4_each_call_is_late_by_its_own_deadline() {
    let stage = Stage::new();
    let options = QmpOptions {
        command_timeout: Duration::from_millis(400),
        ..QmpOptions::default()
    };
    let (client, _events, _peer) = stage.connected(options).await;
    let (told, mut heard) = ear();
    submit(&client, 1, json!({}), &told);
    // Made later, due sooner.
    let sooner = client
        .execute_with("sooner", (), Duration::from_millis(20))
        .await;
    assert_eq!(sooner.unwrap_err().code(), ErrorCode::QmpTimeout);
    assert!(heard.try_recv().is_err(), "the first has more time");
    submit(&client, 2, json!({}), &told);
    for number in [1, 2] {
        let late = within(heard.recv()).await.unwrap();
        assert_eq!(late, (number, Err(ErrorCode::QmpTimeout)));
    }
}

#[tokio::test]
async fn f5_a_lost_connection_is_told_to_every_call() {
    let stage = Stage::new();
    let (client, _events, peer) = stage.connected(QmpOptions::default()).await;
    let (told, mut heard) = ear();
    for number in 0..3 {
        submit(&client, number, json!({}), &told);
    }
    drop(peer);
    for number in 0..3 {
        let lost = within(heard.recv()).await.unwrap();
        assert_eq!(lost, (number, Err(ErrorCode::QmpDisconnected)));
    }
    submit(&client, 3, json!({}), &told);
    assert_eq!(
        heard.try_recv().unwrap(),
        (3, Err(ErrorCode::QmpDisconnected))
    );
}

#[tokio::test]
async fn b43_what_cannot_be_sent_is_refused_at_once() {
    let stage = Stage::new();
    let (client, _events, _peer) = stage.connected(QmpOptions::default()).await;
    let refused = client.submit("no\nname", (), |_| panic!("it was not sent"));
    assert_eq!(refused.unwrap_err().code(), ErrorCode::QmpArguments);
}

#[test]
fn f5_calls_of_a_runtime_that_ended_are_lost() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (client, _events, _peer) = runtime.block_on(async {
        let stage = Stage::new();
        stage.connected(QmpOptions::default()).await
    });
    let (told, mut heard) = ear();
    submit(&client, 1, json!({}), &told);
    drop(runtime);
    assert_eq!(
        heard.try_recv().unwrap(),
        (1, Err(ErrorCode::QmpDisconnected))
    );
    assert!(!client.is_connected());
}
