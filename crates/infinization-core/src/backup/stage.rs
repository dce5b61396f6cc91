//! Putting restored disks in place: all of them or none.
//!
//! Disks are staged beside their targets under names of their own, which the journal `restore.json`
//! lists before they exist. Once all are on disk the journal says so, and each is exchanged with its
//! target by one rename, which can be undone by the same. So an error undoes those before it, a crash
//! is carried on by the next who has the machine's turn, and the old disks go last. What a machine has
//! written since the crash is not replaced.

mod staged;

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use super::folder::{Library, inside, remove_file, sync_directory};
use super::machine::{Machine, frozen_layers, refuse_frozen_now};
use super::pending::{Pending, refuse_another_now};
use super::{BackupError, off_thread};
use crate::host::file_systems::FileSystems;
use crate::host::qemu_img::{Claim, claim_now};
use crate::host::restore_note;
use crate::host::state_file::{self, Durability};
use crate::types::{HostPath, VmId};
pub(super) use staged::directory_of;
use staged::{
    Staged, Version, exchange, name_beside, not_named, old_name, put_back, take_after,
    unpacked_name,
};

/// The journal's name in the directory of the machine's backups.
pub(super) const JOURNAL: &str = "restore.json";

/// What became of a restore whose process had died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Every disk is restored, or none is.
    Whole,
    /// Some are, and they were used since: nobody but their owner can say what is wanted.
    InPieces,
}

/// A restore in progress. Dropped before it is committed it leaves its journal, and whoever is next
/// removes what it staged: so [`Stage::abandon`] it where you can.
#[derive(Debug)]
pub(super) struct Stage {
    journal: HostPath,
    plan: Plan,
}

/// The journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Plan {
    /// Everything is staged, and renaming may have begun.
    committing: bool,
    disks: Vec<Staged>,
    /// Where the files are: one that is not there may be another time.
    #[serde(default)]
    file_systems: FileSystems,
}

impl Stage {
    /// Notes what will be staged, one file beside each target. Only with `overwrite` is one replaced.
    pub(super) async fn begin(
        library: &Library,
        vm_id: &VmId,
        targets: &[HostPath],
        overwrite: bool,
    ) -> Result<Self, BackupError> {
        let journal = journal(library, vm_id)?;
        let targets = targets.to_vec();
        off_thread(move || {
            refuse_another_now(&journal)?;
            let disks = targets.into_iter().map(|target| {
                Ok(Staged {
                    aside: name_beside(&target)?,
                    new: None,
                    old: Version::at(&target).filter(|_| overwrite),
                    target,
                })
            });
            let disks = disks.collect::<Result<Vec<_>, BackupError>>()?;
            let plan = Plan {
                committing: false,
                file_systems: file_systems(&disks)?,
                disks,
            };
            let stage = Self { journal, plan };
            stage.write()?;
            Ok(stage)
        })
        .await
    }

    /// The file that disk `n` is to be written into.
    pub(super) fn file(&self, n: usize) -> &HostPath {
        &self.plan.disks[n].aside
    }

    /// A file for in between, which goes when the stage does.
    pub(super) fn unpacked(&self, n: usize) -> Result<HostPath, BackupError> {
        unpacked_name(self.file(n))
    }

    /// What a process that died has left.
    fn left(journal: HostPath) -> Result<Option<Self>, BackupError> {
        let read = state_file::read(journal.as_path());
        let failed = |error| BackupError::io(&journal, error);
        let Some(text) = read.map_err(|error| failed(io::Error::other(error)))? else {
            return Ok(None);
        };
        let plan = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        Ok(Some(Self { journal, plan }))
    }

    /// Removes what was staged. The targets were never touched.
    pub(super) async fn abandon(self) {
        let journal = self.journal.clone();
        if let Err(error) = off_thread(move || self.clear()).await {
            tracing::warn!(%journal, %error, "a failed restore's files are left until the next one");
        }
    }

    /// Gives every staged disk its target's owner and name. On failure every target is what it was, or
    /// could not be made so, and then the old disks stay for [`recover`].
    pub(super) async fn commit(mut self) -> Result<(), BackupError> {
        off_thread(move || match self.replace() {
            Ok(()) => self.clear(),
            Err(error) => {
                self.give_up()?;
                Err(error)
            }
        })
        .await
    }

