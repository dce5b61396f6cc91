//! A process that a test starts again as itself, and that kills itself at a moment of its choice: a crash of
//! ours, at any time.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const ORDERS: &str = "INFINIZATION_TEST_VICTIM";

/// What this process is to do, if it is a victim.
pub fn orders() -> Option<Value> {
    let orders = std::env::var_os(ORDERS)?;
    Some(serde_json::from_str(orders.to_str().unwrap()).unwrap())
}

/// Starts a victim and says whether it was killed rather than done. `only` is what makes a test binary run
/// nothing else; one with a `main` of its own needs nothing.
pub fn run(only: &[&str], orders: &Value) -> bool {
    run_with(&[], only, orders)
}

/// As [`run`], with these variables in its environment.
pub fn run_with(environment: &[(&str, OsString)], only: &[&str], orders: &Value) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(only)
        .envs(environment.iter().cloned())
        .env(ORDERS, orders.to_string())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    match status.signal() {
        Some(9) => true,
        None if status.success() => false,
        other => panic!("the victim of {orders} ended otherwise: {status} {other:?}"),
    }
}

/// Kills this process so long after `seen` has another value than now.
pub fn die_after_change<T: PartialEq + Send + 'static>(
    seen: impl Fn() -> T + Send + 'static,
    delay: Duration,
) {
    let before = seen();
    thread::spawn(move || {
        while seen() == before {}
        thread::sleep(delay);
        kill(Pid::this(), Signal::SIGKILL).unwrap();
    });
}

/// Kills this process so long after the machine's journal has that `operation` was begun.
pub fn die_when_begun(orders: &Value, vm: &str, operation: &str, delay: Duration) {
    let state = Path::new(orders["settings"]["stateDir"].as_str().unwrap());
    let journal = state.join(format!("journals/{vm}.jsonl"));
    let begun = format!(r#""operation":"{operation}","kind":"operation","phase":"begun""#);
    let count = move || {
        let text = std::fs::read_to_string(&journal).unwrap_or_default();
        text.matches(&begun).count()
    };
    die_after_change(count, delay);
}

/// How long after the beginning a round's kill comes: ever later by more, so that a busy machine needs few.
pub fn delay(step: Duration, round: u32) -> Duration {
    step * (round * (round + 1) / 2)
}
