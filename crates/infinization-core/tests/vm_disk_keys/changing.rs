//! Another key for a disk: under a running guest, and for all files of one that is off.

use std::sync::Arc;

use infinization_core::db::sqlite::{KeyChange, SqliteDatabase};
use infinization_core::host::qemu_img::{ChangeKey, add_key};
use infinization_core::secrets::SecretsKey;
use infinization_core::types::VmId;

use super::*;

pub(crate) fn change(new: &str) -> Value {
    json!({ "newKey": new, "iterTime": 10 })
}

pub(crate) async fn rekey(
    manager: &Manager,
    vm: &str,
    disk: &str,
    options: Value,
) -> Result<Value, Failure> {
    manager
        .change_disk_key(vm.into(), disk.into(), options)
        .await
}

#[test]
fn b38_the_key_of_a_running_guest_s_disk_is_changed_under_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = begin(keeping(&host)).await;
        let vm = "rekey-live";
        let disk = made(&manager, host.tiny_guest(vm)).await;
        start(&manager, vm, Value::Null).await.unwrap();
        host.console_says(vm, "INFZ-READY", 1).await;
        write(&host, &manager, vm, 0, "one").await;
        let first = sum(&host, &manager, vm).await;

        let wrong = json!({ "encryptionKey": "wrong", "newKey": "any", "iterTime": 10 });
        refused(
            rekey(&manager, vm, &disk, wrong).await,
            ErrorCode::AuthFailed,
        );
        let plain = disks(&manager, vm).await.remove(0);
        refused(
            rekey(&manager, vm, &plain, change("any")).await,
            ErrorCode::InvalidFormat,
        );
        refused(
            rekey(&manager, vm, "/x.qcow2", change("any")).await,
            ErrorCode::InvalidConfig,
        );
        refused(
            rekey(&manager, vm, &disk, Value::Null).await,
            ErrorCode::InvalidConfig,
        );
        assert!(opens(&disk, KEY).await && !opens(&disk, "any").await);

        let changed = rekey(&manager, vm, &disk, change(NEW_KEY)).await.unwrap();
        assert_eq!(changed["success"], true, "{changed}");
        assert!(opens(&disk, NEW_KEY).await && !opens(&disk, KEY).await);
        assert_eq!(sum(&host, &manager, vm).await, first);
        write(&host, &manager, vm, 1, "two").await;
        let second = sum(&host, &manager, vm).await;
        // What QEMU opens from now on, it opens with the new one.
        let external = json!({ "name": "s", "kind": "external" });
        manager
            .create_snapshot(vm.into(), external, never())
            .await
            .unwrap();
        let over = disks(&manager, vm).await.pop().unwrap();
        assert!(opens(&over, NEW_KEY).await && !opens(&over, KEY).await);
        refused(
            rekey(&manager, vm, &over, change("any")).await,
            ErrorCode::InvalidState,
        );

        // Stored: a start needs none. All files of a disk that is off get another.
        stop(&manager, vm).await;
        rekey(&manager, vm, &over, change("a-third")).await.unwrap();
        for file in [&disk, &over] {
            assert!(
                opens(file, "a-third").await && !opens(file, NEW_KEY).await,
                "{file}"
            );
            is_sound(file, "a-third");
        }
        start(&manager, vm, Value::Null).await.unwrap();
        host.console_says(vm, "INFZ-READY", 2).await;
        assert_eq!(sum(&host, &manager, vm).await, second);
        assert_eq!(holding(host.path(), "a-third"), Vec::<PathBuf>::new());
        nothing_leaked(&host);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

async fn both_open(disk: &str, old: &str, new: &str) {
    let change = ChangeKey {
        old: key(old),
        new: key(new),
        iter_time: QUICK,
    };
    add_key(&path(disk), &change).await.unwrap();
}

/// The store and the file as a change leaves them that ends before the old key is erased.
async fn cut_short(host: &Host, vm: &str, disk: &str) {
    both_open(disk, KEY, NEW_KEY).await;
    let change = KeyChange {
        files: vec![path(disk)],
        key: Some(key(NEW_KEY)),
        left: vec![key(KEY)],
    };
    let store = store_of(host).await;
    store.note_disk_keys(&vm_id(vm), change).await.unwrap();
}

