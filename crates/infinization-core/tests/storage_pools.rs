//! Storage pools and volumes on real directories and images, and under a real QEMU.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use infinization_core::manager::Manager;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::machine::{Host, delete, forced, never};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

async fn pool(host: &Host, manager: &Manager, name: &str) -> PathBuf {
    let path = host.path().canonicalize().unwrap().join(name);
    let options = json!({ "path": path, "create": true });
    let pool = manager.define_pool(name.into(), options).await.unwrap();
    assert_eq!(pool["path"], json!(path));
    path
}

async fn volume(manager: &Manager, options: Value) -> Result<Value, Failure> {
    manager.create_volume("p".into(), options, never()).await
}

async fn clone(
    manager: &Manager,
    source: &str,
    name: &str,
    linked: bool,
) -> Result<Value, Failure> {
    let options = json!({ "source": source, "name": name, "linked": linked });
    manager
        .clone_volume("p".into(), options, never(), None)
        .await
}

async fn remove(manager: &Manager, name: &str) -> Result<Value, Failure> {
    manager.delete_volume("p".into(), name.into()).await
}

async fn names(manager: &Manager) -> Vec<String> {
    let listed = manager.list_volumes("p".into()).await.unwrap();
    let name = |one: &Value| one["name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

fn qemu_io(format: &str, command: &str, image: &Path) -> String {
    let mut program = Command::new("qemu-io");
    let output = program
        .args(["-f", format, "-c", command])
        .arg(image)
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn volumes_are_made_cloned_resized_and_deleted() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager, "p").await;
        let golden = json!({ "name": "golden.qcow2", "capacity": 8 * MIB });
        let made = volume(&manager, golden.clone()).await.unwrap();
        let told = (
            &made["format"],
            &made["capacity"],
            &made["backing"],
            &made["usedBy"],
        );
        assert_eq!(
            told,
            (&json!("qcow2"), &json!(8 * MIB), &Value::Null, &json!([]))
        );
        let again = volume(&manager, golden).await.unwrap_err();
        assert_eq!(again.code(), ErrorCode::ImageAlreadyExists);
        let thick = json!({ "name": "thick.raw", "capacity": MIB, "preallocation": "falloc" });
        let thick = volume(&manager, thick).await.unwrap();
        assert!(thick["allocation"].as_u64().unwrap() >= MIB);
        qemu_io("qcow2", "write -P 7 0 64k", &path.join("golden.qcow2"));

        let linked = clone(&manager, "golden.qcow2", "linked.qcow2", true)
            .await
            .unwrap();
        assert_eq!(linked["backing"], json!(path.join("golden.qcow2")));
        clone(&manager, "golden.qcow2", "full.raw", false)
            .await
            .unwrap();
        let raw = clone(&manager, "thick.raw", "x.qcow2", true)
            .await
            .unwrap_err();
        assert_eq!(raw.code(), ErrorCode::InvalidFormat);
        for (format, name) in [("qcow2", "linked.qcow2"), ("raw", "full.raw")] {
            let said = qemu_io(format, "read -P 7 0 64k", &path.join(name));
            assert!(
                said.contains("read 65536/65536") && !said.contains("verif"),
                "{said}"
            );
        }

        let refused = remove(&manager, "golden.qcow2").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ImageInUse);
        assert_eq!(
            refused.context()["overlays"],
            json!([path.join("linked.qcow2")])
        );
        let resize = async |name: &str, options: Value| {
            manager
                .resize_volume("p".into(), name.into(), options)
                .await
        };
        let grown = resize("golden.qcow2", json!({ "capacity": 16 * MIB }))
            .await
            .unwrap_err();
        assert_eq!(grown.code(), ErrorCode::ImageInUse);
        let grown = resize("linked.qcow2", json!({ "capacity": 16 * MIB }))
            .await
            .unwrap();
        assert_eq!(grown["capacity"], 16 * MIB);
        let shrunk = resize("full.raw", json!({ "capacity": MIB }))
            .await
            .unwrap_err();
        assert_eq!(shrunk.code(), ErrorCode::DataLossRefused);
        resize("full.raw", json!({ "capacity": MIB, "shrink": true }))
            .await
            .unwrap();

        let all = ["full.raw", "golden.qcow2", "linked.qcow2", "thick.raw"];
        assert_eq!(names(&manager).await, all);
        for name in ["linked.qcow2", "golden.qcow2", "full.raw", "thick.raw"] {
            remove(&manager, name).await.unwrap();
        }
        assert_eq!(names(&manager).await, Vec::<String>::new());
        manager.undefine_pool("p".into()).await.unwrap();
        assert!(path.is_dir(), "the directory is the user's");
    });
}

