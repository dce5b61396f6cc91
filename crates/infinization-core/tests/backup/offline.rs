//! Full backups of stopped machines.

use infinization_core::backup::Told;
use infinization_core::host::qemu_img::ensure_unused_now;

use super::*;
use crate::kit::ailing_disk::AilingDisk;

#[tokio::test]
async fn every_compression_comes_back_bit_by_bit() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    disk.write(0, 1 << 20, 7);
    disk.write(3 << 20, 12_345, 9);
    for (compression, file) in [
        ("NONE", "disk-0.qcow2"),
        ("QCOW2", "disk-0.qcow2"),
        ("ZSTD", "disk-0.qcow2"),
        ("GZIP", "disk-0.qcow2.gz"),
    ] {
        let mut request = place.request("FULL", &[&disk]);
        request["compression"] = json!(compression);
        request["description"] = json!("by hand");
        request["tags"] = json!(["a", "b"]);
        let made = place.create(request).await.unwrap();
        let backup = id(&made);
        assert_eq!(place.files(&backup), ["backup.json", file], "{compression}");
        let facts = place.metadata(&backup).await.unwrap();
        let on_disk = place.root().join("vm-1").join(&backup).join(file);
        let size = fs::metadata(&on_disk).unwrap().len();
        assert_eq!(facts["disks"][0]["backupPath"], json!(on_disk));
        assert_eq!(facts["disks"][0]["backupSize"], json!(size));
        assert_eq!(
            [
                &facts["totalSize"],
                &made["totalSize"],
                &facts["totalOriginalSize"]
            ],
            [&json!(size), &json!(size), &json!(4 << 20)]
        );
        assert_eq!(facts["status"], json!("COMPLETED"));
        assert_eq!(facts["tags"], json!(["a", "b"]));
        assert_eq!(facts["runningAtBackup"], json!(false));
        assert!(place.is_valid(&backup).await);
        place.comes_back(&backup, &disk.holds).await;
    }
    disk.is_intact();
    let dates: Vec<_> = place
        .list()
        .await
        .iter()
        .map(|one| one["createdAt"].to_string())
        .collect();
    assert_eq!(dates.len(), 4);
    assert!(dates.is_sorted_by(|a, b| a >= b), "newest first: {dates:?}");
}

/// A machine that ran between two copies would have changed the second disk only.
#[tokio::test]
async fn k1_no_disk_can_be_written_to_before_it_is_copied() {
    let place = Place::new();
    let disks = [place.disk("a.qcow2", 2), place.disk("b.qcow2", 2)];
    let paths = disks.each_ref().map(|disk| path(&disk.path));
    let refused: Arc<Mutex<Vec<_>>> = Arc::default();
    let seen = Arc::clone(&refused);
    let audience = Arc::new(move |told| {
        if let Told::Progress(progress) = told {
            let held = paths
                .each_ref()
                .map(|disk| ensure_unused_now(disk).is_err());
            seen.lock().unwrap().push((progress.overall_progress, held));
        }
    });
    let service = BackupService::new(path(&place.root()), audience);
    for kind in ["FULL", "INCREMENTAL"] {
        let mut request = place.request(kind, &[&disks[0], &disks[1]]);
        if kind == "INCREMENTAL" {
            request["parentBackupId"] = json!(place.full(&[&disks[0], &disks[1]]).await);
        }
        let request = CreateBackup::read(request).unwrap();
        let made = service.create(request, Arc::new(Stopped), CancellationToken::new());
        made.await.unwrap();
        let refused = std::mem::take(&mut *refused.lock().unwrap());
        assert_eq!(refused.first(), Some(&(0.0, [true, true])), "{kind}");
        assert!(
            refused.contains(&(50.0, [false, true])),
            "{kind}: {refused:?}"
        );
        assert_eq!(refused.last(), Some(&(100.0, [false, false])), "{kind}");
    }
}

#[tokio::test]
async fn all_disks_of_all_formats_and_what_backs_them() {
    let place = Place::new();
    let mut base = place.disk("base.qcow2", 4);
    base.write(0, 1 << 20, 1);
    let mut over = base.overlay(&place.path("over.qcow2"));
    over.write(512 << 10, 1 << 20, 2);
    let mut raw = Disk::raw(&place.path("raw.img"), 2);
    raw.write(4096, 8192, 3);
    let backup = place.full(&[&over, &raw]).await;
    let targets = [place.path("x.qcow2"), place.path("y.img")];
    place.restore(&backup, &targets).await.unwrap();
    disk::assert_holds(&targets[0], "qcow2", &over.holds);
    disk::assert_holds(&targets[1], "raw", &raw.holds);
    // Nothing of it needs the template any more.
    let info = disk::run("qemu-img", &["info", disk::text(&targets[0])]);
    assert!(!info.contains("backing file"), "{info}");
}

#[tokio::test]
async fn progress_goes_up_to_the_end_and_the_end_is_told() {
    let place = Place::new();
    let (mut a, b) = (place.disk("a.qcow2", 24), place.disk("b.qcow2", 8));
    a.write(0, 8 << 20, 1);
    let backup = place.full(&[&a, &b]).await;
    let told = std::mem::take(&mut *place.told.lock().unwrap());
    let mut last = 0.0;
    let mut disks = Vec::new();
    for told in &told {
        if let Told::Progress(progress) = told {
            assert!(
                progress.overall_progress >= last,
                "{progress:?} after {last}"
            );
            last = progress.overall_progress;
            disks.push(progress.current_disk);
            assert_eq!(
                (progress.total_disks, progress.backup_id.as_str()),
                (2, backup.as_str())
            );
        }
    }
    assert!(disks.is_sorted() && disks.contains(&0) && disks.contains(&1));
    assert!((last - 100.0).abs() < f64::EPSILON, "{last}");
    let completed = told.iter().filter_map(|told| match told {
        Told::Completed(metadata) => Some(metadata),
        _ => None,
    });
    let completed: Vec<_> = completed.collect();
    assert_eq!(completed.len(), 1);
    assert_eq!(completed[0]["id"], json!(backup));
}

