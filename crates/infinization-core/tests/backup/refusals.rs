//! What is refused, and that a refusal touches nothing.

use std::os::unix::fs::symlink;

use sha2::{Digest as _, Sha256};

use super::*;

#[tokio::test]
async fn a_machine_that_runs_or_may_run_is_left_alone() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    disk.write(0, 65_536, 1);
    let backup = place.full(&[&disk]).await;
    for state in [None, Some(true)] {
        let machine = || Arc::new(Says(state));
        let made = place
            .create_with(place.request("FULL", &[&disk]), machine())
            .await;
        refused(made, ErrorCode::BackupVmRunning);
        let request = json!({
            "vmId": "vm-1", "backupId": backup, "diskPaths": [disk.path], "overwriteExisting": true,
        });
        let restored = place.restore_with(request, machine()).await;
        refused(restored, ErrorCode::BackupVmRunning);
    }
    assert_eq!(place.list().await.len(), 1);
    disk.is_intact();
}

#[tokio::test]
async fn f21_a_disk_that_somebody_writes_to_is_not_copied_whatever_the_probe_says() {
    let place = Place::new();
    let disk = place.disk("a.qcow2", 1);
    let backup = place.full(&[&disk]).await;
    let qemu = kit::qmp::Qemu::start(&[
        "-blockdev",
        &format!(
            "driver=qcow2,node-name=d0,file.driver=file,file.filename={}",
            disk::text(&disk.path)
        ),
        "-device",
        "virtio-blk-pci,drive=d0",
    ]);
    let _connected = qemu.connect().await;
    for kind in ["FULL", "SNAPSHOT"] {
        let made = place.create(place.request(kind, &[&disk])).await;
        refused(made, ErrorCode::BackupVmRunning);
    }
    let restored = place
        .restore(&backup, std::slice::from_ref(&disk.path))
        .await;
    refused(restored, ErrorCode::BackupVmRunning);
}

#[tokio::test]
async fn disks_and_destinations_that_are_none() {
    let place = Place::new();
    let disk = place.disk("a.qcow2", 1);
    let change = |key: &str, value: Value| {
        let mut request = place.request("FULL", &[&disk]);
        request[key] = value;
        request
    };
    fs::create_dir(place.path("real")).unwrap();
    symlink(place.path("real"), place.path("link")).unwrap();
    fs::write(place.path("file"), "no image").unwrap();
    for (request, code) in [
        (
            change("diskPaths", json!([place.path("none")])),
            ErrorCode::DiskNotFound,
        ),
        (
            change("diskPaths", json!([place.path("file")])),
            ErrorCode::BackupInvalidConfig,
        ),
        (
            change("destinationDir", json!(place.path("link"))),
            ErrorCode::InvalidDestination,
        ),
        (
            change("destinationDir", json!(place.path("file"))),
            ErrorCode::InvalidDestination,
        ),
    ] {
        refused(place.create(request).await, code);
    }
    assert!(place.list().await.is_empty());
    assert!(names_in(&place.path("real")).is_empty());
}

#[tokio::test]
async fn k4_a_symbolic_link_is_no_backup_and_what_it_leads_to_is_safe() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    disk.write(0, 65_536, 1);
    let full = place.full(&[&disk]).await;
    let machine = place.root().join("vm-1");
    // One that is whole, and one that looks unfinished.
    let planted = [BackupId::random(), BackupId::random()];
    for (n, id) in planted.iter().enumerate() {
        let victim = place.path(&format!("victim-{n}"));
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("disk-0.qcow2"), "precious").unwrap();
        if n == 0 {
            let manifest = fs::read_to_string(machine.join(&full).join("backup.json")).unwrap();
            let manifest = manifest.replace(&full, id.as_str());
            fs::write(victim.join("backup.json"), manifest).unwrap();
        }
        symlink(&victim, machine.join(id.as_str())).unwrap();
    }
    place.incremental(&[&disk], &full).await;
    assert_eq!(place.list().await.len(), 2);
    for (n, id) in planted.iter().enumerate() {
        refused(place.delete(id.as_str()).await, ErrorCode::BackupNotFound);
        refused(place.metadata(id.as_str()).await, ErrorCode::BackupNotFound);
        let victim = place.path(&format!("victim-{n}"));
        assert_eq!(fs::read(victim.join("disk-0.qcow2")).unwrap(), b"precious");
    }

    // A disk that is a link is not read, not even where it leads to the right bytes.
    let (file, aside) = (
        machine.join(&full).join("disk-0.qcow2"),
        place.path("aside"),
    );
    fs::rename(&file, &aside).unwrap();
    symlink(&aside, &file).unwrap();
    assert!(!place.is_valid(&full).await);
    let target = place.path("x.qcow2");
    let restored = place.restore(&full, std::slice::from_ref(&target)).await;
    refused(restored, ErrorCode::CorruptBackup);
    assert!(!target.exists());
}

