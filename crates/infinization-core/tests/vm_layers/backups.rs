//! A guest that writes all the time, while its disks are backed up and overlays come and go. Every link is
//! restored, and compared with what the disks held at its moment.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use infinization_core::backup::{BackupId, BackupService, CreateBackup, Machine, RestoreBackup};
use infinization_core::qmp::QmpClient;
use infinization_core::types::{HostPath, VmId};
use kit::machine::{PATIENCE, consistent_status, qemus, send_signal};
use nix::sys::signal::Signal;
use tokio::sync::Notify;

use super::*;

/// The guest's third and second disk have so many places that it writes a running number to, in turn.
const PLACES: u32 = 64;
const APART: u64 = 1 << 20;

/// A machine whose guest writes, and its backups.
pub(crate) struct Drill<'h> {
    host: &'h Host,
    pub(crate) manager: Manager,
    vm: &'static str,
    service: BackupService,
    /// How many backups were disturbed before they were done.
    disturbed: AtomicUsize,
}

/// What is tried while a backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Nothing,
    /// An overlay after the disks were looked up, and before their copying begins: the backup fails.
    Late,
    /// These while it copies: they are refused.
    Overlay,
    Merge(&'static str),
}

impl Meanwhile {
    fn is_refused(self) -> bool {
        !matches!(self, Self::Nothing | Self::Late)
    }
}

impl<'h> Drill<'h> {
    pub(crate) fn of(host: &'h Host, manager: Manager, vm: &'static str) -> Self {
        let root = path(&host.path().join("backups"));
        Self {
            host,
            manager,
            vm,
            service: BackupService::new(root, Arc::new(|_told| ())),
            disturbed: AtomicUsize::new(0),
        }
    }

    /// Two disks, filled, on which the guest of `vm` writes from now on.
    async fn begin(host: &'h Host, vm: &'static str) -> Self {
        let manager = host.manager().await;
        let mut machine = host.tiny_guest(vm);
        let disks = machine["disks"].as_array_mut().unwrap();
        disks.extend([json!({ "sizeGB": 1 }), json!({ "sizeGB": 1 })]);
        manager.create_vm(machine, never()).await.unwrap();
        let drill = Self::of(host, manager, vm);
        for disk in [1, 2] {
            drill.io(disk, "write -P 170 0 64M").await;
        }
        host.console_says(vm, "INFZ-READY", 1).await;
        drill.write_all_the_time().await;
        drill.writes_on().await;
        drill
    }

    async fn io(&self, disk: usize, command: &str) {
        let line =
            format!("qemu-io -d /machine/peripheral/disk{disk}/virtio-backend \"{command}\"");
        let arguments = json!({ "command-line": line });
        let answer = self
            .manager
            .qmp_execute(self.vm, "human-monitor-command", arguments);
        assert_eq!(answer.await.unwrap().get(), "\"\"");
    }

    /// The number goes to one disk and then to the other, each on disk before the next.
    async fn write_all_the_time(&self) {
        let script = format!(
            "(n=0; while :; do n=$((n+1)); for d in vdb vdc; do \
             printf '%08d' $n | dd of=/dev/$d bs=4k seek=$((n % {PLACES} * 256)) conv=sync,notrunc,fsync; \
             done; echo $n >/tmp/n; done) >/dev/null 2>&1 &"
        );
        self.in_guest(&script).await;
    }

    async fn in_guest(&self, script: &str) -> String {
        let agent = self.host.path().join(format!("{}-ga.sock", self.vm));
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let ran = self.manager.guest_exec(
            self.vm.into(),
            agent.to_str().unwrap().into(),
            "/bin/sh".into(),
            arguments,
            json!({ "timeout": 60_000 }),
        );
        let ran = ran.await.unwrap();
        ran["stdout"].as_str().unwrap_or_default().trim().to_owned()
    }

    async fn written(&self) -> u32 {
        let told = self.in_guest("cat /tmp/n").await;
        told.parse().unwrap_or_default()
    }

