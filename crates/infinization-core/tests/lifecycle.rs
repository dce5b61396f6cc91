//! The main job on the real host: one guest through its whole life.

use std::time::Duration;

use infinization_test_kit as kit;
use kit::machine::{Host, PATIENCE, never, next_event, qemus, vm_chains};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A service of the guest may come up a moment after its console says that it is ready.
async fn comes_to_answer(vm_id: &str, port: u16) -> bool {
    let comes = async {
        while !answers(vm_id, port).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, comes).await.is_ok()
}

async fn answers(vm_id: &str, port: u16) -> bool {
    let address = (Host::address_of(vm_id), port);
    let Ok(Ok(mut stream)) = timeout(Duration::from_secs(3), TcpStream::connect(address)).await
    else {
        return false;
    };
    let mut banner = [0; 3];
    timeout(Duration::from_secs(3), stream.read_exact(&mut banner))
        .await
        .is_ok_and(|read| read.is_ok())
}

#[test]
fn a_guest_lives_its_whole_life() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let mut config = host.tiny_guest("vm-1");
        config["firewallRules"] = json!([{
            "id": "1", "name": "ssh", "action": "ACCEPT", "direction": "IN", "priority": 10,
            "protocol": "tcp", "dstPortStart": 22,
        }]);

        let created = manager.create_vm(config, never()).await.unwrap();
        assert_eq!(created["success"], true);
        assert_eq!(created["tapDevice"], "vnet-2d62b0035f");
        let event = next_event(&mut events, "create").await;
        assert_eq!(event.data["pid"], created["pid"]);
        host.console_says("vm-1", "INFZ-READY", 1).await;
        assert!(
            comes_to_answer("vm-1", 22).await,
            "the allowed port answers"
        );
        assert!(!answers("vm-1", 3389).await, "every other port is blocked");

        let status = manager.get_vm_status("vm-1".into()).await.unwrap();
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("running"), &json!("running"))
        );
        assert_eq!(
            (&status["processAlive"], &status["consistent"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(status["pid"], created["pid"]);

        manager.suspend_vm("vm-1".into()).await.unwrap();
        let event = next_event(&mut events, "vm:event").await;
        assert_eq!(
            (&event.data["previousStatus"], &event.data["newStatus"]),
            (&json!("running"), &json!("suspended"))
        );
        let status = manager.get_vm_status("vm-1".into()).await.unwrap();
        assert_eq!(
            (&status["status"], &status["consistent"]),
            (&json!("suspended"), &json!(true))
        );
        manager.resume_vm("vm-1".into()).await.unwrap();
        assert!(comes_to_answer("vm-1", 22).await, "it goes on where it was");

        let stopped = manager
            .stop_vm(
                "vm-1".into(),
                json!({ "force": false, "timeout": 60000 }),
                never(),
            )
            .await
            .unwrap();
        assert_eq!(stopped["forced"], false);
        let event = next_event(&mut events, "vm:off").await;
        assert_eq!(event.data["qmpData"]["reason"], "guest-shutdown");
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        assert_eq!(
            manager.get_vm_status("vm-1".into()).await.unwrap()["status"],
            "off"
        );
        assert_eq!(host.links().await, ["vnet-2d62b0035f"], "the TAP is kept");
        assert_eq!(vm_chains().await.len(), 1, "the chain is kept");

        manager
            .start_vm("vm-1".into(), json!({ "waitForBoot": true }), never())
            .await
            .unwrap();
        let qga = "it has booted, so its console has said so";
        timeout(
            Duration::from_secs(5),
            host.console_says("vm-1", "INFZ-READY", 2),
        )
        .await
        .expect(qga);
        assert_eq!(manager.get_active_vms(), ["vm-1"]);

        let pid = qemus(host.path())[0];
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.vm_id.as_ref().unwrap().as_str(), "vm-1");
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.data["cause"]["signal"], 9, "F1: the cause is told");
        assert_eq!(crash.data["cleanupPerformed"], true);
        let status = manager.get_vm_status("vm-1".into()).await.unwrap();
        assert_eq!(
            (&status["status"], &status["processAlive"]),
            (&json!("off"), &json!(false))
        );

        manager
            .delete_vm("vm-1".into(), json!({ "deleteDisks": true }))
            .await
            .unwrap();
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        timeout(PATIENCE, manager.shutdown())
            .await
            .unwrap()
            .unwrap();
        host.is_clean().await;
    });
}
