//! The guest agent: played by the test where it misbehaves, and the real one in one booted guest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use infinization_core::qmp::{AgentError, AgentOptions, AgentSocket, FreezeStatus, GuestAgent};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use kit::qmp::{HUNG, Peer, Qemu, Stage, within};

const SHORT: Duration = Duration::from_millis(50);

/// An agent played by the test.
struct PlayedAgent(Peer);

impl PlayedAgent {
    /// The next request, and whether a sentinel came before it.
    async fn request(&mut self) -> (bool, Value) {
        let mut line = Vec::new();
        let read = within(self.0.reader.read_until(b'\n', &mut line)).await;
        assert!(read.unwrap() > 0, "the client hung up");
        let json = line.strip_prefix(b"\xff");
        let request = serde_json::from_slice(json.unwrap_or(&line)).unwrap();
        (json.is_some(), request)
    }

    async fn command(&mut self, name: &str) -> Value {
        let (_, request) = self.request().await;
        assert_eq!(request["execute"], name);
        assert_eq!(request.get("id"), None, "old agents refuse an id");
        request["arguments"].clone()
    }

    async fn say(&mut self, line: &str) {
        self.0.send(format!("{line}\n").as_bytes()).await;
    }

    async fn answer(&mut self, value: Value) {
        self.say(&json!({ "return": value }).to_string()).await;
    }

    async fn synchronise(&mut self) {
        let (delimited, request) = self.request().await;
        assert!(delimited, "a sync begins with the sentinel");
        assert_eq!(request["execute"], "guest-sync-delimited");
        self.0.send(b"\xff").await;
        self.answer(request["arguments"]["id"].clone()).await;
    }
}

async fn connected(stage: &Stage) -> (GuestAgent, PlayedAgent) {
    let path = stage.path();
    let play = async {
        let mut agent = PlayedAgent(stage.accept().await);
        agent.synchronise().await;
        agent
    };
    let (agent, played) = tokio::join!(GuestAgent::connect(&path, AgentOptions::default()), play);
    (agent.unwrap(), played)
}

#[tokio::test]
async fn f39_a_guest_without_agent_is_a_timeout() {
    let stage = Stage::new();
    let options = AgentOptions {
        connect_timeout: SHORT,
        ..AgentOptions::default()
    };
    let silent = GuestAgent::connect(&stage.path(), options.clone()).await;
    assert_eq!(silent.unwrap_err().code(), ErrorCode::AgentTimeout);
    let nowhere = stage.path().with_extension("absent");
    let absent = GuestAgent::connect(&nowhere, options).await;
    assert_eq!(absent.unwrap_err().code(), ErrorCode::AgentConnectFailed);
}

