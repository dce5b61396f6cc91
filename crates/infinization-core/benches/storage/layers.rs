//! What snapshots of a running machine cost beside QEMU's own commands, and a linked clone beside `qemu-img`.

use std::fs;
use std::path::PathBuf;

use infinization_core::manager::Manager;
use infinization_core::qmp::{EventReceiver, MonitorEvent, QmpClient};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{DATA, ROUNDS, beside, figure, fill, flushed, median, qemu_img, text, timed};
use crate::kit::machine::{Host, delete, never};
use crate::kit::qmp::Qemu;

/// What a guest writes between a snapshot and its end.
const CHANGED: u64 = 8 << 20;
const VM: &str = "bench-layers";

/// A machine of a manager.
struct Ours<'m> {
    manager: &'m Manager,
}

impl Ours<'_> {
    async fn take(&self, kind: &str) {
        let options = json!({ "name": "a", "kind": kind });
        let taken = self.manager.create_snapshot(VM.into(), options, never());
        taken.await.unwrap();
    }

    async fn revert(&self) {
        let options = json!({ "discard": true, "restart": true });
        let reverted = self.manager.revert_snapshot(VM.into(), "a".into(), options);
        reverted.await.unwrap();
    }

    async fn delete(&self) {
        let (options, name) = (json!({ "children": "rebase" }), "a".into());
        let deleted = self
            .manager
            .delete_snapshot(VM.into(), name, options, never());
        deleted.await.unwrap();
    }

    async fn write(&self, bytes: u64) {
        let line = written("disk0", bytes);
        let answer = self.manager.qmp_execute(VM, "human-monitor-command", line);
        assert_eq!(answer.await.unwrap().get(), "\"\"");
    }
}

/// The same by QMP alone, on a machine with one such disk.
struct Bare {
    qemu: Qemu,
    monitor: QmpClient,
    events: EventReceiver,
    dir: TempDir,
    overlays: u32,
}

impl Bare {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk.qcow2");
        fill(&disk, DATA);
        let disk = text(&disk);
        let drive = format!("driver=qcow2,node-name=base,file.driver=file,file.filename={disk}");
        let device = "virtio-blk-pci,id=disk0,drive=base";
        let qemu = Qemu::start(&["-blockdev", &drive, "-device", device]);
        let (monitor, events) = qemu.connect().await;
        Self {
            qemu,
            monitor,
            events,
            dir,
            overlays: 0,
        }
    }

    async fn ask(&self, command: &str, arguments: Value) {
        self.monitor.execute(command, arguments).await.unwrap();
    }

    async fn write(&self, bytes: u64) {
        self.ask("human-monitor-command", written("disk0", bytes))
            .await;
    }

    fn overlay(&self) -> PathBuf {
        self.dir
            .path()
            .join(format!("overlay-{}.qcow2", self.overlays))
    }

    async fn take(&mut self) {
        self.overlays += 1;
        let arguments = json!({
            "node-name": "base", "snapshot-file": self.overlay(), "format": "qcow2",
            "snapshot-node-name": format!("overlay-{}", self.overlays),
        });
        self.ask("blockdev-snapshot-sync", arguments).await;
    }

    /// Commits the overlay into the disk, and has the machine go on there.
    async fn commit(&mut self) {
        let overlay = format!("overlay-{}", self.overlays);
        let arguments = json!({ "device": overlay, "base-node": "base", "job-id": overlay });
        self.ask("block-commit", arguments).await;
        self.until("\"ready\"").await;
        self.ask("job-complete", json!({ "id": overlay })).await;
        self.until("\"null\"").await;
        fs::remove_file(self.overlay()).unwrap();
    }

    /// Waits until the one job has this status.
    async fn until(&mut self, status: &str) {
        loop {
            match self.events.next().await {
                Some(MonitorEvent::Event(event)) if event.event == "JOB_STATUS_CHANGE" => {
                    if event.data.get().contains(status) {
                        return;
                    }
                }
                Some(_) => {}
                None => panic!("the job never came to {status}"),
            }
        }
    }

    async fn quit(self) {
        self.monitor.quit().await.unwrap();
        self.qemu.ended().await;
    }
}