    /// Waits until the guest has written more.
    async fn writes_on(&self) {
        let from = self.written().await;
        let more = async { while self.written().await < from + 2 {} };
        tokio::time::timeout(PATIENCE, more).await.unwrap();
    }

    /// What the guest writes into now.
    async fn disks(&self) -> Vec<PathBuf> {
        paths(&tree(&self.manager, self.vm).await["active"])[1..].to_vec()
    }

    pub(crate) async fn back_up(
        &self,
        parent: Option<&Link>,
        still: bool,
        meanwhile: Meanwhile,
    ) -> Result<Link, Failure> {
        let aside = tempfile::tempdir().unwrap();
        let witness = Witness {
            manager: self.manager.clone(),
            vm: self.vm,
            disks: self.disks().await,
            aside: still.then(|| aside.path().to_owned()),
            thawed: Notify::new(),
            meanwhile,
        };
        let witness = Arc::new(witness);
        let request = json!({
            "vmId": self.vm, "diskPaths": self.disks().await,
            "type": if parent.is_some() { "INCREMENTAL" } else { "FULL" },
            "parentBackupId": parent.map(|link| link.id.clone()),
            "destinationDir": self.host.path().join("backups").join(self.vm),
        });
        let request = CreateBackup::read(request).unwrap();
        let machine = Arc::<Witness>::clone(&witness);
        let creating = self.service.create(request, machine, never());
        let made = if meanwhile.is_refused() {
            let (made, ()) = tokio::join!(creating, self.disturb(&witness));
            made?
        } else {
            creating.await?
        };
        Ok(Link {
            id: made["backupId"].as_str().unwrap().to_owned(),
            held: still.then_some(aside),
        })
    }

    /// While the copying goes slowly, tries to change the layers, and lets the guest write.
    async fn disturb(&self, witness: &Witness) {
        witness.thawed.notified().await;
        if !witness.speed(1 << 20).await {
            return;
        }
        self.disturbed.fetch_add(1, Ordering::AcqRel);
        let before = self.shape().await;
        match witness.meanwhile {
            Meanwhile::Overlay => is_refused(take(&self.manager, self.vm, "x").await),
            Meanwhile::Merge(name) => {
                is_refused(remove(&self.manager, self.vm, name, rebase()).await);
                is_refused(commit(&self.manager, self.vm, name).await);
            }
            Meanwhile::Nothing | Meanwhile::Late => {}
        }
        assert_eq!(self.shape().await, before);
        self.writes_on().await;
        witness.speed(0).await;
    }

    /// The tree, without what the guest makes grow as it writes.
    async fn shape(&self) -> Value {
        let mut tree = tree(&self.manager, self.vm).await;
        for disk in tree["active"].as_array_mut().unwrap() {
            disk.as_object_mut().unwrap().remove("allocation");
        }
        tree
    }

    /// Restores to new files, and gives them back as raw ones.
    async fn restored(&self, link: &Link, into: &Path) -> Vec<PathBuf> {
        let disks = self.disks().await.len();
        let targets: Vec<_> = (1..=disks)
            .map(|n| into.join(format!("{n}.qcow2")))
            .collect();
        let request = json!({ "vmId": self.vm, "backupId": link.id, "diskPaths": targets });
        let request = RestoreBackup::read(request).unwrap();
        let restored = self.service.restore(request, Arc::new(Off), never());
        restored.await.unwrap();
        for target in &targets {
            sound([target]);
        }
        targets.iter().map(|image| raw_copy(image, into)).collect()
    }

    /// The first of the disks comes back with these clusters.
    pub(crate) async fn holds(&self, link: &Link, clusters: &[u8]) {
        let into = tempfile::tempdir().unwrap();
        self.restored(link, into.path()).await;
        qemu_reads(&into.path().join("1.qcow2"), clusters);
    }

    async fn is_valid(&self, link: &Link) -> bool {
        let (vm, id) = (
            VmId::parse(self.vm).unwrap(),
            BackupId::parse(&link.id).unwrap(),
        );
        self.service.verify(vm, id, never()).await.unwrap()["valid"] == true
    }

