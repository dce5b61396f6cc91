//! Machines on encrypted disks: what a guest writes is not readable in the file, no key is where others
//! can see it, and nothing of such a disk is copied in plain text.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use infinization_core::host::qemu_img::{
    ChangeKey, CreateImage, Encryption, Job, change_key, create,
};
use infinization_core::manager::Manager;
use infinization_core::types::{ByteSize, DiskKey, HostPath};
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::machine::{Host, delete, forced, never, qemus};
use serde_json::{Value, json};

const KEY: &str = "a-key-nobody-guesses";
const NEW_KEY: &str = "the-next-one";
const PATTERN: &str = "INFZ-PLAIN-TEXT!";

/// Keys of the disks that `createVM` makes take seconds of a core to open. This puts a disk in the place of one
/// that takes none.
async fn hasten(manager: &Manager, vm: &str, disk: &str) {
    stop(manager, vm).await;
    fs::remove_file(disk).unwrap();
    let encryption = Encryption {
        key: key(KEY),
        iter_time: QUICK,
    };
    let image = CreateImage {
        encryption: Some(encryption),
        ..CreateImage::new(HostPath::parse(disk).unwrap(), ByteSize::mib(1024))
    };
    create(&image, &Job::default()).await.unwrap();
}

const QUICK: Option<Duration> = Some(Duration::from_millis(10));

fn key(text: &str) -> DiskKey {
    DiskKey::try_from(text.to_owned()).unwrap()
}

async fn start(manager: &Manager, vm: &str, options: Value) -> Result<Value, Failure> {
    manager.start_vm(vm.into(), options, never()).await
}

async fn stop(manager: &Manager, vm: &str) {
    manager.stop_vm(vm.into(), forced(), never()).await.unwrap();
}

fn holds(path: &Path, text: &str) -> bool {
    let bytes = fs::read(path).unwrap();
    bytes.windows(text.len()).any(|at| at == text.as_bytes())
}

/// The disk's first bytes, as `qemu-img` reads them with the key.
fn decrypted(scratch: &Path, disk: &str, key: &str) -> Option<Vec<u8>> {
    let (file, raw) = (scratch.join("key"), scratch.join("raw"));
    fs::write(&file, key).unwrap();
    let status = Command::new("qemu-img")
        .args(["convert", "--object"])
        .arg(format!("secret,id=k,file={}", file.display()))
        .args(["--image-opts", "-O", "raw"])
        .arg(format!(
            "driver=qcow2,encrypt.format=luks,encrypt.key-secret=k,file.driver=file,file.filename={disk}"
        ))
        .arg(&raw)
        .status()
        .unwrap();
    fs::remove_file(&file).unwrap();
    let bytes = fs::read(&raw).ok();
    let _gone = fs::remove_file(&raw);
    status.success().then(|| bytes.unwrap()[..1 << 16].to_vec())
}

/// Everything the kernel shows of a process to others.
fn shows(pid: i32, text: &str) -> bool {
    ["cmdline", "environ"]
        .iter()
        .any(|file| holds(Path::new(&format!("/proc/{pid}/{file}")), text))
}

async fn in_guest(host: &Host, manager: &Manager, vm: &str, command: &str) {
    let socket = host.path().join(format!("{vm}-ga.sock"));
    let args = vec!["-c".to_owned(), command.to_owned()];
    let socket = socket.display().to_string();
    let done = manager.guest_exec(vm.into(), socket, "/bin/sh".into(), args, Value::Null);
    let done = done.await.unwrap();
    assert_eq!(done["exitCode"], 0, "{done}");
}

