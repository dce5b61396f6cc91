//! What storage costs over the bare `qemu-img` and over QEMU's own backup jobs, taken in the same run and in turns.
//! `npm run bench` runs it.
//!
//! One JSON object per line goes to standard output: `{"name", "value", "unit", "goal"}`.
#![allow(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

mod layers;
mod pause;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use infinization_core::backup::{BackupService, CreateBackup, Machine};
use infinization_core::host::qemu_img::{
    ConvertImage, CreateImage, ImageFormat, Job, Resize, Sharing, SnapshotName, check, convert,
    create, create_snapshot, info, list_snapshots, resize,
};
use infinization_core::qmp::{EventReceiver, MonitorEvent, QmpClient};
use infinization_core::types::{ByteSize, HostPath};
use infinization_test_kit as kit;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use kit::qmp::Qemu;

const ROUNDS: u32 = 21;
/// Of what is compared to the hundredth and takes a few milliseconds.
const SHORT_ROUNDS: u32 = 101;
/// Of what copies hundreds of megabytes.
const LONG_ROUNDS: u32 = 7;
const SIZE: &str = "10G";
const DATA: u64 = 256 << 20;
/// What a throughput is taken of: the small files and the one program that every backup has do not grow with it.
const MORE_DATA: u64 = 2 << 30;

fn main() {
    kit::runtime().block_on(async {
        let place = Place::new();
        small(&place).await;
        copies(&place).await;
        answers(&place).await;
        live(&place).await;
        stopped(&place).await;
    });
    kit::in_private_network(layers::verbs);
    kit::in_private_network(pause::of_a_guest_that_writes);
}

fn figure(name: &str, value: f64, unit: &str, goal: &str) {
    let value = (value * 100.0).round() / 100.0;
    println!(
        "{}",
        json!({ "name": format!("storage: {name}"), "value": value, "unit": unit, "goal": goal })
    );
}

fn median(times: Vec<Duration>) -> f64 {
    percentile(times, 50)
}

/// What so many of a hundred stay below, in ms.
fn percentile(mut times: Vec<Duration>, percent: usize) -> f64 {
    times.sort();
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0
}

/// Ours, and the bare one's.
fn beside(name: &str, ours: Vec<Duration>, bare: Vec<Duration>, bare_name: &str) -> (f64, f64) {
    let (ours, bare) = (median(ours), median(bare));
    figure(name, ours, "ms", "");
    figure(&format!("{name}, by {bare_name}"), bare, "ms", "");
    (ours, bare)
}

/// Ours, the bare one's, and their ratio.
fn compared(name: &str, ours: Vec<Duration>, bare: Vec<Duration>, bare_name: &str) {
    let (ours, bare) = beside(name, ours, bare, bare_name);
    figure(&format!("{name}, ratio"), ours / bare, "", "≤ 1.05");
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let began = Instant::now();
    let done = work.await;
    (began.elapsed(), done)
}

