//! External snapshots: a tree of overlays, of all disks together.
//!
//! A snapshot is the file that was written until then; an overlay in front of it takes what comes after.
//! Going back means a new overlay on an older file, so that the tree branches.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | the verbs, inside the VM's task |
//! | `tree` | which snapshots there are, on what each builds, which file holds what (pure) |
//! | `change` | what a verb makes of the tree (pure) |
//! | `record` | the file beside the spec: the tree, and what is being done to it |
//! | `layers` | the record at work: new overlays, spec and row, files that go |
//! | `keys` | what opens encrypted layers |
//! | `merge` | two neighbours become one |
//! | `live` | what only the running QEMU can do |
//! | `pivot` | where the newest data is while QEMU moves down |
//! | `settle` | what a killed process has left |
//! | `shown` | what users are told |
//!
//! Invariants: what the VM's disks hold changes by no verb but a revert; a file is removed only when the
//! record on disk does not need it any more; no file is without a record that names it.

mod change;
mod keys;
mod layers;
mod live;
mod merge;
mod pivot;
mod record;
mod settle;
mod shown;
mod tree;

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

pub use shown::{ShownLayer, ShownNode, SnapshotTree};

use self::change::{Deletion, Label, Tip};
use self::keys::follow;
use self::layers::Layers;
use self::record::Record;
use self::tree::Tree;
use super::disks;
use crate::config::{Dependents, DiskKeys, RevertOptions, SnapshotOptions, StopOptions};
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::SnapshotName;
use crate::host::state_file::StateFileError;
use crate::types::{HostPath, iso_date};
use crate::vm::context::VmContext;
use crate::vm::live::LiveView;
use crate::vm::machine::Machine;
use crate::vm::outcome::OperationResult;
use crate::vm::stop::Interrupt;

impl Machine {
    /// `createSnapshot` with an overlay.
    pub(super) async fn create_external(
        &mut self,
        name: &SnapshotName,
        options: &SnapshotOptions,
        cancel: &CancellationToken,
    ) -> Result<OperationResult, Failure> {
        let live = self.changes_allowed("snapshotted").await?;
        let mut layers = self.layers(live.clone()).await?;
        layers.refuse_raw()?;
        self.context.refuse_internal(live.as_deref(), name).await?;
        let label = Label::of(name, options.description.clone());
        let overlay = layers.record.tree.create(label, layers.new_files()?)?;
        let before = layers.record.tree.active.clone();
        let done = match live {
            Some(_) => layers.overlay_live(overlay, options, cancel).await,
            None if options.quiesce => return Err(no_guest()),
            None => layers.overlay(overlay, cancel).await,
        };
        let after = layers.record.tree.active.clone();
        self.keys_follow(&before, &after);
        self.explained("snapshotted", done).await?;
        Ok(self.told(name, "create", "made"))
    }

    /// `revertSnapshot` to a node of the tree.
    pub(super) async fn revert_external(
        &mut self,
        name: &SnapshotName,
        options: &RevertOptions,
        interrupt: &Interrupt,
    ) -> Result<OperationResult, Failure> {
        let live = self.snapshots_allowed("put back to a snapshot").await?;
        // A refusal must not end the guest first.
        let layers = self.layers(live.clone()).await?;
        let tree = &layers.record.tree;
        let overlay = tree.revert(name.as_str(), tip_of(options)?, layers.new_files()?)?;
        layers.refuse_needed(&overlay.remove).await?;
        if let Some(keep) = &options.keep {
            let keep = SnapshotName::parse(keep.as_str())?;
            self.context.refuse_internal(live.as_deref(), &keep).await?;
        }
        let before = layers.record.tree.active.clone();
        let keys = layers.keys.clone();
        drop(layers);
        if live.is_none() {
            self.context.back_to(name, options, keys).await?;
            return Ok(self.told(name, "revert", "reverted to"));
        }
        if !options.restart {
            return Err(super::needs_restart(name));
        }
        let mut again = self.restart_options().await?;
        let at_once = StopOptions {
            graceful: false,
            ..StopOptions::default()
        };
        self.stop(&at_once, interrupt).await?;
        let after = self.context.back_to(name, options, keys).await?;
        follow(&mut again.disk_keys, &before, &after);
        again.disk_keys.retain(|path, _| after.contains(path));
        let never = CancellationToken::new();
        self.start(&again, &never, interrupt).await?;
        Ok(self.told(name, "revert", "reverted to"))
    }