/// A monitor's line that has QEMU write so much to a disk.
fn written(device: &str, bytes: u64) -> Value {
    let device = format!("/machine/peripheral/{device}/virtio-backend");
    json!({ "command-line": format!("qemu-io -d {device} \"write -P 7 0 {bytes}\"") })
}

pub(super) async fn verbs() {
    let host = Host::new().await;
    let manager = host.manager().await;
    let mut machine = host.machine(VM);
    machine["disks"] = json!([{ "sizeGB": 10 }]);
    manager.create_vm(machine, never()).await.unwrap();
    let (ours, mut bare) = (Ours { manager: &manager }, Bare::start().await);
    ours.write(DATA).await;
    external(&ours, &mut bare).await;
    reverted(&ours).await;
    internal(&ours, &bare).await;
    bare.quit().await;
    delete(&manager, VM).await;
    linked_clone(&host, &manager).await;
    manager.shutdown().await.unwrap();
}

async fn external(ours: &Ours<'_>, bare: &mut Bare) {
    let (mut taken, mut by_qemu) = (Vec::new(), Vec::new());
    let (mut deleted, mut committed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        taken.push(timed(ours.take("external")).await.0);
        by_qemu.push(timed(bare.take()).await.0);
        ours.write(CHANGED).await;
        bare.write(CHANGED).await;
        deleted.push(timed(ours.delete()).await.0);
        committed.push(timed(bare.commit()).await.0);
    }
    let name = "external snapshot of a running VM";
    beside(name, taken, by_qemu, "a bare blockdev-snapshot-sync");
    let name = "external snapshot of a running VM deleted, 8 MiB changed";
    beside(name, deleted, committed, "a bare block-commit");
}

/// QEMU alone has nothing of the kind: the machine is restarted on another file.
async fn reverted(ours: &Ours<'_>) {
    ours.take("external").await;
    let mut reverted = Vec::new();
    for _ in 0..ROUNDS {
        reverted.push(timed(ours.revert()).await.0);
    }
    ours.delete().await;
    let name = "external snapshot of a running VM gone back to, with the restart";
    figure(name, median(reverted), "ms", "");
}

async fn internal(ours: &Ours<'_>, bare: &Bare) {
    let (mut taken, mut by_qemu) = (Vec::new(), Vec::new());
    let snapshot = json!({ "device": "base", "name": "a" });
    for _ in 0..ROUNDS {
        taken.push(timed(ours.take("internal")).await.0);
        ours.delete().await;
        let action = json!({ "type": "blockdev-snapshot-internal-sync", "data": snapshot });
        let actions = json!({ "actions": [action] });
        by_qemu.push(timed(bare.ask("transaction", actions)).await.0);
        let removed = "blockdev-snapshot-delete-internal-sync";
        bare.ask(removed, snapshot.clone()).await;
    }
    let name = "internal snapshot of a running VM";
    beside(
        name,
        taken,
        by_qemu,
        "a bare blockdev-snapshot-internal-sync",
    );
}

async fn linked_clone(host: &Host, manager: &Manager) {
    let pool = host.path().canonicalize().unwrap().join("p");
    let options = json!({ "path": pool, "create": true });
    manager.define_pool("p".into(), options).await.unwrap();
    let golden = json!({ "name": "golden.qcow2", "capacity": 10_u64 << 30 });
    let made = manager.create_volume("p".into(), golden, never());
    made.await.unwrap();
    let (golden, bare) = (pool.join("golden.qcow2"), pool.join("bare.qcow2"));
    let (mut cloned, mut by_qemu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let options = json!({ "source": "golden.qcow2", "name": "a.qcow2", "linked": true });
        let clone = manager.clone_volume("p".into(), options, never(), None);
        let (took, made) = timed(clone).await;
        made.unwrap();
        cloned.push(took);
        let (from, to) = (text(&golden), text(&bare));
        let args = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", from, to];
        let took = qemu_img(&args);
        by_qemu.push(took + flushed(&bare) + flushed(&pool));
        fs::remove_file(&bare).unwrap();
        let removed = manager.delete_volume("p".into(), "a.qcow2".into());
        removed.await.unwrap();
    }
    beside("linked clone", cloned, by_qemu, "qemu-img and a flush");
    let removed = manager.delete_volume("p".into(), "golden.qcow2".into());
    removed.await.unwrap();
    manager.undefine_pool("p".into()).await.unwrap();
    fs::remove_dir(pool).unwrap();
}
