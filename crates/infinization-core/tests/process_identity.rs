//! Finding QEMU again: only the very process is ours, and doubt is never taken for death.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs;
use std::path::Path;

use infinization_core::host::process::{
    Exit, Identity, ProcessHandle, ProcessId, Signal, SpawnSpec, adopt, boot_id, find_by_name,
};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use kit::process::{
    SOON, end, in_private_mounts, mount_at, name_of, own_process, plays, quiet, started,
};
use tokio::time::timeout;

/// A real QEMU without a machine: a process with a QEMU's command line that idles.
fn idle_qemu(vm: &str) -> SpawnSpec {
    let name = name_of(vm);
    quiet("qemu-system-x86_64")
        .args(["-machine", "none", "-accel", "tcg", "-nodefaults", "-S"])
        .args(["-display", "none", "-name", &name])
}

fn is_ours(identity: &Identity) -> bool {
    matches!(identity, Identity::Ours(_))
}

#[tokio::test]
async fn f12_only_the_very_process_is_ours() {
    let process = started(idle_qemu("f12-vm-1")).await;
    let id = process.id().clone();
    assert!(is_ours(&adopt(&id, &name_of("f12-vm-1")).await));

    // The number was given to another process: same pid, another start.
    let forged = ProcessId {
        start_time: id.start_time - 1,
        ..id.clone()
    };
    // The host was restarted, and the number is taken again.
    let rebooted = ProcessId {
        boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
        ..id.clone()
    };
    for (id, vm) in [
        (&forged, "f12-vm-1"),
        (&rebooted, "f12-vm-1"),
        (&id, "f12-vm-10"),
        (&id, "f12-vm-"),
    ] {
        let identity = adopt(id, &name_of(vm)).await;
        assert!(
            matches!(identity, Identity::NotOurs),
            "{id:?} {vm}: {identity:?}"
        );
    }
    assert!(process.is_alive(), "nothing was done to it");
    end(&process).await;
    assert!(matches!(
        adopt(&id, &name_of("f12-vm-1")).await,
        Identity::Gone
    ));
}

/// Its memory is given back before it has ended: for that time it has no command line any more.
#[tokio::test]
async fn f9_a_qemu_that_is_just_ending_is_waited_for() {
    let name = name_of("ending-vm-1");
    let memory = "memory-backend-ram,id=m,size=1G,prealloc=on";
    let spec = quiet("qemu-system-x86_64")
        .args(["-machine", "pc,memory-backend=m", "-m", "1G", "-S"])
        .args(["-object", memory, "-accel", "tcg", "-nodefaults"])
        .args(["-display", "none", "-name", &name]);
    let process = started(spec).await;
    let id = process.id().clone();
    let resident = || fs::read_to_string(format!("/proc/{}/statm", id.pid)).unwrap();
    let pages = || {
        resident()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    timeout(SOON, async {
        while pages() < 262_144 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it has touched its memory");
    process.signal(Signal::KILL).unwrap();
    loop {
        match adopt(&id, &name).await {
            Identity::Ours(_) => {}
            Identity::Gone => break,
            other => panic!("{other:?}"),
        }
    }
    end(&process).await;
}

#[tokio::test]
async fn what_is_no_process_is_gone() {
    let boot_id = boot_id().unwrap();
    for pid in [0, -1, i32::MAX] {
        let id = ProcessId {
            pid,
            start_time: 1,
            boot_id: boot_id.clone(),
        };
        assert!(
            matches!(adopt(&id, &name_of("x")).await, Identity::Gone),
            "{pid}"
        );
    }
}

#[tokio::test]
async fn a_process_of_another_program_is_not_ours_though_its_id_fits() {
    let process = started(quiet("sleep").args(["1000"])).await;
    let identity = adopt(process.id(), &name_of("vm-1")).await;
    assert!(matches!(identity, Identity::NotOurs));
    end(&process).await;
}

#[tokio::test]
async fn f9_a_qemu_whose_pid_was_never_written_is_found_by_its_name() {
    let one = started(idle_qemu("f9-vm-1")).await;
    let ten = started(idle_qemu("f9-vm-10")).await;
    let found = find_by_name(&name_of("f9-vm-1")).await.unwrap();
    assert_eq!(
        found.iter().map(ProcessHandle::id).collect::<Vec<_>>(),
        [one.id()]
    );
    assert!(find_by_name(&name_of("f9-vm")).await.unwrap().is_empty());
    assert_eq!(found[0].kill_now().await.unwrap(), Exit::Signal(9));
    assert_eq!(
        one.exited().await,
        Exit::Signal(9),
        "the one who reaps hears it too"
    );
    assert!(ten.is_alive());
    end(&ten).await;
}

#[test]
fn an_unreadable_proc_leaves_the_process_unknown() {
    in_private_mounts(|| {
        kit::runtime().block_on(async {
            let process = started(idle_qemu("hidden-vm")).await;
            mount_at(Path::new("/proc"), "tmpfs", None);
            let identity = adopt(process.id(), &name_of("hidden-vm")).await;
            assert!(matches!(identity, Identity::Unknown(_)), "{identity:?}");
            let scanned = find_by_name(&name_of("hidden-vm")).await;
            assert_eq!(scanned.unwrap_err().code(), ErrorCode::IdentityUnknown);
            end(&process).await;
            // A process that is gone is gone, whatever can be read.
            let identity = adopt(process.id(), &name_of("hidden-vm")).await;
            assert!(matches!(identity, Identity::Gone), "{identity:?}");
        });
    });
}

#[test]
fn f9_f10_qemu_outlives_its_killed_parent_and_is_adopted_again() {
    const TEST: &str = "f9_f10_qemu_outlives_its_killed_parent_and_is_adopted_again";
    const FILE: &str = "INFINIZATION_TEST_FILE";
    if plays(TEST) {
        // The first life: start, note the id, and die without a word.
        kit::runtime().block_on(async {
            let process = started(idle_qemu("f10-vm")).await;
            let id = serde_json::to_vec(process.id()).unwrap();
            fs::write(std::env::var_os(FILE).unwrap(), id).unwrap();
            let us = rustix::process::getpid();
            rustix::process::kill_process(us, Signal::KILL).unwrap();
            std::future::pending::<()>().await;
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("process.json");
    let first_life = own_process(TEST).env(FILE, &file).output().unwrap();
    assert!(!first_life.status.success());
    kit::runtime().block_on(async {
        let id: ProcessId = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let Identity::Ours(process) = adopt(&id, &name_of("f10-vm")).await else {
            panic!("{id:?} is not ours any more");
        };
        assert!(process.is_alive());
        // PID 1 reaps it, some later than others.
        let exit = timeout(SOON, process.kill_now()).await.unwrap().unwrap();
        assert!(matches!(exit, Exit::Signal(9) | Exit::Unknown), "{exit}");
    });
}
