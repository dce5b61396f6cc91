//! Copying the disks of a running machine: its own QEMU does it, so that every disk is copied as it was
//! at one moment.
//!
//! All jobs begin in one `transaction`, within which the guest's file systems are frozen if they can
//! be. What the transaction also adds is a dirty bitmap per disk, named after this backup and its place
//! in it; a later incremental one copies what it has marked, if the disk has the same place there. The
//! parent's bitmap is left as it is until this backup is complete, so a failure costs nothing.

mod attached;
mod follow;
mod handover;
mod jobs;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::create::{Creation, Prepared, fail, parent_of, seal};
use super::draft::{Circumstances, Draft};
use super::folder::{Kept, refuse_full, remove_file};
use super::kinds::{BackupType, Compression};
use super::manifest::{DiskRecord, Manifest};
use super::names::BITMAP_PREFIX;
use super::pieces::Followed;
use super::progress::{Reporter, Work};
use super::turn::unless_cancelled;
use super::{BackupError, off_thread, offline, quiesce};
use crate::host::qemu_img::{
    Clusters, ImageFormat, Parent, SnapshotName, Source, difference, make_target,
};
use crate::qmp::{CopyTurn, QmpClient, QmpError, RunState};
use crate::types::{ByteSize, HostPath};
use attached::{Attached, attached};
use follow::Following;
use handover::{give_to_qemu, take_back};

/// For starting all jobs: the guest's file systems are frozen meanwhile. A Windows guest thaws by
/// itself after ten seconds.
const START: Duration = Duration::from_secs(8);
/// QEMU's default bitmap granularity, and the cluster size of what it writes into.
const CLUSTER: u32 = 64 << 10;
/// How much of its target's tables QEMU keeps in memory: parts of 16 MiB of disk each, twice what is on its way at a
/// time. What is not kept is in the file, which tells whoever follows what is finished.
const TABLE_PART: u32 = 2 << 10;
const TABLE_PARTS: u32 = 8;

/// A backup of a machine that runs.
pub(super) struct Live<'a> {
    creation: &'a Creation,
    prepared: &'a Prepared,
    monitor: QmpClient,
    turn: CopyTurn,
}

/// How a disk is copied.
enum Method {
    /// Everything, into what becomes the backup.
    Full,
    /// What the parent's bitmap has marked, into what becomes the backup.
    Marked { parent: Parent },
    /// Everything, into a scratch file that is then compared with the parent.
    Compared { parent: Parent },
}

impl Method {
    /// What is done until the backup's file is there.
    fn works(&self) -> &'static [Work] {
        match self {
            Self::Full | Self::Marked { .. } => &[Work::Copy],
            Self::Compared { .. } => &[Work::Copy, Work::Compare],
        }
    }

    fn parent(&self) -> Option<&Parent> {
        match self {
            Self::Full => None,
            Self::Marked { parent } | Self::Compared { parent } => Some(parent),
        }
    }
}

/// One disk on its way.
struct Copying {
    disk: Attached,
    method: Method,
    /// Where QEMU writes to.
    target: HostPath,
}

impl<'a> Live<'a> {
    /// Waits until no other backup, below whatever root, has this QEMU copy. The owner of the monitor may end
    /// this one, as a cancelled caller does.
    pub(super) async fn begin(
        creation: &'a Creation,
        prepared: &'a Prepared,
        monitor: QmpClient,
    ) -> Result<Self, BackupError> {
        let cancel = creation.terms.cancel.clone();
        let turn = unless_cancelled(&cancel, monitor.turn_to_copy()).await?;
        let turn = turn.ok_or(BackupError::Cancelled)?;
        let ending = turn.ending().clone();
        tokio::spawn(async move {
            cancel.run_until_cancelled(ending.cancelled()).await;
            cancel.cancel();
        });
        Ok(Self {
            creation,
            prepared,
            monitor,
            turn,
        })
    }