    /// Every link holds one moment of the guest, and the very bytes where those were copied aside.
    async fn all_come_back(&self, links: &[Link]) {
        let mut last = 0;
        for (at, link) in links.iter().enumerate() {
            assert!(self.is_valid(link).await, "link {at}");
            let into = tempfile::tempdir().unwrap();
            let restored = self.restored(link, into.path()).await;
            let moment = one_moment(&restored);
            assert!(moment >= last, "link {at} is of {moment}, after {last}");
            last = moment;
            for (disk, image) in restored.iter().enumerate() {
                if let Some(held) = &link.held {
                    is_same(image, &held.path().join(format!("{disk}.raw")));
                }
            }
        }
    }
}

/// A backup, and what the disks held at its moment where somebody looked.
pub(crate) struct Link {
    id: String,
    held: Option<tempfile::TempDir>,
}

fn path(path: &Path) -> HostPath {
    HostPath::parse(path.to_str().unwrap()).unwrap()
}

#[track_caller]
fn is_refused(outcome: Result<Value, Failure>) {
    let failure = outcome.unwrap_err();
    assert_eq!(failure.code(), ErrorCode::InvalidState, "{failure:?}");
    assert!(failure.to_string().contains("while a backup"), "{failure}");
}

/// The whole image as it is now, with holes for zeros.
fn raw_copy(image: &Path, into: &Path) -> PathBuf {
    let name = image.file_stem().unwrap().to_str().unwrap();
    let copy = into.join(format!("{name}.raw"));
    // Nobody writes while it is read: the guest stands still, or there is none.
    qemu_img(
        &["convert", "-U", "-f", "qcow2", "-O", "raw"],
        &[image, &copy],
    );
    copy
}

fn is_same(one: &Path, other: &Path) {
    qemu_img(&["compare", "-s", "-f", "raw", "-F", "raw"], &[one, other]);
}

fn qemu_img(args: &[&str], files: &[&Path]) {
    let output = Command::new("qemu-img").args(args).args(files).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{args:?} {files:?}: {output:?}");
}

/// The number of the last write that both disks hold. All before it are there, and none after it.
fn one_moment(disks: &[PathBuf]) -> u32 {
    let last = disks
        .iter()
        .map(|disk| last_write(disk))
        .collect::<Vec<_>>();
    assert!(last[0] == last[1] || last[0] == last[1] + 1, "{last:?}");
    last[1]
}

fn last_write(disk: &Path) -> u32 {
    let file = File::open(disk).unwrap();
    let number = |place: u32| {
        let mut digits = [0; 8];
        file.read_exact_at(&mut digits, u64::from(place) * APART)
            .unwrap();
        let digits = std::str::from_utf8(&digits).unwrap_or_default();
        digits.parse::<u32>().unwrap_or_default()
    };
    let found: Vec<u32> = (0..PLACES).map(number).collect();
    let last = found.iter().copied().max().unwrap();
    for (place, number) in (0..PLACES).zip(&found) {
        let back = (last % PLACES + PLACES - place) % PLACES;
        assert_eq!(
            *number,
            last.saturating_sub(back),
            "place {place} of {found:?}"
        );
    }
    last
}

/// The machine as its backups see it; who sees it sees what its disks hold.
struct Witness {
    manager: Manager,
    vm: &'static str,
    disks: Vec<PathBuf>,
    /// Where the disks are copied to while the guest stands still. Without it, it does not.
    aside: Option<PathBuf>,
    /// The copying has begun.
    thawed: Notify,
    meanwhile: Meanwhile,
}

impl Witness {
    async fn ask(&self, command: &str, arguments: Value) -> Value {
        let answer = self.manager.qmp_execute(self.vm, command, arguments).await;
        serde_json::from_str(answer.unwrap().get()).unwrap()
    }

    /// Of the jobs of the backup, in bytes per second; 0 is without a limit. Whether one was still at work.
    async fn speed(&self, speed: u64) -> bool {
        let jobs = self.ask("query-jobs", Value::Null).await;
        let mut set = false;
        for job in jobs.as_array().unwrap() {
            let arguments = json!({ "device": job["id"], "speed": speed });
            if job["id"].as_str().unwrap().starts_with("infz-bk-") && job["status"] == "running" {
                let limit = self
                    .manager
                    .qmp_execute(self.vm, "block-job-set-speed", arguments);
                set |= limit.await.is_ok();
            }
        }
        set
    }
}