/// A directory with a disk of 10 GiB that holds 256 MiB.
struct Place {
    dir: TempDir,
    disk: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let place = Self {
            disk: dir.path().join("disk.qcow2"),
            dir,
        };
        fill(&place.disk, DATA);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Makes a disk that holds so much.
fn fill(disk: &Path, bytes: u64) {
    qemu_img(&["create", "-q", "-f", "qcow2", text(disk), SIZE]);
    for at in (0..bytes).step_by(usize::try_from(DATA).unwrap()) {
        let write = format!("write -P 7 {at} {DATA}");
        run("qemu-io", &["-f", "qcow2", "-c", &write, text(disk)]);
    }
    // What is measured later must not wait for it.
    flushed(disk);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn host_path(path: &Path) -> HostPath {
    HostPath::parse(text(path)).unwrap()
}

fn run(program: &str, args: &[&str]) -> Duration {
    let began = Instant::now();
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    began.elapsed()
}

fn qemu_img(args: &[&str]) -> Duration {
    run("qemu-img", args)
}

/// What takes one program a few milliseconds.
async fn small(place: &Place) {
    let (ours, bare) = (place.path("ours.qcow2"), place.path("bare.qcow2"));
    let (mut created, mut by_qemu) = (Vec::new(), Vec::new());
    for _ in 0..SHORT_ROUNDS {
        let image = CreateImage::new(host_path(&ours), ByteSize::mib(10 << 10));
        let (took, made) = timed(create(&image, &Job::default())).await;
        made.unwrap();
        created.push(took);
        let took = qemu_img(&["create", "-q", "-f", "qcow2", text(&bare), SIZE]);
        by_qemu.push(took + flushed(&bare) + flushed(place.dir.path()));
        fs::remove_file(&ours).unwrap();
        fs::remove_file(&bare).unwrap();
    }
    compared("create 10 GiB", created, by_qemu, "qemu-img and a flush");

    let (mut resized, mut by_qemu) = (Vec::new(), Vec::new());
    for round in 0..SHORT_ROUNDS {
        let size = ByteSize::mib(u64::from((10 << 10) + 1 + round));
        for path in [&ours, &bare] {
            let _none = fs::remove_file(path);
            qemu_img(&["create", "-q", "-f", "qcow2", text(path), SIZE]);
        }
        let path = host_path(&ours);
        let (took, done) = timed(resize(&path, ImageFormat::Qcow2, size, Resize::Grow)).await;
        done.unwrap();
        resized.push(took);
        let bytes = size.as_bytes().to_string();
        by_qemu.push(qemu_img(&[
            "resize",
            "-q",
            "-f",
            "qcow2",
            text(&bare),
            &bytes,
        ]));
    }
    fs::remove_file(&ours).unwrap();
    fs::remove_file(&bare).unwrap();
    compared("resize", resized, by_qemu, "qemu-img");

    let (mut checked, mut by_qemu) = (Vec::new(), Vec::new());
    let disk = host_path(&place.disk);
    for _ in 0..SHORT_ROUNDS {
        let (took, found) = timed(check(&disk, ImageFormat::Qcow2, &Job::default())).await;
        assert_eq!(found.unwrap().errors, 0);
        checked.push(took);
        let args = ["check", "--output=json", "-f", "qcow2", text(&place.disk)];
        by_qemu.push(qemu_img(&args));
    }
    compared("check 256 MiB in 10 GiB", checked, by_qemu, "qemu-img");
}

async fn copies(place: &Place) {
    let (ours, bare) = (place.path("ours.qcow2"), place.path("bare.qcow2"));
    let (mut copied, mut by_qemu) = (Vec::new(), Vec::new());
    for _ in 0..LONG_ROUNDS {
        let source = (host_path(&place.disk), ImageFormat::Qcow2);
        let image = ConvertImage::new(source, (host_path(&ours), ImageFormat::Qcow2));
        let (took, done) = timed(convert(&image, &Job::default())).await;
        done.unwrap();
        copied.push(took);
        let (from, to) = (text(&place.disk), text(&bare));
        let args = ["convert", "-f", "qcow2", "-O", "qcow2", from, to];
        let took = qemu_img(&args);
        // A copy is there when a power cut leaves it there.
        by_qemu.push(took + flushed(&bare) + flushed(place.dir.path()));
        fs::remove_file(&ours).unwrap();
        fs::remove_file(&bare).unwrap();
    }
    compared("convert 256 MiB", copied, by_qemu, "qemu-img and a flush");
}

fn flushed(path: &Path) -> Duration {
    let began = Instant::now();
    File::open(path).unwrap().sync_all().unwrap();
    began.elapsed()
}

async fn answers(place: &Place) {
    let image = place.path("snapshots.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&image), SIZE]);
    let path = host_path(&image);
    for n in 0..10 {
        let name = SnapshotName::parse(format!("snapshot-{n}")).unwrap();
        create_snapshot(&path, &name).await.unwrap();
    }
    let (mut told, mut listed, mut by_qemu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (took, found) = timed(info(&path, ImageFormat::Qcow2, Sharing::Refuse)).await;
        found.unwrap();
        told.push(took);
        let (took, found) = timed(list_snapshots(&path, Sharing::Refuse)).await;
        assert_eq!(found.unwrap().len(), 10);
        listed.push(took);
        by_qemu.push(qemu_img(&[
            "info",
            "--output=json",
            "-f",
            "qcow2",
            text(&image),
        ]));
    }
    figure("info", median(told), "ms", "≤ 1");
    figure("list of 10 snapshots", median(listed), "ms", "≤ 1");
    figure("info, by qemu-img", median(by_qemu), "ms", "");
    fs::remove_file(image).unwrap();
}

/// A machine that runs, seen by its monitor alone.
struct Running(QmpClient);

#[async_trait]
impl Machine for Running {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        Some(self.0.clone())
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }

    async fn thaw(&self) -> Result<(), String> {
        Ok(())
    }
}

/// One that does not.
struct Off;

#[async_trait]
impl Machine for Off {
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
}

async fn live(place: &Place) {
    let large = place.path("large.qcow2");
    fill(&large, MORE_DATA);
    let drive = |node: &str, disk: &Path| {
        let disk = text(disk);
        format!("driver=qcow2,node-name={node},file.driver=file,file.filename={disk}")
    };
    let (first, second) = (drive("d0", &place.disk), drive("d1", &large));
    let mut args = vec!["-blockdev", &first, "-device", "virtio-blk-pci,drive=d0"];
    args.extend(["-blockdev", &second, "-device", "virtio-blk-pci,drive=d1"]);
    let qemu = Qemu::start(&args);
    let (monitor, mut events) = qemu.connect().await;
    pauses(&monitor).await;

    let mut guest = Guest {
        place,
        monitor: &monitor,
        events: &mut events,
    };
    let ratio = guest.backups("2 GiB", "d1", &large).await;
    let told = "full backup of a running VM, throughput over the bare job's";
    figure(told, ratio, "", "≥ 0.95");
    guest.backups("256 MiB", "d0", &place.disk).await;
    fs::remove_dir_all(place.path("backups")).unwrap();

    let backups = Backups::of(place, &place.disk);
    let machine = Arc::new(Running(monitor.clone()));
    let mut last = Some(backups.make(machine, None).await);
    let mut unchanged = Vec::new();
    for _ in 0..ROUNDS {
        let machine = Arc::new(Running(monitor.clone()));
        let (took, id) = timed(backups.make(machine, last.as_deref())).await;
        unchanged.push(took);
        last = Some(id);
    }
    let unchanged = median(unchanged);
    figure(
        "incremental backup of an unchanged 10 GiB disk, running",
        unchanged,
        "ms",
        "≤ 300",
    );
    monitor.quit().await.unwrap();
    qemu.ended().await;
    fs::remove_dir_all(place.path("backups")).unwrap();
}

/// A running QEMU, whose disks are copied.
struct Guest<'g> {
    place: &'g Place,
    monitor: &'g QmpClient,
    events: &'g mut EventReceiver,
}

impl Guest<'_> {
    /// Both end with every byte on the disk. Answers the bare job's time over ours.
    async fn backups(&mut self, size: &str, node: &str, disk: &Path) -> f64 {
        let backups = Backups::of(self.place, disk);
        let (mut full, mut by_qemu) = (Vec::new(), Vec::new());
        for _ in 0..LONG_ROUNDS {
            let machine = Arc::new(Running(self.monitor.clone()));
            let (took, id) = timed(backups.make(machine, None)).await;
            full.push(took);
            backups.keep_only(&id);
            by_qemu.push(bare_job(self.place, self.monitor, self.events, node).await);
        }
        let (ours, bare) = (median(full), median(by_qemu));
        let name = format!("full backup of a running VM, {size}");
        figure(&name, ours, "ms", "");
        let bare_name = format!("{name}, by a bare blockdev-backup and a flush");
        figure(&bare_name, bare, "ms", "");
        bare / ours
    }
}

