//! SNAPSHOT backups: inside the disks themselves.

use super::*;

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
    let agreed = json!({
        "vmId": "vm-1", "backupId": backup, "diskPaths": in_place,
        "overwriteExisting": true, "allowInPlaceSnapshotRevert": true,
    });
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
    let qemu = qmp_kit::Qemu::start(&[
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
    let request = json!({
        "vmId": "vm-1", "backupId": backup, "diskPaths": [a.path, b.path],
        "overwriteExisting": true, "allowInPlaceSnapshotRevert": true,
    });
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