    /// Before anything is made: whether QEMU has the disks, as what the request says, and may copy them. A job
    /// that a dead process left would hide a disk below its filter.
    pub(super) async fn refuse_unfit(&self) -> Result<(), BackupError> {
        self.turn.end_copies().await?;
        self.disks().await.map(drop)
    }

    async fn disks(&self) -> Result<Vec<Attached>, BackupError> {
        let request = &self.creation.request;
        let disks = attached(&self.monitor, &self.paths()).await?;
        let asked = request.disks.iter().zip(&self.prepared.encryption);
        for (disk, (asked, key)) in disks.iter().zip(asked) {
            disk.refuse_unfit(asked, key.is_some())?;
        }
        Ok(disks)
    }

    /// Fills the draft, and leaves the bitmaps as the outcome wants them.
    pub(super) async fn make(self, draft: Draft) -> Result<Kept, (BackupError, Kept)> {
        let made = match self.copy(&draft).await {
            Ok((disks, circumstances)) => draft.complete(disks, circumstances).await,
            Err(error) => Err((error, draft)),
        };
        let made = match made {
            Ok(kept) => Ok(kept),
            Err((error, draft)) => Err(fail(self.creation, draft, error).await),
        };
        if let Err(error) = self.settle_bitmaps(made.is_ok()).await {
            tracing::warn!(%error, "a dirty bitmap is left until the next backup");
        }
        made
    }

    async fn copy(&self, draft: &Draft) -> Result<(Vec<DiskRecord>, Circumstances), BackupError> {
        let disks = self.disks().await?;
        self.drop_bitmaps(&disks, |name| self.is_stale(name))
            .await?;
        if self.creation.request.kind == BackupType::Snapshot {
            return self.snapshot(&disks).await;
        }
        let disks = self.disks().await?;
        let mut copies = Vec::new();
        for (n, disk) in disks.into_iter().enumerate() {
            copies.push(self.choose(draft, n, disk).await?);
        }
        self.require_space(&copies).await?;
        let well = !self.is_out_of_order().await?;
        let reporter = self.reporter(&copies);
        let copied = self.run_jobs(draft, &copies, &reporter).await;
        self.turn.end_copies().await?;
        if well {
            self.let_go_on().await;
        }
        let (frozen, following) = copied?;
        let followed = following.end().await?;
        let mut records = Vec::new();
        for (n, (copy, followed)) in copies.iter().zip(followed).enumerate() {
            records.push(self.finish(draft, n, copy, followed, &reporter).await?);
            reporter.done(n);
        }
        Ok((records, running(frozen)))
    }

    fn reporter(&self, copies: &[Copying]) -> Reporter {
        let copies = copies.iter().zip(&self.prepared.encryption);
        let courses = copies.map(|(copy, key)| {
            let works = copy.method.works();
            self.creation.course(copy.disk.size, works, key.is_some())
        });
        self.creation.reporter(courses.collect())
    }

    /// A plain full copy takes at most the disk's size; what it really takes QEMU alone knows. An encrypted one is
    /// never compressed. A copy that is compared lies there beside its difference for a while.
    async fn require_space(&self, copies: &[Copying]) -> Result<(), BackupError> {
        let all_plain = self.creation.clusters() == Clusters::Plain;
        let plain = |(copy, key): &(&Copying, &Option<_>)| match copy.method {
            Method::Full => all_plain || key.is_some(),
            Method::Marked { .. } => false,
            Method::Compared { .. } => true,
        };
        let copies = copies.iter().zip(&self.prepared.encryption);
        let plain = copies.filter(plain).map(|(copy, _)| &copy.disk);
        let needed = plain.map(|disk| disk.allocated.min(disk.size)).sum();
        let place = self.creation.request.destination.clone();
        off_thread(move || refuse_full(place, needed)).await
    }