/// How long the guest's disks wait: QEMU lets no request through during the transaction.
async fn pauses(monitor: &QmpClient) {
    let nodes = ["d0".to_owned()];
    let mut waits = Vec::new();
    for n in 0..ROUNDS {
        let name = format!("bench-{n}");
        let (took, made) = timed(monitor.snapshot_disks(&nodes, &name)).await;
        made.unwrap();
        waits.push(took);
        monitor.snapshot_delete(&nodes, &name).await.unwrap();
    }
    figure(
        "snapshot of a running VM's disks: pause",
        median(waits),
        "ms",
        "≤ 50",
    );
}

struct Backups<'p> {
    service: BackupService,
    place: &'p Place,
    disk: &'p Path,
}

impl<'p> Backups<'p> {
    fn of(place: &'p Place, disk: &'p Path) -> Self {
        let root = host_path(&place.path("backups"));
        let service = BackupService::new(root, Arc::new(|_told| ()));
        Self {
            service,
            place,
            disk,
        }
    }

    async fn make(&self, machine: Arc<dyn Machine>, parent: Option<&str>) -> String {
        let request = json!({
            "vmId": "vm-1", "diskPaths": [self.disk],
            "type": if parent.is_some() { "INCREMENTAL" } else { "FULL" },
            "parentBackupId": parent,
            "destinationDir": self.place.path("backups").join("vm-1"),
        });
        let request = CreateBackup::read(request).unwrap();
        let never = CancellationToken::new();
        let made = self.service.create(request, machine, never).await.unwrap();
        made["backupId"].as_str().unwrap().to_owned()
    }

