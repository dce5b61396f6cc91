//! How long a guest that writes waits while its disks are snapshotted: the longest time in which nothing it writes
//! reaches its files, as the kernel tells it (inotify). It writes 4 KiB after the other, each directly to its disk.

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use infinization_core::manager::Manager;
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use serde_json::json;

use super::{figure, median, percentile};
use crate::kit::machine::{Host, PATIENCE, delete, never};

/// So that one of a hundred can be told.
const PAUSES: u32 = 100;
const VM: &str = "bench-pause";
/// How long a snapshot takes, or more: that long there is none.
const NOTHING: Duration = Duration::from_millis(50);

/// Hears of every write to the files of a directory.
struct Watch(Arc<Mutex<Vec<Instant>>>);

impl Watch {
    fn over(directory: &Path) -> Self {
        let watch = init(CreateFlags::CLOEXEC).unwrap();
        add_watch(&watch, directory, WatchFlags::MODIFY).unwrap();
        let seen: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let writes = Arc::clone(&seen);
        thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = Reader::new(watch, &mut buffer);
            while events.next().is_ok() {
                writes.lock().unwrap().push(Instant::now());
            }
        });
        Self(seen)
    }

    /// Waits for one more.
    async fn next(&self) {
        let seen = || self.0.lock().unwrap().len();
        let before = seen();
        let another = async {
            while seen() == before {
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        };
        tokio::time::timeout(PATIENCE, another).await.unwrap();
    }

    /// The longest time without a write while that is done.
    async fn longest_pause(&self, work: impl Future<Output = ()>) -> Duration {
        self.0.lock().unwrap().clear();
        self.next().await;
        work.await;
        self.next().await;
        let writes = self.0.lock().unwrap();
        let pauses = writes.windows(2).map(|pair| pair[1] - pair[0]);
        pauses.max().unwrap_or_default()
    }
}

pub(super) async fn of_a_guest_that_writes() {
    let host = Host::new().await;
    let manager = host.manager().await;
    let mut machine = host.tiny_guest(VM);
    let disks = machine["disks"].as_array_mut().unwrap();
    disks.push(json!({ "sizeGB": 1 }));
    let agent = machine["guestAgentSocketPath"].as_str().unwrap().to_owned();
    manager.create_vm(machine, never()).await.unwrap();
    host.console_says(VM, "INFZ-READY", 1).await;
    writes(&manager, agent).await;
    let watch = Watch::over(&host.state_dir().join("disks"));
    watch.next().await;

    let mut nothing = Vec::new();
    for _ in 0..PAUSES {
        nothing.push(watch.longest_pause(tokio::time::sleep(NOTHING)).await);
    }
    told("no snapshot at all", nothing, "");
    for kind in ["external", "internal"] {
        let (mut taken, mut deleted) = (Vec::new(), Vec::new());
        for _ in 0..PAUSES {
            taken.push(watch.longest_pause(take(&manager, kind)).await);
            deleted.push(watch.longest_pause(remove(&manager)).await);
        }
        told(&format!("{kind} snapshot"), taken, "≤ 50");
        told(&format!("{kind} snapshot deleted"), deleted, "");
    }
    delete(&manager, VM).await;
    manager.shutdown().await.unwrap();
}

fn told(of_what: &str, pauses: Vec<Duration>, goal: &str) {
    let name = |which: &str| format!("{of_what}: pause of a guest that writes, {which}");
    figure(&name("median"), median(pauses.clone()), "ms", goal);
    figure(&name("p99"), percentile(pauses, 99), "ms", goal);
}

/// Has the guest write for as long as it is on.
async fn writes(manager: &Manager, agent: String) {
    let script =
        "(while :; do dd if=/dev/urandom of=/dev/vdb bs=4k oflag=direct; done) >/dev/null 2>&1 &";
    let arguments = vec!["-c".to_owned(), script.to_owned()];
    let options = json!({ "timeout": 60_000 });
    let ran = manager.guest_exec(VM.into(), agent, "/bin/sh".into(), arguments, options);
    ran.await.unwrap();
}

async fn take(manager: &Manager, kind: &str) {
    let options = json!({ "name": "a", "kind": kind });
    let taken = manager.create_snapshot(VM.into(), options, never());
    taken.await.unwrap();
}

async fn remove(manager: &Manager) {
    let options = json!({ "children": "rebase" });
    let removed = manager.delete_snapshot(VM.into(), "a".into(), options, never());
    removed.await.unwrap();
}
