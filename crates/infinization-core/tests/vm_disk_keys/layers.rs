//! External snapshots of encrypted disks: made, gone back to and merged, under a guest and without.

use super::*;

async fn take(manager: &Manager, vm: &str, name: &str) -> Result<Value, Failure> {
    let options = json!({ "name": name, "kind": "external" });
    manager.create_snapshot(vm.into(), options, never()).await
}

async fn revert(manager: &Manager, vm: &str, name: &str, options: Value) {
    let done = manager.revert_snapshot(vm.into(), name.into(), options);
    done.await.unwrap();
}

async fn remove(manager: &Manager, vm: &str, name: &str) -> Result<Value, Failure> {
    let rebase = json!({ "children": "rebase" });
    manager
        .delete_snapshot(vm.into(), name.into(), rebase, never())
        .await
}

/// Every file of the encrypted disk's tree.
async fn files(manager: &Manager, vm: &str) -> Vec<String> {
    let tree = manager.snapshot_tree(vm.into()).await.unwrap();
    let nodes = tree["snapshots"].as_array().unwrap().iter();
    let layers = nodes.map(|node| &node["layers"]).chain([&tree["active"]]);
    layers
        .map(|layers| layers[1]["path"].as_str().unwrap().to_owned())
        .collect()
}

async fn on(host: &Host, manager: &Manager, vm: &str, times: usize) {
    start(manager, vm, Value::Null).await.unwrap();
    host.console_says(vm, "INFZ-READY", times).await;
}

#[test]
fn b38_external_snapshots_of_an_encrypted_disk_are_encrypted_and_merge() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = begin(keeping(&host)).await;
        let vm = "luks-tree";
        made(&manager, host.tiny_guest(vm)).await;
        let boots = host_boots(&host, vm);
        on(&host, &manager, vm, boots + 1).await;
        write(&host, &manager, vm, 0, "one").await;
        let first = sum(&host, &manager, vm).await;
        take(&manager, vm, "a").await.unwrap();
        write(&host, &manager, vm, 1, "two").await;
        take(&manager, vm, "b").await.unwrap();
        write(&host, &manager, vm, 2, "three").await;
        let third = sum(&host, &manager, vm).await;
        take(&manager, vm, "c").await.unwrap();
        assert_eq!(files(&manager, vm).await.len(), 4);
        // Under the guest: the middle, then the uppermost.
        manager
            .commit_snapshot(vm.into(), "c".into(), never())
            .await
            .unwrap();
        assert_eq!(sum(&host, &manager, vm).await, third);
        nothing_leaked(&host);

        // A restart finds keys by paths that the disk did not have when it was started.
        let restarted = manager.restart_vm(vm.into()).await.unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        host.console_says(vm, "INFZ-READY", boots + 2).await;
        assert_eq!(sum(&host, &manager, vm).await, third);
        revert(&manager, vm, "a", json!({ "keep": "tip", "restart": true })).await;
        host.console_says(vm, "INFZ-READY", boots + 3).await;
        assert_eq!(sum(&host, &manager, vm).await, first);
        stop(&manager, vm).await;

        // Without: `a` has two children, and each takes what it needs of it.
        remove(&manager, vm, "a").await.unwrap();
        for file in files(&manager, vm).await {
            is_sound(&file, KEY);
        }
        nothing_leaked(&host);
        on(&host, &manager, vm, boots + 4).await;
        assert_eq!(sum(&host, &manager, vm).await, first);
        stop(&manager, vm).await;
        revert(&manager, vm, "b", json!({ "discard": true })).await;
        on(&host, &manager, vm, boots + 5).await;
        // What was committed into it is what it is now.
        assert_eq!(sum(&host, &manager, vm).await, third);
        stop(&manager, vm).await;
        revert(&manager, vm, "tip", json!({ "discard": true })).await;
        remove(&manager, vm, "b").await.unwrap();
        remove(&manager, vm, "tip").await.unwrap();
        on(&host, &manager, vm, boots + 6).await;
        assert_eq!(sum(&host, &manager, vm).await, third);
        nothing_leaked(&host);
        assert_eq!(files(&manager, vm).await.len(), 1);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// How often the guest has said that it is ready.
fn host_boots(host: &Host, vm: &str) -> usize {
    let log = host.state_dir().join("vms").join(vm).join("serial.log");
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text).matches("INFZ-READY").count()
}

/// Without a store of keys the run's own do, and those that a start is given.
#[test]
fn b38_without_stored_keys_overlays_are_made_and_merging_needs_the_key() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "luks-tree-2";
        let mut machine = host.machine(vm);
        machine["disks"] = json!([{ "sizeGB": 1 }]);
        let disk = made(&manager, machine).await;
        take(&manager, vm, "off").await.unwrap();
        let over = disks(&manager, vm).await.pop().unwrap();
        assert!(opens(&over, KEY).await);
        refused(remove(&manager, vm, "off").await, ErrorCode::KeyRequired);
        refused(
            start(&manager, vm, Value::Null).await,
            ErrorCode::KeyRequired,
        );
        start(&manager, vm, json!({ "diskKeys": { &over: KEY } }))
            .await
            .unwrap();
        take(&manager, vm, "on").await.unwrap();
        let restarted = manager.restart_vm(vm.into()).await.unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        remove(&manager, vm, "on").await.unwrap();
        remove(&manager, vm, "off").await.unwrap();
        assert_eq!(files(&manager, vm).await.len(), 1);
        let restarted = manager.restart_vm(vm.into()).await.unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        assert!(opens(&disks(&manager, vm).await.pop().unwrap(), KEY).await);
        assert!(disks(&manager, vm).await.contains(&disk) || !Path::new(&disk).exists());
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}
