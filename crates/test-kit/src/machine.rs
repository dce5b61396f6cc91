//! A manager with a bridge and a scratch directory of its own, and guests on it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use infinization_core::events::Event;
use infinization_core::host::bridge::{self, Ipv4Cidr};
use infinization_core::host::link::Links;
use infinization_core::manager::Manager;
use infinization_core::types::{LinkName, VmId, VmNames};
use infinization_core::vm::EffectsWrapper;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::switch::Switch;

/// Longer than anything takes on a loaded machine, shorter than a test run's patience.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A host of one's own: call it inside [`super::in_private_network`].
pub struct Host {
    pub scratch: tempfile::TempDir,
    pub links: Links,
    pub bridge: LinkName,
}

impl Host {
    /// A bridge with the address 10.177.200.1/16 (the tiny guest is in that network).
    pub async fn new() -> Self {
        let links = Links::new();
        let loopback = LinkName::parse("lo").unwrap();
        links.set_up(&loopback).await.unwrap();
        let host = Self {
            scratch: tempfile::tempdir().unwrap(),
            links,
            bridge: LinkName::parse("testbr0").unwrap(),
        };
        host.build_bridge().await;
        host
    }

    /// Makes the bridge, also anew when a test has deleted it.
    pub async fn build_bridge(&self) {
        bridge::create(&self.links, &self.bridge).await.unwrap();
        let address = Ipv4Cidr::parse("10.177.200.1/16").unwrap();
        bridge::assign_address(&self.links, &self.bridge, address)
            .await
            .unwrap();
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// What `new Infinization({...})` is given.
    pub fn settings(&self) -> Value {
        json!({
            "stateDir": self.state_dir(),
            "bridgeConntrackMode": "degrade",
            "accelerator": "tcg",
        })
    }

    pub async fn manager(&self) -> Manager {
        self.manager_with(None).await
    }

    /// A manager whose database can be switched off.
    pub async fn manager_over(&self, switch: &Arc<Switch>) -> Manager {
        let wrapper = Some(switch.wrapper());
        let manager = Manager::with_wrappers(self.settings(), None, wrapper);
        manager.initialize().await.unwrap();
        manager
    }

    pub async fn manager_with(&self, wrap: Option<EffectsWrapper>) -> Manager {
        let manager = Manager::with_effects(self.settings(), wrap);
        manager.initialize().await.unwrap();
        manager
    }

    /// A small machine without a guest system: its firmware finds nothing to boot and stays on.
    pub fn machine(&self, vm_id: &str) -> Value {
        json!({
            "vmId": vm_id,
            "name": format!("Test {vm_id}"),
            "internalName": vm_id,
            "os": "linux",
            "cpuCores": 1,
            "ramGB": 0.5,
            "disks": [{ "sizeGB": 1 }],
            "bridge": self.bridge,
            "displayType": "vnc",
            "displayPort": 5900,
        })
    }

    /// A machine that boots the tiny guest.
    pub fn tiny_guest(&self, vm_id: &str) -> Value {
        let mut machine = self.machine(vm_id);
        let image = super::guest_dir()
            .join("tiny.qcow2")
            .canonicalize()
            .unwrap();
        machine["disks"] = json!([{ "sizeGB": 1, "backingFile": image }]);
        machine["serialConsole"] = json!(true);
        machine["guestAgentSocketPath"] = json!(self.path().join(format!("{vm_id}-ga.sock")));
        machine
    }

    /// Waits until the guest's serial console, in all its runs, has said `words` so often.
    pub async fn console_says(&self, vm_id: &str, words: &str, times: usize) {
        let log = self.state_dir().join("vms").join(vm_id).join("serial.log");
        let said = async {
            loop {
                let text = tokio::fs::read(&log).await.unwrap_or_default();
                if String::from_utf8_lossy(&text).matches(words).count() >= times {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, said).await;
        assert!(waited.is_ok(), "the console of {vm_id} never said {words}");
    }

    /// The tiny guest's address.
    pub fn address_of(vm_id: &str) -> Ipv4Addr {
        let mac = VmNames::of(&VmId::parse(vm_id).unwrap()).mac.octets();
        Ipv4Addr::new(10, 177, mac[4], mac[5])
    }

    /// Every link but loopback and the bridge.
    pub async fn links(&self) -> Vec<String> {
        let links = self.links.list().await.unwrap();
        let names = links.into_iter().map(|link| link.name);
        names
            .filter(|name| name != "lo" && *name != self.bridge.as_str())
            .collect()
    }

    /// Every file below the scratch directory but the embedded store, the lock and the journals, which
    /// outlive their machines.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut directories = vec![self.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    if entry.file_name() != "journals" {
                        directories.push(entry.path());
                    }
                    continue;
                }
                let name = entry.file_name().into_string().unwrap();
                if name != "lock" && !name.starts_with("infinization.db") {
                    files.push(entry.path());
                }
            }
        }
        files.sort();
        files
    }

    /// Writes a row's status, as the consumer does in a database of his own.
    pub fn claim(&self, vm_id: &str, status: &str) {
        let path = self.state_dir().join("infinization.db");
        let store = rusqlite::Connection::open(path).unwrap();
        let changed = store.execute(
            "UPDATE machine SET status = ?1, \
             updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = ?2",
            [status, vm_id],
        );
        assert_eq!(changed.unwrap(), 1);
    }

    /// Deletes a row, as [`Host::claim`] writes its status.
    pub fn delete_row(&self, vm_id: &str) {
        let path = self.state_dir().join("infinization.db");
        let store = rusqlite::Connection::open(path).unwrap();
        let changed = store.execute("DELETE FROM machine WHERE id = ?1", [vm_id]);
        assert_eq!(changed.unwrap(), 1);
    }

    /// Writes the pid of a row's configuration, as [`Host::claim`] the status.
    pub fn claim_run(&self, vm_id: &str, pid: i64) {
        let path = self.state_dir().join("infinization.db");
        let store = rusqlite::Connection::open(path).unwrap();
        let changed = store.execute(
            "UPDATE machine_configuration SET qemu_pid = ?1 WHERE machine_id = ?2",
            rusqlite::params![pid, vm_id],
        );
        assert_eq!(changed.unwrap(), 1);
    }

    /// Writes which disks a row's machine has, as [`Host::claim`] the status.
    pub fn claim_disks(&self, vm_id: &str, paths: &[PathBuf]) {
        let path = self.state_dir().join("infinization.db");
        let store = rusqlite::Connection::open(path).unwrap();
        let changed = store.execute(
            "UPDATE machine_configuration SET disk_paths = ?1 WHERE machine_id = ?2",
            rusqlite::params![serde_json::to_string(paths).unwrap(), vm_id],
        );
        assert_eq!(changed.unwrap(), 1);
    }

    /// Asserts that nothing of any machine is left.
    pub async fn is_clean(&self) {
        assert_eq!(self.links().await, Vec::<String>::new(), "links are left");
        assert_eq!(self.files(), Vec::<PathBuf>::new(), "files are left");
        assert_eq!(vm_chains().await, Vec::<String>::new(), "chains are left");
        assert_eq!(qemus(self.path()), Vec::<i32>::new(), "processes are left");
    }
}

