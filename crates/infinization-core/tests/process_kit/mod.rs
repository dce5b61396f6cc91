//! What the process tests share: processes of their own, and what `/proc` says about others.
#![allow(dead_code, reason = "each test binary uses a part of the kit")]
#![allow(unreachable_pub, reason = "the kit is a module of every test binary")]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use infinization_core::host::process::{ProcessHandle, SpawnSpec, StderrLog};

/// Longer than anything takes on a busy machine; reaching it is a failure.
pub const SOON: Duration = Duration::from_secs(60);

const ROLE: &str = "INFINIZATION_TEST_ROLE";

/// Runs `body` in a process of its own: this test binary again, asked for this one test. There it
/// may change what belongs to the whole process, and count its children.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    if plays(test) {
        return body();
    }
    let output = own_process(test).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{test}: {}\n{words}",
        output.status
    );
    assert!(
        words.contains("1 passed"),
        "no test is called {test}\n{words}"
    );
    for line in words.lines().filter(|line| line.starts_with("measured")) {
        println!("{line}");
    }
}

/// Whether this process is the one [`own_process`] started for `test`.
pub fn plays(test: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|role| role == test)
}

/// This test binary again, to play its part of `test`.
pub fn own_process(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, test)
        .stdin(Stdio::null());
    command
}

/// Whether this process has children at all, reaped ones aside. Takes none of their statuses.
pub fn has_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, look).is_ok()
}

/// An open log in `dir`.
pub fn log_in(dir: &Path) -> (StderrLog, OwnedFd) {
    let log = StderrLog::at(dir.join("stderr.log"));
    let file = log.open().unwrap();
    (log, file)
}

/// A program whose words go nowhere.
pub fn quiet(program: &str) -> SpawnSpec {
    SpawnSpec::new(program, fs::File::create("/dev/null").unwrap())
}

/// A shell script whose words go nowhere.
pub fn script(text: &str) -> SpawnSpec {
    quiet("sh").args(["-c", text])
}

/// The lines of `/proc/<pid>/status`.
pub fn status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Which file each descriptor of a process is.
pub fn descriptors(pid: i32) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().to_str().unwrap().parse().unwrap();
            let file = fs::read_link(entry.path()).unwrap();
            (number, file.display().to_string())
        })
        .collect()
}

/// Ends a process the test started.
pub async fn end(process: &ProcessHandle) {
    process.kill_now().await.unwrap();
}
