//! Backups of running machines that fail, are cancelled or cut short: the guest goes on, and what was there stays.

use super::guest::Guest;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f39_a_guest_is_thawed_whatever_freezing_came_to() {
    let place = Place::new();
    let disk = place.disk("a.qcow2", 1);
    let guest = Guest::start(&[&disk]).await;
    for (freezing, consistent, thaws) in [
        (Ok(Some(2)), true, 1),
        (Ok(Some(0)), false, 1),
        (Ok(None), false, 0),
        (Err("it hangs".to_owned()), false, 1),
    ] {
        let machine = Running::new(&guest.monitor, freezing.clone());
        let made = place
            .create_with(
                place.request("FULL", &[&disk]),
                Arc::<Running>::clone(&machine),
            )
            .await;
        let facts = place.metadata(&id(&made.unwrap())).await.unwrap();
        assert_eq!(facts["crashConsistent"], json!(!consistent), "{freezing:?}");
        assert_eq!(facts["runningAtBackup"], json!(true));
        assert_eq!(
            machine.thawed.load(Ordering::Acquire),
            thaws,
            "{freezing:?}"
        );
    }
    // A transaction that QEMU refuses leaves nobody frozen, and the one before usable.
    let machine = Running::new(&guest.monitor, Ok(Some(1)));
    guest.human("drive_del none").await;
    let other = place.disk("other.qcow2", 1);
    let made = place
        .create_with(place.request("FULL", &[&other]), machine)
        .await;
    refused(made, ErrorCode::BackupInvalidConfig);
    assert!(!guest.has_leftovers().await);
}

/// A machine whose backup is cancelled while its guest is frozen.
struct CancelledWhileFrozen(Arc<Running>, CancellationToken);

#[async_trait]
impl Machine for CancelledWhileFrozen {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.0.monitor()
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        self.1.cancel();
        Ok(Some(1))
    }

    async fn thaw(&self) -> Result<(), String> {
        self.0.thaw().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_cancelling_ends_the_jobs_and_keeps_the_parent_s_bitmap() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 32);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 16 << 20, 1).await;
    let full = place.live("FULL", &[&disk], None, &guest).await;
    guest.write(0, &mut disk, 0, 8 << 20, 2).await;
    let (running, cancel) = (guest.machine(), CancellationToken::new());
    let machine = Arc::new(CancelledWhileFrozen(Arc::clone(&running), cancel.clone()));
    let mut request = place.request("INCREMENTAL", &[&disk]);
    request["parentBackupId"] = json!(full);
    let request = CreateBackup::read(request).unwrap();
    let made = place.service.create(request, machine, cancel).await;
    let failure = refused(made, ErrorCode::BackupCancelled);
    assert_eq!(running.thawed.load(Ordering::Acquire), 1);
    let cancelled = failure.context()["backupId"].as_str().unwrap();
    assert_eq!(place.files(cancelled), ["backup.json"]);
    assert!(!guest.has_leftovers().await);
    assert_eq!(guest.bitmaps(0).await, [format!("infz-{full}-0")]);
    let next = place
        .live("INCREMENTAL", &[&disk], Some(&full), &guest)
        .await;
    guest.quit().await;
    place.comes_back(&next, &disk.holds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f22_what_a_dead_process_left_in_qemu_is_cleared() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 1 << 20, 1).await;
    let left = place.path("left.qcow2");
    disk::run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", disk::text(&left), "4M"],
    );
    for (command, arguments) in [
        (
            "blockdev-add",
            json!({ "driver": "qcow2", "node-name": "infz-bk-dead-0",
            "file": { "driver": "file", "filename": left } }),
        ),
        (
            "object-add",
            json!({ "qom-type": "secret", "id": "infz-bk-dead-0", "data": "forgotten" }),
        ),
        (
            "block-dirty-bitmap-add",
            json!({ "node": "d0", "persistent": true,
            "name": format!("infz-{}", BackupId::random()) }),
        ),
        (
            "blockdev-backup",
            json!({ "device": "d0", "target": "infz-bk-dead-0", "sync": "full",
            "job-id": "infz-bk-dead-0", "speed": 1, "auto-dismiss": false }),
        ),
    ] {
        guest.monitor.execute(command, arguments).await.unwrap();
    }
    assert!(guest.has_leftovers().await);
    let full = place.live("FULL", &[&disk], None, &guest).await;
    assert!(!guest.has_leftovers().await);
    assert_eq!(guest.bitmaps(0).await, [format!("infz-{full}-0")]);
    guest.quit().await;
    place.comes_back(&full, &disk.holds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f22_a_qemu_that_dies_fails_the_backup_and_keeps_the_one_before() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 1 << 20, 1).await;
    guest.io(0, "flush").await;
    let full = place.live("FULL", &[&disk], None, &guest).await;
    let machine = Arc::new(DiesWhenFrozen(guest.machine(), guest.qemu.child.id()));
    let made = place
        .create_with(place.request("FULL", &[&disk]), machine)
        .await;
    let failure = refused(made, ErrorCode::BackupFailed);
    let failed = failure.context()["backupId"].as_str().unwrap();
    assert_eq!(place.files(failed), ["backup.json"]);
    drop(guest);
    place.comes_back(&full, &disk.holds).await;
}