    async fn choose(
        &self,
        draft: &Draft,
        n: usize,
        disk: Attached,
    ) -> Result<Copying, BackupError> {
        let image = draft.image(n)?;
        let Some(link) = self.prepared.parents.first() else {
            return Ok(Copying {
                disk,
                method: Method::Full,
                target: image,
            });
        };
        let parent = parent_of(self.prepared, n, &draft.folder).await?;
        // A disk that is shorter than its parent was cut, which no bitmap tells.
        let usable = disk.has_usable_bitmap(&link.manifest.id.bitmap(n))
            && disk.size >= link.manifest.disks[n].original_size;
        let (method, target) = if usable {
            (Method::Marked { parent }, image)
        } else {
            (Method::Compared { parent }, draft.scratch(n, "full")?)
        };
        Ok(Copying {
            disk,
            method,
            target,
        })
    }

    /// Has QEMU copy every disk, and waits for it. Says whether the guest was frozen, and what was summed meanwhile.
    async fn run_jobs(
        &self,
        draft: &Draft,
        copies: &[Copying],
        reporter: &Reporter,
    ) -> Result<(bool, Following), BackupError> {
        let mut files = Vec::new();
        for (n, copy) in copies.iter().enumerate() {
            files.push(self.add_target(n, copy).await?);
        }
        let actions = self.actions(draft, copies);
        let machine = &*self.creation.terms.machine;
        // A cancelled caller ends it before the guest is touched, and from then on by its jobs.
        if self.creation.terms.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        reporter.all_at(Work::Copy, &vec![0.0; copies.len()]);
        let events = self.monitor.subscribe();
        let begin = self
            .monitor
            .execute_with("transaction", json!({ "actions": actions }), START);
        let (begun, frozen) = quiesce::around(machine, begin).await;
        begun?;
        let following = Following::begin(files);
        self.refuse_moved().await?;
        let ids = self.node_names(copies.len());
        let cancel = &self.creation.terms.cancel;
        jobs::wait_for(&self.monitor, events, &ids, cancel, |parts| {
            reporter.all_at(Work::Copy, parts);
        })
        .await?;
        Ok((frozen, following))
    }

    /// Whether the guest stands still as a request of one of its disks failed.
    async fn is_out_of_order(&self) -> Result<bool, QmpError> {
        Ok(self.monitor.query_status().await?.status == RunState::IoError)
    }

    async fn let_go_on(&self) {
        match self.monitor.go_on_after_copies().await {
            Ok(true) => {
                tracing::warn!(id = %self.creation.id, "a backup had stopped the guest, which goes on");
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(id = %self.creation.id, %error, "a guest may be stopped by its backup");
            }
        }
    }

    /// An overlay may have been put on a disk after it was looked up, and before its job began: what
    /// would be copied is what was written before that moment, not before the freeze.
    async fn refuse_moved(&self) -> Result<(), BackupError> {
        match attached(&self.monitor, &self.paths()).await {
            Err(BackupError::NotAttached { path }) => Err(BackupError::Moved { path }),
            found => found.map(drop),
        }
    }

    fn paths(&self) -> Vec<&HostPath> {
        let disks = self.creation.request.disks.iter();
        disks.map(|disk| &disk.path).collect()
    }

    fn node_names(&self, disks: usize) -> Vec<String> {
        (0..disks).map(|n| self.creation.id.node(n)).collect()
    }

    /// Makes the file that QEMU writes into, and opens it there. What is followed of it is told.
    async fn add_target(&self, n: usize, copy: &Copying) -> Result<Option<Followed>, BackupError> {
        let size = ByteSize::bytes(copy.disk.size);
        let (clusters, parent) = match &copy.method {
            Method::Full => (self.creation.clusters(), None),
            Method::Marked { parent } => (self.creation.clusters(), Some(parent)),
            Method::Compared { .. } => (Clusters::Plain, None),
        };
        let encryption = self.prepared.encryption[n].as_ref();
        make_target(&copy.target, size, clusters, parent, encryption).await?;
        let followed = self.follow(n, copy).await?;
        give_to_qemu(&copy.target, &self.creation.request.disks[n].path).await?;
        let node = self.creation.id.node(n);
        let mut options = json!({
            "driver": "qcow2",
            "node-name": node,
            // We flush it, when the job is over: QEMU's main loop, and so the guest, would wait for that.
            "file": {
                "driver": "file", "filename": copy.target,
                "cache": { "direct": false, "no-flush": true },
            },
            "l2-cache-entry-size": TABLE_PART,
            "l2-cache-size": TABLE_PARTS * TABLE_PART,
            // What is marked is copied by whole clusters: the parent's files are not needed for it.
            "backing": null,
        });
        let Some(encryption) = encryption else {
            self.monitor.blockdev_add(options).await?;
            return Ok(followed);
        };
        // QEMU needs it to open the file, and not after.
        self.monitor.add_secret(&node, &encryption.key).await?;
        options["encrypt"] = json!({ "format": "luks", "key-secret": node });
        let opened = self.monitor.blockdev_add(options).await;
        self.monitor.object_del(&node).await?;
        opened?;
        Ok(followed)
    }