#[tokio::test]
async fn k7_what_is_elsewhere_is_found_and_the_tree_may_move() {
    let mut place = Place::new();
    let mut disk = place.disk("a.qcow2", 2);
    disk.write(0, 65_536, 5);
    let mut ids = Vec::new();
    for destination in [
        place.root().join("vm-1"),
        place.root(),
        place.root().join("deep/er"),
        place.path("another/place"),
    ] {
        let mut request = place.request("FULL", &[&disk]);
        request["destinationDir"] = json!(destination);
        ids.push(id(&place.create(request).await.unwrap()));
        assert!(
            destination
                .join(ids.last().unwrap())
                .join("disk-0.qcow2")
                .exists()
        );
    }
    let mut request = place.request("INCREMENTAL", &[&disk]);
    request["parentBackupId"] = json!(ids[3]);
    disk.write(0, 65_536, 6);
    ids.push(id(&place.create(request).await.unwrap()));
    assert_eq!(place.list().await.len(), 5);
    place.comes_back(&ids[4], &disk.holds).await;
    disk.write(0, 65_536, 5);
    // The root moves; what is outside stays.
    let moved = place.path("moved");
    fs::rename(place.root(), &moved).unwrap();
    place.service = BackupService::new(path(&moved), Arc::new(|_| ()));
    for backup in &ids[..4] {
        place.comes_back(backup, &disk.holds).await;
    }
    for backup in ids.iter().rev() {
        place.delete(backup).await.unwrap();
    }
    assert_eq!(names_in(&moved.join("vm-1")), ["lock"]);
    assert!(names_in(&place.path("another/place")).is_empty());
}

#[tokio::test]
async fn a_restore_replaces_all_disks_and_keeps_owner_and_mode() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 2), place.disk("b.qcow2", 2));
    a.write(0, 65_536, 1);
    b.write(0, 65_536, 2);
    let (was_a, was_b) = (a.holds.clone(), b.holds.clone());
    let backup = place.full(&[&a, &b]).await;
    a.write(0, 65_536, 3);
    b.write(0, 65_536, 4);
    fs::set_permissions(&a.path, fs::Permissions::from_mode(0o660)).unwrap();
    std::os::unix::fs::chown(&a.path, Some(65_534), Some(65_534)).unwrap();
    place
        .restore(&backup, &[a.path.clone(), b.path.clone()])
        .await
        .unwrap();
    disk::assert_holds(&a.path, "qcow2", &was_a);
    disk::assert_holds(&b.path, "qcow2", &was_b);
    let found = fs::metadata(&a.path).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (65_534, 0o660));
    assert_eq!(
        names_in(place.dir.path()),
        ["a.qcow2", "b.qcow2", "backups"]
    );
}

#[tokio::test]
async fn k8_one_whose_process_died_is_not_shown_in_progress() {
    let place = Place::new();
    let disk = place.disk("a.qcow2", 1);
    let full = place.full(&[&disk]).await;
    let manifest = place.root().join("vm-1").join(&full).join("backup.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("COMPLETED", "IN_PROGRESS")).unwrap();
    let shown = place.metadata(&full).await.unwrap();
    assert_eq!(shown["status"], json!("FAILED"));
    assert_eq!(place.files(&full), ["backup.json"]);
}

#[test]
fn f16_storage_that_gives_errors_fails_a_backup_and_keeps_those_before_it() {
    kit::in_private_network(async || {
        let ailing = AilingDisk::new();
        let place = Place::new();
        let mut disk = Disk::qcow2(&ailing.path().join("a.qcow2"), 8);
        let mut well = place.disk("b.qcow2", 4);
        disk.write(0, 6 << 20, 1);
        well.write(0, 2 << 20, 2);
        let full = place.full(&[&disk]).await;
        // An untouched disk would not be read again.
        let same = fs::metadata(&disk.path).unwrap().permissions();
        fs::set_permissions(&disk.path, same).unwrap();
        ailing.forget("a.qcow2", 1 << 20);
        ailing.fail();

        for parent in [None, Some(&full)] {
            let kind = if parent.is_some() {
                "INCREMENTAL"
            } else {
                "FULL"
            };
            let mut request = place.request(kind, &[&disk]);
            request["parentBackupId"] = json!(parent);
            let failed = gave_an_error(place.create(request).await);
            let failed = failed.context()["backupId"].as_str().unwrap();
            assert_eq!(place.files(failed), ["backup.json"], "{kind}");
        }
        let known = place.list().await;
        let mut request = place.request("FULL", &[&well]);
        request["destinationDir"] = json!(ailing.path().join("vm-1"));
        gave_an_error(place.create(request).await);
        assert_eq!(place.list().await, known);
        // Elsewhere they are made all the same.
        let elsewhere = place.full(&[&well]).await;
        place.comes_back(&elsewhere, &well.holds).await;
        place.comes_back(&full, &disk.holds).await;
        well.is_intact();
    });
}

#[track_caller]
fn gave_an_error(outcome: Result<Value, Failure>) -> Failure {
    let failure = refused(outcome, ErrorCode::BackupFailed);
    // qemu-img's words where it compares have no more.
    let words = ["Input/output error", "error while reading"];
    let told = failure.to_string();
    assert!(words.iter().any(|words| told.contains(words)), "{told}");
    failure
}