    /// Removes what was staged, once it is certain that no old disk is among it.
    fn give_up(mut self) -> Result<(), BackupError> {
        if self.plan.committing {
            if !self.plan.disks.iter().all(Staged::is_aside) {
                tracing::error!(journal = %self.journal, "a failed restore could not be undone yet");
                return Ok(());
            }
            self.sync_directories()?;
            // From here on a crash must not be carried on. A full disk does not let it be noted.
            self.plan.committing = false;
            if let Err(error) = self.write() {
                tracing::warn!(journal = %self.journal, %error, "that a restore failed is not noted");
            }
        }
        self.clear()
    }

    fn replace(&mut self) -> Result<(), BackupError> {
        // A machine that started in between would write into a file that has no name any more.
        let _nobody_else = claim(&self.plan.disks)?;
        self.settle()?;
        self.rename_all()
    }

    /// Makes the staged files durable, and says in the journal that they are whole.
    fn settle(&mut self) -> Result<(), BackupError> {
        for disk in &mut self.plan.disks {
            let failed = |error| BackupError::io(&disk.target, error);
            let file = File::open(disk.aside.as_path()).map_err(failed)?;
            if disk.old.is_some() {
                let old = File::open(disk.target.as_path()).map_err(failed)?;
                take_after(&file, &old).map_err(failed)?;
                // A crash of the host must not make it look written to.
                old.sync_all().map_err(failed)?;
                disk.old = Some(Version::of(&old.metadata().map_err(failed)?));
            }
            file.sync_all().map_err(failed)?;
            disk.new = Some(Version::of(&file.metadata().map_err(failed)?));
        }
        for disk in &self.plan.disks {
            let noted = restore_note::write(&disk.target, &self.journal);
            noted.map_err(|error| BackupError::io(&disk.target, error))?;
        }
        self.plan.committing = true;
        self.write()
    }

    fn rename_all(&self) -> Result<(), BackupError> {
        for (n, disk) in self.plan.disks.iter().enumerate() {
            if let Err(error) = exchange(disk) {
                self.undo(n);
                return Err(not_named(disk, error));
            }
        }
        let synced = self.sync_directories();
        if synced.is_err() {
            self.undo(self.plan.disks.len());
        }
        synced
    }

    /// Undoes as many renames, as far as it can be done: [`Stage::give_up`] looks what came of it.
    fn undo(&self, renamed: usize) {
        for disk in self.plan.disks[..renamed].iter().rev() {
            if let Err(error) = put_back(disk) {
                tracing::error!(target = %disk.target, %error, "a restored disk could not be put back");
            }
        }
    }

    fn sync_directories(&self) -> Result<(), BackupError> {
        for disk in &self.plan.disks {
            sync_directory(&directory_of(&disk.target)?)?;
        }
        Ok(())
    }

    /// Removes what has a staged name now: what was not restored, or what was replaced.
    fn clear(&self) -> Result<(), BackupError> {
        for disk in &self.plan.disks {
            remove_file(&disk.aside)?;
            remove_file(&old_name(&disk.aside)?)?;
            remove_file(&unpacked_name(&disk.aside)?)?;
        }
        self.forget()
    }

    /// Notes go first: where one is, there is a journal.
    fn forget(&self) -> Result<(), BackupError> {
        for disk in &self.plan.disks {
            let removed = restore_note::remove(&disk.target, &self.journal);
            removed.map_err(|error| BackupError::io(&disk.target, error))?;
        }
        remove_file(&self.journal)
    }

    fn write(&self) -> Result<(), BackupError> {
        let failed = |error| BackupError::io(&self.journal, error);
        let text = serde_json::to_vec(&self.plan).map_err(|error| failed(error.into()))?;
        state_file::write(self.journal.as_path(), &text, Durability::HostCrash)
            .map_err(|error| failed(io::Error::other(error)))
    }

    /// Ends what a process that died has left. The frozen layers are asked for where they matter.
    async fn end(
        self,
        frozen: impl AsyncFnOnce() -> Result<Vec<HostPath>, BackupError>,
    ) -> Result<Ended, BackupError> {
        if !self.plan.committing {
            off_thread(move || self.require_mounted().and_then(|()| self.clear())).await?;
            return Ok(Ended::Whole);
        }
        let frozen = frozen().await?;
        off_thread(move || self.carry_on(&frozen)).await
    }

