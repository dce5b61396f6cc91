use kit::faults::start;
use kit::machine::{PATIENCE, consistent_status, next_event};
use tokio::time::timeout;

use super::*;

/// Whether a command in the tiny guest succeeds. Its files are in its memory.
async fn succeeds(host: &Host, manager: &Manager, vm_id: &str, command: &str) -> bool {
    let socket = host.path().join(format!("{vm_id}-ga.sock"));
    let (socket, args) = (socket.display().to_string(), ["-c", command]);
    let args = args.map(str::to_owned).to_vec();
    let done = manager.guest_exec(vm_id.into(), socket, "/bin/sh".into(), args, Value::Null);
    done.await.unwrap()["exitCode"] == 0
}

#[test]
fn a_guest_goes_on_from_its_saved_memory() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "snap-11";
        manager
            .create_vm(host.tiny_guest(vm), never())
            .await
            .unwrap();
        host.console_says(vm, "INFZ-READY", 1).await;
        assert!(succeeds(&host, &manager, vm, "touch /tmp/before").await);
        let mut events = manager.subscribe();

        let options = json!({ "name": "with-memory", "memory": true });
        take(&manager, vm, options).await.unwrap();
        let listed = manager.list_snapshots(vm.into()).await.unwrap();
        assert_eq!(listed[0]["memory"], true);
        assert!(listed[0]["vmSize"].as_u64().unwrap() > 1 << 20);
        assert!(succeeds(&host, &manager, vm, "touch /tmp/after").await);
        revert(&manager, vm, "with-memory", Value::Null)
            .await
            .unwrap();
        let agent = timeout(PATIENCE, async {
            while !succeeds(&host, &manager, vm, "test -e /tmp/before").await {}
        });
        agent.await.unwrap();
        assert!(succeeds(&host, &manager, vm, "test ! -e /tmp/after").await);

        // A guest that stood still for a moment was never told to be suspended.
        assert_eq!(consistent_status(&manager, vm).await["status"], "running");
        manager.suspend_vm(vm.into()).await.unwrap();
        let first = next_event(&mut events, "vm:event").await;
        assert_eq!(first.data["previousStatus"], "running", "{first:?}");
        assert_eq!(first.data["newStatus"], "suspended");
        revert(&manager, vm, "with-memory", Value::Null)
            .await
            .unwrap();
        let status = consistent_status(&manager, vm).await;
        assert_eq!(status["status"], "suspended", "what stands still stays so");
        manager.resume_vm(vm.into()).await.unwrap();
        assert!(succeeds(&host, &manager, vm, "test ! -e /tmp/after").await);

        let quiet = json!({ "name": "quiet", "quiesce": true });
        take(&manager, vm, quiet).await.unwrap();
        assert!(succeeds(&host, &manager, vm, "true").await, "it is thawed");
        let note = host.state_dir().join("vms").join(vm).join("guest-frozen");
        assert!(!note.exists());
        assert_eq!(names(&manager, vm).await, ["with-memory", "quiet"]);
        other_hardware_is_refused(&host, &manager, vm).await;
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// Memory that was saved with one CPU is not loaded into a machine with two.
async fn other_hardware_is_refused(host: &Host, manager: &Manager, vm: &str) {
    stop(manager, vm).await;
    let reverted = revert(manager, vm, "with-memory", Value::Null)
        .await
        .unwrap();
    assert_eq!(reverted["warnings"].as_array().unwrap().len(), 1);
    let store = rusqlite::Connection::open(host.state_dir().join("infinization.db")).unwrap();
    let change = "UPDATE machine SET cpu_cores = 2 WHERE id = ?1";
    assert_eq!(store.execute(change, [vm]).unwrap(), 1);
    start(manager, vm).await.unwrap();
    let refusal = revert(manager, vm, "with-memory", Value::Null)
        .await
        .unwrap_err();
    assert_eq!(refusal.code(), ErrorCode::InvalidState);
    assert_eq!(refusal.context()["was"], json!(["cpus=1"]));
    assert_eq!(consistent_status(manager, vm).await["status"], "running");
    manager
        .delete_snapshot(vm.into(), "with-memory".into(), Value::Null, never())
        .await
        .unwrap();
    assert_eq!(names(manager, vm).await, ["quiet"]);
}
