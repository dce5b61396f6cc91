//! A machine whose guest writes all the time, and its agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use infinization_core::Failure;
use infinization_core::backup::{BackupId, BackupService, CreateBackup, Machine, RestoreBackup};
use infinization_core::manager::Manager;
use infinization_core::qmp::{AgentOptions, GuestAgent, QmpClient};
use infinization_core::types::{HostPath, VmId};
use infinization_core::vm::NotedFreeze;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ext4::{Ext4, make_data_disk};
use super::kit::machine::{Host, PATIENCE, delete, forced, never};
use super::{run, text};

/// The guest has flushed by then what it wrote.
const FREEZE: Duration = Duration::from_secs(60);

/// A machine of the tiny guest, whose second disk has the file system it writes to.
pub(crate) struct WritingGuest<'h> {
    pub(crate) host: &'h Host,
    pub(crate) manager: Manager,
    pub(crate) vm: &'static str,
    /// Holds the disk as it was made, which is the other's backing file.
    _made: TempDir,
}

impl<'h> WritingGuest<'h> {
    pub(crate) async fn boot(host: &'h Host, vm: &'static str) -> Self {
        let (manager, made) = (host.manager().await, tempfile::tempdir().unwrap());
        let data = made.path().join("data.qcow2");
        make_data_disk(&data);
        let mut machine = host.tiny_guest(vm);
        let disks = machine["disks"].as_array_mut().unwrap();
        disks.push(json!({ "sizeGB": 1, "backingFile": data }));
        manager.create_vm(machine, never()).await.unwrap();
        let guest = Self {
            host,
            manager,
            vm,
            _made: made,
        };
        guest.is_up(1).await;
        guest
    }

    /// Waits until the guest has been started so often, and writes.
    pub(crate) async fn is_up(&self, times: usize) {
        self.host.console_says(self.vm, "INFZ-DATA", times).await;
        self.host.console_says(self.vm, "INFZ-READY", times).await;
        self.writes_on().await;
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.host.path().join(format!("{}-ga.sock", self.vm))
    }

    pub(crate) async fn agent(&self) -> GuestAgent {
        let connected = GuestAgent::connect(&self.socket(), AgentOptions::default()).await;
        connected.unwrap()
    }

    /// What a script in the guest says; it may fail.
    pub(crate) async fn says(&self, script: &str) -> Result<String, Failure> {
        let socket = self.socket().to_str().unwrap().to_owned();
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let options = json!({ "timeout": 60_000 });
        let (vm, shell) = (self.vm.to_owned(), "/bin/sh".to_owned());
        let ran = self
            .manager
            .guest_exec(vm, socket, shell, arguments, options);
        let ran = ran.await?;
        Ok(ran["stdout"].as_str().unwrap().trim().to_owned())
    }

    /// The last number that the guest knows to be on its disk.
    pub(crate) async fn written(&self) -> u32 {
        let told = async {
            loop {
                // For a moment the file is empty, and a guest may just have been put back.
                let told = self.says("cat /run/written").await.unwrap_or_default();
                if let Ok(number) = told.parse() {
                    return number;
                }
            }
        };
        let told = tokio::time::timeout(PATIENCE, told).await;
        told.expect("the guest says what it has written")
    }

    /// Waits until the guest has written more.
    pub(crate) async fn writes_on(&self) {
        let from = self.written().await;
        let more = async { while self.written().await < from + 3 {} };
        let more = tokio::time::timeout(PATIENCE, more).await;
        more.expect("the guest writes on");
    }

    /// The checksums of the files as they are read from the disk again.
    pub(crate) async fn checksums(&self) -> BTreeMap<u32, String> {
        let script =
            "sync; echo 3 >/proc/sys/vm/drop_caches; cd /data/files; sha256sum * 2>/dev/null";
        let told = self.says(script).await.unwrap();
        let sums = told.lines().map(|line| {
            let (sum, number) = line.split_once("  ").unwrap();
            (number.parse().unwrap(), sum.to_owned())
        });
        sums.collect()
    }

    /// What the guest writes into now.
    pub(crate) async fn disk(&self) -> PathBuf {
        let row = self.manager.get_vm(self.vm.into()).await.unwrap();
        PathBuf::from(row["diskPaths"][1].as_str().unwrap())
    }

    /// What says whom to thaw, while the guest may be frozen.
    pub(crate) fn note(&self) -> PathBuf {
        let machines = self.host.state_dir().join("vms");
        machines.join(self.vm).join("guest-frozen")
    }

    pub(crate) async fn take(&self, options: Value) -> Result<Value, Failure> {
        let manager = &self.manager;
        manager
            .create_snapshot(self.vm.into(), options, never())
            .await
    }

    pub(crate) async fn revert(&self, name: &str, options: Value) {
        let manager = &self.manager;
        let reverted = manager.revert_snapshot(self.vm.into(), name.into(), options);
        reverted.await.unwrap();
    }

    pub(crate) async fn remove(&self, name: &str) {
        let rebase = json!({ "children": "rebase" });
        let (vm, name) = (self.vm.into(), name.into());
        let removed = self.manager.delete_snapshot(vm, name, rebase, never());
        removed.await.unwrap();
    }

