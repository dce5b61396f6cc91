//! A guest that writes all the time, and the backups of its disks.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use infinization_core::backup::{BackupId, BackupService, CreateBackup, RestoreBackup};
use infinization_core::types::{HostPath, VmId};
use kit::machine::PATIENCE;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::witness::{Off, Witness};
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
    pub(crate) async fn begin(host: &'h Host, vm: &'static str) -> Self {
        Self::begin_with(host, host.manager().await, vm, "64M").await
    }

    /// The same of a manager's machine, and disks that are filled so far.
    pub(crate) async fn begin_with(
        host: &'h Host,
        manager: Manager,
        vm: &'static str,
        filled: &str,
    ) -> Self {
        let mut machine = host.tiny_guest(vm);
        let disks = machine["disks"].as_array_mut().unwrap();
        disks.extend([json!({ "sizeGB": 1 }), json!({ "sizeGB": 1 })]);
        manager.create_vm(machine, never()).await.unwrap();
        let drill = Self::of(host, manager, vm);
        for disk in [1, 2] {
            drill.io(disk, &format!("write -P 170 0 {filled}")).await;
        }
        host.console_says(vm, "INFZ-READY", 1).await;
        drill.write_all_the_time().await;
        drill.writes_on().await;
        drill
    }

    pub(crate) async fn io(&self, disk: usize, command: &str) {
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
        let ran = self.guest_does(script).await.unwrap().unwrap();
        ran["stdout"].as_str().unwrap_or_default().trim().to_owned()
    }

    fn guest_does(&self, script: &str) -> JoinHandle<Result<Value, Failure>> {
        let agent = self.host.path().join(format!("{}-ga.sock", self.vm));
        let agent = agent.to_str().unwrap().to_owned();
        let (manager, vm) = (self.manager.clone(), self.vm.to_owned());
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let options = json!({ "timeout": 60_000 });
        tokio::spawn(async move {
            let ran = manager.guest_exec(vm, agent, "/bin/sh".into(), arguments, options);
            ran.await
        })
    }

    async fn written(&self) -> u32 {
        let told = self.in_guest("cat /tmp/n").await;
        told.parse().unwrap_or_default()
    }

    /// Waits until the guest has written more.
    pub(crate) async fn writes_on(&self) {
        self.writes(2).await;
    }

    /// Waits until the guest has written to every place once more.
    pub(crate) async fn writes_everywhere(&self) {
        self.writes(PLACES).await;
    }

    async fn writes(&self, numbers: u32) {
        let from = self.written().await;
        let more = async { while self.written().await < from + numbers {} };
        tokio::time::timeout(PATIENCE, more).await.unwrap();
    }

    /// Has the guest write where it has never written, too.
    pub(crate) fn writes_more(&self) -> JoinHandle<Result<Value, Failure>> {
        self.guest_does(
            "dd if=/dev/urandom of=/dev/vdb bs=64k count=64 seek=9600 conv=notrunc,fsync",
        )
    }

    /// What the guest writes into now.
    pub(crate) async fn disks(&self) -> Vec<PathBuf> {
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

    /// How many backups were disturbed before they were done.
    pub(crate) fn disturbed(&self) -> usize {
        self.disturbed.load(Ordering::Acquire)
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
        self.service.verify(vm, id, never(), drop).await.unwrap()["valid"] == true
    }

    /// Every link holds one moment of the guest, and the very bytes where those were copied aside.
    pub(crate) async fn all_come_back(&self, links: &[Link]) {
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

/// Fails unless both disks, which nobody has open, hold the same moment of the guest.
pub(crate) fn are_of_one_moment(disks: &[PathBuf]) {
    let into = tempfile::tempdir().unwrap();
    let copies: Vec<_> = disks
        .iter()
        .map(|disk| raw_copy(disk, into.path()))
        .collect();
    one_moment(&copies);
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
pub(super) fn raw_copy(image: &Path, into: &Path) -> PathBuf {
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
