//! SNAPSHOT backups of running machines.

use nix::sys::signal::Signal;

use super::guest::Guest;
use super::*;
use crate::kit::small_disk::SmallDisk;

/// What happens while the guest is frozen, and when it is to be thawed.
struct Disturbed<F, T> {
    machine: Arc<Running>,
    frozen: F,
    thawed: T,
}

#[async_trait]
impl<F: Fn() + Send + Sync, T: Fn() + Send + Sync> Machine for Disturbed<F, T> {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.machine.monitor()
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        (self.frozen)();
        Ok(Some(1))
    }

    async fn thaw(&self) -> Result<(), String> {
        (self.thawed)();
        Ok(())
    }
}

/// Our snapshots in a disk that nobody has open.
fn snapshots(disk: &Disk) -> Vec<String> {
    let list = disk::run("qemu-img", &["snapshot", "-l", disk::text(&disk.path)]);
    let words = list.split_whitespace();
    words
        .filter(|word| word.starts_with("backup-"))
        .map(ToOwned::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k9_a_snapshot_that_is_made_too_late_is_taken_back() {
    let place = Place::new();
    let disk = place.disk("a.qcow2", 1);
    let guest = Guest::start(&[&disk]).await;
    let pid = guest.qemu.child.id();
    let signal = move |signal| {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    let machine = Disturbed {
        machine: guest.machine(),
        frozen: move || signal(Signal::SIGSTOP),
        thawed: move || signal(Signal::SIGCONT),
    };
    let request = place.request("SNAPSHOT", &[&disk]);
    let made = place.create_with(request, Arc::new(machine)).await;
    let failure = refused(made, ErrorCode::BackupFailed);
    let failed = failure.context()["backupId"].as_str().unwrap();
    assert_eq!(place.metadata(failed).await.unwrap()["disks"], json!([]));
    guest.quit().await;
    assert_eq!(snapshots(&disk), Vec::<String>::new());
}

#[test]
fn k9_a_snapshot_whose_manifest_cannot_be_written_is_taken_back() {
    kit::in_private_network(async || {
        let small = Arc::new(SmallDisk::new(64));
        let place = Place::new();
        let disk = place.disk("a.qcow2", 1);
        let guest = Guest::start(&[&disk]).await;
        let full = Arc::clone(&small);
        let machine = Disturbed {
            machine: guest.machine(),
            frozen: || (),
            thawed: move || full.fill(),
        };
        let mut request = place.request("SNAPSHOT", &[&disk]);
        request["destinationDir"] = json!(small.path().join("vm-1"));
        let made = place.create_with(request, Arc::new(machine)).await;
        refused(made, ErrorCode::BackupNoSpace);
        guest.quit().await;
        assert_eq!(snapshots(&disk), Vec::<String>::new());
        small.relieve();
        assert_eq!(place.list().await[0]["status"], json!("FAILED"));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_deleted_while_its_disks_are_no_longer_the_machine_s() {
    let place = Place::new();
    let disks = ["a", "b", "c"].map(|name| place.disk(&format!("{name}.qcow2"), 1));
    let [a, b, c] = &disks;
    let guest = Guest::start(&[a, b, c]).await;
    let backup = place.live("SNAPSHOT", &[a, b, c], None, &guest).await;
    guest.quit().await;
    fs::remove_file(&c.path).unwrap();
    let guest = Guest::start(&[a]).await;
    let over = place.path("over.qcow2");
    let overlay = json!({
        "node-name": "d0", "snapshot-file": over, "snapshot-node-name": "o0", "format": "qcow2",
    });
    guest
        .monitor
        .execute("blockdev-snapshot-sync", overlay)
        .await
        .unwrap();
    // The machine reads the first through its overlay.
    let which = BackupId::parse(&backup).unwrap();
    let deleted = place.service.delete(vm(), which.clone(), guest.machine());
    refused(deleted.await, ErrorCode::BackupVmRunning);
    assert_eq!(place.list().await.len(), 1);
    guest.quit().await;

    let guest = Guest::start(&[&place.disk("d.qcow2", 1)]).await;
    let deleted = place.service.delete(vm(), which, guest.machine());
    deleted.await.unwrap();
    guest.quit().await;
    for disk in [a, b] {
        assert_eq!(snapshots(disk), Vec::<String>::new());
    }
    assert!(place.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_a_running_machine() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 2), place.disk("b.qcow2", 2));
    let guest = Guest::start(&[&a, &b]).await;
    guest.write(0, &mut a, 0, 65_536, 1).await;
    guest.write(1, &mut b, 0, 65_536, 2).await;
    let full = place.live("FULL", &[&a, &b], None, &guest).await;
    let (was_a, was_b) = (a.holds.clone(), b.holds.clone());
    let kept = place.live("SNAPSHOT", &[&a, &b], None, &guest).await;
    let gone = place.live("SNAPSHOT", &[&a, &b], None, &guest).await;
    guest.write(0, &mut a, 0, 65_536, 3).await;
    let backup = BackupId::parse(&gone).unwrap();
    place
        .service
        .delete(vm(), backup, guest.machine())
        .await
        .unwrap();
    guest.quit().await;
    let list = disk::run("qemu-img", &["snapshot", "-l", disk::text(&a.path)]);
    assert!(list.contains(&kept) && !list.contains(&gone), "{list}");
    // The bitmap of the full one would be wrong after going back, so it goes.
    let request = json!({
        "vmId": "vm-1", "backupId": kept, "diskPaths": [a.path, b.path],
        "overwriteExisting": true, "allowInPlaceSnapshotRevert": true,
    });
    place
        .restore_with(request, Arc::new(Stopped))
        .await
        .unwrap();
    disk::assert_holds(&a.path, "qcow2", &was_a);
    disk::assert_holds(&b.path, "qcow2", &was_b);
    a.holds = was_a;
    let guest = Guest::start(&[&a, &b]).await;
    assert!(guest.bitmaps(0).await.is_empty());
    guest.write(0, &mut a, 1 << 20, 4096, 8).await;
    let next = place
        .live("INCREMENTAL", &[&a, &b], Some(&full), &guest)
        .await;
    guest.quit().await;
    let targets = [place.path("x.qcow2"), place.path("y.qcow2")];
    place.restore(&next, &targets).await.unwrap();
    disk::assert_holds(&targets[0], "qcow2", &a.holds);
    disk::assert_holds(&targets[1], "qcow2", &was_b);
}
