//! Keys of encrypted disks while their machines run: overlays that are encrypted too, and another key under a
//! running guest. What a guest writes is looked for in every file.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod changing;
mod kills;
mod layers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use infinization_core::host::qemu_img::{CreateImage, Encryption, Job, Sharing, create, key_opens};
use infinization_core::manager::Manager;
use infinization_core::types::{ByteSize, DiskKey, HostPath};
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::machine::{Host, delete, forced, never, qemus};
use serde_json::{Value, json};

const KEY: &str = "a-key-nobody-guesses";
const NEW_KEY: &str = "the-next-one";
const PATTERN: &str = "INFZ-PLAIN-TEXT!";
const QUICK: Option<Duration> = Some(Duration::from_millis(10));

fn key(text: &str) -> DiskKey {
    DiskKey::try_from(text.to_owned()).unwrap()
}

fn path(path: &str) -> HostPath {
    HostPath::parse(path).unwrap()
}

async fn opens(disk: &str, text: &str) -> bool {
    key_opens(&path(disk), &key(text), Sharing::Force)
        .await
        .unwrap()
}

/// What `new Infinization` is given so that keys are kept.
fn keeping(host: &Host) -> Value {
    let mut settings = host.settings();
    settings["secretsKey"] = json!("5a".repeat(32));
    settings
}

async fn begin(settings: Value) -> Manager {
    let manager = Manager::new(settings);
    manager.initialize().await.unwrap();
    manager
}

async fn start(manager: &Manager, vm: &str, options: Value) -> Result<Value, Failure> {
    manager.start_vm(vm.into(), options, never()).await
}

async fn stop(manager: &Manager, vm: &str) {
    manager.stop_vm(vm.into(), forced(), never()).await.unwrap();
}

/// The machine's disks, as they are now.
async fn disks(manager: &Manager, vm: &str) -> Vec<String> {
    let told = manager.get_vm(vm.into()).await.unwrap();
    let disks = told["diskPaths"].as_array().unwrap().iter();
    disks
        .map(|disk| disk.as_str().unwrap().to_owned())
        .collect()
}

/// A machine that is off, whose last disk has a key that takes no seconds to open. Gives that disk.
async fn made(manager: &Manager, mut machine: Value) -> String {
    let vm = machine["vmId"].as_str().unwrap().to_owned();
    let last = machine["disks"].as_array_mut().unwrap();
    last.push(json!({ "sizeGB": 1, "encryptionKey": KEY }));
    manager.create_vm(machine, never()).await.unwrap();
    stop(manager, &vm).await;
    let disk = disks(manager, &vm).await.pop().unwrap();
    fs::remove_file(&disk).unwrap();
    let image = CreateImage {
        encryption: Some(Encryption {
            key: key(KEY),
            iter_time: QUICK,
        }),
        ..CreateImage::new(path(&disk), ByteSize::mib(1024))
    };
    create(&image, &Job::default()).await.unwrap();
    disk
}

/// What the guest's shell answers.
async fn in_guest(host: &Host, manager: &Manager, vm: &str, command: &str) -> String {
    let socket = host.path().join(format!("{vm}-ga.sock"));
    let args = vec!["-c".to_owned(), command.to_owned()];
    let socket = socket.display().to_string();
    let done = manager.guest_exec(vm.into(), socket, "/bin/sh".into(), args, Value::Null);
    let done = done.await.unwrap();
    assert_eq!(done["exitCode"], 0, "{done}");
    done["stdout"].as_str().unwrap().to_owned()
}

/// Has the guest write the pattern into a megabyte of its encrypted disk.
async fn write(host: &Host, manager: &Manager, vm: &str, mib: usize, text: &str) {
    let line = format!(
        "yes {PATTERN}{text} | dd of=/dev/vdb bs=16k seek={} count=64 conv=notrunc && sync",
        mib * 64
    );
    in_guest(host, manager, vm, &line).await;
}

/// What the guest reads of the first megabytes.
async fn sum(host: &Host, manager: &Manager, vm: &str) -> String {
    let line = "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vdb bs=64k count=128 | md5sum";
    in_guest(host, manager, vm, line).await
}

/// Files below a directory that hold the text.
fn holding(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(holding(&entry.path(), text));
        } else if kind.is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            let mut places = bytes.windows(text.len());
            found.extend(places.any(|at| at == text.as_bytes()).then(|| entry.path()));
        }
    }
    found
}

#[track_caller]
fn nothing_leaked(host: &Host) {
    for text in [PATTERN, KEY, NEW_KEY] {
        assert_eq!(holding(host.path(), text), Vec::<PathBuf>::new(), "{text}");
    }
}

/// `qemu-img check` finds nothing in an encrypted image.
fn is_sound(image: &str, text: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let node = json!({
        "driver": "qcow2", "encrypt": { "format": "luks", "key-secret": "k" }, "backing": null,
        "file": { "driver": "file", "filename": image },
    });
    let output = Command::new("qemu-img")
        .arg("check")
        .arg("--object")
        .arg(format!("secret,id=k,file={}", file.path().display()))
        .arg(format!("json:{node}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{image}: {output:?}");
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Failure>, code: ErrorCode) {
    let failure = outcome.unwrap_err();
    assert!(failure.has(code), "{failure:?}");
}
