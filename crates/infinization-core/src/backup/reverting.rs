//! Putting disks back to a SNAPSHOT that is inside them: all of them or none.
//!
//! Before the first goes back, what each is gets a snapshot of its own; the journal `revert.json` names these from
//! before they are made until they are gone. So an error is undone, and a crash by the next who has the machine's
//! turn, or by the machine's next start, which finds a note beside its disks. What was written since the crash all
//! the same is not put back: then the disks stay as they are, and the snapshots of what they were as well.
//!
//! Neighbour: [`stage`](super::stage) does the same for disks that are replaced by others.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::folder::{Library, inside, remove_file};
use super::machine::{Machine, frozen_layers, refuse_layers};
use super::offline::drop_held;
use super::pending::{Pending, refuse_another_now};
use super::progress::{Reporter, Work};
use super::stage::Ended;
use super::{BackupError, off_thread};
use crate::host::file_systems::FileSystems;
use crate::host::qemu_img::{
    Held, ImageError, SnapshotName, hold_all, is_unwritten_since, outwait_orphan,
};
use crate::host::restore_note;
use crate::host::state_file::{self, Durability};
use crate::types::{HostPath, VmId};

/// The journal's name in the directory of the machine's backups.
pub(super) const JOURNAL: &str = "revert.json";
/// For a qemu-img that has outlived its killed parent: it changes metadata alone.
const ORPHAN: Duration = Duration::from_secs(10);

/// Disks on their way back.
struct Reverting {
    journal: HostPath,
    plan: Plan,
}

/// The journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Plan {
    /// Not all have gone back: those that have are to be what they were.
    undo: bool,
    /// The snapshot of what they were, which goes in the end.
    before: String,
    /// The one they go back to.
    to: String,
    disks: Vec<HostPath>,
    /// Where the disks are: one that is not there may be another time.
    #[serde(default)]
    file_systems: FileSystems,
}

/// Puts every disk back to the snapshot, or none.
pub(super) async fn revert_all(
    library: &Library,
    vm_id: &VmId,
    disks: Vec<HostPath>,
    to: SnapshotName,
    reporter: &Reporter,
) -> Result<(), BackupError> {
    let (journal, held) = (journal(library, vm_id)?, hold_all(&disks).await?);
    let there = journal.clone();
    off_thread(move || refuse_another_now(&there)).await?;
    let plan = Plan {
        undo: true,
        before: format!("undo-{}", Uuid::new_v4().hyphenated()),
        to: to.as_str().to_owned(),
        file_systems: file_systems(&disks).await?,
        disks,
    };
    let mut reverting = Reverting { journal, plan };
    reverting.write().await?;
    match reverting.revert(&held, &to, reporter).await {
        Ok(()) => reverting.conclude(&held).await,
        Err(error) => {
            reverting.give_up(&held).await;
            Err(error)
        }
    }
}

/// Ends what a process that died had begun to put back. What cannot be ended now is told: a machine that runs on the
/// disks is not disturbed, and one that is away may come back.
pub(super) async fn recover(
    library: &Library,
    vm_id: &VmId,
    machine: &dyn Machine,
) -> Result<Option<Pending>, BackupError> {
    let journal = journal(library, vm_id)?;
    let Some(mut left) = off_thread(move || Reverting::left(journal)).await? else {
        return Ok(None);
    };
    let undone = left.undo(async || frozen_layers(machine).await).await;
    Ok(undone
        .err()
        .map(|why| Pending::new(left.journal, left.plan.disks, why)))
}

/// [`recover`] for whoever is to use the disks: what cannot be ended is a refusal.
/// The frozen layers are asked for where they matter.
pub(super) async fn end(
    library: &Library,
    vm_id: &VmId,
    frozen: impl AsyncFnOnce() -> Result<Vec<HostPath>, BackupError>,
) -> Result<Ended, BackupError> {
    let journal = journal(library, vm_id)?;
    match off_thread(move || Reverting::left(journal)).await? {
        Some(mut left) => left.undo(frozen).await,
        None => Ok(Ended::Whole),
    }
}

impl Reverting {
    fn left(journal: HostPath) -> Result<Option<Self>, BackupError> {
        let failed = |error| BackupError::io(&journal, error);
        let read = state_file::read(journal.as_path());
        let Some(text) = read.map_err(|error| failed(io::Error::other(error)))? else {
            return Ok(None);
        };
        let plan = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        Ok(Some(Self { journal, plan }))
    }

    async fn revert(
        &self,
        held: &[Held],
        to: &SnapshotName,
        reporter: &Reporter,
    ) -> Result<(), BackupError> {
        reporter.begin(Work::Settle);
        self.note().await?;
        let before = self.before()?;
        for disk in held {
            disk.create_snapshot(&before, None).await?;
        }
        for (n, disk) in held.iter().enumerate() {
            disk.revert_snapshot(to, None).await?;
            reporter.done(n);
        }
        Ok(())
    }

    /// What a crash left: the disks are what they were again, unless somebody has used them.
    async fn undo(
        &mut self,
        frozen: impl AsyncFnOnce() -> Result<Vec<HostPath>, BackupError>,
    ) -> Result<Ended, BackupError> {
        let there = self.there().await?;
        for disk in &there {
            outwait_orphan(disk, ORPHAN).await;
        }
        let held = hold_all(&there).await?;
        if self.plan.undo && self.may_have_begun(&held).await? {
            if !self.is_unused(&there).await? {
                return self.forsake().await;
            }
            refuse_layers(self.plan.disks.clone(), frozen().await?).await?;
            self.put_back(&held).await?;
        }
        self.clear(&held).await?;
        Ok(Ended::Whole)
    }