    /// What becomes the backup as it is can be summed as it grows.
    async fn follow(&self, n: usize, copy: &Copying) -> Result<Option<Followed>, BackupError> {
        let encrypted = self.prepared.encryption[n].is_some();
        let as_it_is = encrypted || self.creation.request.compression == Compression::None;
        if !as_it_is || matches!(copy.method, Method::Compared { .. }) {
            return Ok(None);
        }
        let target = copy.target.clone();
        off_thread(move || Followed::begin(&target).map(Some)).await
    }

    fn actions(&self, draft: &Draft, copies: &[Copying]) -> Vec<Value> {
        let copies = copies.iter().enumerate();
        copies
            .flat_map(|(n, copy)| [new_bitmap(draft, n, copy), self.job(n, copy)])
            .collect()
    }

    fn job(&self, n: usize, copy: &Copying) -> Value {
        let node = self.creation.id.node(n);
        let plain = self.creation.clusters() == Clusters::Plain;
        let mut data = json!({
            "device": copy.disk.node,
            "target": node,
            "job-id": node,
            "sync": "full",
            "compress": !plain && !copy.disk.encrypted && !matches!(copy.method, Method::Compared { .. }),
            "auto-dismiss": false,
        });
        if let (Method::Marked { .. }, Some(link)) = (&copy.method, self.prepared.parents.first()) {
            data["sync"] = json!("bitmap");
            data["bitmap"] = json!(link.manifest.id.bitmap(n));
            data["bitmap-mode"] = json!("never");
        }
        json!({ "type": "blockdev-backup", "data": data })
    }

    /// Takes the file back from QEMU, compares it if need be, and seals it.
    async fn finish(
        &self,
        draft: &Draft,
        n: usize,
        copy: &Copying,
        followed: Option<Followed>,
        reporter: &Reporter,
    ) -> Result<DiskRecord, BackupError> {
        take_back(&copy.target).await?;
        if let Method::Compared { parent } = &copy.method {
            let step = reporter.step(n, Work::Compare);
            step.follow(async |progress| {
                self.compare(draft, n, &copy.target, parent, progress).await
            })
            .await?;
        }
        let parent = copy.method.parent();
        let disk = (n, copy.disk.size);
        seal(
            self.creation,
            self.prepared,
            draft,
            disk,
            parent,
            followed,
            reporter,
        )
        .await
    }

    async fn compare(
        &self,
        draft: &Draft,
        n: usize,
        full: &HostPath,
        parent: &Parent,
        progress: watch::Sender<f64>,
    ) -> Result<(), BackupError> {
        let source = Source {
            path: full.clone(),
            format: ImageFormat::Qcow2,
            encryption: self.prepared.encryption[n].clone(),
        };
        let (image, scratch) = (draft.image(n)?, draft.scratch(n, "delta")?);
        let job = self.creation.job(progress);
        let clusters = self.creation.clusters();
        difference(&source, parent, &image, &scratch, clusters, &job).await?;
        let full = full.clone();
        off_thread(move || remove_file(&full)).await
    }

