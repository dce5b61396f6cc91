//! Limits: how many at a time, cancellation, a full disk.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::*;
use crate::kit::small_disk::SmallDisk;

/// A stopped machine, and what is done when somebody asks whether it runs.
struct WhenAsked<F>(F);

#[async_trait]
impl<F, Done> Machine for WhenAsked<F>
where
    F: Fn() -> Done + Send + Sync,
    Done: Future<Output = ()> + Send,
{
    async fn is_running(&self) -> Option<bool> {
        (self.0)().await;
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
}

/// Counts how many machines are asked at a time, and keeps the first until there are two.
#[derive(Default)]
struct Counting {
    now: AtomicUsize,
    most: watch::Sender<usize>,
}

impl Counting {
    async fn asked(&self) {
        let now = self.now.fetch_add(1, Ordering::AcqRel) + 1;
        self.most.send_modify(|most| *most = now.max(*most));
        // Other tests make backups as well: until they have, there is room for one alone.
        let mut seen = self.most.subscribe();
        let two = timeout(Duration::from_secs(120), async {
            drop(seen.wait_for(|most| *most >= 2).await.unwrap());
        });
        two.await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.now.fetch_sub(1, Ordering::AcqRel);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_no_more_than_two_at_a_time_and_all_in_the_end() {
    let place = Place::new();
    let counting = Arc::new(Counting::default());
    let mut running = Vec::new();
    for n in 0..6 {
        let disk = place.disk(&format!("{n}.qcow2"), 1);
        let mut request = place.request("FULL", &[&disk]);
        request["vmId"] = json!(format!("vm-{}", n % 5));
        request["destinationDir"] = json!(place.root());
        let request = CreateBackup::read(request).unwrap();
        let (service, counting) = (place.service.clone(), Arc::clone(&counting));
        let machine = Arc::new(WhenAsked(move || {
            let counting = Arc::clone(&counting);
            async move { counting.asked().await }
        }));
        running.push(tokio::spawn(async move {
            service
                .create(request, machine, CancellationToken::new())
                .await
        }));
    }
    for one in running {
        one.await.unwrap().unwrap();
    }
    assert_eq!(*counting.most.borrow(), 2);
}

/// A machine that cancels whoever asks it.
fn cancels(cancel: &CancellationToken) -> Arc<dyn Machine> {
    let cancel = cancel.clone();
    Arc::new(WhenAsked(move || {
        cancel.cancel();
        std::future::ready(())
    }))
}

#[tokio::test]
async fn k8_a_cancelled_backup_or_restore_leaves_nothing() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 8);
    disk.write(0, 8 << 20, 1);
    let backup = place.full(&[&disk]).await;
    let cancel = CancellationToken::new();
    let machine = cancels(&cancel);
    let request = CreateBackup::read(place.request("FULL", &[&disk])).unwrap();
    let made = place.service.create(request, machine, cancel).await;
    let failure = refused(made, ErrorCode::BackupCancelled);
    let cancelled = failure.context()["backupId"].as_str().unwrap().to_owned();
    assert_eq!(
        place.metadata(&cancelled).await.unwrap()["status"],
        json!("CANCELLED")
    );
    assert_eq!(place.files(&cancelled), ["backup.json"]);

    let cancel = CancellationToken::new();
    let machine = cancels(&cancel);
    let request = json!({
        "vmId": "vm-1", "backupId": backup, "diskPaths": [disk.path], "overwriteExisting": true,
    });
    let request = RestoreBackup::read(request).unwrap();
    let restored = place.service.restore(request, machine, cancel).await;
    refused(restored, ErrorCode::BackupCancelled);
    disk.is_intact();
    assert_eq!(names_in(place.dir.path()), ["a.qcow2", "backups"]);
}

#[tokio::test]
async fn a_caller_who_leaves_cancels() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 8);
    disk.write(0, 8 << 20, 1);
    let request = CreateBackup::read(place.request("FULL", &[&disk])).unwrap();
    let (asked, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let notes = (Arc::clone(&asked), Arc::clone(&go_on));
    let machine = Arc::new(WhenAsked(move || {
        let (asked, go_on) = notes.clone();
        async move {
            asked.notify_one();
            go_on.notified().await;
        }
    }));
    tokio::select! {
        made = place.service.create(request, machine, CancellationToken::new()) => panic!("{made:?}"),
        () = asked.notified() => {}
    }
    go_on.notify_one();
    // The next one waits for what the first cleans up.
    let backup = place.full(&[&disk]).await;
    place.comes_back(&backup, &disk.holds).await;
    let others = place.list().await;
    let statuses: Vec<_> = others
        .iter()
        .map(|one| one["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["COMPLETED", "CANCELLED"]);
}

#[test]
fn f15_a_full_disk_fails_a_backup_and_keeps_those_before_it() {
    kit::in_private_network(async || {
        let small = SmallDisk::new(6 << 10);
        let place = Place::with_root(|_| small.path().join("backups"));
        let mut disk = place.disk("a.qcow2", 16);
        disk.write(0, 2 << 20, 1);
        let destination = json!(small.path().join("backups/vm-1"));
        let request = |kind: &str, disk: &Disk| {
            let mut request = place.request(kind, &[disk]);
            request["destinationDir"] = destination.clone();
            request
        };
        let full = id(&place.create(request("FULL", &disk)).await.unwrap());
        let held = disk.holds.clone();
        disk.write(0, 16 << 20, 2);
        // Refused up front, since the disk's size is known.
        let made = place.create(request("FULL", &disk)).await;
        refused(made, ErrorCode::BackupNoSpace);
        // Found out on the way, since what changed is not.
        let mut incremental = request("INCREMENTAL", &disk);
        incremental["parentBackupId"] = json!(full);
        refused(place.create(incremental).await, ErrorCode::BackupNoSpace);
        let mut compressed = request("FULL", &disk);
        compressed["compression"] = json!("GZIP");
        refused(place.create(compressed).await, ErrorCode::BackupNoSpace);
        disk.is_intact();
        place.comes_back(&full, &held).await;
        let statuses: Vec<_> = place
            .list()
            .await
            .iter()
            .map(|one| one["status"].clone())
            .collect();
        assert_eq!(statuses, [json!("FAILED"), json!("COMPLETED")]);
    });
}

#[test]
fn k6_a_restore_that_does_not_fit_leaves_the_old_disk() {
    kit::in_private_network(async || {
        let small = SmallDisk::new(4 << 10);
        let place = Place::new();
        let mut disk = Disk::qcow2(&small.path().join("a.qcow2"), 16);
        let mut large = place.disk("large.qcow2", 16);
        disk.write(0, 1 << 20, 1);
        large.write(0, 16 << 20, 2);
        let plain = place.full(&[&large]).await;
        let mut request = place.request("FULL", &[&large]);
        request["compression"] = json!("QCOW2");
        let packed = id(&place.create(request).await.unwrap());
        for backup in [plain, packed] {
            let restored = place
                .restore(&backup, std::slice::from_ref(&disk.path))
                .await;
            refused(restored, ErrorCode::BackupNoSpace);
            disk.is_intact();
            assert_eq!(names_in(small.path()), ["a.qcow2"]);
        }
    });
}

#[test]
fn k6_disks_that_only_fit_one_by_one_are_refused_together() {
    kit::in_private_network(async || {
        let small = SmallDisk::new(3 << 10);
        let place = Place::new();
        let (mut a, mut b) = (place.disk("a.qcow2", 2), place.disk("b.qcow2", 2));
        a.write(0, 2 << 20, 1);
        b.write(0, 2 << 20, 2);
        let full = place.full(&[&a, &b]).await;
        let targets = ["a.qcow2", "b.qcow2"].map(|name| small.path().join(name));
        let failure = refused(
            place.restore(&full, &targets).await,
            ErrorCode::BackupNoSpace,
        );
        assert!(failure.to_string().contains("are needed"), "{failure}");
        assert_eq!(names_in(small.path()), Vec::<String>::new());
    });
}