#[tokio::test]
async fn f40_stale_bytes_of_an_earlier_session_answer_nothing() {
    let stage = Stage::new();
    let path = stage.path();
    let play = async {
        let mut agent = PlayedAgent(stage.accept().await);
        agent.say(r#"{"return": {"stale": 1}}"#).await;
        let (_, sync) = agent.request().await;
        agent
            .0
            .send(b"\xff{\"return\": 5}\n{\"return\": \"half a li")
            .await;
        agent.0.send(b"\xff").await;
        agent.answer(sync["arguments"]["id"].clone()).await;
        agent.command("guest-ping").await;
        agent.answer(json!({"fresh": 1})).await;
    };
    let ask = async {
        let agent = GuestAgent::connect(&path, AgentOptions::default()).await;
        agent.unwrap().execute("guest-ping", ()).await.unwrap()
    };
    let (answer, ()) = tokio::join!(within(ask), play);
    assert_eq!(answer.get(), r#"{"fresh":1}"#);
}

#[tokio::test]
async fn f40_a_late_answer_is_not_the_next_commands() {
    let stage = Stage::new();
    let (agent, mut played) = connected(&stage).await;
    let error = agent.execute_with("guest-slow", (), SHORT).await;
    assert_eq!(error.unwrap_err().code(), ErrorCode::AgentTimeout);
    let play = async {
        played.command("guest-slow").await;
        played.answer(json!("late")).await;
        played.synchronise().await;
        played.command("guest-quick").await;
        played.answer(json!("in time")).await;
        played
    };
    let (answer, mut played) = tokio::join!(within(agent.execute("guest-quick", ())), play);
    assert_eq!(answer.unwrap().get(), r#""in time""#);

    // An answer nobody asked for puts the connection out of step as well.
    let play = async {
        played.command("guest-ping").await;
        played.0.send(b"{\"return\": 1}\n{\"return\": 2}\n").await;
        played.synchronise().await;
        played.command("guest-ping").await;
        played.answer(json!(3)).await;
    };
    let ask = async {
        let first = agent.execute("guest-ping", ()).await.unwrap();
        let second = agent.execute("guest-ping", ()).await.unwrap();
        assert_eq!((first.get(), second.get()), ("1", "3"));
    };
    tokio::join!(within(ask), play);
}

#[tokio::test]
async fn f41_a_connection_lost_mid_command_is_made_again_by_the_next() {
    let stage = Stage::new();
    let (agent, mut played) = connected(&stage).await;
    let leave = async {
        played.command("guest-ping").await;
        drop(played);
    };
    let (outcome, ()) = tokio::join!(within(agent.ping()), leave);
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::AgentDisconnected);
    assert!(!agent.is_connected());

    let play = async {
        let mut played = PlayedAgent(stage.accept().await);
        played.synchronise().await;
        played.command("guest-ping").await;
        played.answer(json!({})).await;
        played
    };
    let (outcome, _played) = tokio::join!(within(agent.ping()), play);
    outcome.unwrap();
    assert!(agent.is_connected());
}

#[tokio::test]
async fn f41_connecting_after_a_loss_connects() {
    let stage = Stage::new();
    let socket = AgentSocket::new(stage.path(), AgentOptions::default());
    let cancel = CancellationToken::new();
    for _ in 0..2 {
        let play = async {
            let mut played = PlayedAgent(stage.accept().await);
            played.synchronise().await;
            played
        };
        let (connected, mut played) = tokio::join!(within(socket.connect(&cancel)), play);
        connected.unwrap();
        assert!(socket.is_connected());
        // While it stands it is made no second time: nobody would answer.
        within(socket.connect(&cancel)).await.unwrap();
        let agent = socket.agent().unwrap();
        let leave = async {
            played.command("guest-ping").await;
            drop(played);
        };
        let (outcome, ()) = tokio::join!(within(agent.ping()), leave);
        assert_eq!(outcome.unwrap_err().code(), ErrorCode::AgentDisconnected);
        assert!(!socket.is_connected());
    }
}

#[tokio::test]
async fn f40_what_is_no_agent_talk_is_a_protocol_error() {
    let long = vec![b'x'; 11 * 1024 * 1024];
    for nonsense in [
        b"{\"return\": half\n".as_slice(),
        b"{\"return\":\"\xc3(\"}\n",
        &long,
    ] {
        let stage = Stage::new();
        let (agent, mut played) = connected(&stage).await;
        let play = async {
            played.command("guest-ping").await;
            // The client hangs up in the middle of the long line.
            let _hung_up = within(played.0.writer.write_all(nonsense)).await;
        };
        let (outcome, ()) = tokio::join!(within(agent.ping()), play);
        assert_eq!(outcome.unwrap_err().code(), ErrorCode::AgentProtocol);
    }
}

#[tokio::test]
async fn closing_fails_the_running_command_at_once_and_for_good() {
    let stage = Stage::new();
    let (agent, mut played) = connected(&stage).await;
    let close = async {
        played.command("guest-ping").await;
        within(agent.close()).await;
    };
    let (outcome, ()) = tokio::join!(within(agent.ping()), close);
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::AgentDisconnected);
    played.0.hung_up().await;
    assert!(!agent.is_connected());
    let later = within(agent.ping()).await;
    assert_eq!(later.unwrap_err().code(), ErrorCode::AgentDisconnected);
}

#[tokio::test]
async fn f39_a_freeze_without_answer_is_thawed() {
    let stage = Stage::new();
    let (agent, mut played) = connected(&stage).await;
    let play = async {
        played.command("guest-fsfreeze-freeze").await;
        played.synchronise().await;
        played.command("guest-fsfreeze-thaw").await;
        played.answer(json!(2)).await;
        played
    };
    let (outcome, mut played) = tokio::join!(within(agent.fs_freeze(SHORT)), play);
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::AgentTimeout);

    // A caller that goes away in the middle leaves nothing frozen either.
    {
        let freeze = agent.fs_freeze(HUNG);
        tokio::select! {
            _ = freeze => panic!("nobody answered"),
            _ = played.command("guest-fsfreeze-freeze") => {}
        }
    }
    played.synchronise().await;
    played.command("guest-fsfreeze-thaw").await;
}

#[tokio::test]
async fn f39_a_freeze_whose_connection_is_closed_is_thawed() {
    let stage = Stage::new();
    let (agent, mut played) = connected(&stage).await;
    let play = async {
        played.command("guest-fsfreeze-freeze").await;
        agent.close().await;
        let mut again = PlayedAgent(stage.accept().await);
        again.synchronise().await;
        again.command("guest-fsfreeze-thaw").await;
        again.answer(json!(1)).await;
    };
    let (outcome, ()) = tokio::join!(within(agent.fs_freeze(HUNG)), play);
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::AgentDisconnected);
}