    /// An internal snapshot in every disk, at one moment.
    async fn snapshot(
        &self,
        disks: &[Attached],
    ) -> Result<(Vec<DiskRecord>, Circumstances), BackupError> {
        let name = self.creation.id.snapshot();
        let actions: Vec<_> = disks
            .iter()
            .map(|disk| {
                let data = json!({ "device": disk.node, "name": name });
                json!({ "type": "blockdev-snapshot-internal-sync", "data": data })
            })
            .collect();
        let actions = json!({ "actions": actions });
        let begin = self.monitor.execute_with("transaction", actions, START);
        let (done, frozen) = quiesce::around(&*self.creation.terms.machine, begin).await;
        done?;
        let mut records = offline::planned(self.creation, self.prepared);
        for (record, disk) in records.iter_mut().zip(disks) {
            record.original_size = disk.size;
        }
        Ok((records, running(frozen)))
    }

    /// After a success only this backup's bitmaps stay, after a failure only those before it.
    async fn settle_bitmaps(&self, made: bool) -> Result<(), BackupError> {
        if self.creation.request.kind == BackupType::Snapshot {
            return Ok(());
        }
        let disks = attached(&self.monitor, &self.paths()).await?;
        let ours = &self.creation.id;
        self.drop_bitmaps(&disks, |name| ours.has_bitmap(name) != made)
            .await
    }

    /// A bitmap of a backup that is gone, or never was complete.
    fn is_stale(&self, name: &str) -> bool {
        let all = self.prepared.all.iter().map(|kept| &kept.manifest);
        let mut complete = all.filter(|manifest| manifest.is_complete());
        !complete.any(|manifest| manifest.id.has_bitmap(name))
    }

    async fn drop_bitmaps(
        &self,
        disks: &[Attached],
        unwanted: impl Fn(&str) -> bool,
    ) -> Result<(), BackupError> {
        for disk in disks {
            for bitmap in &disk.bitmaps {
                let ours = bitmap.name.starts_with(BITMAP_PREFIX);
                if ours && (bitmap.inconsistent || unwanted(&bitmap.name)) {
                    let arguments = json!({ "node": disk.node, "name": bitmap.name });
                    self.monitor
                        .execute("block-dirty-bitmap-remove", arguments)
                        .await?;
                }
            }
        }
        Ok(())
    }
}

/// What records the changes after this backup. A raw disk has no room for one: it lasts as long as QEMU.
fn new_bitmap(draft: &Draft, n: usize, copy: &Copying) -> Value {
    json!({ "type": "block-dirty-bitmap-add", "data": {
        "node": copy.disk.node,
        "name": draft.manifest.id.bitmap(n),
        "granularity": CLUSTER,
        "persistent": copy.disk.format == "qcow2",
    }})
}

fn running(frozen: bool) -> Circumstances {
    Circumstances {
        running: true,
        crash_consistent: !frozen,
    }
}

/// Deletes a SNAPSHOT's snapshots through the machine that runs on its disks. One that lies under an overlay by now
/// is `IMAGE_IN_USE`; one that the machine was relieved of is nobody's.
pub(super) async fn delete_snapshots(
    monitor: &QmpClient,
    manifest: &Manifest,
) -> Result<(), BackupError> {
    let name = SnapshotName::parse(manifest.id.snapshot())?;
    for disk in &manifest.disks {
        match attached(monitor, &[&disk.source_path]).await {
            Ok(found) => delete_snapshot(monitor, &found, &name).await?,
            Err(BackupError::NotAttached { .. }) => {
                offline::drop_snapshots(std::slice::from_ref(disk), &name).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn delete_snapshot(
    monitor: &QmpClient,
    disks: &[Attached],
    name: &SnapshotName,
) -> Result<(), BackupError> {
    let name = name.as_str();
    for disk in disks {
        if disk.snapshots.iter().any(|one| one == name) {
            let arguments = json!({ "device": disk.node, "name": name });
            monitor
                .execute("blockdev-snapshot-delete-internal-sync", arguments)
                .await?;
        }
    }
    Ok(())
}
