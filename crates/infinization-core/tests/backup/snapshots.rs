//! SNAPSHOT backups: inside the disks themselves.

use std::time::Duration;

use infinization_core::host::file_systems::FileSystems;
use infinization_core::host::restore_note;
use infinization_core::host::state_file::{self, Durability};

use super::crashes::{begin_and_kill, content, outwait_orphans};
use super::*;
use crate::kit::small_disk::{SmallDisk, unmount};
use crate::kit::victim;

#[tokio::test]
async fn reverted_only_when_that_is_agreed_to_and_copied_otherwise() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 2), place.disk("b.qcow2", 2));
    a.write(0, 65_536, 1);
    b.write(0, 65_536, 2);
    let (was_a, was_b) = (a.holds.clone(), b.holds.clone());
    let made = place
        .create(place.request("SNAPSHOT", &[&a, &b]))
        .await
        .unwrap();
    let backup = id(&made);
    assert_eq!(
        made["disks"][0]["backupPath"],
        json!(format!("backup-{backup}"))
    );
    assert_eq!(made["totalSize"], json!(0));
    a.write(0, 65_536, 3);
    b.write(0, 65_536, 4);

    let elsewhere = [place.path("x.qcow2"), place.path("y.qcow2")];
    place.restore(&backup, &elsewhere).await.unwrap();
    disk::assert_holds(&elsewhere[0], "qcow2", &was_a);
    disk::assert_holds(&elsewhere[1], "qcow2", &was_b);
    a.is_intact();

    let in_place = [a.path.clone(), b.path.clone()];
    let refusal = place.restore(&backup, &in_place).await;
    refused(refusal, ErrorCode::BackupInvalidConfig);
    a.is_intact();
    let agreed = agreed(&backup, &[&a, &b]);
    place.restore_with(agreed, Arc::new(Stopped)).await.unwrap();
    disk::assert_holds(&a.path, "qcow2", &was_a);
    disk::assert_holds(&b.path, "qcow2", &was_b);
    place.delete(&backup).await.unwrap();
    let list = disk::run("qemu-img", &["snapshot", "-l", disk::text(&a.path)]);
    assert!(!list.contains("backup-"), "{list}");
}

#[tokio::test]
async fn made_in_every_disk_or_in_none() {
    let place = Place::new();
    let a = place.disk("a.qcow2", 1);
    let b = Disk::raw(&place.path("b.qcow2"), 1);
    let mut request = place.request("SNAPSHOT", &[&a, &b]);
    request["diskFormats"] = Value::Null;
    assert!(place.create(request).await.is_err());
    let list = disk::run("qemu-img", &["snapshot", "-l", disk::text(&a.path)]);
    assert!(!list.contains("backup-"), "{list}");
}

#[tokio::test]
async fn k9_a_snapshot_that_cannot_be_deleted_keeps_the_backup() {
    let place = Place::new();
    let a = place.disk("a.qcow2", 1);
    let backup = id(&place
        .create(place.request("SNAPSHOT", &[&a]))
        .await
        .unwrap());
    let qemu = kit::qmp::Qemu::start(&[
        "-blockdev",
        &format!(
            "driver=qcow2,node-name=d0,file.driver=file,file.filename={}",
            disk::text(&a.path)
        ),
        "-device",
        "virtio-blk-pci,drive=d0",
    ]);
    let _connected = qemu.connect().await;
    refused(place.delete(&backup).await, ErrorCode::BackupVmRunning);
    assert_eq!(place.list().await.len(), 1);
    drop(qemu);
    place.delete(&backup).await.unwrap();
}

#[tokio::test]
async fn k3_all_disks_go_back_or_none() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 1), place.disk("b.qcow2", 1));
    let backup = id(&place
        .create(place.request("SNAPSHOT", &[&a, &b]))
        .await
        .unwrap());
    a.write(0, 65_536, 3);
    b.write(0, 65_536, 4);
    // The second disk's snapshot is there, and cannot be gone back to: its tables are damaged.
    let name = format!("backup-{backup}");
    disk::damage_snapshot(&b.path);
    let request = agreed(&backup, &[&a, &b]);
    assert!(
        place
            .restore_with(request, Arc::new(Stopped))
            .await
            .is_err()
    );
    a.is_intact();
    let list = disk::run("qemu-img", &["snapshot", "-l", disk::text(&a.path)]);
    assert!(list.contains(&name) && !list.contains("undo-"), "{list}");
}