    pub(crate) async fn stop(&self) {
        let stopped = self.manager.stop_vm(self.vm.into(), forced(), never());
        stopped.await.unwrap();
    }

    pub(crate) async fn end(self) {
        delete(&self.manager, self.vm).await;
        self.host.is_clean().await;
    }

    // Backups of the disk it writes to.

    fn backups(&self) -> PathBuf {
        self.host.path().join("backups")
    }

    pub(crate) fn service(&self) -> BackupService {
        service(&self.backups())
    }

    /// Backs the disk up; the backup's manifest.
    pub(crate) async fn back_up(&self, parent: Option<&str>, quiesce: bool) -> Value {
        let asked = backup_request(self.vm, &self.disk().await, &self.backups(), parent);
        let machine = Agent::of(&self.manager, self.vm, self.socket(), quiesce);
        let request = CreateBackup::read(asked).unwrap();
        let made = self.service().create(request, machine, never()).await;
        let id = made.unwrap()["backupId"].as_str().unwrap().to_owned();
        let id = BackupId::parse(&id).unwrap();
        let vm = VmId::parse(self.vm).unwrap();
        self.service().metadata(id, Some(vm)).await.unwrap()
    }

    /// Restores the disk to a new file, and copies that.
    pub(crate) async fn restored(&self, backup: &Value) -> Ext4 {
        let into = tempfile::tempdir().unwrap();
        let target = into.path().join("restored.qcow2");
        let request = json!({ "vmId": self.vm, "backupId": backup["id"], "diskPaths": [target] });
        let request = RestoreBackup::read(request).unwrap();
        let service = self.service();
        let restored = service.restore(request, Arc::new(Off), never());
        restored.await.unwrap();
        run("qemu-img", &["check", "-q", text(&target)]);
        Ext4::of(&target)
    }

    pub(crate) fn remove_backups(&self) {
        std::fs::remove_dir_all(self.backups()).unwrap();
    }
}

pub(crate) fn service(root: &Path) -> BackupService {
    let root = HostPath::parse(root.to_str().unwrap()).unwrap();
    BackupService::new(root, Arc::new(|_told| ()))
}

pub(crate) fn backup_request(vm: &str, disk: &Path, root: &Path, parent: Option<&str>) -> Value {
    json!({
        "vmId": vm,
        "diskPaths": [disk],
        "type": if parent.is_some() { "INCREMENTAL" } else { "FULL" },
        "parentBackupId": parent,
        "destinationDir": root.join(vm),
    })
}

/// A machine that runs, whose guest is frozen by its own agent as a `GuestAgentClient` does it.
pub(crate) struct Agent {
    manager: Manager,
    vm: VmId,
    socket: PathBuf,
    quiesce: bool,
    connected: Mutex<Option<GuestAgent>>,
    noted: Mutex<Option<NotedFreeze>>,
}

impl Agent {
    pub(crate) fn of(manager: &Manager, vm: &str, socket: PathBuf, quiesce: bool) -> Arc<Self> {
        Arc::new(Self {
            manager: manager.clone(),
            vm: VmId::parse(vm).unwrap(),
            socket,
            quiesce,
            connected: Mutex::default(),
            noted: Mutex::default(),
        })
    }
}

#[async_trait]
impl Machine for Agent {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.manager.qmp_client(self.vm.as_str())
    }

    async fn note_freeze(&self) -> Result<(), String> {
        let noted = self.manager.note_freeze(&self.vm).await;
        *self.noted.lock().unwrap() = noted.map_err(|failure| failure.to_string())?;
        Ok(())
    }

    async fn forget_freeze(&self) {
        let noted = self.noted.lock().unwrap().take();
        if let Some(noted) = noted {
            noted.forget().await;
        }
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        if !self.quiesce {
            return Ok(None);
        }
        let connected = GuestAgent::connect(&self.socket, AgentOptions::default()).await;
        let agent = connected.map_err(|error| error.to_string())?;
        *self.connected.lock().unwrap() = Some(agent.clone());
        let frozen = agent.fs_freeze(FREEZE).await;
        frozen.map(Some).map_err(|error| error.to_string())
    }

    async fn thaw(&self) -> Result<(), String> {
        let connected = self.connected.lock().unwrap().clone();
        let Some(agent) = connected else {
            return Ok(());
        };
        let thawed = agent.fs_thaw().await;
        thawed.map_err(|error| error.to_string())?;
        agent.close().await;
        Ok(())
    }

    async fn frozen_layers(&self) -> Result<Vec<HostPath>, String> {
        let layers = self.manager.frozen_layers().await;
        layers.map_err(|failure| failure.to_string())
    }
}

/// A machine that is off.
struct Off;

#[async_trait]
impl Machine for Off {
    async fn is_running(&self) -> Option<bool> {
        Some(false)
    }

    fn monitor(&self) -> Option<QmpClient> {
        None
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        panic!("it is off")
    }

    async fn thaw(&self) -> Result<(), String> {
        panic!("it is off")
    }
}