/// A path of what a VM leaves behind that holds the key.
fn leaks(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(leaks(&entry.path(), text));
        } else if kind.is_file() && holds(&entry.path(), text) {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn b38_a_guest_s_encrypted_disk_is_readable_with_its_key_alone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "luks-1";
        let mut machine = host.tiny_guest(vm);
        let disks = machine["disks"].as_array_mut().unwrap();
        disks.push(json!({ "sizeGB": 1, "encryptionKey": KEY }));
        let plan = manager.plan_vm(machine.clone()).await.unwrap();
        assert!(!plan.to_string().contains(KEY), "{plan}");
        let created = manager.create_vm(machine, never()).await.unwrap();
        let disk = created["diskPaths"][1].as_str().unwrap().to_owned();
        hasten(&manager, vm, &disk).await;
        start(&manager, vm, json!({ "diskKeys": { &disk: KEY } }))
            .await
            .unwrap();
        host.console_says(vm, "INFZ-READY", 1).await;
        let write = format!("yes {PATTERN} | dd of=/dev/vdb bs=16k count=64 && sync");
        in_guest(&host, &manager, vm, &write).await;

        let pid = qemus(host.path())[0];
        assert!(shows(pid, "qemu-system"));
        assert!(!shows(pid, KEY));
        snapshots_of_it_are_not_plain(&manager, vm).await;

        // A restart within this process needs no key.
        let restarted = manager.restart_vm(vm.into()).await.unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        stop(&manager, vm).await;
        assert_eq!(leaks(host.path(), KEY), Vec::<String>::new());
        assert!(
            !holds(Path::new(&disk), PATTERN),
            "the pattern is in the file"
        );
        let read = decrypted(host.path(), &disk, KEY).unwrap();
        assert!(read.starts_with(format!("{PATTERN}\n{PATTERN}\n").as_bytes()));

        needs_its_key(&manager, vm, &disk).await;
        changes_its_key(&manager, vm, &disk).await;
        assert_eq!(decrypted(host.path(), &disk, KEY), None);
        assert_eq!(decrypted(host.path(), &disk, NEW_KEY), Some(read));
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// Disk 0 is not encrypted, and memory would go there.
async fn snapshots_of_it_are_not_plain(manager: &Manager, vm: &str) {
    let memory = json!({ "name": "memory", "memory": true });
    let taken = manager.create_snapshot(vm.into(), memory, never());
    let refused = taken.await.unwrap_err();
    assert!(refused.has(ErrorCode::PlainTextRefused), "{refused:?}");
    let listed = manager.list_snapshots(vm.into()).await.unwrap();
    assert_eq!(listed, json!([]));
    // Inside the images, what is encrypted stays so; but nobody could go back without the key.
    let inside = json!({ "name": "inside" });
    let taken = manager.create_snapshot(vm.into(), inside, never());
    assert!(taken.await.unwrap_err().has(ErrorCode::KeyRequired));
}

async fn needs_its_key(manager: &Manager, vm: &str, disk: &str) {
    let before = fs::read(disk).unwrap();
    let refused = start(manager, vm, Value::Null).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::DiskError, "{refused:?}");
    assert!(refused.has(ErrorCode::KeyRequired), "{refused:?}");
    let slip = json!({ "diskKeys": { "/elsewhere.qcow2": KEY } });
    let refused = start(manager, vm, slip).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidConfig, "{refused:?}");
    let wrong = json!({ "diskKeys": { disk: "wrong" } });
    let refused = start(manager, vm, wrong).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::StartFailed, "{refused:?}");
    assert!(refused.has(ErrorCode::AuthFailed), "{refused:?}");
    assert_eq!(
        manager.get_vm_status(vm.into()).await.unwrap()["status"],
        "off"
    );
    let snapshot = manager.create_snapshot(vm.into(), json!({ "name": "s" }), never());
    let refused = snapshot.await.unwrap_err();
    assert!(refused.has(ErrorCode::KeyRequired), "{refused:?}");
    assert!(
        fs::read(disk).unwrap() == before,
        "a refusal has changed the disk"
    );
    start(manager, vm, json!({ "diskKeys": { disk: KEY } }))
        .await
        .unwrap();
    stop(manager, vm).await;
}

async fn changes_its_key(manager: &Manager, vm: &str, disk: &str) {
    let change = ChangeKey {
        old: key(KEY),
        new: key(NEW_KEY),
        iter_time: QUICK,
    };
    let path = HostPath::parse(disk).unwrap();
    change_key(&path, &change).await.unwrap();
    let old = start(manager, vm, json!({ "diskKeys": { disk: KEY } })).await;
    assert!(old.unwrap_err().has(ErrorCode::AuthFailed));
    start(manager, vm, json!({ "diskKeys": { disk: NEW_KEY } }))
        .await
        .unwrap();
    stop(manager, vm).await;
}

