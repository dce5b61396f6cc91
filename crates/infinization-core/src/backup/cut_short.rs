//! Ending a restore that was cut short, for whoever is about to use one of its disks and has found the note beside it
//! ([`restore_note`](crate::host::restore_note)).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::folder::Library;
use super::stage::{self, Ended};
use super::turn::Turn;
use super::{BackupError, off_thread, reverting};
use crate::types::{HostPath, VmId};

/// For a restore that is alive: what it does while its disks have notes takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finishes or undoes the restore that keeps this journal; one that is alive is waited for. `frozen` are the files that
/// external snapshots lie on. On failure the disks are as they were, and must not be used.
pub async fn end_cut_short_restore(
    journal: HostPath,
    frozen: Vec<HostPath>,
) -> Result<(), BackupError> {
    let (library, vm_id) = owner_of(&journal)?;
    let there = journal.clone();
    off_thread(move || require_ours(&there)).await?;
    let cancel = CancellationToken::new();
    let turn = Turn::take(&library, &vm_id, &cancel);
    let _turn = timeout(PATIENCE, turn)
        .await
        .map_err(|_elapsed| BackupError::TimedOut)??;
    let frozen = async move || Ok(frozen);
    let ended = if journal.as_path().ends_with(stage::JOURNAL) {
        stage::end(&library, &vm_id, frozen).await?
    } else {
        reverting::end(&library, &vm_id, frozen).await?
    };
    match ended {
        Ended::Whole => Ok(()),
        Ended::InPieces => Err(BackupError::Overtaken { journal }),
    }
}

/// `<root>/<vmId>/restore.json`, or `revert.json`.
fn owner_of(journal: &HostPath) -> Result<(Library, VmId), BackupError> {
    let path = journal.as_path();
    let is_one = [stage::JOURNAL, reverting::JOURNAL].map(|name| path.ends_with(name));
    let machine = path.parent().filter(|_| is_one.contains(&true));
    let text = |path: Option<&Path>| path.and_then(Path::to_str).map(str::to_owned);
    let vm_id = machine.and_then(Path::file_name).map(Path::new);
    let vm_id = text(vm_id).and_then(|name| VmId::parse(name).ok());
    let root = text(machine.and_then(Path::parent));
    let root = root.and_then(|root| HostPath::parse(root).ok());
    match (root, vm_id) {
        (Some(root), Some(vm_id)) => Ok((Library::new(root), vm_id)),
        _ => Err(BackupError::config(
            "the note beside a disk",
            "names no journal",
        )),
    }
}

/// A journal renames files, so it must be from somebody who may. Without it nobody knows what was done.
fn require_ours(journal: &HostPath) -> Result<(), BackupError> {
    let found = fs::symlink_metadata(journal.as_path());
    let found = found.map_err(|error| BackupError::io(journal, error))?;
    if found.is_file() && found.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    let why = format!("names {journal}, which is not ours");
    Err(BackupError::config("the note beside a disk", why))
}
