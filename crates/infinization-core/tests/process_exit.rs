//! Ends of processes: every waiter hears, children are reaped, strangers are only watched.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::time::Duration;

use infinization_core::host::process::{
    Exit, Identity, ProcessHandle, Signal, adopt, is_alive, spawn,
};
use infinization_test_kit as kit;
use kit::process::{
    ForeignQemu, SOON, end, eventually, has_children, identity_of, in_own_process,
    kernel_remembers_exits, name_of, quiet, script, until,
};
use tokio::time::timeout;

#[tokio::test]
async fn the_exit_code_and_the_signal_are_seen() {
    for code in [0, 1, 77, 255] {
        let process = spawn(script(&format!("exit {code}"))).await.unwrap();
        assert_eq!(process.exited().await, Exit::Code(code));
    }
    for signal in [Signal::KILL, Signal::SEGV, Signal::SYS] {
        let process = spawn(quiet("sleep").args(["1000"])).await.unwrap();
        process.signal(signal).unwrap();
        assert_eq!(process.exited().await, Exit::Signal(signal.as_raw()));
    }
}

#[tokio::test]
async fn every_waiter_hears_of_it_early_or_late() {
    let process = spawn(quiet("sleep").args(["1000"])).await.unwrap();
    let early = (0..20)
        .map(|_| tokio::spawn(process.exited()))
        .collect::<Vec<_>>();
    assert!(process.is_alive() && is_alive(process.pid()));
    process.signal(Signal::KILL).unwrap();
    for waiter in early {
        assert_eq!(waiter.await.unwrap(), Exit::Signal(9));
    }
    let clone = process.clone();
    drop(process);
    assert_eq!(clone.exited().await, Exit::Signal(9));
    assert!(!clone.is_alive());
    clone.signal(Signal::TERM).unwrap();
    assert_eq!(clone.kill_now().await.unwrap(), Exit::Signal(9));
}

#[tokio::test]
async fn terminate_is_gentle_first() {
    let gentle = spawn(script("trap 'exit 3' TERM; while :; do sleep 0.05; done"))
        .await
        .unwrap();
    // Before the shell has set its trap, SIGTERM would simply end it.
    until_it_catches_sigterm(&gentle).await;
    assert_eq!(gentle.terminate(SOON).await.unwrap(), Exit::Code(3));

    let deaf = spawn(script("trap '' TERM; while :; do sleep 0.05; done"))
        .await
        .unwrap();
    until_it_catches_sigterm(&deaf).await;
    let exit = deaf.terminate(Duration::from_millis(100)).await.unwrap();
    assert_eq!(exit, Exit::Signal(9));
}

#[tokio::test]
async fn f3_a_stopped_process_acts_on_sigterm_at_once() {
    let process = spawn(quiet("sleep").args(["1000"])).await.unwrap();
    process.signal(Signal::STOP).unwrap();
    until(&process, |status| status["State"].starts_with('T')).await;
    assert_eq!(process.terminate(SOON).await.unwrap(), Exit::Signal(15));
}

async fn until_it_catches_sigterm(process: &ProcessHandle) {
    const SIGTERM: u64 = 1 << (libc::SIGTERM - 1);
    let has = |set: &str| u64::from_str_radix(set, 16).unwrap() & SIGTERM != 0;
    until(process, |status| {
        has(&status["SigCgt"]) || has(&status["SigIgn"])
    })
    .await;
}

#[test]
fn a_dropped_handle_kills_nothing_and_its_child_is_still_reaped() {
    const TEST: &str = "a_dropped_handle_kills_nothing_and_its_child_is_still_reaped";
    in_own_process(TEST, || {
        kit::runtime().block_on(async {
            let (reader, writer) = std::io::pipe().unwrap();
            let process = spawn(script("read line <&3").fd(reader, 3)).await.unwrap();
            let pid = process.pid();
            drop(process);
            assert!(is_alive(pid), "dropping the handle ended it");
            drop(writer);
            eventually(|| !has_children()).await;
        });
    });
}

#[test]
fn other_children_of_this_process_keep_their_status() {
    in_own_process("other_children_of_this_process_keep_their_status", || {
        kit::runtime().block_on(async {
            for round in 0..20 {
                let mut plain = std::process::Command::new("sh")
                    .args(["-c", "exit 5"])
                    .spawn()
                    .unwrap();
                let mut tokios = tokio::process::Command::new("sh")
                    .args(["-c", "exit 6"])
                    .spawn()
                    .unwrap();
                let ours = spawn(script("exit 7")).await.unwrap();
                assert_eq!(ours.exited().await, Exit::Code(7), "{round}");
                assert_eq!(tokios.wait().await.unwrap().code(), Some(6), "{round}");
                assert_eq!(plain.wait().unwrap().code(), Some(5), "{round}");
            }
        });
        assert!(!has_children());
    });
}

async fn adopted(vm: &str, pid: i32) -> ProcessHandle {
    // The look-alike becomes one when bash has executed it.
    let found = async {
        loop {
            match adopt(&identity_of(pid), &name_of(vm)).await {
                Identity::Ours(process) => return process,
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    timeout(SOON, found).await.unwrap()
}

#[tokio::test]
async fn the_end_of_a_process_that_is_not_our_child_is_seen() {
    let told = |exit| {
        if kernel_remembers_exits() {
            exit
        } else {
            Exit::Unknown
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = format!("read line < {}; exit 7", gate.display());
    let qemu = ForeignQemu::start("vm-1", &text, "wait");
    let process = adopted("vm-1", qemu.pid).await;
    let waiters = [
        tokio::spawn(process.exited()),
        tokio::spawn(process.exited()),
    ];
    std::fs::write(&gate, "go\n").unwrap();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), told(Exit::Code(7)));
    }

    let qemu = ForeignQemu::start("vm-1", "while :; do sleep 0.05; done", "wait");
    let process = adopted("vm-1", qemu.pid).await;
    assert_eq!(process.kill_now().await.unwrap(), told(Exit::Signal(9)));
}

#[tokio::test]
async fn f13_a_zombie_is_dead_at_once_whoever_should_reap_it() {
    let qemu = ForeignQemu::start("vm-1", "while :; do sleep 0.05; done", "exec sleep 1000");
    let pid = qemu.pid;
    let process = adopted("vm-1", pid).await;
    let id = process.id().clone();
    // From here on nobody reaps it.
    qemu.parent_is("sleep").await;
    process.signal(Signal::KILL).unwrap();
    assert_eq!(
        timeout(SOON, process.exited()).await.unwrap(),
        Exit::Unknown
    );
    assert_eq!(
        &kit::process::status(pid)["State"][..1],
        "Z",
        "nobody has reaped it"
    );
    assert!(!process.is_alive());
    assert!(!is_alive(pid));
    assert!(matches!(adopt(&id, &name_of("vm-1")).await, Identity::Gone));
}

#[tokio::test]
async fn liveness_of_a_bare_number() {
    assert!(is_alive(1), "PID 1 runs, whether we may signal it or not");
    for none in [0, -1, i32::MIN, i32::MAX] {
        assert!(!is_alive(none), "{none}");
    }
    let process = spawn(quiet("sleep").args(["1000"])).await.unwrap();
    let pid = process.pid();
    assert!(is_alive(pid));
    end(&process).await;
    assert!(!is_alive(pid));
}
