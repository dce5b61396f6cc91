//! The monitor client against a real QEMU under TCG.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use infinization_core::qmp::{
    DisplayProtocol, EjectTarget, EventKind, MonitorEvent, QmpClient, QmpOptions, RunState,
    ShutdownCause,
};
use infinization_core::types::Secret;
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use kit::qmp::{Qemu, connect, event_named, within};

const SHORT: Duration = Duration::from_millis(100);

/// The display listens in a network of its own, on any address: there is not even a loopback.
#[test]
fn a_machine_is_asked_run_stopped_and_ended() {
    kit::in_private_network(a_machines_life);
}

async fn a_machines_life() {
    let qemu = Qemu::start(&[
        "-machine",
        "q35",
        "-smp",
        "2",
        "-vnc",
        "0.0.0.0:7,password=on",
        "-device",
        "virtio-balloon-pci,id=bal0",
        "-device",
        "ide-cd,id=cd0,bus=ide.0",
    ]);
    // The socket listened before QEMU ran: there is no file to wait for.
    let (client, mut events) = qemu.connect().await;
    assert!(client.greeting().unwrap().version.qemu.major >= 7);
    assert_eq!(
        client.query_status().await.unwrap().status,
        RunState::Prelaunch
    );
    describes_its_parts(&client, qemu.child.id()).await;
    refuses_with_its_own_words(&client).await;

    client.cont().await.unwrap();
    assert_eq!(
        event_named(&mut events, "RESUME").await.kind(),
        EventKind::Resume
    );
    assert!(client.query_status().await.unwrap().running);
    client.system_reset().await.unwrap();
    let reset = EventKind::Reset {
        guest: false,
        reason: ShutdownCause::HostQmpSystemReset,
    };
    assert_eq!(event_named(&mut events, "RESET").await.kind(), reset);
    client.system_powerdown().await.unwrap();
    let pressed = event_named(&mut events, "POWERDOWN").await;
    assert_eq!(pressed.kind(), EventKind::Powerdown);
    assert!(pressed.timestamp.seconds > 0);
    client.stop().await.unwrap();
    assert_eq!(
        event_named(&mut events, "STOP").await.kind(),
        EventKind::Stop
    );
    assert_eq!(
        client.query_status().await.unwrap().status,
        RunState::Paused
    );

    client.quit().await.unwrap();
    let ended = EventKind::Shutdown {
        guest: false,
        reason: ShutdownCause::HostQmpQuit,
    };
    assert_eq!(event_named(&mut events, "SHUTDOWN").await.kind(), ended);
    assert!(qemu.ended().await.success());
    let last = within(events.next()).await;
    assert!(matches!(
        last,
        Some(MonitorEvent::Disconnected {
            will_reconnect: false
        })
    ));
    assert!(!client.is_connected());
}

async fn describes_its_parts(client: &QmpClient, pid: u32) {
    let cpus = client.query_cpus_fast().await.unwrap();
    assert_eq!(cpus.len(), 2);
    for cpu in &cpus {
        let thread = format!("/proc/{pid}/task/{}", cpu.thread_id);
        assert!(std::path::Path::new(&thread).exists(), "{cpu:?}");
        assert!(cpu.props.unwrap().socket_id.is_some());
    }
    let drives = client.query_block().await.unwrap();
    let cd = drives
        .iter()
        .find(|drive| drive.qdev.as_deref() == Some("cd0"));
    assert!(cd.unwrap().removable);
    assert_eq!(cd.unwrap().inserted, None);
    client.eject(EjectTarget::Id("cd0"), true).await.unwrap();

    let balloon = client.query_balloon().await.unwrap();
    assert_eq!(balloon.actual, 128 * 1024 * 1024);
    client.balloon(128 * 1024 * 1024).await.unwrap();
    let vnc = client.query_vnc().await.unwrap();
    assert_eq!(vnc.port(), Some(5907));
    let password = Secret::new("s3cret");
    client
        .set_password(DisplayProtocol::Vnc, &password)
        .await
        .unwrap();
    assert!(!client.query_spice().await.unwrap().enabled);

    let schema = client.execute("query-qmp-schema", ()).await.unwrap();
    assert!(schema.get().len() > 100_000);
    let schema: Vec<Value> = serde_json::from_str(schema.get()).unwrap();
    assert!(schema.len() > 500);
}