    /// Refuses while a file that is not there may be another time: only what was removed counts as gone.
    fn require_mounted(&self) -> Result<(), BackupError> {
        let files = self.plan.disks.iter();
        files
            .flat_map(|disk| [&disk.target, &disk.aside])
            .try_for_each(|file| {
                let found = self.plan.file_systems.have(file);
                found
                    .map(drop)
                    .map_err(|error| BackupError::io(file, error))
            })
    }

    /// Renames what a crash left to rename: all of it, or nothing.
    fn carry_on(&self, frozen: &[HostPath]) -> Result<Ended, BackupError> {
        self.require_mounted()?;
        let unfinished = self.plan.disks.iter().filter(|disk| !disk.is_done());
        let unfinished: Vec<_> = unfinished.collect();
        if unfinished.is_empty() {
            self.sync_directories()?;
            self.clear()?;
            return Ok(Ended::Whole);
        }
        let claimed = claim(unfinished.iter().copied());
        if !self.plan.disks.iter().all(Staged::is_untouched) {
            return self.forsake();
        }
        let _nobody_else = claimed?;
        for disk in &unfinished {
            refuse_frozen_now(&disk.target, frozen)?;
        }
        for disk in unfinished {
            exchange(disk).map_err(|error| not_named(disk, error))?;
        }
        self.sync_directories()?;
        self.clear()?;
        Ok(Ended::Whole)
    }

    /// Ends a restore that was overtaken: its disks were written to, or removed, since the crash. They stay
    /// as they are, and so does what may be an old disk, for whoever put them there to choose from.
    fn forsake(&self) -> Result<Ended, BackupError> {
        if self.plan.disks.iter().all(Staged::is_aside) {
            tracing::warn!(journal = %self.journal, "an interrupted restore was dropped: its disks were used since");
            self.clear()?;
            return Ok(Ended::Whole);
        }
        for disk in &self.plan.disks {
            tracing::error!(
                target = %disk.target, left = %disk.aside,
                "an interrupted restore replaced only some of the disks, and they were used since: all are \
                 left (without exchanging renames what was replaced ends in .old)"
            );
        }
        self.forget()?;
        Ok(Ended::InPieces)
    }
}

/// Ends a restore whose process died: one that had not begun to rename never was, any other is
/// finished, unless its disks were used since. What cannot be ended now is told, such as one with a target that
/// has become a frozen layer, until its snapshots are gone.
pub(super) async fn recover(
    library: &Library,
    vm_id: &VmId,
    machine: &dyn Machine,
) -> Result<Option<Pending>, BackupError> {
    let journal = journal(library, vm_id)?;
    let Some(stage) = off_thread(move || Stage::left(journal)).await? else {
        return Ok(None);
    };
    let targets = stage.plan.disks.iter().map(|disk| disk.target.clone());
    let (journal, targets) = (stage.journal.clone(), targets.collect());
    let ended = stage.end(async || frozen_layers(machine).await).await;
    Ok(ended.err().map(|why| Pending::new(journal, targets, why)))
}

/// [`recover`] for whoever is to use the disks: what cannot be ended is a refusal.
pub(super) async fn end(
    library: &Library,
    vm_id: &VmId,
    frozen: impl AsyncFnOnce() -> Result<Vec<HostPath>, BackupError>,
) -> Result<Ended, BackupError> {
    let journal = journal(library, vm_id)?;
    match off_thread(move || Stage::left(journal)).await? {
        Some(stage) => stage.end(frozen).await,
        None => Ok(Ended::Whole),
    }
}

fn file_systems(disks: &[Staged]) -> Result<FileSystems, BackupError> {
    let files = disks.iter().flat_map(|disk| [&disk.target, &disk.aside]);
    FileSystems::of(files).map_err(|error| BackupError::io(&disks[0].target, error))
}

/// Keeps machines off the disks that are to be replaced.
fn claim<'a>(disks: impl IntoIterator<Item = &'a Staged>) -> Result<Vec<Claim>, BackupError> {
    let replaced = disks.into_iter().filter(|disk| disk.old.is_some());
    let old = replaced.map(|disk| &disk.target);
    let old = old.filter(|target| target.as_path().exists());
    Ok(old.map(claim_now).collect::<Result<_, _>>()?)
}

fn journal(library: &Library, vm_id: &VmId) -> Result<HostPath, BackupError> {
    inside(&library.machine(vm_id)?, JOURNAL)
}

#[cfg(test)]
mod tests;