    /// The disks without those that were removed. Nothing is undone while one may be elsewhere.
    async fn there(&self) -> Result<Vec<HostPath>, BackupError> {
        let plan = self.plan.clone();
        off_thread(move || {
            let mut there = Vec::new();
            for disk in plan.disks {
                let found = plan.file_systems.have(&disk);
                if found.map_err(|error| BackupError::io(&disk, error))? {
                    there.push(disk);
                }
            }
            Ok(there)
        })
        .await
    }

    /// None goes back before all have the snapshot of what they were. Of one that was removed, nobody can say.
    async fn may_have_begun(&self, held: &[Held]) -> Result<bool, ImageError> {
        let before = self.before()?;
        for disk in held {
            if !disk.has_snapshot(&before).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_unused(&self, there: &[HostPath]) -> Result<bool, ImageError> {
        let known = [self.before()?, SnapshotName::parse(self.plan.to.as_str())?];
        for disk in there {
            if !is_unwritten_since(disk, &known).await? {
                return Ok(false);
            }
        }
        Ok(there.len() == self.plan.disks.len())
    }

    /// Doing it again changes nothing, so it may be cut short as well.
    async fn put_back(&self, held: &[Held]) -> Result<(), ImageError> {
        let before = self.before()?;
        for disk in held {
            disk.revert_snapshot(&before, None).await?;
        }
        Ok(())
    }

    /// All have gone back. That the way back is left is no failure, unless somebody would take it.
    async fn conclude(&mut self, held: &[Held]) -> Result<(), BackupError> {
        let cleared = match self.end_undoing().await {
            Ok(()) => self.remove_way_back(held).await,
            Err(error) => {
                tracing::warn!(journal = %self.journal, %error, "that a restore succeeded is not noted");
                // Then there must be nothing that says otherwise.
                self.forget().await?;
                self.remove_way_back(held).await
            }
        };
        if let Err(error) = cleared {
            let snapshot = &self.plan.before;
            tracing::warn!(snapshot, %error, "what a restored disk was before is left in it");
        }
        Ok(())
    }

    /// One has not gone back. Where those before it cannot be put back, the next who comes does it.
    async fn give_up(&mut self, held: &[Held]) {
        let undone = async {
            if self.may_have_begun(held).await? {
                self.put_back(held).await?;
            }
            self.clear(held).await
        };
        if let Err(error) = undone.await {
            tracing::error!(journal = %self.journal, %error, "a failed restore could not be undone yet");
        }
    }

    /// Removes the way back: all have gone back, or none has.
    async fn clear(&mut self, held: &[Held]) -> Result<(), BackupError> {
        self.end_undoing().await?;
        self.remove_way_back(held).await
    }

    /// Were the way back removed from one and this cut short, the others must not be put back.
    async fn end_undoing(&mut self) -> Result<(), BackupError> {
        self.plan.undo = false;
        self.write().await
    }

    async fn remove_way_back(&self, held: &[Held]) -> Result<(), BackupError> {
        drop_held(held, &self.before()?).await?;
        self.forget().await
    }

    /// Ends a restore that was overtaken.
    async fn forsake(&self) -> Result<Ended, BackupError> {
        for disk in &self.plan.disks {
            tracing::error!(
                %disk, snapshot = self.plan.before, backup = self.plan.to,
                "an interrupted restore was not undone, as its disks were used since: each may have gone back to \
                 the backup or not, and the snapshot has what it was before"
            );
        }
        self.forget().await?;
        Ok(Ended::InPieces)
    }

    fn before(&self) -> Result<SnapshotName, ImageError> {
        SnapshotName::parse(self.plan.before.as_str())
    }

    async fn write(&self) -> Result<(), BackupError> {
        let (journal, plan) = (self.journal.clone(), self.plan.clone());
        off_thread(move || {
            let failed = |error| BackupError::io(&journal, error);
            let text = serde_json::to_vec(&plan).map_err(|error| failed(error.into()))?;
            state_file::write(journal.as_path(), &text, Durability::HostCrash)
                .map_err(|error| failed(io::Error::other(error)))
        })
        .await
    }

    /// From here on nobody uses the disks before this is over.
    async fn note(&self) -> Result<(), BackupError> {
        let (journal, disks) = (self.journal.clone(), self.plan.disks.clone());
        off_thread(move || {
            disks.iter().try_for_each(|disk| {
                let noted = restore_note::write(disk, &journal);
                noted.map_err(|error| BackupError::io(disk, error))
            })
        })
        .await
    }

    /// Notes go first: where one is, there is a journal.
    async fn forget(&self) -> Result<(), BackupError> {
        let (journal, disks) = (self.journal.clone(), self.plan.disks.clone());
        off_thread(move || {
            for disk in &disks {
                let removed = restore_note::remove(disk, &journal);
                removed.map_err(|error| BackupError::io(disk, error))?;
            }
            remove_file(&journal)
        })
        .await
    }
}

async fn file_systems(disks: &[HostPath]) -> Result<FileSystems, BackupError> {
    let disks = disks.to_vec();
    off_thread(move || {
        let found = FileSystems::of(&disks);
        found.map_err(|error| BackupError::io(&disks[0], error))
    })
    .await
}

fn journal(library: &Library, vm_id: &VmId) -> Result<HostPath, BackupError> {
    inside(&library.machine(vm_id)?, JOURNAL)
}
