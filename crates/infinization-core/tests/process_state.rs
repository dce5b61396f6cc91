//! What is written beside a VM: whole or absent after every way to die, and one writer at a time.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use infinization_core::host::dir_lock::{DirLock, DirLockError};
use infinization_core::host::state_file::{Durability, StateFileError, read, write};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use kit::process::{in_own_process, in_private_mounts, mount_at, own_process, plays, unmount};

const DIR: &str = "INFINIZATION_TEST_DIR";

/// Starts the other side of `test` on `dir` and waits for its first line of standard error.
fn other_side(test: &str, dir: &Path) -> Child {
    let mut child = own_process(test)
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let words = child.stderr.take().unwrap();
    BufReader::new(words).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn given_dir() -> PathBuf {
    std::env::var_os(DIR).unwrap().into()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A body that tells whether it is whole and unmixed: one number, many times.
fn body(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(16 * 1024)
}

fn is_whole(bytes: &[u8]) -> bool {
    bytes.len() == body(0).len() && bytes.chunks(4).all(|four| four == &bytes[..4])
}

#[test]
fn f18_a_writer_killed_at_any_moment_leaves_the_old_or_the_new() {
    const TEST: &str = "f18_a_writer_killed_at_any_moment_leaves_the_old_or_the_new";
    if plays(TEST) {
        let path = given_dir().join("vms/vm-1/spec.json");
        for number in 0.. {
            let durability = match number % 2 {
                0 => Durability::ProcessCrash,
                _ => Durability::HostCrash,
            };
            write(&path, &body(number), durability).unwrap();
            if number == 0 {
                eprintln!("ready");
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let vm = dir.path().join("vms/vm-1");
    fs::create_dir_all(&vm).unwrap();
    for round in 0..25 {
        let writer = other_side(TEST, dir.path());
        std::thread::sleep(Duration::from_micros(300 * round));
        kill(writer);
        let content = read(&vm.join("spec.json")).unwrap().unwrap();
        assert!(is_whole(&content), "round {round}");
    }
    let lock = DirLock::acquire(dir.path()).unwrap();
    let stale = fs::read_dir(&vm).unwrap().count() - 1;
    assert_eq!(lock.sweep(&dir.path().join("vms")).unwrap(), stale);
    assert_eq!(fs::read_dir(&vm).unwrap().count(), 1, "spec.json alone");
}

#[test]
fn f36_the_lock_names_its_holder_and_dies_with_it() {
    const TEST: &str = "f36_the_lock_names_its_holder_and_dies_with_it";
    if plays(TEST) {
        let _lock = DirLock::acquire(&given_dir()).unwrap();
        eprintln!("ready");
        loop {
            std::thread::park();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let holder = other_side(TEST, dir.path());
    let pid = holder.id();
    let refused = DirLock::acquire(dir.path()).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Busy);
    assert!(matches!(refused, DirLockError::Held { holder: Some(named), .. } if named == pid));
    kill(holder);
    DirLock::acquire(dir.path()).unwrap();
}

/// More than the disk of [`on_a_tiny_disk`] holds.
const TOO_MUCH: usize = 16 << 20;

/// Runs the body of `test` on a file system of 8 MiB that only its thread sees. The process is its
/// own as well: a program being started by another test would hold copies of our descriptors, and
/// so the space of files that are removed, until its `execve`.
fn on_a_tiny_disk(test: &str, body: impl FnOnce(&Path) + Send + 'static) {
    in_own_process(test, || {
        in_private_mounts(move || {
            let dir = tempfile::tempdir().unwrap();
            mount_at(dir.path(), "tmpfs", Some("size=8m"));
            body(dir.path());
            unmount(dir.path());
        });
    });
}

#[test]
fn f17_f18_a_full_disk_keeps_the_old_content() {
    on_a_tiny_disk("f17_f18_a_full_disk_keeps_the_old_content", |dir| {
        let path = dir.join("spec.json");
        write(&path, &body(1), Durability::HostCrash).unwrap();
        for durability in [Durability::HostCrash, Durability::ProcessCrash] {
            let full = write(&path, &vec![0; TOO_MUCH], durability).unwrap_err();
            assert!(matches!(full, StateFileError::Write { .. }));
            assert_eq!(full.code(), ErrorCode::StateFile);
            assert_eq!(full.context()["errno"], libc::ENOSPC);
            assert_eq!(read(&path).unwrap().unwrap(), body(1));
            assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "no temporary file");
        }
        write(&path, &body(2)[..1000], Durability::HostCrash).unwrap();
    });
}

#[test]
fn f17_a_full_disk_does_not_keep_us_from_our_directory() {
    on_a_tiny_disk(
        "f17_a_full_disk_does_not_keep_us_from_our_directory",
        |dir| {
            drop(DirLock::acquire(dir).unwrap());
            let filler = fs::write(dir.join("filler"), vec![0; TOO_MUCH]);
            assert_eq!(filler.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
            let lock = DirLock::acquire(dir).unwrap();
            assert_eq!(lock.sweep(dir).unwrap(), 0);
        },
    );
}