#[test]
fn a_machines_volume_is_kept_and_grows_under_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "pool-vm-1";
        pool(&host, &manager, "p").await;
        let golden = json!({ "name": "golden.qcow2", "capacity": 8 * MIB });
        let golden = volume(&manager, golden).await.unwrap();
        let mut machine = host.machine(vm);
        machine["disks"] = json!([{ "sizeGB": 1, "backingFile": golden["path"] }]);
        manager.create_vm(machine, never()).await.unwrap();
        let refused = remove(&manager, "golden.qcow2").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ImageInUse);

        let disks = host.state_dir().canonicalize().unwrap().join("disks");
        let options = json!({ "path": disks });
        manager.define_pool("disks".into(), options).await.unwrap();
        let name = format!("{vm}.qcow2");
        let listed = manager.list_volumes("disks".into()).await.unwrap();
        assert_eq!(
            (&listed[0]["name"], &listed[0]["usedBy"]),
            (&json!(name), &json!([vm]))
        );
        let resize = async |options: Value| {
            manager
                .resize_volume("disks".into(), name.clone(), options)
                .await
        };
        let grown = resize(json!({ "capacity": 32 * MIB })).await.unwrap();
        assert_eq!(grown["capacity"], 32 * MIB);
        let block = manager.qmp_execute(vm, "query-block", Value::Null).await;
        assert!(
            block
                .unwrap()
                .get()
                .contains(&format!("\"virtual-size\": {}", 32 * MIB))
        );
        let shrunk = resize(json!({ "capacity": 8 * MIB })).await.unwrap_err();
        assert_eq!(shrunk.code(), ErrorCode::DataLossRefused);
        // What is cut off is marked by no bitmap, and would come back out of the backup before.
        let bitmap = json!({ "node": "disk0", "name": "infz-1", "persistent": true });
        let added = manager.qmp_execute(vm, "block-dirty-bitmap-add", bitmap);
        added.await.unwrap();
        let cut = json!({ "capacity": 24 * MIB, "shrink": true });
        assert_eq!(resize(cut).await.unwrap()["capacity"], 24 * MIB);
        let block = manager.qmp_execute(vm, "query-block", Value::Null).await;
        assert!(!block.unwrap().get().contains("\"infz-1\""));
        let used = manager
            .delete_volume("disks".into(), name.clone())
            .await
            .unwrap_err();
        assert_eq!(used.context()["users"], json!([vm]));
        manager.stop_vm(vm.into(), forced(), never()).await.unwrap();
        let used = manager
            .delete_volume("disks".into(), name.clone())
            .await
            .unwrap_err();
        assert_eq!(used.code(), ErrorCode::ImageInUse);
        delete(&manager, vm).await;
        remove(&manager, "golden.qcow2").await.unwrap();
    });
}

#[test]
fn b7_b8_nothing_leads_out_of_a_pool() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager, "p").await;
        let outside = host.path().canonicalize().unwrap().join("outside.raw");
        std::fs::write(&outside, vec![1; 1024]).unwrap();
        std::os::unix::fs::symlink(&outside, path.join("link.raw")).unwrap();
        std::fs::create_dir(path.join("dir.raw")).unwrap();
        assert_eq!(names(&manager).await, Vec::<String>::new());
        for name in ["link.raw", "dir.raw"] {
            let refused = remove(&manager, name).await.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::StoragePermissionDenied, "{name}");
            assert!(clone(&manager, name, "copy.raw", false).await.is_err());
        }
        for name in ["../outside.raw", "/etc/passwd", "a.vmdk", ".raw"] {
            let refused = remove(&manager, name).await.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::InvalidConfig, "{name}");
        }
        let define = async |name: &str, path: &Path, create: bool| {
            let options = json!({ "path": path, "create": create });
            let defined = manager.define_pool(name.into(), options).await;
            defined.unwrap_err().code()
        };
        let link = host.path().canonicalize().unwrap().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(
            define("q", &link, false).await,
            ErrorCode::StoragePermissionDenied
        );
        assert_eq!(
            define("q", &outside, false).await,
            ErrorCode::StoragePermissionDenied
        );
        assert_eq!(
            define("q", &path, false).await,
            ErrorCode::PoolAlreadyExists
        );
        assert_eq!(
            define("p", &path.join("x"), true).await,
            ErrorCode::PoolAlreadyExists
        );
        assert_eq!(
            define("q", &path.join("x"), false).await,
            ErrorCode::ImageNotFound
        );
        assert_eq!(define("a b", &path, false).await, ErrorCode::InvalidConfig);
        let unknown = manager.get_pool("q".into()).await.unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::PoolNotFound);
        assert_eq!(std::fs::read(&outside).unwrap(), vec![1; 1024]);

        manager.shutdown().await.unwrap();
        let manager = host.manager().await;
        let pool = manager.get_pool("p".into()).await.unwrap();
        let size = |key: &str| pool[key].as_u64().unwrap();
        assert!(size("capacity") >= size("allocation") && size("available") > 0);
        assert_eq!(manager.list_pools().await.unwrap(), json!([pool]));
    });
}