/// A machine whose QEMU is killed while its guest is frozen.
struct DiesWhenFrozen(Arc<Running>, u32);

#[async_trait]
impl Machine for DiesWhenFrozen {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.0.monitor()
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        let pid = nix::unistd::Pid::from_raw(self.1.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        Ok(Some(1))
    }

    async fn thaw(&self) -> Result<(), String> {
        Err("nobody is there".to_owned())
    }
}

#[test]
fn f15_a_full_disk_fails_a_live_backup_and_the_guest_goes_on() {
    kit::in_private_network(async || {
        let small = crate::kit::small_disk::SmallDisk::new(3 << 10);
        let place = Place::new();
        let mut disk = place.disk("a.qcow2", 16);
        let guest = Guest::start(&[&disk]).await;
        guest.write(0, &mut disk, 0, 8 << 20, 1).await;
        let mut request = place.request("FULL", &[&disk]);
        request["destinationDir"] = json!(small.path().join("vm-1"));
        // Refused up front, and, where the size is not known, found out on the way.
        refused(
            place.create_with(request.clone(), guest.machine()).await,
            ErrorCode::BackupNoSpace,
        );
        let full = place.live("FULL", &[&disk], None, &guest).await;
        guest.write(0, &mut disk, 0, 8 << 20, 2).await;
        request["type"] = json!("INCREMENTAL");
        request["parentBackupId"] = json!(full);
        let made = place.create_with(request, guest.machine()).await;
        let failed = refused(made, ErrorCode::BackupNoSpace);
        let folder = small
            .path()
            .join("vm-1")
            .join(failed.context()["backupId"].as_str().unwrap());
        assert_eq!(names_in(&folder), ["backup.json"]);
        assert!(!guest.has_leftovers().await);
        guest.write(0, &mut disk, 8 << 20, 65_536, 3).await;
        let next = place
            .live("INCREMENTAL", &[&disk], Some(&full), &guest)
            .await;
        guest.quit().await;
        place.comes_back(&next, &disk.holds).await;
    });
}

#[test]
fn k6_a_copy_that_is_only_compared_needs_its_space_too() {
    kit::in_private_network(async || {
        let small = crate::kit::small_disk::SmallDisk::new(4 << 10);
        let place = Place::new();
        let mut base = place.disk("base.qcow2", 16);
        base.write(0, 8 << 20, 1);
        let disk = base.overlay(&place.path("a.qcow2"));
        let full = place.full(&[&disk]).await;
        let guest = Guest::start(&[&disk]).await;
        // Nothing has changed since, and no bitmap tells.
        let mut request = place.request("INCREMENTAL", &[&disk]);
        request["parentBackupId"] = json!(full);
        request["destinationDir"] = json!(small.path().join("vm-1"));
        let made = place.create_with(request, guest.machine()).await;
        let failure = refused(made, ErrorCode::BackupNoSpace);
        assert!(failure.to_string().contains("are needed"), "{failure}");
        assert!(!guest.has_leftovers().await);
        let next = place
            .live("INCREMENTAL", &[&disk], Some(&full), &guest)
            .await;
        guest.quit().await;
        place.comes_back(&next, &disk.holds).await;
    });
}

/// The sector of a qcow2 file in which a byte of the disk is.
fn sector_of(disk: &Disk, at: u64) -> u64 {
    let told = disk::run(
        "qemu-img",
        &[
            "map",
            "--output=json",
            "-f",
            "qcow2",
            disk::text(&disk.path),
        ],
    );
    let map: Vec<Value> = serde_json::from_str(&told).unwrap();
    let number = |part: &Value, key: &str| part[key].as_u64().unwrap();
    let part = map.iter().find(|part| {
        let start = number(part, "start");
        (start..start + number(part, "length")).contains(&at)
    });
    let part = part.unwrap();
    (number(part, "offset") + at - number(part, "start")) / 512
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_a_disk_that_cannot_be_read_fails_its_backup_and_keeps_the_one_before() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 2 << 20, 1).await;
    let full = place.live("FULL", &[&disk], None, &guest).await;
    let at_full = disk.holds.clone();
    guest.quit().await;
    let bad = sector_of(&disk, 1 << 20);

    let guest = Guest::start_broken(&disk, bad).await;
    guest.write(0, &mut disk, 3 << 20, 65_536, 2).await;
    let made = place
        .create_with(place.request("FULL", &[&disk]), guest.machine())
        .await;
    let failure = refused(made, ErrorCode::BackupFailed);
    assert!(
        failure.to_string().contains("Input/output error"),
        "{failure}"
    );
    let failed = failure.context()["backupId"].as_str().unwrap();
    assert_eq!(place.files(failed), ["backup.json"]);
    assert!(!guest.has_leftovers().await);
    // What does not need the bad sector is backed up, and the guest goes on.
    guest.write(0, &mut disk, 2 << 20, 65_536, 3).await;
    let next = place
        .live("INCREMENTAL", &[&disk], Some(&full), &guest)
        .await;
    assert_eq!(guest.bitmaps(0).await, [format!("infz-{next}-0")]);
    guest.quit().await;
    place.comes_back(&full, &at_full).await;
    place.comes_back(&next, &disk.holds).await;
    disk.is_intact();
}