#[test]
fn f15_a_restore_that_is_done_is_told_so_though_that_cannot_be_noted() {
    kit::in_private_network(async || {
        let small = SmallDisk::new(256);
        let place = Place::with_root(|_| small.path().join("backups"));
        let (mut a, mut b) = (place.disk("a.qcow2", 1), place.disk("b.qcow2", 1));
        let request = place.request("SNAPSHOT", &[&a, &b]);
        let backup = id(&place.create(request).await.unwrap());
        a.write(0, 65_536, 3);
        b.write(0, 65_536, 4);
        let journal = small.path().join("backups/vm-1/revert.json");
        let fills_up = async {
            while !journal.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            small.fill();
        };
        let restore = place.restore_with(agreed(&backup, &[&a, &b]), Arc::new(Stopped));
        let (restored, ()) = tokio::join!(restore, fills_up);
        restored.unwrap();
        small.relieve();
        assert!(!journal.exists());
        // Nobody undoes it.
        let other = place.disk("other.qcow2", 1);
        place.full(&[&other]).await;
        for disk in [&mut a, &mut b] {
            disk.holds.fill(0);
            disk.is_intact();
            let list = disk::run("qemu-img", &["snapshot", "-l", disk::text(&disk.path)]);
            assert!(!list.contains("undo-"), "{list}");
        }
    });
}