#[test]
fn who_lies_on_a_volume_is_found_at_any_depth_and_by_any_name() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager, "p").await;
        for name in ["base.qcow2", "other.qcow2"] {
            let options = json!({ "name": name, "capacity": 8 * MIB });
            volume(&manager, options).await.unwrap();
        }
        // An overlay outside of the pools on one inside, of which the names are relative or links.
        let elsewhere = host.path().canonicalize().unwrap().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&path, elsewhere.join("link")).unwrap();
        overlay(&elsewhere.join("middle.qcow2"), "link/base.qcow2");
        overlay(&path.join("top.qcow2"), "../elsewhere/middle.qcow2");
        let refused = remove(&manager, "base.qcow2").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ImageInUse);
        let overlays = json!([path.join("top.qcow2")]);
        assert_eq!(refused.context()["overlays"], overlays);

        // What cannot be read may lie on anything, but does not keep itself.
        std::fs::write(path.join("torn.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
        let refused = remove(&manager, "other.qcow2").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ImageInUse);
        remove(&manager, "torn.qcow2").await.unwrap();
        let gone = pool(&host, &manager, "gone").await;
        std::fs::remove_dir(&gone).unwrap();
        let refused = remove(&manager, "other.qcow2").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ImageInUse);
        manager.undefine_pool("gone".into()).await.unwrap();
        for name in ["other.qcow2", "top.qcow2", "base.qcow2"] {
            remove(&manager, name).await.unwrap();
        }
    });
}

fn overlay(image: &Path, backing: &str) {
    let mut program = Command::new("qemu-img");
    let made = program
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing])
        .arg(image)
        .status();
    assert!(made.unwrap().success());
}

#[test]
fn an_encrypted_volume_s_copies_are_encrypted_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager, "p").await;
        let golden = json!({ "name": "a.qcow2", "capacity": 8 * MIB, "encryptionKey": "hunter2" });
        assert_eq!(volume(&manager, golden).await.unwrap()["encrypted"], true);
        let copy = |name: &str, more: Value| {
            let mut options = json!({ "source": "a.qcow2", "name": name });
            let more = more.as_object().cloned().unwrap_or_default();
            options.as_object_mut().unwrap().extend(more);
            manager.clone_volume("p".into(), options, never(), None)
        };
        let table = [
            ("b.qcow2", json!({}), ErrorCode::KeyRequired),
            (
                "b.raw",
                json!({ "encryptionKey": "hunter2" }),
                ErrorCode::PlainTextRefused,
            ),
            (
                "b.qcow2",
                json!({ "linked": true }),
                ErrorCode::PlainTextRefused,
            ),
            (
                "b.qcow2",
                json!({ "linked": true, "encryptionKey": "hunter2" }),
                ErrorCode::InvalidFormat,
            ),
        ];
        for (name, options, code) in table {
            let refused = copy(name, options.clone()).await.unwrap_err();
            assert_eq!(refused.code(), code, "{options}: {refused:?}");
        }
        assert_eq!(names(&manager).await, ["a.qcow2"]);
        let with = json!({ "encryptionKey": "hunter2" });
        assert_eq!(copy("b.qcow2", with).await.unwrap()["encrypted"], true);
        let grow = |options| manager.resize_volume("p".into(), "b.qcow2".into(), options);
        let refused = grow(json!({ "capacity": 9 * MIB })).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::KeyRequired);
        let grown = grow(json!({ "capacity": 9 * MIB, "encryptionKey": "hunter2" }));
        assert_eq!(grown.await.unwrap()["capacity"], json!(9 * MIB));
        for name in names(&manager).await {
            remove(&manager, &name).await.unwrap();
        }
        manager.undefine_pool("p".into()).await.unwrap();
        std::fs::remove_dir(path).unwrap();
    });
}
