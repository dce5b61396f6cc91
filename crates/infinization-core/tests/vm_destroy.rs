//! A destroy ends QEMU and leaves the user's data, all of it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

use infinization_test_kit as kit;
use kit::machine::{Host, delete, never};
use serde_json::json;

#[test]
fn what_qemu_held_of_a_disk_is_written_before_it_ends() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("destroy-1");
        // In this mode QEMU flushes nothing while it runs.
        machine["disks"] = json!([{ "sizeGB": 1, "cache": "unsafe" }]);
        manager.create_vm(machine, never()).await.unwrap();
        let write = "qemu-io -d /machine/peripheral/disk0/virtio-backend \"write -P 0x42 64M 1M\"";
        let written = manager.qmp_execute(
            "destroy-1",
            "human-monitor-command",
            json!({ "command-line": write }),
        );
        assert_eq!(written.await.unwrap().get(), "\"\"");
        let known = manager.get_vm("destroy-1".into()).await.unwrap();
        let disk = known["diskPaths"][0].as_str().unwrap().to_owned();
        manager.destroy_vm("destroy-1".into()).await.unwrap();

        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).arg(&disk).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        run("qemu-img", &["check", "-q", "-f", "qcow2"]);
        let read = ["-r", "-f", "qcow2", "-c", "read -q -P 0x42 64M 1M"];
        assert_eq!(run("qemu-io", &read), "");
        delete(&manager, "destroy-1").await;
        host.is_clean().await;
    });
}