#[tokio::test]
async fn b8_a_raw_disk_that_looks_like_qcow2_is_copied_as_raw() {
    let place = Place::new();
    let secret = Disk::raw(&place.path("secret"), 1);
    let forged = Disk::raw(&place.path("forged"), 1);
    let inner = secret.overlay(&place.path("inner.qcow2"));
    let header = fs::read(&inner.path).unwrap();
    let mut bytes = forged.holds.clone();
    bytes[..header.len().min(1 << 20)].copy_from_slice(&header[..header.len().min(1 << 20)]);
    fs::write(&forged.path, &bytes).unwrap();
    let backup = place.full(&[&forged]).await;
    let target = place.path("x.img");
    place
        .restore(&backup, std::slice::from_ref(&target))
        .await
        .unwrap();
    assert_eq!(fs::read(&target).unwrap(), bytes);
}

#[tokio::test]
async fn k3_only_its_own_machine_gets_a_backup_and_no_target_is_replaced_unasked() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    let backup = place.full(&[&disk]).await;
    disk.write(0, 65_536, 7);
    let request = |change: fn(&mut Value)| {
        let mut request = json!({
            "vmId": "vm-1", "backupId": backup, "diskPaths": [disk.path.clone()], "overwriteExisting": true,
        });
        change(&mut request);
        request
    };
    for (request, code) in [
        (
            request(|it| it["vmId"] = json!("vm-2")),
            ErrorCode::BackupNotFound,
        ),
        (
            request(|it| it["overwriteExisting"] = json!(false)),
            ErrorCode::TargetExists,
        ),
        (
            request(|it| it["diskPaths"] = json!(["/a", "/b"])),
            ErrorCode::BackupInvalidConfig,
        ),
        (
            request(|it| it["diskPaths"] = json!(["/none/such/x"])),
            ErrorCode::BackupInvalidConfig,
        ),
    ] {
        refused(place.restore_with(request, Arc::new(Stopped)).await, code);
    }
    let own = place.root().join("vm-1").join(&backup).join("disk-0.qcow2");
    refused(
        place.restore(&backup, &[own]).await,
        ErrorCode::BackupInvalidConfig,
    );
    disk.is_intact();
    assert!(place.is_valid(&backup).await);
}

#[tokio::test]
async fn k6_a_damaged_file_is_told_and_nothing_is_restored() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 2);
    disk.write(0, 1 << 20, 1);
    let full = place.full(&[&disk]).await;
    disk.write(0, 65_536, 2);
    let next = place.incremental(&[&disk], &full).await;
    let file = place.root().join("vm-1").join(&full).join("disk-0.qcow2");
    let whole = fs::read(&file).unwrap();
    let mut damages = vec![whole[..whole.len() - 1].to_vec(), Vec::new()];
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    damages.push(flipped);
    for damaged in damages {
        fs::write(&file, damaged).unwrap();
        for backup in [&full, &next] {
            let restored = place
                .restore(backup, std::slice::from_ref(&disk.path))
                .await;
            refused(restored, ErrorCode::CorruptBackup);
            assert!(!place.is_valid(backup).await);
        }
    }
    fs::remove_file(&file).unwrap();
    assert!(!place.is_valid(&next).await);
    disk.is_intact();
    fs::write(&file, whole).unwrap();
    place.comes_back(&next, &disk.holds).await;
    // A manifest that is torn is told, and can be deleted all the same.
    let manifest = place.root().join("vm-1").join(&next).join("backup.json");
    fs::write(&manifest, "{").unwrap();
    refused(place.metadata(&next).await, ErrorCode::CorruptBackup);
    place.delete(&next).await.unwrap();
    assert_eq!(place.list().await.len(), 1);
}

