//! Copying the disks of a running machine: its own QEMU does it, so that every disk is copied as it was
//! at one moment.
//!
//! All jobs begin in one `transaction`, within which the guest's file systems are frozen if they can
//! be. What the transaction also adds is a dirty bitmap per disk, named after this backup and its place
//! in it; a later incremental one copies what it has marked, if the disk has the same place there. The
//! parent's bitmap is left as it is until this backup is complete, so a failure costs nothing.

mod attached;
mod bitmaps;
mod copying;
mod follow;
mod handover;
mod jobs;
mod snapshot;
mod target;

use std::time::Duration;

use serde_json::{Value, json};

use super::create::{Contents, Creation, conclude};
use super::draft::{Circumstances, Draft};
use super::folder::{Kept, refuse_full, remove_file};
use super::kinds::BackupType;
use super::manifest::DiskRecord;
use super::pieces::Followed;
use super::prepare::{Prepared, parent_of};
use super::progress::{Reporter, Work};
use super::seal::{Copied, Seal};
use super::turn::unless_cancelled;
use super::{BackupError, off_thread, quiesce};
use crate::host::qemu_img::{Clusters, ImageFormat, Job, Parent, Source, difference};
use crate::qmp::{CopyTurn, QmpClient, QmpError, RunState};
use crate::types::HostPath;
use attached::{Attached, attached};
use bitmaps::new_bitmap;
use copying::{Copying, Method};
use follow::Following;
use handover::take_back;
pub(super) use snapshot::delete_snapshots;

/// For starting all jobs: the guest's file systems are frozen meanwhile. A Windows guest thaws by
/// itself after ten seconds.
const START: Duration = Duration::from_secs(8);
/// A backup of a machine that runs.
pub(super) struct Live<'a> {
    creation: &'a Creation,
    prepared: &'a Prepared,
    monitor: QmpClient,
    turn: CopyTurn,
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
        let copied = self.copy(&draft).await;
        let made = conclude(self.creation, draft, copied).await;
        if let Err(error) = self.settle_bitmaps(made.is_ok()).await {
            tracing::warn!(%error, "a dirty bitmap is left until the next backup");
        }
        made
    }

    async fn copy(&self, draft: &Draft) -> Result<Contents, BackupError> {
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
        Ok(Contents {
            disks: records,
            circumstances: running(frozen),
            reporter,
        })
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
        reporter.begin(Work::Copy);
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
            let job = self.creation.job(&reporter.step(n, Work::Compare));
            self.compare(draft, n, &copy.target, parent, &job).await?;
        }
        let copied = Copied {
            n,
            size: copy.disk.size,
            parent: copy.method.parent().cloned(),
            followed,
            state: None,
        };
        let seal = Seal {
            creation: self.creation,
            prepared: self.prepared,
            draft,
            reporter,
        };
        seal.disk(copied).await
    }

    async fn compare(
        &self,
        draft: &Draft,
        n: usize,
        full: &HostPath,
        parent: &Parent,
        job: &Job,
    ) -> Result<(), BackupError> {
        let source = Source {
            path: full.clone(),
            format: ImageFormat::Qcow2,
            encryption: self.prepared.encryption[n].clone(),
        };
        let (image, scratch) = (draft.image(n)?, draft.scratch(n, "delta")?);
        let clusters = self.creation.clusters();
        difference(&source, parent, &image, &scratch, clusters, job).await?;
        let full = full.clone();
        off_thread(move || remove_file(&full)).await
    }
}

fn running(frozen: bool) -> Circumstances {
    Circumstances {
        running: true,
        crash_consistent: !frozen,
    }
}