    /// The disk must not become full.
    fn keep_only(&self, id: &str) {
        for entry in fs::read_dir(self.place.path("backups").join("vm-1")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() && entry.file_name() != id {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    }
}

/// What anybody has to do for a copy that is there after a power cut.
async fn bare_job(
    place: &Place,
    monitor: &QmpClient,
    events: &mut EventReceiver,
    source: &str,
) -> Duration {
    let target = place.path("bare.qcow2");
    let began = Instant::now();
    qemu_img(&["create", "-q", "-f", "qcow2", text(&target), SIZE]);
    let (node, job) = ("bare", "bare-job");
    let ask = async |command: &str, arguments: Value| {
        monitor.execute(command, arguments).await.unwrap();
    };
    let file = json!({ "driver": "file", "filename": target });
    ask(
        "blockdev-add",
        json!({ "driver": "qcow2", "node-name": node, "file": file }),
    )
    .await;
    ask(
        "blockdev-backup",
        json!({ "device": source, "target": node, "job-id": job, "sync": "full" }),
    )
    .await;
    // Only when it is gone it has let go of its target.
    let gone = |told: &str| told.contains("\"null\"") && told.contains(job);
    loop {
        match events.next().await {
            Some(MonitorEvent::Event(event)) if event.event == "JOB_STATUS_CHANGE" => {
                if gone(event.data.get()) {
                    break;
                }
            }
            Some(_) => {}
            None => panic!("the job never ended"),
        }
    }
    ask("blockdev-del", json!({ "node-name": node })).await;
    flushed(&target);
    let took = began.elapsed();
    fs::remove_file(target).unwrap();
    took
}

/// No bitmap is believed of a machine that is off: a disk is left unread if its inode says that nobody wrote to it,
/// and compared otherwise.
async fn stopped(place: &Place) {
    let backups = Backups::of(place, &place.disk);
    let (took, full) = timed(backups.make(Arc::new(Off), None)).await;
    figure(
        "full backup of a stopped VM, 256 MiB",
        median(vec![took]),
        "ms",
        "",
    );
    let mut unchanged = Vec::new();
    for _ in 0..ROUNDS {
        unchanged.push(timed(backups.make(Arc::new(Off), Some(&full))).await.0);
    }
    figure(
        "incremental backup of an unchanged 10 GiB disk, stopped",
        median(unchanged),
        "ms",
        "≤ 300",
    );
    let mut compared = Vec::new();
    for _ in 0..LONG_ROUNDS {
        let same = fs::metadata(&place.disk).unwrap().permissions();
        fs::set_permissions(&place.disk, same).unwrap();
        compared.push(timed(backups.make(Arc::new(Off), Some(&full))).await.0);
    }
    figure(
        "incremental backup of a touched 10 GiB disk, stopped: 256 MiB compared",
        median(compared),
        "ms",
        "",
    );
}
