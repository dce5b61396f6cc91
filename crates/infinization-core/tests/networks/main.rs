//! Virtual networks with a real dnsmasq and real clients, in private network namespaces.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

mod changes;
mod dnsmasq;
mod guard;
mod machines;
mod reach;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use firewall::{ruleset, run};
use guests::Guest;
use infinization_core::error::ErrorCode;
use infinization_core::manager::Manager;
use infinization_test_kit::{self as kit, firewall, guests};
use kit::in_private_network;
use kit::machine::{Host, PATIENCE, delete, forced, never, next_event, pid_of};
use kit::process::Toolbox;
use serde_json::{Value, json};

/// What a client was given.
type Given = BTreeMap<String, String>;

/// Asks for an address on the guest's `eth0` as a machine would, and configures it. None if nobody answers.
fn lease(guest: &Guest, scratch: &Path) -> Option<Given> {
    let script = scratch.join("udhcpc.sh");
    fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && env\nexit 0\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    guest.sh("ip link set lo up");
    guest.sh("ip link set eth0 up");
    let script = script.display().to_string();
    let output = guest.within(move || {
        let options = [
            "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "12", "-T", "1", "-s", &script,
        ];
        Command::new("busybox").args(options).output().unwrap()
    });
    fs::remove_file(scratch.join("udhcpc.sh")).unwrap();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.lines().filter_map(|line| line.split_once('='));
    let given: Given = words
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    guest.sh("ip addr flush dev eth0");
    guest.sh(&format!(
        "ip addr add {}/{} dev eth0",
        given["ip"], given["mask"]
    ));
    if let Some(router) = given.get("router") {
        guest.sh(&format!("ip route replace default via {router}"));
    }
    Some(given)
}

/// The world outside, which knows no way back into a network.
fn outside() -> Guest {
    let outside = Guest::apart("uplink0", "52:54:00:ff:ff:01");
    run("ip addr add 198.51.100.1/24 dev uplink0");
    outside.configure(&["198.51.100.2/24"]);
    outside.serves_tcp(8000);
    outside
}

const OUTSIDE: &str = "198.51.100.2";

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn dnsmasqs(directory: &Path) -> Vec<i32> {
    let needle = format!("--conf-file={}", directory.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&needle)
        })
        .collect()
}

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
}

/// All of nftables, whatever the order in which it was made.
fn sorted_ruleset() -> Vec<String> {
    let mut lines: Vec<_> = ruleset().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Whatever a test leaves, also one that fails.
struct Lab(Host);

impl Lab {
    async fn new() -> Self {
        Self(Host::new().await)
    }

    fn dir(&self) -> PathBuf {
        self.0.state_dir().join("networks")
    }

    async fn is_clean(&self) {
        assert_eq!(dnsmasqs(self.0.path()), Vec::<i32>::new());
        assert_eq!(self.0.links().await, Vec::<String>::new());
        let left: Vec<_> = fs::read_dir(self.dir()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let rules = ruleset();
        assert!(!rules.contains("infinization_net_"), "{rules}");
        assert!(!rules.contains("masquerade"), "{rules}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        dnsmasqs(self.0.path()).into_iter().for_each(kill);
    }
}
