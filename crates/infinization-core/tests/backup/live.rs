//! Backups of running machines, by their own QEMU.

use infinization_core::qmp::EventReceiver;

use super::*;
use crate::qmp_kit::Qemu;

/// A QEMU with these disks, whose guest does not run: the test writes in its place.
pub(super) struct Guest {
    pub(super) qemu: Qemu,
    pub(super) monitor: QmpClient,
    _events: EventReceiver,
}

impl Guest {
    pub(super) async fn start(disks: &[&Disk]) -> Self {
        let file = |disk: &Disk| {
            let file = disk::text(&disk.path);
            format!("file.driver=file,file.filename={file}")
        };
        Self::start_on(disks, file).await
    }

    /// The `sector`th sector of the disk's file cannot be read.
    async fn start_broken(disk: &Disk, sector: u64) -> Self {
        let file = |disk: &Disk| {
            let file = disk::text(&disk.path);
            format!(
                "file.driver=blkdebug,file.image.driver=file,file.image.filename={file},\
                 file.inject-error.0.event=none,file.inject-error.0.iotype=read,\
                 file.inject-error.0.errno=5,file.inject-error.0.sector={sector}"
            )
        };
        Self::start_on(&[disk], file).await
    }

    async fn start_on(disks: &[&Disk], file: impl Fn(&Disk) -> String) -> Self {
        let mut args = Vec::new();
        for (n, disk) in disks.iter().enumerate() {
            let (format, file) = (disk.format, file(disk));
            args.push("-blockdev".to_owned());
            args.push(format!(
                "driver={format},node-name=d{n},discard=unmap,{file}"
            ));
            args.push("-device".to_owned());
            args.push(format!("virtio-blk-pci,id=v{n},drive=d{n}"));
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let qemu = Qemu::start(&args);
        let (monitor, events) = qemu.connect().await;
        Self {
            qemu,
            monitor,
            _events: events,
        }
    }

    /// Writes through QEMU, as a guest does.
    pub(super) async fn write(
        &self,
        n: usize,
        disk: &mut Disk,
        at: usize,
        length: usize,
        byte: u8,
    ) {
        self.io(n, &format!("write -P {byte} {at} {length}")).await;
        disk.model(at, length, byte);
    }

    async fn zero(&self, n: usize, disk: &mut Disk, at: usize, length: usize) {
        self.io(n, &format!("write -z -u {at} {length}")).await;
        disk.model(at, length, 0);
    }

    async fn io(&self, n: usize, command: &str) {
        let told = self
            .human(&format!(
                "qemu-io -d /machine/peripheral/v{n}/virtio-backend \"{command}\""
            ))
            .await;
        assert_eq!(told, "\"\"", "{command}");
    }

    async fn human(&self, line: &str) -> String {
        let arguments = json!({ "command-line": line });
        let answer = self
            .monitor
            .execute("human-monitor-command", arguments)
            .await
            .unwrap();
        answer.get().to_owned()
    }

    pub(super) fn machine(&self) -> Arc<Running> {
        Running::new(&self.monitor, Ok(None))
    }

    /// The names of our bitmaps on disk `n`.
    async fn bitmaps(&self, n: usize) -> Vec<String> {
        let answer = self
            .monitor
            .execute("query-named-block-nodes", json!({}))
            .await
            .unwrap();
        let nodes: Value = serde_json::from_str(answer.get()).unwrap();
        let nodes = nodes.as_array().unwrap();
        let node = nodes
            .iter()
            .find(|node| node["node-name"] == json!(format!("d{n}")));
        let bitmaps = node.unwrap()["dirty-bitmaps"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        bitmaps
            .iter()
            .map(|it| it["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Whether QEMU has any node, job or key of a backup.
    async fn has_leftovers(&self) -> bool {
        let nodes = self
            .monitor
            .execute("query-named-block-nodes", json!({}))
            .await
            .unwrap();
        let jobs = self.monitor.execute("query-jobs", json!({})).await.unwrap();
        let objects = self.monitor.objects().await.unwrap();
        nodes.get().contains("\"infz-bk-")
            || jobs.get().contains("infz-bk-")
            || objects.iter().any(|object| object.starts_with("infz-bk-"))
    }

    pub(super) async fn quit(self) {
        self.monitor.quit().await.unwrap();
        self.qemu.ended().await;
    }
}

impl Place {
    pub(super) async fn live(
        &self,
        kind: &str,
        disks: &[&Disk],
        parent: Option<&str>,
        guest: &Guest,
    ) -> String {
        let mut request = self.request(kind, disks);
        request["parentBackupId"] = json!(parent);
        id(&self.create_with(request, guest.machine()).await.unwrap())
    }
}

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
async fn stopped_and_running_links_mix_and_a_bitmap_survives_a_restart() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    disk.write(0, 1 << 20, 1);
    let offline = place.full(&[&disk]).await;
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 65_536, 2).await;
    // No bitmap knows that parent: everything is copied, and compared.
    let live = place
        .live("INCREMENTAL", &[&disk], Some(&offline), &guest)
        .await;
    let at_live = disk.holds.clone();
    guest.write(0, &mut disk, 65_536, 65_536, 3).await;
    guest.quit().await;
    disk.write(131_072, 65_536, 4);
    let guest = Guest::start(&[&disk]).await;
    assert_eq!(guest.bitmaps(0).await, [format!("infz-{live}-0")]);
    guest.write(0, &mut disk, 262_144, 65_536, 5).await;
    let last = place
        .live("INCREMENTAL", &[&disk], Some(&live), &guest)
        .await;
    let at_last = disk.holds.clone();
    guest.quit().await;
    disk.write(0, 65_536, 9);
    let stopped = place.incremental(&[&disk], &last).await;
    for (backup, held) in [
        (&live, &at_live),
        (&last, &at_last),
        (&stopped, &disk.holds),
    ] {
        place.comes_back(backup, held).await;
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bitmap_that_a_crash_spoiled_is_not_trusted() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 1 << 20, 1).await;
    let full = place.live("FULL", &[&disk], None, &guest).await;
    guest.quit().await;
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 65_536, 65_536, 2).await;
    guest.io(0, "flush").await;
    guest.qemu.signal(nix::sys::signal::Signal::SIGKILL);
    drop(guest);
    let guest = Guest::start(&[&disk]).await;
    let next = place
        .live("INCREMENTAL", &[&disk], Some(&full), &guest)
        .await;
    assert_eq!(guest.bitmaps(0).await, [format!("infz-{next}-0")]);
    guest.quit().await;
    place.comes_back(&next, &disk.holds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k1_disks_that_change_places_are_compared_and_not_believed() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 4), place.disk("b.qcow2", 4));
    let guest = Guest::start(&[&a, &b]).await;
    guest.write(0, &mut a, 0, 2 << 20, 1).await;
    guest.write(1, &mut b, 0, 2 << 20, 2).await;
    let full = place.live("FULL", &[&a, &b], None, &guest).await;
    guest.write(0, &mut a, 65_536, 65_536, 3).await;
    // By the order they are named in.
    let turned = place
        .live("INCREMENTAL", &[&b, &a], Some(&full), &guest)
        .await;
    let targets = [place.path("x.qcow2"), place.path("y.qcow2")];
    place.restore(&turned, &targets).await.unwrap();
    disk::assert_holds(&targets[0], "qcow2", &b.holds);
    disk::assert_holds(&targets[1], "qcow2", &a.holds);
    guest.quit().await;

    // By the files' names: each takes along what its bitmap has marked.
    let aside = place.path("aside.qcow2");
    fs::rename(&a.path, &aside).unwrap();
    fs::rename(&b.path, &a.path).unwrap();
    fs::rename(&aside, &b.path).unwrap();
    std::mem::swap(&mut a.holds, &mut b.holds);
    let guest = Guest::start(&[&a, &b]).await;
    guest.write(0, &mut a, 131_072, 65_536, 4).await;
    let renamed = place
        .live("INCREMENTAL", &[&b, &a], Some(&turned), &guest)
        .await;
    guest.quit().await;
    place.restore(&renamed, &targets).await.unwrap();
    disk::assert_holds(&targets[0], "qcow2", &b.holds);
    disk::assert_holds(&targets[1], "qcow2", &a.holds);
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bitmap_does_not_outlive_a_cut() {
    use infinization_core::host::qemu_img::{ImageFormat, Resize, resize};
    use infinization_core::types::ByteSize;
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 3 << 20, 1 << 20, 1).await;
    let full = place.live("FULL", &[&disk], None, &guest).await;
    guest.quit().await;
    for mib in [2, 4] {
        let (image, size) = (path(&disk.path), ByteSize::mib(mib));
        resize(&image, ImageFormat::Qcow2, size, Resize::GrowOrShrink)
            .await
            .unwrap();
        disk.holds.resize(usize::try_from(mib).unwrap() << 20, 0);
    }
    let guest = Guest::start(&[&disk]).await;
    assert!(guest.bitmaps(0).await.is_empty());
    let next = place
        .live("INCREMENTAL", &[&disk], Some(&full), &guest)
        .await;
    guest.quit().await;
    place.comes_back(&next, &disk.holds).await;
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