    /// `commitSnapshot`.
    pub(in crate::vm) async fn commit_snapshot(
        &mut self,
        name: &SnapshotName,
        cancel: &CancellationToken,
    ) -> Result<OperationResult, Failure> {
        let live = self.changes_allowed("relieved of a snapshot").await?;
        let mut layers = self.layers(live).await?;
        let merge = layers.record.tree.commit(name.as_str())?;
        layers.refuse_needed_by(&merge).await?;
        let before = layers.record.tree.active.clone();
        let done = layers.merge(merge, cancel).await;
        let after = layers.record.tree.active.clone();
        self.keys_follow(&before, &after);
        self.explained("relieved of a snapshot", done).await?;
        Ok(self.told(name, "commit", "committed"))
    }

    /// `deleteSnapshot` of a node of the tree.
    pub(super) async fn delete_external(
        &mut self,
        name: &SnapshotName,
        children: Dependents,
        cancel: &CancellationToken,
    ) -> Result<OperationResult, Failure> {
        let live = self.changes_allowed("relieved of a snapshot").await?;
        let mut layers = self.layers(live).await?;
        let before = layers.record.tree.active.clone();
        let done = match layers.record.tree.delete(name.as_str(), children)? {
            Deletion::Leaf { after, remove } => {
                layers.refuse_busy(&remove).await?;
                layers.refuse_needed(&remove).await?;
                layers.turn(after, remove).await
            }
            Deletion::Merge(merge) => {
                layers.refuse_needed_by(&merge).await?;
                layers.merge(merge, cancel).await
            }
        };
        let after = layers.record.tree.active.clone();
        self.keys_follow(&before, &after);
        self.explained("relieved of a snapshot", done).await?;
        Ok(self.told(name, "delete", "deleted"))
    }

    /// Finishes or undoes what a killed process has left; what is quick, unless `all`.
    pub(super) async fn settle_external(
        &self,
        all: bool,
        given: &DiskKeys,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let live = self.live.as_ref().map(|live| Arc::clone(&live.view));
        let keys = self.keys_at_hand(given);
        let Some(mut layers) = Layers::open_known(&self.context, live, keys).await? else {
            return Ok(());
        };
        match &layers.live {
            Some(_) => layers.settle_live(all, cancel).await,
            None => layers.settle(all, cancel).await,
        }
    }
}

impl Machine {
    async fn layers(&self, live: Option<Arc<LiveView>>) -> Result<Layers<'_>, Failure> {
        let keys = self.keys_at_hand(&DiskKeys::new());
        self.context.layers(live, keys).await
    }
}

impl VmContext {
    /// A disk's place among the VM's, and every file that it or a snapshot of it is.
    pub(in crate::vm) async fn disk_files(
        &self,
        live: bool,
        path: &HostPath,
    ) -> Result<(usize, Vec<HostPath>), Failure> {
        let config = self.disks_config(live).await?;
        let found = (config.disks.iter()).position(|disk| disk.path() == Some(path));
        let index = found.ok_or_else(|| no_disk_of(self, path))?;
        let tree = Record::read(self).await?.map(|record| record.tree);
        let tree = tree.filter(|tree| tree.active.get(index) == Some(path));
        let layers = tree.map(|tree| {
            let nodes = tree
                .nodes
                .into_iter()
                .map(|mut node| node.layers.swap_remove(index));
            nodes.collect::<Vec<_>>()
        });
        let mut files = vec![path.clone()];
        files.extend(layers.unwrap_or_default());
        Ok((index, files))
    }

