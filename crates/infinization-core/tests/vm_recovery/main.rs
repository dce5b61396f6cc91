//! A manager finds the machines as they are, whatever happened while there was none.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod ended;
mod identity;
mod orphans;
mod owned;
mod rows;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use infinization_core::events::Event;
use infinization_core::host::state_file::{self, Durability};
use infinization_core::manager::Manager;
use infinization_core::types::VmId;
use infinization_test_kit as kit;
use kit::machine::{
    Host, PATIENCE, consistent_status, delete, forced, never, next_event, pid_of, qemus,
    send_signal,
};
use kit::switch::{Mode, Switch};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::broadcast;

async fn create(host: &Host, manager: &Manager, vm_id: &str) -> i32 {
    pid_of(&kit::machine::create(host, manager, vm_id).await)
}

/// A machine that runs while there is no manager.
async fn left_running(host: &Host, vm_id: &str) -> i32 {
    let manager = host.manager().await;
    let pid = create(host, &manager, vm_id).await;
    manager.shutdown().await.unwrap();
    pid
}

/// The next manager, and everything it told from its first moment on.
async fn next_manager(host: &Host) -> (Manager, broadcast::Receiver<Arc<Event>>) {
    let manager = Manager::new(host.settings());
    let events = manager.subscribe();
    manager.initialize().await.unwrap();
    (manager, events)
}

fn told(events: &mut broadcast::Receiver<Arc<Event>>, kind: &str) -> usize {
    let mut count = 0;
    while let Ok(event) = events.try_recv() {
        count += usize::from(event.kind == kind);
    }
    count
}

/// Changes what the ledger says of the machine's process.
fn forge(host: &Host, vm_id: &str, change: impl FnOnce(&mut Value)) {
    rewrite(host, vm_id, |ledger| {
        change(&mut ledger["lived"]["process"]);
    });
}

fn rewrite(host: &Host, vm_id: &str, change: impl FnOnce(&mut Value)) {
    let path = host.state_dir().join("vms").join(vm_id).join("ledger.json");
    let body = state_file::read(&path).unwrap().unwrap();
    let mut contents: Value = serde_json::from_slice(&body).unwrap();
    change(&mut contents);
    let body = serde_json::to_vec(&contents).unwrap();
    state_file::write(&path, &body, Durability::ProcessCrash).unwrap();
}

/// A QEMU that no machine has.
struct Foreign(Child);

impl Foreign {
    async fn run(name: &str, pid_file: &Path) -> Self {
        Self::named(&format!("guest={name},debug-threads=on"), pid_file).await
    }

    async fn named(argument: &str, pid_file: &Path) -> Self {
        let child = Command::new("qemu-system-x86_64")
            .args(["-name", argument])
            .args(["-accel", "tcg", "-machine", "none", "-nodefaults", "-S"])
            .args(["-display", "none", "-pidfile"])
            .arg(pid_file)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let written = async {
            while std::fs::read_to_string(pid_file)
                .unwrap_or_default()
                .is_empty()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap();
        Self(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn is_alive(pid: i32) -> bool {
    infinization_core::host::process::is_alive(pid)
}

/// Waits until nothing of the process is left. It is a child of this one, reaped by the library or,
/// once its manager is gone, by nobody: a zombie counts as gone.
async fn ends(pid: i32) {
    // Its files, and the locks on them, are closed by the last of its threads.
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let gone = async {
        while is_alive(pid) || threads() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}
