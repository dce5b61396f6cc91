//! The file beside the VM's spec: its tree, and what is being done to it.
//!
//! It is replaced as a whole and flushed, so a process killed at any moment leaves the tree and how far
//! the change had come. What may be missing from it is only the last step's success.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::change::{Merge, Method};
use super::pivot::Guest;
use super::tree::Tree;
use crate::error::Failure;
use crate::host::blocking::blocking;
use crate::host::state_file::{self, Durability, StateFileError};
use crate::types::HostPath;
use crate::vm::context::VmContext;

const FILE: &str = "snapshot-tree.json";

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) tree: Tree,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<Pending>,
    /// Files that were active before, until spec and row are known to speak of the ones that are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) retired: Vec<HostPath>,
}

/// A change that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Pending {
    /// Overlays are being made; when all are there the VM goes on in them.
    Overlay {
        after: Tree,
        /// Files of this change alone.
        made: Vec<HostPath>,
        remove: Vec<HostPath>,
        /// Whether QEMU runs, and is asked to switch to them.
        live: bool,
    },
    /// Two nodes become one.
    Merge {
        merge: Merge,
        method: Method,
        /// Of the active layers, disk by disk, whether QEMU writes into the lower already.
        pivoted: Vec<bool>,
        /// The guest stands still until QEMU has switched.
        paused: bool,
        /// QEMU was or is about to be asked to switch, and what came of it is not known yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pivoting: Option<Guest>,
    },
    /// The tree is as it says. The spec and the row follow, and then these files are removed.
    Tidy { remove: Vec<HostPath> },
}

impl Record {
    fn path(directory: &Path) -> PathBuf {
        directory.join(FILE)
    }

    /// `None` for a VM that never had an external snapshot. Blocks.
    pub(super) fn read_now(directory: &Path) -> Result<Option<Self>, StateFileError> {
        let path = Self::path(directory);
        let torn = || StateFileError::Torn {
            path: path.display().to_string(),
        };
        let Some(body) = state_file::read(&path)? else {
            return Ok(None);
        };
        let record: Self = serde_json::from_slice(&body).map_err(|_words| torn())?;
        if record.tree.is_sound() {
            Ok(Some(record))
        } else {
            Err(torn())
        }
    }

    pub(super) async fn read(context: &VmContext) -> Result<Option<Self>, Failure> {
        let directory = context.directory.clone();
        Ok(blocking(move || Self::read_now(&directory)).await??)
    }

    pub(super) async fn write(&self, context: &VmContext) -> Result<(), Failure> {
        context.make_directory().await?;
        let (path, body) = (Self::path(&context.directory), serde_json::to_vec(self));
        let write = move || {
            let body = body.map_err(|error| StateFileError::Write {
                path: path.display().to_string(),
                source: error.into(),
            })?;
            state_file::write(&path, &body, Durability::HostCrash)
        };
        Ok(blocking(write).await??)
    }

    /// Every file that may be there because of the VM's snapshots.
    pub(super) fn files(&self) -> Vec<HostPath> {
        let mut files = self.tree.files();
        files.extend(self.retired.iter().cloned());
        match &self.pending {
            Some(Pending::Overlay { made, remove, .. }) => {
                files.extend(made.iter().chain(remove).cloned());
            }
            Some(Pending::Tidy { remove }) => files.extend(remove.iter().cloned()),
            Some(Pending::Merge { .. }) | None => {}
        }
        files
    }

    /// [`Record::files`] without the active ones.
    pub(super) fn frozen(&self) -> Vec<HostPath> {
        let mut files = self.files();
        files.retain(|path| !self.tree.active.contains(path));
        files
    }

    /// Whether an interrupted commit has left the newest data below the active layers.
    pub(super) fn may_have_pivoted(&self) -> bool {
        match &self.pending {
            Some(Pending::Merge {
                pivoted, pivoting, ..
            }) => pivoting.is_some() || pivoted.contains(&true),
            _ => false,
        }
    }

    /// The tree is `after` from now on, and `remove` is to go.
    pub(super) fn turns(&mut self, after: Tree, remove: Vec<HostPath>) {
        let before = std::mem::replace(&mut self.tree, after);
        let active = &self.tree.active;
        let gone = before
            .active
            .into_iter()
            .filter(|path| !active.contains(path));
        self.retired.extend(gone);
        self.pending = Some(Pending::Tidy { remove });
    }
}
