//! Our process is killed while the guest's file systems are frozen: between the agent's answer to the freeze
//! and whatever would have come next. The test starts itself again as the victim, in the same network.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use infinization_core::backup::CreateBackup;
use infinization_core::manager::Manager;
use infinization_core::qmp::FreezeStatus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::ext4::Ext4;
use super::guest::{Agent, WritingGuest, backup_request, service};
use super::kit;
use super::kit::machine::{Host, never};
use super::kit::victim;

/// Where the agent's own socket is while somebody listens in its place.
fn aside(socket: &Path) -> PathBuf {
    socket.with_extension("aside")
}

/// Not a test of its own: what a test starts, and which kills itself.
#[test]
fn victim() {
    let Some(orders) = victim::orders() else {
        return;
    };
    kit::runtime().block_on(async {
        let manager = Manager::new(orders["settings"].clone());
        manager.initialize().await.unwrap();
        let text = |key: &str| orders[key].as_str().unwrap();
        let socket = Path::new(text("socket"));
        die_when_frozen(socket);
        let vm = text("vm").to_owned();
        if orders["snapshot"].is_object() {
            let options = orders["snapshot"].clone();
            let taken = manager.create_snapshot(vm, options, never()).await;
            panic!("it lives: {taken:?}");
        }
        let machine = Agent::of(&manager, &vm, socket.to_owned(), true);
        let request = CreateBackup::read(orders["backup"].clone()).unwrap();
        let service = service(Path::new(text("root")));
        let made = service.create(request, machine, never()).await;
        panic!("it lives: {made:?}");
    });
}

/// Listens in the agent's place, and passes on all that is said until the agent answers that it froze.
fn die_when_frozen(socket: &Path) {
    std::fs::rename(socket, aside(socket)).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let aside = aside(socket);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let agent = UnixStream::connect(&aside).await.unwrap();
            pass_on(client, agent).await;
        }
    });
}

async fn pass_on(client: UnixStream, agent: UnixStream) {
    let (from_client, mut to_client) = client.into_split();
    let (from_agent, mut to_agent) = agent.into_split();
    let asked = AtomicBool::new(false);
    let requests = async {
        let mut from = BufReader::new(from_client);
        while let Some(request) = line(&mut from).await {
            if contains(&request, "guest-fsfreeze-freeze") {
                asked.store(true, Ordering::Release);
            }
            to_agent.write_all(&request).await.unwrap();
        }
    };
    let answers = async {
        let mut from = BufReader::new(from_agent);
        while let Some(answer) = line(&mut from).await {
            if asked.load(Ordering::Acquire) {
                assert!(contains(&answer, "return"), "it did not freeze");
                kill(Pid::this(), Signal::SIGKILL).unwrap();
            }
            to_client.write_all(&answer).await.unwrap();
        }
    };
    tokio::select! { () = requests => {}, () = answers => {} }
}

fn contains(line: &[u8], word: &str) -> bool {
    String::from_utf8_lossy(line).contains(word)
}

async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.read_until(b'\n', &mut bytes).await.unwrap();
    (read > 0).then_some(bytes)
}

impl WritingGuest<'_> {
    /// Has another process freeze the guest for this, and die.
    async fn killed(&self, what: &Value) {
        self.manager.shutdown().await.unwrap();
        let mut orders = what.clone();
        orders["settings"] = self.host.settings();
        orders["vm"] = json!(self.vm);
        orders["socket"] = json!(self.socket());
        assert!(victim::run(
            &["--exact", "kills::victim", "--quiet"],
            &orders
        ));
        std::fs::rename(aside(&self.socket()), self.socket()).unwrap();
    }

    async fn is_frozen(&self, disk: &Path) {
        let agent = self.agent().await;
        assert_eq!(agent.fs_status().await.unwrap(), FreezeStatus::Frozen);
        agent.close().await;
        assert!(self.note().exists());
        Ext4::of(disk).was_frozen();
    }

    async fn is_thawed(&self) {
        assert!(!self.note().exists());
        let agent = self.agent().await;
        assert_eq!(agent.fs_status().await.unwrap(), FreezeStatus::Thawed);
        agent.close().await;
        self.writes_on().await;
    }
}

#[test]
fn f39_a_real_guest_that_a_killed_process_left_frozen_is_thawed_by_the_next() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let mut guest = WritingGuest::boot(&host, "writing-killed").await;
        let (disk, root) = (guest.disk().await, host.path().join("backups"));
        let backup = backup_request(guest.vm, &disk, &root, None);
        let internal = json!({ "name": "inside", "quiesce": true });
        let external = json!({ "name": "beside", "kind": "external", "quiesce": true });
        for what in [
            json!({ "backup": backup, "root": root }),
            json!({ "snapshot": internal }),
            json!({ "snapshot": external }),
        ] {
            guest.killed(&what).await;
            guest.is_frozen(&disk).await;
            guest.manager = host.manager().await;
            guest.is_thawed().await;
        }
        let listed = guest.manager.list_snapshots(guest.vm.into()).await;
        assert_eq!(listed.unwrap(), json!([]));
        let tree = guest.manager.snapshot_tree(guest.vm.into()).await.unwrap();
        assert_eq!(tree["snapshots"], json!([]));

        // Nobody is in the way of the next one.
        let certain = guest.written().await;
        let backup = guest.back_up(None, true).await;
        let restored = guest.restored(&backup).await;
        restored.was_frozen();
        restored.written().holds_all_until(certain);
        guest.remove_backups();
        guest.end().await;
    });
}