/// Which had one checksum over the whole file.
#[tokio::test]
async fn k6_a_backup_of_an_older_release_is_verified_as_it_was_summed() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 8);
    disk.write(0, 6 << 20, 1);
    let full = place.full(&[&disk]).await;
    let folder = place.root().join("vm-1").join(&full);
    let (file, manifest) = (folder.join("disk-0.qcow2"), folder.join("backup.json"));
    let bytes = fs::read(&file).unwrap();
    let sum = hexadecimal(&Sha256::digest(&bytes));
    let mut told: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let record = told["disks"][0].as_object_mut().unwrap();
    record.remove("blake3").unwrap();
    record.insert("sha256".to_owned(), json!(sum));
    fs::write(&manifest, told.to_string()).unwrap();
    assert!(place.is_valid(&full).await);
    place.comes_back(&full, &disk.holds).await;
    let next = place.incremental(&[&disk], &full).await;
    assert!(place.is_valid(&next).await);
    let mut flipped = bytes;
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&file, flipped).unwrap();
    assert!(!place.is_valid(&full).await && !place.is_valid(&next).await);
}

/// A machine that is started while its disks are being restored.
struct StartsSoon(AtomicUsize);

#[async_trait]
impl Machine for StartsSoon {
    async fn is_running(&self) -> Option<bool> {
        Some(self.0.fetch_add(1, Ordering::AcqRel) > 0)
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

#[tokio::test]
async fn k3_a_machine_that_starts_during_its_restore_keeps_its_disks() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    let backup = place.full(&[&disk]).await;
    disk.write(0, 65_536, 7);
    let request = json!({
        "vmId": "vm-1", "backupId": backup, "diskPaths": [disk.path], "overwriteExisting": true,
    });
    let machine = Arc::new(StartsSoon(AtomicUsize::new(0)));
    let restored = place.restore_with(request, machine).await;
    refused(restored, ErrorCode::BackupVmRunning);
    disk.is_intact();
    assert_eq!(names_in(place.dir.path()), ["a.qcow2", "backups"]);
}

/// A machine that does not run, and who its frozen layers are, if anybody can say.
struct Snapshotted(Result<Vec<HostPath>, String>);

#[async_trait]
impl Machine for Snapshotted {
    async fn is_running(&self) -> Option<bool> {
        Some(false)
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

    async fn frozen_layers(&self) -> Result<Vec<HostPath>, String> {
        self.0.clone()
    }
}

#[tokio::test]
async fn a_layer_that_others_lie_on_is_neither_replaced_nor_copied() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    let backup = place.full(&[&disk]).await;
    disk.write(0, 65_536, 7);
    // By another name it is the same file.
    let other = place.path("other.qcow2");
    fs::hard_link(&disk.path, &other).unwrap();
    let frozen = || Arc::new(Snapshotted(Ok(vec![path(&other)])));
    let unknown = || Arc::new(Snapshotted(Err("nobody knows".to_owned())));
    let request = || {
        json!({
            "vmId": "vm-1", "backupId": backup, "diskPaths": [disk.path], "overwriteExisting": true,
        })
    };
    let restored = place.restore_with(request(), frozen()).await;
    let failure = refused(restored, ErrorCode::BackupInvalidConfig);
    assert_eq!(failure.context()["diskPath"], json!(disk.path));
    let restored = place.restore_with(request(), unknown()).await;
    refused(restored, ErrorCode::BackupFailed);
    let full = || place.request("FULL", &[&disk]);
    let made = place.create_with(full(), frozen()).await;
    refused(made, ErrorCode::BackupInvalidConfig);
    let made = place.create_with(full(), unknown()).await;
    refused(made, ErrorCode::BackupFailed);
    disk.is_intact();
    assert_eq!(place.list().await.len(), 1);
}
