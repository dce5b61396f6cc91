//! Backups with the real `qemu-img` and of real running QEMUs: what was written is read back from what
//! was restored, bit by bit.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "the disks have a few megabytes"
)]

mod bitmaps;
mod chains;
mod crashes;
mod disk;
mod encrypted;
mod guest;
mod limits;
mod live;
mod live_faults;
mod live_snapshots;
mod luks;
mod offline;
mod owned;
mod progress;
mod refusals;
mod snapshots;
mod untouched;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use infinization_core::backup::{
    BackupId, BackupService, CreateBackup, Machine, RestoreBackup, Told,
};
use infinization_core::qmp::QmpClient;
use infinization_core::types::{HostPath, VmId};
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use disk::Disk;

/// A directory of disks and one of backups.
struct Place {
    dir: TempDir,
    service: BackupService,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Place {
    fn new() -> Self {
        Self::with_root(|dir| dir.join("backups"))
    }

    fn with_root(root: impl FnOnce(&Path) -> PathBuf) -> Self {
        Self::inside(tempfile::tempdir().unwrap(), root)
    }

    /// On a disk: what is in `/tmp` may be in memory.
    fn on_disk() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        Self::inside(dir, |dir| dir.join("backups"))
    }

    fn inside(dir: TempDir, root: impl FnOnce(&Path) -> PathBuf) -> Self {
        let told: Arc<Mutex<Vec<Told>>> = Arc::default();
        let heard = Arc::clone(&told);
        let root = path(&root(dir.path()));
        let audience = Arc::new(move |told| heard.lock().unwrap().push(told));
        Self {
            service: BackupService::new(root, audience),
            dir,
            told,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn root(&self) -> PathBuf {
        self.path("backups")
    }

    /// A qcow2 disk of `mib` MiB.
    fn disk(&self, name: &str, mib: usize) -> Disk {
        Disk::qcow2(&self.path(name), mib)
    }

    async fn create(&self, request: Value) -> Result<Value, Failure> {
        self.create_with(request, Arc::new(Stopped)).await
    }

    async fn create_with(
        &self,
        request: Value,
        machine: Arc<dyn Machine>,
    ) -> Result<Value, Failure> {
        let request = CreateBackup::read(request).unwrap();
        self.service
            .create(request, machine, CancellationToken::new())
            .await
    }

    async fn full(&self, disks: &[&Disk]) -> String {
        let made = self.create(self.request("FULL", disks)).await.unwrap();
        id(&made)
    }

    async fn incremental(&self, disks: &[&Disk], parent: &str) -> String {
        let mut request = self.request("INCREMENTAL", disks);
        request["parentBackupId"] = json!(parent);
        id(&self.create(request).await.unwrap())
    }

    fn request(&self, kind: &str, disks: &[&Disk]) -> Value {
        let paths: Vec<_> = disks.iter().map(|disk| disk.path.clone()).collect();
        let formats: Vec<_> = disks.iter().map(|disk| disk.format).collect();
        json!({
            "vmId": "vm-1", "type": kind, "diskPaths": paths, "diskFormats": formats,
            "destinationDir": self.root().join("vm-1"),
        })
    }

    async fn restore(&self, backup: &str, targets: &[PathBuf]) -> Result<Value, Failure> {
        let request = json!({
            "vmId": "vm-1", "backupId": backup, "diskPaths": targets, "overwriteExisting": true,
        });
        self.restore_with(request, Arc::new(Stopped)).await
    }

    async fn restore_with(
        &self,
        request: Value,
        machine: Arc<dyn Machine>,
    ) -> Result<Value, Failure> {
        let request = RestoreBackup::read(request).unwrap();
        self.service
            .restore(request, machine, CancellationToken::new())
            .await
    }

    /// Restores to a new file and compares it with what the disk was.
    async fn comes_back(&self, backup: &str, expected: &[u8]) {
        let target = self.path("restored.qcow2");
        self.restore(backup, std::slice::from_ref(&target))
            .await
            .unwrap();
        disk::assert_holds(&target, "qcow2", expected);
        fs::remove_file(target).unwrap();
    }

    async fn delete(&self, backup: &str) -> Result<(), Failure> {
        let (vm, backup) = (vm(), BackupId::parse(backup).unwrap());
        self.service.delete(vm, backup, Arc::new(Stopped)).await
    }

    async fn metadata(&self, backup: &str) -> Result<Value, Failure> {
        let backup = BackupId::parse(backup).unwrap();
        self.service.metadata(backup, Some(vm())).await
    }

    async fn list(&self) -> Vec<Value> {
        self.service.list(vm()).await.unwrap()
    }

    async fn is_valid(&self, backup: &str) -> bool {
        let backup = BackupId::parse(backup).unwrap();
        let cancel = CancellationToken::new();
        let verified = self.service.verify(vm(), backup, cancel, drop);
        verified.await.unwrap()["valid"] == json!(true)
    }

    /// What is in a backup's folder.
    fn files(&self, backup: &str) -> Vec<String> {
        names_in(&self.root().join("vm-1").join(backup))
    }
}

fn vm() -> VmId {
    VmId::parse("vm-1").unwrap()
}

fn id(result: &Value) -> String {
    assert_eq!(result["success"], json!(true), "{result}");
    result["backupId"].as_str().unwrap().to_owned()
}

fn path(path: &Path) -> HostPath {
    HostPath::parse(path.to_str().unwrap()).unwrap()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Failure>, code: ErrorCode) -> Failure {
    let failure = outcome.unwrap_err();
    assert_eq!(failure.code(), code, "{failure}");
    failure
}

/// A machine that is known not to run.
struct Stopped;

#[async_trait]
impl Machine for Stopped {
    async fn is_running(&self) -> Option<bool> {
        Some(false)
    }

    fn monitor(&self) -> Option<QmpClient> {
        None
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        panic!("a stopped machine is not frozen")
    }

    async fn thaw(&self) -> Result<(), String> {
        panic!("a stopped machine is not thawed")
    }
}

/// A machine whose state somebody says, and whose monitor nobody has.
struct Says(Option<bool>);

#[async_trait]
impl Machine for Says {
    async fn is_running(&self) -> Option<bool> {
        self.0
    }

    fn monitor(&self) -> Option<QmpClient> {
        None
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }

    async fn thaw(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A machine that runs, with a guest that freezes as it is told to.
struct Running {
    monitor: QmpClient,
    freezing: Result<Option<u64>, String>,
    thawed: AtomicUsize,
}

impl Running {
    fn new(monitor: &QmpClient, freezing: Result<Option<u64>, String>) -> Arc<Self> {
        Arc::new(Self {
            monitor: monitor.clone(),
            freezing,
            thawed: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl Machine for Running {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        Some(self.monitor.clone())
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        self.freezing.clone()
    }

    async fn thaw(&self) -> Result<(), String> {
        self.thawed.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}