    async fn layers(
        &self,
        live: Option<Arc<LiveView>>,
        keys: DiskKeys,
    ) -> Result<Layers<'_>, Failure> {
        let config = self.disks_config(live.is_some()).await?;
        disks::refuse_network(&config)?;
        Layers::open(self, live, config, keys).await
    }

    /// Answers which files the disks are then.
    async fn back_to(
        &self,
        name: &SnapshotName,
        options: &RevertOptions,
        keys: DiskKeys,
    ) -> Result<Vec<HostPath>, Failure> {
        let mut layers = self.layers(None, keys).await?;
        let (tree, files) = (&layers.record.tree, layers.new_files()?);
        let overlay = tree.revert(name.as_str(), tip_of(options)?, files)?;
        layers.refuse_busy(&overlay.remove).await?;
        layers.refuse_needed(&overlay.remove).await?;
        layers.overlay(overlay, &CancellationToken::new()).await?;
        Ok(layers.record.tree.active.clone())
    }

    /// Whether there is an external snapshot of this name.
    pub(super) async fn has_external(&self, name: &SnapshotName) -> Result<bool, Failure> {
        let record = Record::read(self).await?;
        Ok(record.is_some_and(|record| record.tree.has(name.as_str())))
    }

    /// One name is one snapshot, wherever it is kept.
    async fn refuse_internal(
        &self,
        live: Option<&LiveView>,
        name: &SnapshotName,
    ) -> Result<(), Failure> {
        let config = self.disks_config(live.is_some()).await?;
        let listed = match live {
            Some(live) => super::live::list(live, &config).await?,
            None => super::offline::list_quick(&disks::of(&config)).await?,
        };
        Ok(disks::refuse_taken(&listed, name)?)
    }

    /// What `snapshotTree` answers.
    pub(in crate::vm) async fn snapshot_tree(
        &self,
        live: Option<Arc<LiveView>>,
    ) -> Result<SnapshotTree, Failure> {
        if let Some(record) = Record::read(self).await? {
            return shown::of(&record.tree).await;
        }
        let config = self.disks_config(live.is_some()).await?;
        let disks = config.disks.iter().filter_map(|disk| disk.path().cloned());
        shown::of(&Tree::of(disks.collect())).await
    }
}

/// Every file that is there because of a VM's external snapshots. Blocks.
pub(in crate::vm) fn files_of(directory: &Path) -> Result<Vec<HostPath>, StateFileError> {
    let record = Record::read_now(directory)?;
    Ok(record.map(|record| record.files()).unwrap_or_default())
}

/// Those of them that are not, or may not be, what the VM writes into. Blocks.
pub(in crate::vm) fn frozen_of(directory: &Path) -> Result<Vec<HostPath>, StateFileError> {
    let record = Record::read_now(directory)?;
    let stale = |record: Record| {
        if record.may_have_pivoted() {
            record.files()
        } else {
            record.frozen()
        }
    };
    Ok(record.map(stale).unwrap_or_default())
}

impl Label {
    fn of(name: &SnapshotName, description: Option<String>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        Self {
            name: name.as_str().to_owned(),
            description,
            date: iso_date(seconds, now.subsec_millis()),
        }
    }
}

fn tip_of(options: &RevertOptions) -> Result<Tip, Failure> {
    match &options.keep {
        Some(keep) => {
            let name = SnapshotName::parse(keep.as_str())?;
            Ok(Tip::Keep(Label::of(&name, None)))
        }
        None if options.discard => Ok(Tip::Discard),
        None => Ok(Tip::Undecided),
    }
}

fn no_disk_of(context: &VmContext, path: &HostPath) -> Failure {
    let message = format!("path names {path}, which is no disk of this VM");
    Failure::new(ErrorCode::InvalidConfig, message).of_vm(&context.vm_id)
}

fn aborted() -> Failure {
    let message = "the operation on the snapshots was aborted; what the disks hold is unchanged";
    Failure::new(ErrorCode::Aborted, message)
}

fn no_guest() -> Failure {
    let message = "a VM that does not run has no guest that could freeze its file systems";
    Failure::new(ErrorCode::InvalidState, message)
}
