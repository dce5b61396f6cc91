//! The real program: QEMU without privileges, under its sandbox, with descriptors for paths.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use infinization_core::host::process::{Exit, RunAs, SpawnSpec, spawn};
use infinization_test_kit as kit;
use kit::process::{SOON, descriptors, log_in, started, status};
use tokio::time::timeout;

const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

fn qemu(log: OwnedFd) -> SpawnSpec {
    SpawnSpec::new("qemu-system-x86_64", log)
        .args(["-accel", "tcg", "-nodefaults", "-display", "none"])
        .args(["-sandbox", SANDBOX])
        .user(Some(RunAs {
            uid: 65534,
            gid: 65534,
            groups: vec![],
        }))
}

struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        assert!(monitor.line().contains("\"QMP\""), "no greeting");
        assert!(monitor.run("qmp_capabilities").contains("return"));
        monitor
    }

    /// One line: a reply or an event.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn run(&mut self, command: &str) -> String {
        writeln!(self.0.get_mut(), "{{\"execute\":\"{command}\"}}").unwrap();
        loop {
            let line = self.line();
            if !line.contains("\"event\"") {
                return line;
            }
        }
    }
}

#[tokio::test]
async fn qemu_runs_as_nobody_in_its_sandbox_on_a_monitor_we_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (log, stderr) = log_in(dir.path());
    let socket = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let spec = qemu(stderr)
        .args([
            "-machine",
            "q35",
            "-S",
            "-name",
            "guest=vm-1,debug-threads=on",
        ])
        .args(["-chardev", "socket,id=qmp0,fd=10,server=on,wait=off"])
        .args(["-mon", "chardev=qmp0,mode=control"])
        .fd(listener, 10);
    let process = started(spec).await;

    // There is no file to wait for: the connection queues until QEMU accepts it.
    let mut monitor = Monitor::connect(&socket);
    assert!(monitor.run("query-status").contains("prelaunch"));
    let running = status(process.pid());
    assert_eq!(running["Uid"], "65534\t65534\t65534\t65534");
    assert_eq!(running["Groups"], "");
    assert_eq!(running["Seccomp"], "2", "the sandbox filters system calls");
    assert!(descriptors(process.pid())[&10].starts_with("socket:"));

    drop(monitor);
    let mut second = Monitor::connect(&socket);
    assert!(second.run("quit").contains("return"));
    assert_eq!(
        timeout(SOON, process.exited()).await.unwrap(),
        Exit::Code(0)
    );
    assert_eq!(log.tail().unwrap(), "");
}

#[tokio::test]
async fn f2_a_qemu_that_ends_while_starting_leaves_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let (log, stderr) = log_in(dir.path());
    let spec = qemu(stderr).args(["-machine", "q35", "-S", "-device", "no-such-device"]);
    let process = spawn(spec).await.unwrap();
    assert_eq!(
        timeout(SOON, process.exited()).await.unwrap(),
        Exit::Code(1)
    );
    let words = log.tail().unwrap();
    assert!(
        words.contains("'no-such-device' is not a valid device"),
        "{words}"
    );
}

#[tokio::test]
async fn f1_a_killed_qemu_is_seen_with_its_signal() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, stderr) = log_in(dir.path());
    let process = started(qemu(stderr).args(["-machine", "none", "-S"])).await;
    let waiter = tokio::spawn(process.exited());
    process.kill_now().await.unwrap();
    assert_eq!(waiter.await.unwrap(), Exit::Signal(9));
}