/// Killed ever later: whoever comes next finds both disks as they were, or both as they are in the snapshot.
#[tokio::test]
async fn k3_f22_a_killed_revert_puts_all_disks_back_or_none() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 4), place.disk("b.qcow2", 4));
    a.write(0, 1 << 20, 1);
    b.write(0, 1 << 20, 2);
    let new = [a.holds.clone(), b.holds.clone()];
    let request = place.request("SNAPSHOT", &[&a, &b]);
    let backup = id(&place.create(request).await.unwrap());
    let request = agreed(&backup, &[&a, &b]);
    let journal = place.root().join("vm-1").join("revert.json");
    let mut outcomes = [0, 0];
    for round in 0.. {
        a.write(0, 1 << 20, 3);
        b.write(0, 1 << 20, 4);
        let delay = victim::delay(Duration::from_millis(3), round);
        let killed = begin_and_kill(&place, &request, || {
            let begun = journal.exists();
            begun.then(|| std::thread::sleep(delay)).is_some()
        });
        outwait_orphans(&place);
        if (content(&a.path) == new[0]) != (content(&b.path) == new[1]) {
            for disk in [&a, &b] {
                let note = restore_note::find(&path(&disk.path)).unwrap();
                assert_eq!(note, Some(path(&journal)), "round {round}: it may be used");
            }
        }
        // Any verb that changes the machine's backups clears up first.
        let small = place.disk("small.qcow2", 1);
        place.full(&[&small]).await;
        fs::remove_file(&small.path).unwrap();
        let is_new = content(&a.path) == new[0];
        disk::assert_holds(&b.path, "qcow2", if is_new { &new[1] } else { &b.holds });
        disk::assert_holds(&a.path, "qcow2", if is_new { &new[0] } else { &a.holds });
        assert!(killed || is_new, "round {round}");
        assert!(!journal.exists());
        for disk in [&a, &b] {
            let list = disk::run("qemu-img", &["snapshot", "-l", disk::text(&disk.path)]);
            assert!(!list.contains("undo-"), "round {round}: {list}");
            assert_eq!(restore_note::find(&path(&disk.path)).unwrap(), None);
        }
        outcomes[usize::from(is_new)] += 1;
        if !killed {
            break;
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

fn agreed(backup: &str, disks: &[&Disk]) -> Value {
    let paths: Vec<_> = disks.iter().map(|disk| &disk.path).collect();
    json!({
        "vmId": "vm-1", "backupId": backup, "diskPaths": paths,
        "overwriteExisting": true, "allowInPlaceSnapshotRevert": true,
    })
}

const UNDO: &str = "undo-3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b";

/// What a process leaves that died when the first of the disks had gone back; what they were, the disks hold on.
async fn cut_short(place: &Place, disks: &mut [Disk; 2]) -> PathBuf {
    let request = place.request("SNAPSHOT", &[&disks[0], &disks[1]]);
    let to = format!("backup-{}", id(&place.create(request).await.unwrap()));
    let snapshot = |option: &str, name: &str, disk: &Disk| {
        let disk = disk::text(&disk.path);
        disk::run("qemu-img", &["snapshot", option, name, disk]);
    };
    for disk in &mut *disks {
        disk.write(0, 1 << 20, 3);
        snapshot("-c", UNDO, disk);
    }
    snapshot("-a", &to, &disks[0]);
    let journal = place.root().join("vm-1").join("revert.json");
    let paths = [&disks[0].path, &disks[1].path];
    let files = paths.map(|path| HostPath::parse(disk::text(path)).unwrap());
    let file_systems = FileSystems::of(&files).unwrap();
    let text = json!({
        "undo": true, "before": UNDO, "to": to, "disks": paths,
        "file_systems": file_systems,
    });
    let text = text.to_string();
    state_file::write(&journal, text.as_bytes(), Durability::HostCrash).unwrap();
    journal
}

fn has_way_back(disk: &Disk) -> bool {
    disk::run("qemu-img", &["snapshot", "-l", disk::text(&disk.path)]).contains(UNDO)
}

/// A process that died between the disks, and a machine that ran on what it left.
#[tokio::test]
async fn k3_f22_what_a_machine_wrote_after_a_killed_revert_is_kept() {
    for (used, of) in [(false, 0), (true, 0), (true, 1)] {
        let place = Place::new();
        let mut disks = [place.disk("a.qcow2", 2), place.disk("b.qcow2", 2)];
        let journal = cut_short(&place, &mut disks).await;
        if used {
            disks[0].holds.fill(0);
            disks[of].write(1 << 20, 512, 9);
        }
        let small = place.disk("small.qcow2", 1);
        place.full(&[&small]).await;
        assert!(!journal.exists());
        for disk in &disks {
            disk.is_intact();
            assert_eq!(has_way_back(disk), used, "of what was used, it stays");
        }
    }
}

/// A disk that is not there need not have been removed.
#[test]
fn k3_f22_a_killed_revert_is_undone_when_its_disks_are_mounted_again() {
    kit::in_private_network(async || {
        let small = SmallDisk::new(8 << 10);
        let place = Place::new();
        let away = place.path("mounted");
        fs::create_dir(&away).unwrap();
        small.mount_on(&away);
        let mut disks = [place.disk("a.qcow2", 2), place.disk("mounted/b.qcow2", 2)];
        let other = place.disk("other.qcow2", 1);
        let snapshot = place.create(place.request("SNAPSHOT", &[&other])).await;
        let snapshot = id(&snapshot.unwrap());
        let journal = cut_short(&place, &mut disks).await;
        let text = fs::read(&journal).unwrap();

        unmount(&away);
        place.full(&[&other]).await;
        assert!(journal.exists() && has_way_back(&disks[0]));
        // As long, nobody has to do with any of them.
        let made = place.create(place.request("FULL", &[&disks[0]])).await;
        let refusal = refused(made, ErrorCode::BackupFailed);
        assert_eq!(refusal.context()["journal"], json!(journal));
        assert!(refusal.to_string().contains("not mounted"), "{refusal}");
        let backup = place.list().await[1]["id"].as_str().unwrap().to_owned();
        refused(place.delete(&backup).await, ErrorCode::BackupFailed);
        // Nor does another take its place.
        let request = agreed(&snapshot, &[&other]);
        let restored = place.restore_with(request, Arc::new(Stopped)).await;
        refused(restored, ErrorCode::BackupFailed);
        assert_eq!(fs::read(&journal).unwrap(), text);
        small.mount_on(&away);
        place.full(&[&other]).await;
        assert!(!journal.exists());
        for disk in &disks {
            disk.is_intact();
            assert!(!has_way_back(disk));
        }

        // One that was removed is not waited for.
        let journal = cut_short(&place, &mut disks).await;
        fs::remove_file(&disks[1].path).unwrap();
        place.full(&[&other]).await;
        assert!(!journal.exists() && has_way_back(&disks[0]));
        unmount(&away);
    });
}