#[async_trait]
impl Machine for Witness {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.manager.qmp_client(self.vm)
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        if self.meanwhile == Meanwhile::Late {
            take(&self.manager, self.vm, "late").await.unwrap();
        }
        let Some(aside) = &self.aside else {
            return Ok(Some(0));
        };
        self.ask("stop", Value::Null).await;
        for (n, disk) in self.disks.iter().enumerate() {
            let copy = raw_copy(disk, aside);
            std::fs::rename(copy, aside.join(format!("{n}.raw"))).unwrap();
        }
        Ok(Some(1))
    }

    async fn thaw(&self) -> Result<(), String> {
        self.thawed.notify_one();
        if self.aside.is_some() {
            self.ask("cont", Value::Null).await;
        }
        Ok(())
    }

    async fn frozen_layers(&self) -> Result<Vec<HostPath>, String> {
        let layers = self.manager.frozen_layers().await;
        layers.map_err(|failure| failure.to_string())
    }
}

/// A machine that does not run.
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

#[test]
fn k1_k2_f22_a_guest_that_writes_is_backed_up_while_overlays_come_and_go() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let vm = "drill-1";
        let drill = Drill::begin(&host, vm).await;
        let manager = &drill.manager;
        let overlay = Meanwhile::Overlay;
        let mut links = vec![drill.back_up(None, true, overlay).await.unwrap()];
        drill.writes_on().await;
        let next = drill.back_up(links.last(), false, Meanwhile::Nothing).await;
        links.push(next.unwrap());

        let late = drill.back_up(links.last(), false, Meanwhile::Late).await;
        assert_eq!(late.err().unwrap().code(), ErrorCode::BackupFailed);
        remove(manager, vm, "late", rebase()).await.unwrap();

        // A bitmap is on the disk that becomes a layer.
        take(manager, vm, "a").await.unwrap();
        drill.writes_on().await;
        let merge = Meanwhile::Merge("a");
        links.push(drill.back_up(links.last(), true, merge).await.unwrap());
        drill.writes_on().await;
        let next = drill.back_up(links.last(), false, Meanwhile::Nothing).await;
        links.push(next.unwrap());
        // A fast copy may have been over before anybody came.
        for _ in 0..5 {
            if drill.disturbed.load(Ordering::Acquire) < 2 {
                links.push(drill.back_up(None, false, merge).await.unwrap());
            }
        }
        assert!(drill.disturbed.load(Ordering::Acquire) >= 2);
        assert_eq!(node(&tree(manager, vm).await, "a")["complete"], true);

        // While the layers are merged, a backup is right or is none.
        let merging = remove(manager, vm, "a", rebase());
        let backing_up = drill.back_up(links.last(), false, Meanwhile::Nothing);
        let (merged, made) = tokio::join!(merging, backing_up);
        merged.unwrap();
        match made {
            Ok(link) => links.push(link),
            Err(failure) => assert_eq!(failure.code(), ErrorCode::BackupFailed, "{failure:?}"),
        }
        drill.writes_on().await;
        links.push(
            drill
                .back_up(links.last(), true, Meanwhile::Nothing)
                .await
                .unwrap(),
        );
        assert_eq!(consistent_status(manager, vm).await["status"], "running");

        // After a power cut no bitmap is believed.
        for pid in qemus(host.path()) {
            send_signal(pid, Signal::SIGKILL);
        }
        monitor::goes_on(&host, manager, vm).await;
        links.push(
            drill
                .back_up(links.last(), true, Meanwhile::Nothing)
                .await
                .unwrap(),
        );
        stop(manager, vm).await;
        drill.all_come_back(&links).await;
        sound(&no_orphans(&host, &[tree(manager, vm).await]));
        delete(manager, vm).await;
        std::fs::remove_dir_all(host.path().join("backups")).unwrap();
        host.is_clean().await;
    });
}
