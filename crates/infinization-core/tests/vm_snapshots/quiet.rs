use infinization_core::host::state_file::{self, Durability};
use kit::machine::{PATIENCE, consistent_status};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::*;

/// Plays an agent, which is told to synchronise first and refuses to thaw so often, until it thaws or nobody asks any
/// more. Answers what it was told.
async fn played(listener: UnixListener, mut refusals: u32) -> Vec<String> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut told = Vec::new();
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await.unwrap() == 0 {
            return told;
        }
        let line = line.strip_prefix(b"\xff").unwrap_or(&line);
        let request: Value = serde_json::from_slice(line).unwrap();
        let command = request["execute"].as_str().unwrap().to_owned();
        let thaw = command == "guest-fsfreeze-thaw";
        let refused = thaw && refusals > 0;
        let answer = if refused {
            refusals -= 1;
            json!({ "error": { "class": "GenericError", "desc": "it cannot" } })
        } else {
            json!({ "return": request["arguments"]["id"].as_u64().unwrap_or(1) })
        };
        let delimiter: &[u8] = if told.is_empty() { b"\xff" } else { b"" };
        let answer = [delimiter, answer.to_string().as_bytes(), b"\n"].concat();
        stream.get_mut().write_all(&answer).await.unwrap();
        told.push(command);
        if thaw && !refused {
            return told;
        }
    }
}

/// A running machine without a system, whose agent is played.
async fn with_agent(host: &Host, manager: &Manager, vm_id: &str) -> UnixListener {
    let socket = host.path().join("agent.sock");
    let mut machine = host.machine(vm_id);
    machine["guestAgentSocketPath"] = json!(socket);
    manager.create_vm(machine, never()).await.unwrap();
    std::fs::remove_file(&socket).unwrap();
    UnixListener::bind(&socket).unwrap()
}

#[test]
fn f39_file_systems_are_frozen_while_the_disks_are_snapshotted_and_thawed_after() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let listener = with_agent(&host, &manager, "snap-15").await;
        // It is asked again where it refuses.
        let agent = tokio::spawn(played(listener, 2));
        let quiet = json!({ "name": "quiet", "quiesce": true });
        take(&manager, "snap-15", quiet).await.unwrap();
        let told = timeout(PATIENCE, agent).await.unwrap().unwrap();
        let in_order = [
            "guest-sync-delimited",
            "guest-fsfreeze-freeze",
            "guest-fsfreeze-thaw",
            "guest-fsfreeze-thaw",
            "guest-fsfreeze-thaw",
        ];
        assert_eq!(told, in_order);
        assert_eq!(names(&manager, "snap-15").await, ["quiet"]);
        delete(&manager, "snap-15").await;
        host.is_clean().await;
    });
}

#[test]
fn f39_a_snapshot_whose_guest_cannot_be_thawed_fails_and_is_not_kept() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let listener = with_agent(&host, &manager, "snap-16").await;
        let agent = tokio::spawn(played(listener, 4));
        let quiet = json!({ "name": "quiet", "quiesce": true });
        let failure = take(&manager, "snap-16", quiet).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::QmpError);
        assert!(failure.has(ErrorCode::AgentCommandFailed), "{failure:?}");
        let told = timeout(PATIENCE, agent).await.unwrap().unwrap();
        assert_eq!(told[2..], ["guest-fsfreeze-thaw"; 3]);
        assert_eq!(names(&manager, "snap-16").await, Vec::<String>::new());
        let note = host.state_dir().join("vms/snap-16/guest-frozen");
        assert!(note.exists(), "the next recovery tries again");
        delete(&manager, "snap-16").await;
        host.is_clean().await;
    });
}

#[test]
fn f39_a_guest_left_frozen_by_a_killed_process_is_thawed_by_the_next() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let machine = host.machine("snap-14");
        manager.create_vm(machine, never()).await.unwrap();
        let socket = host.path().join("agent.sock");
        let note = host.state_dir().join("vms/snap-14/guest-frozen");
        let named = socket.to_str().unwrap().as_bytes();
        state_file::write(&note, named, Durability::ProcessCrash).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        manager.shutdown().await.unwrap();
        drop(manager);

        let agent = tokio::spawn(played(listener, 0));
        let manager = host.manager().await;
        let told = timeout(PATIENCE, agent).await.unwrap().unwrap();
        assert_eq!(told, ["guest-sync-delimited", "guest-fsfreeze-thaw"]);
        assert!(!note.exists());
        assert_eq!(
            consistent_status(&manager, "snap-14").await["status"],
            "running"
        );
        std::fs::remove_file(&socket).unwrap();
        delete(&manager, "snap-14").await;
        host.is_clean().await;
    });
}