#[tokio::test]
async fn a_program_that_outlives_the_deadline_is_named() {
    let stage = Stage::new();
    let (agent, mut played) = connected(&stage).await;
    let play = async {
        let arguments = played.command("guest-exec").await;
        assert_eq!(arguments["path"], "/bin/sleep");
        assert_eq!(arguments["arg"], json!(["60"]));
        played.answer(json!({ "pid": 4711 })).await;
        loop {
            played.request().await;
            played.answer(json!({ "exited": false })).await;
        }
    };
    let args = ["60".to_owned()];
    let exec = agent.exec("/bin/sleep", &args, Duration::from_secs(2));
    tokio::select! {
        outcome = within(exec) => {
            let error = outcome.unwrap_err();
            assert_eq!(error.context()["pid"], 4711);
            assert!(matches!(error, AgentError::StillRunning { pid: 4711, .. }));
        }
        () = play => {}
    }
}

/// One boot for everything that needs a real agent.
#[tokio::test]
async fn the_agent_of_a_real_guest() {
    let guest = kit::guest_dir();
    let (kernel, initrd) = (guest.join("vmlinuz"), guest.join("initrd.gz"));
    let qemu = Qemu::start(&[
        "-machine",
        "q35",
        "-m",
        "256",
        "-kernel",
        kernel.to_str().unwrap(),
        "-initrd",
        initrd.to_str().unwrap(),
        "-append",
        "quiet panic=-1",
        "-device",
        "virtio-serial-pci",
        "-chardev",
        "socket,id=ga,path=ga,server=on,wait=off",
        "-device",
        "virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
    ]);
    let (client, mut events) = qemu.connect().await;
    let early = AgentOptions {
        connect_timeout: SHORT,
        ..AgentOptions::default()
    };
    let paused = GuestAgent::connect(&qemu.path("ga"), early).await;
    assert_eq!(paused.unwrap_err().code(), ErrorCode::AgentTimeout);

    client.cont().await.unwrap();
    // The sync waits in the channel until the guest has booted and its agent reads it.
    let patient = AgentOptions {
        connect_timeout: 3 * HUNG,
        command_timeout: HUNG,
    };
    let agent = GuestAgent::connect(&qemu.path("ga"), patient)
        .await
        .unwrap();
    agent.ping().await.unwrap();
    runs_programs(&agent).await;
    refuses_what_it_does_not_know(&agent).await;
    shares_one_connection(&agent).await;
    assert_eq!(agent.fs_status().await.unwrap(), FreezeStatus::Thawed);

    client.system_powerdown().await.unwrap();
    kit::qmp::event_named(&mut events, "SHUTDOWN").await;
    assert!(qemu.ended().await.success());
    let gone = within(agent.ping()).await.unwrap_err();
    let code = gone.code();
    assert!(
        code == ErrorCode::AgentConnectFailed || code == ErrorCode::AgentDisconnected,
        "{gone}"
    );
}

async fn runs_programs(agent: &GuestAgent) {
    let script = r"printf 'Gr\303\274\303\237e\377'; echo oops >&2; exit 3";
    let args = ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let output = agent.exec("/bin/busybox", &args, HUNG).await.unwrap();
    assert_eq!(output.stdout, b"Gr\xc3\xbc\xc3\x9fe\xff");
    assert_eq!(output.stderr, b"oops\n");
    assert_eq!(output.exit_code, Some(3));
    assert!(!output.truncated);

    let args = ["sh".to_owned(), "-c".to_owned(), "kill -9 $$".to_owned()];
    let output = agent.exec("/bin/busybox", &args, HUNG).await.unwrap();
    assert_eq!((output.exit_code, output.signal), (None, Some(9)));

    let args = ["sleep".to_owned(), "600".to_owned()];
    let long = agent
        .exec("/bin/busybox", &args, Duration::from_secs(1))
        .await;
    assert!(matches!(long, Err(AgentError::StillRunning { pid, ended: true, .. }) if pid > 0));
}

async fn refuses_what_it_does_not_know(agent: &GuestAgent) {
    let unknown = agent.execute("guest-teleport", ()).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::AgentCommandFailed);
    assert_eq!(unknown.context()["class"], "CommandNotFound");
    let absent = agent.exec("/no/such/program", &[], HUNG).await;
    assert_eq!(absent.unwrap_err().code(), ErrorCode::AgentCommandFailed);
}

async fn shares_one_connection(agent: &GuestAgent) {
    let calls: Vec<_> = (0..8)
        .map(|number: usize| {
            let agent = agent.clone();
            tokio::spawn(async move {
                let args = ["echo".to_owned(), number.to_string()];
                let output = agent.exec("/bin/busybox", &args, HUNG).await.unwrap();
                assert_eq!(output.stdout, format!("{number}\n").as_bytes());
            })
        })
        .collect();
    for call in calls {
        within(call).await.unwrap();
    }
}
