//! Backups of running machines, by their own QEMU.

use super::guest::Guest;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k6_what_is_summed_while_it_is_written_is_what_lies_there() {
    const MIB: usize = 1 << 20;
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 160);
    for part in 0..5 {
        disk.write(part * 32 * MIB, 32 * MIB, part as u8 + 1);
    }
    let guest = Guest::start(&[&disk]).await;
    // A guest that writes all over meanwhile has clusters copied out of turn.
    let busy = async {
        for n in 0.. {
            let at = n * 7919 % 160 * MIB;
            guest.io(0, &format!("write -P 99 {at} 65536")).await;
        }
    };
    let disks = [&disk];
    let full = tokio::select! {
        full = place.live("FULL", &disks, None, &guest) => full,
        () = busy => unreachable!("it goes on"),
    };
    let file = fs::read(place.root().join("vm-1").join(&full).join("disk-0.qcow2")).unwrap();
    let sum = blake3::hash(&file).to_hex();
    let told = place.metadata(&full).await.unwrap();
    assert_eq!(told["disks"][0]["blake3"], json!(sum.as_str()));
    assert!(place.is_valid(&full).await);
    guest.quit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_a_chain_of_a_running_machine_comes_back_link_by_link() {
    let place = Place::new();
    let mut base = place.disk("base.qcow2", 8);
    base.write(0, 2 << 20, 200);
    let mut disk = base.overlay(&place.path("a.qcow2"));
    let mut raw = Disk::raw(&place.path("b.img"), 2);
    let guest = Guest::start(&[&disk, &raw]).await;
    guest.write(0, &mut disk, 1 << 20, 3 << 20, 1).await;
    guest.write(1, &mut raw, 0, 65_536, 77).await;
    let full = place.live("FULL", &[&disk, &raw], None, &guest).await;
    let mut chain = vec![(full, disk.holds.clone(), raw.holds.clone())];
    for link in 1..10_u8 {
        guest
            .write(0, &mut disk, usize::from(link) * 400_001, 70_000, link)
            .await;
        match link {
            // Zeros over data, of this disk and of its template: they must not show the parent's.
            2 => guest.zero(0, &mut disk, 0, 1 << 20).await,
            3 => guest.write(0, &mut disk, 2 << 20, 65_536, 0).await,
            5 => guest.write(1, &mut raw, 65_536, 4096, 5).await,
            _ => {}
        }
        let parent = chain.last().unwrap().0.clone();
        let mut request = place.request("INCREMENTAL", &[&disk, &raw]);
        request["parentBackupId"] = json!(parent);
        request["compression"] = json!(["NONE", "QCOW2", "ZSTD"][usize::from(link % 3)]);
        let made = place.create_with(request, guest.machine()).await.unwrap();
        let size = made["totalSize"].as_u64().unwrap();
        assert!(size < 2 << 20, "link {link} has {size} bytes");
        assert_eq!(guest.bitmaps(0).await, [format!("infz-{}-0", id(&made))]);
        chain.push((id(&made), disk.holds.clone(), raw.holds.clone()));
    }
    assert!(!guest.has_leftovers().await);
    guest.quit().await;
    let targets = [place.path("x.qcow2"), place.path("y.img")];
    for (link, (backup, disk_held, raw_held)) in chain.iter().enumerate() {
        place
            .restore(backup, &targets)
            .await
            .unwrap_or_else(|error| panic!("link {link}: {error}"));
        disk::assert_holds(&targets[0], "qcow2", disk_held);
        disk::assert_holds(&targets[1], "raw", raw_held);
    }
    disk.is_intact();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_of_another_format_to_its_machine_is_refused() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    let guest = Guest::start(&[&disk]).await;
    disk.format = "raw";
    let made = place.create_with(place.request("FULL", &[&disk]), guest.machine());
    refused(made.await, ErrorCode::BackupInvalidConfig);
    assert!(place.list().await.is_empty(), "nothing was begun");
    guest.quit().await;
}

/// A machine whose first backup is copied slowly, and says when that has begun.
struct Slow(Arc<Running>, tokio::sync::Notify);

#[async_trait]
impl Machine for Slow {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.0.monitor()
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        Ok(Some(1))
    }

    async fn thaw(&self) -> Result<(), String> {
        let jobs = self.0.monitor.execute("query-jobs", json!({})).await;
        let jobs: Vec<Value> = serde_json::from_str(jobs.unwrap().get()).unwrap();
        let slow = json!({ "device": jobs[0]["id"], "speed": 8 << 20 });
        let asked = self.0.monitor.execute("block-job-set-speed", slow).await;
        asked.unwrap();
        self.1.notify_one();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_backups_of_one_machine_below_two_roots_wait_for_each_other() {
    let (place, other) = (Place::new(), Place::new());
    let mut disk = place.disk("a.qcow2", 32);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 24 << 20, 1).await;
    let slow = Arc::new(Slow(guest.machine(), tokio::sync::Notify::new()));
    let first = place.create_with(place.request("FULL", &[&disk]), Arc::<Slow>::clone(&slow));
    let second = async {
        slow.1.notified().await;
        let request = other.request("FULL", &[&disk]);
        other.create_with(request, guest.machine()).await
    };
    let (first, second) = tokio::join!(first, second);
    guest.quit().await;
    place.comes_back(&id(&first.unwrap()), &disk.holds).await;
    other.comes_back(&id(&second.unwrap()), &disk.holds).await;
}