/// A test that failed leaves no process behind either.
impl Drop for Host {
    fn drop(&mut self) {
        for pid in qemus(self.scratch.path()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
    }
}

/// The visible chains of VMs.
pub async fn vm_chains() -> Vec<String> {
    let chains = infinization_core::host::nft::Nft::new()
        .list_chains()
        .await
        .unwrap();
    chains
        .into_iter()
        .filter(|name| name.starts_with("vm_"))
        .collect()
}

/// The pids of all QEMUs that were told of `directory`.
pub fn qemus(directory: &Path) -> Vec<i32> {
    let needle = directory.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.contains("qemu-system") && command.contains(needle)
        })
        .collect()
}

pub fn never() -> CancellationToken {
    CancellationToken::new()
}

/// Makes the smallest machine and starts it; what `createVM` answers.
pub async fn create(host: &Host, manager: &Manager, vm_id: &str) -> Value {
    let created = manager.create_vm(host.machine(vm_id), never()).await;
    created.unwrap()
}

/// The process that an answer or a status names.
pub fn pid_of(told: &Value) -> i32 {
    i32::try_from(told["pid"].as_i64().unwrap()).unwrap()
}

/// The next event of this kind.
pub async fn next_event(events: &mut broadcast::Receiver<Arc<Event>>, kind: &str) -> Arc<Event> {
    let wait = async {
        loop {
            let event = events.recv().await.expect("the bus goes on");
            if event.kind == kind {
                return event;
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("no event {kind}"))
}

/// Ends QEMU at once: these machines ignore the power button.
pub fn forced() -> Value {
    json!({ "graceful": false, "force": true })
}

/// Deletes the machine with everything it has.
pub async fn delete(manager: &Manager, vm_id: &str) {
    let options = json!({ "deleteDisks": true });
    manager.delete_vm(vm_id.into(), options).await.unwrap();
}

/// `getVMStatus`, which must agree with itself.
pub async fn consistent_status(manager: &Manager, vm_id: &str) -> Value {
    let status = manager.get_vm_status(vm_id.into()).await.unwrap();
    assert_eq!(status["consistent"], true, "{status}");
    status
}

pub fn send_signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// A machine's journal.
pub async fn journal_of(manager: &Manager, vm_id: &str) -> Vec<Value> {
    let cursor = manager.journal(&json!({ "vmId": vm_id })).unwrap();
    let mut entries = Vec::new();
    loop {
        let page = manager.journal_page(&cursor).await.unwrap();
        if page.entries.is_empty() {
            return entries;
        }
        let page = page.entries.iter();
        entries.extend(page.map(|entry| serde_json::to_value(entry).unwrap()));
    }
}

/// Asserts that no number is missing.
pub fn has_no_gaps(entries: &[Value]) {
    for pair in entries.windows(2) {
        let (one, next) = (&pair[0]["seq"], &pair[1]["seq"]);
        assert_eq!(
            one.as_u64().unwrap() + 1,
            next.as_u64().unwrap(),
            "{pair:?}"
        );
    }
}
