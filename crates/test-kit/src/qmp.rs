//! Both ends of a monitor for tests: a scripted QEMU on a unix socket, and a real one.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use infinization_core::qmp::{EventReceiver, MonitorEvent, QmpClient, QmpEvent, QmpOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// Long enough for a busy machine; whatever takes this long has hung.
pub const HUNG: Duration = Duration::from_secs(60);

/// The future's result; fails the test when it hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HUNG, future)
        .await
        .expect("it must not hang")
}

/// A socket on which a test plays QEMU or a guest agent.
#[derive(Debug)]
pub struct Stage {
    dir: TempDir,
    listener: UnixListener,
}

impl Stage {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        Self { dir, listener }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub async fn accept(&self) -> Peer {
        let (stream, _address) = within(self.listener.accept()).await.unwrap();
        Peer::new(stream)
    }

    /// Accepts, and plays the handshake.
    pub async fn accept_qmp(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.shake_hands().await;
        peer
    }

    /// A connected client with its events, and the other end of its connection.
    pub async fn connected(&self, options: QmpOptions) -> (QmpClient, EventReceiver, Peer) {
        let path = self.path();
        let (client, peer) = tokio::join!(QmpClient::connect(&path, options), self.accept_qmp());
        let (client, events) = client.unwrap();
        (client, events, peer)
    }
}

/// One accepted connection.
#[derive(Debug)]
pub struct Peer {
    pub reader: BufReader<OwnedReadHalf>,
    pub writer: OwnedWriteHalf,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            reader: BufReader::new(reader),
            writer,
        }
    }

    pub async fn shake_hands(&mut self) {
        self.say(
            r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"test"},
               "capabilities":["oob"]}}"#
                .replace('\n', "")
                .as_str(),
        )
        .await;
        let capabilities = self.command().await;
        assert_eq!(capabilities["execute"], "qmp_capabilities");
        self.answer(&capabilities, json!({})).await;
    }

    /// The next command the client sends.
    pub async fn command(&mut self) -> Value {
        let mut line = String::new();
        let read = within(self.reader.read_line(&mut line)).await.unwrap();
        assert!(read > 0, "the client hung up");
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until the client has closed the connection.
    pub async fn hung_up(&mut self) {
        let mut rest = Vec::new();
        while within(self.reader.read_until(b'\n', &mut rest))
            .await
            .unwrap_or(0)
            > 0
        {}
    }

    pub async fn say(&mut self, line: &str) {
        self.send(format!("{line}\r\n").as_bytes()).await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within(self.writer.write_all(bytes)).await.unwrap();
    }

    /// Answers `command` with a return value.
    pub async fn answer(&mut self, command: &Value, value: Value) {
        let reply = json!({ "return": value, "id": command["id"] });
        self.say(&reply.to_string()).await;
    }

    pub async fn event(&mut self, name: &str, data: Value) {
        let timestamp = json!({ "seconds": 1, "microseconds": 2 });
        let event = json!({ "timestamp": timestamp, "event": name, "data": data });
        self.say(&event.to_string()).await;
    }
}

/// Waits for an event of this name, past others.
pub async fn event_named(events: &mut EventReceiver, name: &str) -> QmpEvent {
    loop {
        match within(events.next()).await {
            Some(MonitorEvent::Event(event)) if event.event == name => return (*event).clone(),
            Some(_) => {}
            None => panic!("the events ended before {name}"),
        }
    }
}

/// A real QEMU under TCG, paused at start, its monitor listening before it runs. It is killed when
/// the test ends.
#[derive(Debug)]
pub struct Qemu {
    pub child: Child,
    pub dir: TempDir,
}

impl Qemu {
    /// Starts `qemu-system-x86_64` with a monitor and `args`; paths are relative to a directory of
    /// its own.
    pub fn start(args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("qmp")).unwrap();
        // The listening socket becomes descriptor 0: inherited by this QEMU and by nobody else.
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
            .args(["-chardev", "socket,id=qmp0,fd=0,server=on,wait=off"])
            .args(["-mon", "chardev=qmp0,mode=control"])
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn connect(&self) -> (QmpClient, EventReceiver) {
        connect(&self.path("qmp")).await
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> std::process::ExitStatus {
        let waited = tokio::task::spawn_blocking(move || self.child.wait());
        within(waited).await.unwrap().unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Connects as to a QEMU that was just started on a busy machine.
pub async fn connect(path: &Path) -> (QmpClient, EventReceiver) {
    let options = QmpOptions {
        connect_timeout: HUNG,
        ..QmpOptions::default()
    };
    QmpClient::connect(path, options).await.unwrap()
}
