//! F14: a QEMU that the kernel's out-of-memory killer ends, for real, in a small memory cgroup.
//!
//! On a host with cgroup v2 it is QEMU's own scope; else a v1 group that QEMU inherits from this
//! process, which is why this test is a binary of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use infinization_core::host::cgroup::Cgroups;
use infinization_core::manager::Manager;
use infinization_core::types::VmId;
use infinization_test_kit as kit;
use kit::machine::{Host, consistent_status, delete, journal_of, never, next_event, send_signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const VM: &str = "oom-1";
/// More than an idle QEMU has touched, less than it is made to touch.
const LIMIT: u64 = 256 << 20;

/// A v1 memory cgroup below this process' own. Dropping it moves this process back.
struct SmallGroup {
    home: PathBuf,
    group: PathBuf,
}

impl SmallGroup {
    fn enter() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let mut lines = groups
            .lines()
            .filter_map(|line| line.split_once(":memory:"));
        let (_, path) = lines
            .next()
            .expect("the host counts memory in cgroup v1 or v2");
        let home = Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/'));
        let group = home.join(format!("oom-test-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        fs::write(group.join("memory.limit_in_bytes"), LIMIT.to_string()).unwrap();
        let small = Self { home, group };
        move_to(&small.group);
        small
    }

    fn leave(&self) {
        move_to(&self.home);
    }
}

impl Drop for SmallGroup {
    fn drop(&mut self) {
        move_to(&self.home);
        // A test that failed leaves a QEMU in there; its end takes a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                return;
            }
            let left = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines().filter_map(|line| line.parse().ok()) {
                send_signal(pid, Signal::SIGKILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn move_to(group: &Path) {
    fs::write(group.join("cgroup.procs"), "0").unwrap();
}

/// A running QEMU whose memory is limited.
async fn limited(host: &Host, manager: &Manager) -> Option<SmallGroup> {
    let machine = host.machine(VM);

    let scopes = Cgroups::host();
    if scopes.is_v2() {
        manager.create_vm(machine, never()).await.unwrap();
        let scope = scopes.scope_of(&VmId::parse(VM).unwrap());
        fs::write(scope.join("memory.max"), LIMIT.to_string()).unwrap();
        return None;
    }
    let small = SmallGroup::enter();
    manager.create_vm(machine, never()).await.unwrap();
    small.leave();
    Some(small)
}

#[test]
fn f14_a_qemu_that_ran_out_of_memory_says_so_with_evidence() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut events = manager.subscribe();
        let _small = limited(&host, &manager).await;
        // QEMU touches all of what it is given.
        let qmp = manager.qmp_client(VM).unwrap();
        let much = json!({ "qom-type": "memory-backend-ram", "id": "much", "size": 2 * LIMIT, "prealloc": true });
        let given: Result<Box<serde_json::value::RawValue>, _> =
            qmp.execute("object-add", much).await;
        assert!(given.is_err(), "it lives");

        next_event(&mut events, "crash").await;
        let crash = next_event(&mut events, "crash").await;
        let cause = &crash.data["cause"];
        assert_eq!(cause["reason"], "oom-killed", "{cause}");
        assert_eq!(cause["signal"], 9, "{cause}");
        let evidence = cause["evidence"].as_str().unwrap();
        assert!(
            evidence.contains("oom_kill 0 -> 1") || evidence.contains("kernel log"),
            "{evidence}"
        );
        let status = consistent_status(&manager, VM).await;
        assert_eq!(&status["lastExit"], cause);
        let entries = journal_of(&manager, VM).await;
        let exit = entries
            .iter()
            .find(|entry| entry["kind"] == "exit")
            .unwrap();
        assert_eq!(exit["detail"]["reason"], "oom-killed");

        // Somebody's SIGKILL is not taken for one.
        manager
            .start_vm(VM.into(), Value::Null, never())
            .await
            .unwrap();
        let pid = manager.get_vm_status(VM.into()).await.unwrap()["pid"]
            .as_i64()
            .unwrap();
        send_signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
        next_event(&mut events, "crash").await;
        let crash = next_event(&mut events, "crash").await;
        assert_eq!(crash.data["cause"]["reason"], "signal", "{}", crash.data);
        delete(&manager, VM).await;
        host.is_clean().await;
    });
}