#[test]
fn a_store_with_a_key_keeps_those_of_disks_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let mut settings = host.settings();
        settings["secretsKey"] = json!("5a".repeat(32));
        let manager = Manager::new(settings.clone());
        manager.initialize().await.unwrap();
        let vm = "luks-2";
        let mut machine = host.machine(vm);
        machine["disks"] = json!([{ "sizeGB": 1, "encryptionKey": KEY }]);
        machine["displayPassword"] = json!("pass-123");
        let created = manager.create_vm(machine, never()).await.unwrap();
        let disk = created["diskPaths"][0].as_str().unwrap().to_owned();
        hasten(&manager, vm, &disk).await;
        start(&manager, vm, Value::Null).await.unwrap();
        assert_eq!(qemus(host.path()).len(), 1);
        // QEMU 7.2 would end on an assertion.
        let memory = json!({ "name": "memory", "memory": true });
        let taken = manager.create_snapshot(vm.into(), memory, never());
        let refused = taken.await.unwrap_err();
        assert!(refused.has(ErrorCode::InvalidFormat), "{refused:?}");
        manager.shutdown().await.unwrap();
        drop(manager);

        // Another process takes the machine back, and stops and starts it with what is stored.
        let manager = Manager::new(settings.clone());
        manager.initialize().await.unwrap();
        let restarted = manager.restart_vm(vm.into()).await.unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        stop(&manager, vm).await;
        start(&manager, vm, Value::Null).await.unwrap();
        snapshots_inside_it(&manager, vm).await;
        assert_eq!(leaks(host.path(), KEY), Vec::<String>::new());
        assert_eq!(leaks(host.path(), "pass-123"), Vec::<String>::new());
        let rotated = manager.rotate_secrets_key("6b".repeat(32)).await.unwrap();
        assert_eq!(rotated, json!(2));
        manager.shutdown().await.unwrap();
        drop(manager);

        let refused = Manager::new(settings.clone())
            .initialize()
            .await
            .unwrap_err();
        assert!(refused.has(ErrorCode::DbSecretUnreadable), "{refused:?}");
        settings["secretsKey"] = json!("6b".repeat(32));
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
        start(&manager, vm, Value::Null).await.unwrap();
        assert!(!holds(Path::new(&disk), "pass-123"));
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

#[test]
fn b38_a_key_that_cannot_be_stored_fails_a_create_and_is_told_at_a_start() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let mut settings = host.settings();
        settings["secretsKey"] = json!("5a".repeat(32));
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
        let vm = "luks-4";
        let mut machine = host.machine(vm);
        machine["disks"] = json!([{ "sizeGB": 1, "encryptionKey": KEY }]);
        machine["displayPassword"] = json!("pass-123");
        // Which a password alone allows.
        machine["displayAddr"] = json!("0.0.0.0");
        let before = host.files();
        refuse_secrets(&host, true);
        let failed = manager.create_vm(machine.clone(), never()).await;
        let failed = failed.unwrap_err();
        assert_eq!(failed.code(), ErrorCode::CreateFailed);
        assert!(failed.to_string().contains("no more keys"), "{failed}");
        assert_eq!(host.files(), before, "no disk was made");
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));

        refuse_secrets(&host, false);
        let created = manager.create_vm(machine, never()).await.unwrap();
        let disk = created["diskPaths"][0].as_str().unwrap().to_owned();
        stop(&manager, vm).await;
        refuse_secrets(&host, true);
        let started = start(&manager, vm, json!({ "diskKeys": { &disk: KEY } })).await;
        let warnings = started.unwrap()["warnings"].to_string();
        assert!(warnings.contains("no more keys"), "{warnings}");
        refuse_secrets(&host, false);
        does_with_damaged_secrets_what_needs_none(&host, &manager, vm, &disk).await;
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

async fn does_with_damaged_secrets_what_needs_none(
    host: &Host,
    manager: &Manager,
    vm: &str,
    disk: &str,
) {
    let damage = |name: &str| {
        let store = rusqlite::Connection::open(host.state_dir().join("infinization.db")).unwrap();
        let sql = "UPDATE secret SET sealed = 'x:y:z' WHERE name LIKE ?1";
        assert_eq!(store.execute(sql, [name]).unwrap(), 1);
    };
    stop(manager, vm).await;
    damage("disk_key:%");
    let refused = start(manager, vm, Value::Null).await.unwrap_err();
    assert!(refused.has(ErrorCode::DbSecretUnreadable), "{refused:?}");
    // A key that is given takes the place of the damaged one.
    for options in [json!({ "diskKeys": { disk: KEY } }), Value::Null] {
        start(manager, vm, options).await.unwrap();
        stop(manager, vm).await;
    }
    start(manager, vm, Value::Null).await.unwrap();
    damage("graphic_password");
    is_governed_without_its_password(manager, vm).await;
    stop(manager, vm).await;
    is_governed_without_its_password(manager, vm).await;
    let refused = start(manager, vm, Value::Null).await.unwrap_err();
    assert!(refused.has(ErrorCode::DbSecretUnreadable), "{refused:?}");
    assert_eq!(manager.get_vm(vm.into()).await.unwrap()["vmId"], vm);
}