async fn store_of(host: &Host) -> Arc<SqliteDatabase> {
    let file = host.state_dir().join("infinization.db");
    let store = SqliteDatabase::open_with_key(&file, SecretsKey::from_bytes(&[0x5a; 32]));
    store.await.unwrap()
}

fn vm_id(text: &str) -> VmId {
    VmId::parse(text).unwrap()
}

#[test]
fn f9_b38_what_a_change_has_left_is_erased_by_the_next_one_from_every_layer() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = begin(keeping(&host)).await;
        for (vm, next) in [("rekey-left-1", NEW_KEY), ("rekey-left-2", "a-third")] {
            let mut machine = host.machine(vm);
            machine["disks"] = json!([]);
            let disk = made(&manager, machine).await;
            cut_short(&host, vm, &disk).await;
            let mut over = Vec::new();
            for name in ["s", "t", "u"] {
                let external = json!({ "name": name, "kind": "external" });
                manager
                    .create_snapshot(vm.into(), external, never())
                    .await
                    .unwrap();
                over.extend(disks(&manager, vm).await);
            }
            let noted = store_of(&host).await.left_disk_keys(&vm_id(vm)).await;
            assert!(noted.unwrap().into_values().all(|left| left == [key(KEY)]));
            let [lower, middle, over] = &over[..] else {
                panic!("{over:?}")
            };
            assert!(opens(over, KEY).await && opens(over, NEW_KEY).await);
            rekey(&manager, vm, over, change(next)).await.unwrap();
            for file in [&disk, lower, middle, over] {
                for text in [KEY, NEW_KEY, next] {
                    assert_eq!(opens(file, text).await, text == next, "{file}: {text}");
                }
            }
            start(&manager, vm, Value::Null).await.unwrap();

            // Whoever forgets the tree leaves its files.
            manager.destroy_vm(vm.into()).await.unwrap();
            rekey(&manager, vm, over, change("the-last")).await.unwrap();
            for file in [&disk, lower, middle, over] {
                assert!(opens(file, "the-last").await && !opens(file, next).await);
            }
            start(&manager, vm, Value::Null).await.unwrap();

            // A layer that was being made anew when somebody was killed goes with the disk.
            let (dir, name) = over.rsplit_once('/').unwrap();
            let left = format!("{dir}/.{name}.{}.partial", "0a".repeat(16));
            fs::write(&left, "left").unwrap();
            delete(&manager, vm).await;
            assert!(!Path::new(&left).exists());
            for file in [&disk, lower, middle] {
                fs::remove_file(file).unwrap();
            }
        }
        host.is_clean().await;
    });
}

#[test]
fn without_a_store_the_run_s_key_is_the_old_one_and_a_restart_has_the_new_one() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "rekey-unstored";
        let mut machine = host.machine(vm);
        machine["disks"] = json!([]);
        let disk = made(&manager, machine).await;
        refused(
            rekey(&manager, vm, &disk, change(NEW_KEY)).await,
            ErrorCode::KeyRequired,
        );
        start(&manager, vm, json!({ "diskKeys": { &disk: KEY } }))
            .await
            .unwrap();
        rekey(&manager, vm, &disk, change(NEW_KEY)).await.unwrap();
        let restarted = manager.restart_vm(vm.into()).await.unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        stop(&manager, vm).await;
        let with = |key: &str| json!({ "diskKeys": { &disk: key } });
        refused(start(&manager, vm, with(KEY)).await, ErrorCode::AuthFailed);
        start(&manager, vm, with(NEW_KEY)).await.unwrap();
        // The same once more changes nothing.
        let again = json!({ "encryptionKey": KEY, "newKey": NEW_KEY, "iterTime": 10 });
        rekey(&manager, vm, &disk, again.clone()).await.unwrap();
        rekey(&manager, vm, &disk, change(NEW_KEY)).await.unwrap();
        assert!(opens(&disk, NEW_KEY).await);
        // What else opens it nobody knows.
        stop(&manager, vm).await;
        both_open(&disk, NEW_KEY, KEY).await;
        start(&manager, vm, with(NEW_KEY)).await.unwrap();
        refused(
            rekey(&manager, vm, &disk, change(NEW_KEY)).await,
            ErrorCode::KeyRequired,
        );
        rekey(&manager, vm, &disk, again).await.unwrap();
        assert!(opens(&disk, NEW_KEY).await && !opens(&disk, KEY).await);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}