async fn refuses_with_its_own_words(client: &QmpClient) {
    let unknown = client.execute("teleport", ()).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::QmpCommandFailed);
    assert_eq!(unknown.context()["class"], "CommandNotFound");
    assert_eq!(unknown.context()["command"], "teleport");
    let awake = client.system_wakeup().await.unwrap_err();
    assert_eq!(awake.code(), ErrorCode::QmpCommandFailed);
    // QEMU refuses this character before it has read the id; the call must not wait for one.
    let noncharacter = json!({ "id": "\u{ffff}" });
    let refused = client.execute("eject", noncharacter).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::QmpCommandFailed);
    // Neither can text leave the argument it is in.
    let inject = json!({ "id": r#"x"}} {"execute":"quit"}"# });
    let refused = client.execute("eject", inject).await.unwrap_err();
    assert_eq!(refused.context()["class"], "DeviceNotFound");
    assert!(client.query_status().await.is_ok());
}

#[tokio::test]
async fn concurrent_calls_share_one_monitor() {
    let qemu = Qemu::start(&["-machine", "none"]);
    let (client, _events) = qemu.connect().await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let status = client.query_status().await.unwrap();
                    assert_eq!(status.status, RunState::Prelaunch);
                }
            })
        })
        .collect();
    for call in calls {
        within(call).await.unwrap();
    }
}

#[tokio::test]
async fn f5_qemu_killed_mid_command_fails_the_call_at_once() {
    let qemu = Qemu::start(&["-machine", "none"]);
    let (client, mut events) = qemu.connect().await;
    // Stopped, it takes the command but cannot answer.
    qemu.signal(Signal::SIGSTOP);
    let kill = async {
        // Calls are sent in order: once this one has waited, the other is on its way as well.
        let waited = client.execute_with("query-version", (), SHORT).await;
        assert_eq!(waited.unwrap_err().code(), ErrorCode::QmpTimeout);
        qemu.signal(Signal::SIGKILL);
    };
    let deadline = 10 * kit::qmp::HUNG;
    let call = client.execute_with("query-status", (), deadline);
    let (outcome, ()) = tokio::join!(within(call), kill);
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::QmpDisconnected);
    let last = within(events.next()).await;
    assert!(matches!(last, Some(MonitorEvent::Disconnected { .. })));
}

#[tokio::test]
async fn f3_a_stopped_qemu_times_out_and_answers_again_later() {
    let qemu = Qemu::start(&["-machine", "none"]);
    let (client, _events) = qemu.connect().await;
    qemu.signal(Signal::SIGSTOP);
    let outcome = client.execute_with("query-version", (), SHORT).await;
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::QmpTimeout);
    qemu.signal(Signal::SIGCONT);
    // Its late answer to `query-version` comes first, and is nobody's.
    let status = within(client.query_status()).await.unwrap();
    assert_eq!(status.status, RunState::Prelaunch);
}

#[tokio::test]
async fn f6_a_deleted_socket_file_does_not_end_the_connection() {
    let qemu = Qemu::start(&["-machine", "none"]);
    let (client, _events) = qemu.connect().await;
    std::fs::remove_file(qemu.path("qmp")).unwrap();
    client.query_status().await.unwrap();
    client.close().await;
    let path = qemu.path("qmp");
    let again = QmpClient::connect(&path, QmpOptions::default());
    assert_eq!(
        within(again).await.unwrap_err().code(),
        ErrorCode::QmpConnectFailed
    );
}

#[tokio::test]
async fn a_second_client_follows_the_first_on_the_same_socket() {
    let qemu = Qemu::start(&["-machine", "none"]);
    let (first, _events) = qemu.connect().await;
    first.close().await;
    let (second, mut events) = connect(&qemu.path("qmp")).await;
    second.cont().await.unwrap();
    event_named(&mut events, "RESUME").await;
}