/// What is about neither its display nor a start.
async fn is_governed_without_its_password(manager: &Manager, vm: &str) {
    let rule = |port: u16| {
        json!([{
            "id": "r1", "name": "web", "action": "ACCEPT", "direction": "IN", "priority": 100,
            "protocol": "tcp", "dstPortStart": port,
        }])
    };
    for port in [80, 443] {
        let set = manager.set_firewall_rules(vm.into(), rule(port)).await;
        assert_eq!(set.unwrap()["success"], true);
        let explained = manager.explain_firewall(vm.into()).await.unwrap();
        assert!(explained.to_string().contains(&format!("dport {port}")));
    }
    manager.get_vm_status(vm.into()).await.unwrap();
    assert_eq!(manager.list_snapshots(vm.into()).await.unwrap(), json!([]));
}

/// Has the store take no more keys of disks, or take them again.
fn refuse_secrets(host: &Host, refused: bool) {
    let store = rusqlite::Connection::open(host.state_dir().join("infinization.db")).unwrap();
    let refusal = |event: &str| {
        format!(
            "CREATE TRIGGER no_{event} BEFORE {event} ON secret WHEN new.name LIKE 'disk_key:%' \
             BEGIN SELECT RAISE(ABORT, 'no more keys'); END;"
        )
    };
    let sql = if refused {
        refusal("insert") + &refusal("update")
    } else {
        "DROP TRIGGER no_insert; DROP TRIGGER no_update;".to_owned()
    };
    store.execute_batch(&sql).unwrap();
}

/// Made while the machine runs, gone back to when it is off, and deleted; and all of it when it is off.
async fn snapshots_inside_it(manager: &Manager, vm: &str) {
    let take = |name: &str| manager.create_snapshot(vm.into(), json!({ "name": name }), never());
    let revert = |name: &str| manager.revert_snapshot(vm.into(), name.into(), Value::Null);
    let delete = |name: &str| manager.delete_snapshot(vm.into(), name.into(), Value::Null, never());
    take("running").await.unwrap();
    stop(manager, vm).await;
    revert("running").await.unwrap();
    take("off").await.unwrap();
    revert("off").await.unwrap();
    for name in ["running", "off"] {
        delete(name).await.unwrap();
    }
    assert_eq!(manager.list_snapshots(vm.into()).await.unwrap(), json!([]));
}

#[test]
fn without_a_stored_key_a_machine_that_was_taken_back_is_not_stopped_for_a_restart() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "luks-3";
        let mut machine = host.machine(vm);
        machine["disks"] = json!([{ "sizeGB": 1, "encryptionKey": KEY }]);
        manager.create_vm(machine, never()).await.unwrap();
        manager.shutdown().await.unwrap();
        drop(manager);
        let manager = host.manager().await;
        let refused = manager.restart_vm(vm.into()).await.unwrap_err();
        assert!(refused.has(ErrorCode::KeyRequired), "{refused:?}");
        assert_eq!(qemus(host.path()).len(), 1, "it runs on");
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// The start goes by the row, so what is asked before the stop does too.
#[test]
fn a_restart_asks_for_no_key_of_a_disk_that_was_taken_away() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "luks-4";
        let mut machine = host.machine(vm);
        machine["disks"] = json!([{ "sizeGB": 1 }, { "sizeGB": 1, "encryptionKey": KEY }]);
        let created = manager.create_vm(machine, never()).await.unwrap();
        let disk = |index: usize| PathBuf::from(created["diskPaths"][index].as_str().unwrap());
        host.claim_disks(vm, &[disk(0)]);
        let restarted = manager.restart_vm(vm.into()).await.unwrap();
        assert_eq!(restarted["success"], true, "{restarted}");
        assert_eq!(qemus(host.path()).len(), 1, "it runs");
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}
