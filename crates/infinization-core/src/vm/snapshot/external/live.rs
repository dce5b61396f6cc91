//! The layers of a running VM: QEMU has the files open, so only QEMU switches, streams and commits.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::change::Overlay;
use super::layers::Layers;
use super::pivot::Guest;
use super::record::Pending;
use crate::config::{DiskFormat, DiskLocation, SnapshotOptions};
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{layer, make_overlay};
use crate::qemu::overlay_options;
use crate::qmp::{BITMAP_PREFIX, LayerNode, QmpClient, QmpError, RunState, says_full};
use crate::types::{ByteSize, HostPath};
use crate::vm::snapshot::live::roots;
use crate::vm::snapshot::quiet;

/// A disk may be large and its file system slow; whoever waits no longer cancels.
const DEADLINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Layers<'_> {
    pub(super) fn qmp(&self) -> Result<&QmpClient, Failure> {
        let live = self.live.as_ref();
        live.map(|live| &live.qmp)
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "the VM does not run"))
    }

    /// The nodes the disks' devices stand on.
    async fn root_nodes(&self) -> Result<Vec<LayerNode>, Failure> {
        let qmp = self.qmp()?;
        let names = roots(qmp, &self.config).await?;
        let nodes = qmp.query_layers().await?;
        let find = |name: &String| nodes.iter().find(|node| node.name == *name).cloned();
        let found: Option<Vec<_>> = names.iter().map(find).collect();
        found.ok_or_else(|| {
            let message = "a disk of the running VM stands on what is no qcow2 image";
            Failure::new(ErrorCode::DiskError, message)
        })
    }

    /// The root nodes, if they hold the active layers and nothing else.
    async fn active_nodes(&self) -> Result<Vec<LayerNode>, Failure> {
        let found = self.root_nodes().await?;
        if holds(&found, &self.record.tree.active) {
            return Ok(found);
        }
        let message = "the running QEMU's disks are not on the files they should be on";
        let files: Vec<_> = found.into_iter().map(|node| node.file).collect();
        Err(Failure::new(ErrorCode::InvalidState, message).with("files", files))
    }

    /// The node of a file in the running chain.
    async fn node_of(&self, file: &HostPath) -> Result<String, Failure> {
        let nodes = self.qmp()?.query_layers().await?;
        let found = nodes.into_iter().find(|node| node.file == file.as_str());
        found.map(|node| node.name).ok_or_else(|| {
            let message = format!("the running QEMU does not have {file}");
            Failure::new(ErrorCode::DiskError, message).with("path", file.as_str())
        })
    }

    /// Has the VM go on in new overlays; on all disks at one moment, or on none.
    pub(super) async fn overlay_live(
        &mut self,
        overlay: Overlay,
        options: &SnapshotOptions,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let nodes = self.active_nodes().await?;
        self.qmp()?.dismiss_old_jobs().await?;
        self.begin_overlay(&overlay, true).await?;
        let made = overlay.after.active.clone();
        let switched = self.switch(&nodes, &made, options, cancel).await;
        let is_there = match &switched {
            Ok(_) => true,
            // What QEMU refuses it has not done; after no answer it has to be asked.
            Err(failure) if failure.code() == ErrorCode::QmpCommandFailed => false,
            Err(_) => holds(&self.root_nodes().await?, &made),
        };
        if is_there {
            self.turn(overlay.after, overlay.remove).await?;
            return switched.and_then(|thawed| thawed);
        }
        self.close_nodes(&made).await?;
        self.abandon(&made).await?;
        switched.and_then(|thawed| thawed)
    }

    /// Makes the overlays and has QEMU switch to them. A guest that cannot be thawed is told apart.
    async fn switch(
        &self,
        nodes: &[LayerNode],
        made: &[HostPath],
        options: &SnapshotOptions,
        cancel: &CancellationToken,
    ) -> Result<Result<(), Failure>, Failure> {
        let qmp = self.qmp()?;
        let mut pairs = Vec::new();
        for (disk, (path, node)) in made.iter().zip(nodes).enumerate() {
            let below = &self.record.tree.active[disk];
            make_overlay(path, below, ByteSize::bytes(node.size)).await?;
            let mut config = self.config.disks[disk].clone();
            config.location = DiskLocation::File(path.clone());
            config.format = DiskFormat::Qcow2;
            let name = node_name(path, disk);
            let encrypted = layer(path).await?.encrypted;
            let options = overlay_options(&name, disk, &config, encrypted);
            qmp.blockdev_add(options).await?;
            pairs.push((node.name.clone(), name));
        }
        let frozen = if options.quiesce {
            Some(quiet::freeze(self.context, qmp, &self.config, options).await?)
        } else {
            None
        };
        let switched = switch_at_once(qmp, nodes, &pairs, cancel).await;
        let thawed = match frozen {
            Some(frozen) => frozen.thaw().await,
            None => Ok(()),
        };
        switched.map(|()| thawed)
    }

    /// Closes the nodes of files that QEMU does not use. What was opened by name stays until then.
    pub(super) async fn close_nodes(&self, files: &[HostPath]) -> Result<(), Failure> {
        let qmp = self.qmp()?;
        for node in qmp.query_layers().await? {
            if files.iter().any(|path| path.as_str() == node.file) {
                qmp.blockdev_del(&node.name).await?;
            }
        }
        Ok(())
    }

    /// Whether QEMU's disks are on these files.
    pub(super) async fn stands_on(&self, files: &[HostPath]) -> Result<bool, Failure> {
        Ok(holds(&self.root_nodes().await?, files))
    }

    /// `block-stream` of a layer in the running chain.
    pub(super) async fn stream(
        &self,
        file: &HostPath,
        onto: Option<&HostPath>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let node = self.node_of(file).await?;
        let base = match onto {
            Some(path) => Some((self.node_of(path).await?, path)),
            None => None,
        };
        let base = base
            .as_ref()
            .map(|(name, path)| (name.as_str(), path.as_str()));
        let streamed = self.qmp()?.stream(&node, base, DEADLINE, cancel).await;
        streamed.map_err(not_copied)
    }

    /// `block-commit` of a layer in the middle of the running chain.
    pub(super) async fn commit_live(
        &self,
        file: &HostPath,
        lower: &HostPath,
        disk: usize,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        if layer(&self.above(file, disk)).await?.backing.as_ref() == Some(lower) {
            return Ok(());
        }
        let roots = self.active_nodes().await?;
        let (top, base) = (self.node_of(file).await?, self.node_of(lower).await?);
        let base = (base.as_str(), lower.as_str());
        let qmp = self.qmp()?;
        let root = &roots[disk].name;
        let committed = qmp.commit_below(root, &top, base, DEADLINE, cancel).await;
        committed.map_err(not_copied)
    }

    /// What lies on `file` in the running chain.
    fn above(&self, file: &HostPath, disk: usize) -> HostPath {
        let tree = &self.record.tree;
        let mut above = &tree.active[disk];
        for node in tree.line() {
            if node.layers[disk] == *file {
                break;
            }
            above = &node.layers[disk];
        }
        above.clone()
    }

    /// `block-commit` of the active layers. QEMU goes on in the lowers, on one disk after the other. So
    /// that until all are over the uppers hold everything, whoever dies, the guest stands still from the
    /// first to the last: for milliseconds, as both sides are the same by then.
    pub(super) async fn commit_active_live(
        &mut self,
        lowers: &[HostPath],
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.note_pivots(lowers, false).await?;
        let mut jobs = Vec::new();
        for (root, lower) in self.root_nodes().await?.iter().zip(lowers) {
            if root.file == lower.as_str() {
                continue;
            }
            let base = self.node_of(lower).await?;
            jobs.push(self.qmp()?.commit_active(&root.name, &base).await?);
        }
        for job in 0..jobs.len() {
            if let Err(error) = jobs[job].ready(cancel).await {
                // The one that failed is gone.
                drop(jobs.remove(job));
                for job in &mut jobs {
                    job.cancel().await?;
                }
                return Err(not_copied(error));
            }
        }
        let runs = self.stand_still().await?;
        let mut completed: Result<(), QmpError> = Ok(());
        for job in jobs {
            completed = completed.and(job.complete().await);
        }
        // One whose end was not seen may yet switch: it is ended before anything is written down.
        completed.map_err(not_copied)?;
        // On disk before the guest writes on, and until then it has to be known that it waits.
        self.note_pivots(lowers, runs).await?;
        if runs {
            self.qmp()?.cont().await?;
            self.note_pivots(lowers, false).await?;
        }
        Ok(())
    }

    /// From here on the guest writes nothing, and it is on disk that QEMU may switch. Whether it ran.
    async fn stand_still(&mut self) -> Result<bool, Failure> {
        let runs = self.qmp()?.query_status().await?.running;
        self.note_pivoting(Guest::Still, runs).await?;
        if runs {
            self.qmp()?.stop().await?;
        }
        // `stop` does nothing to a guest that sleeps, and that may wake by itself.
        if self.qmp()?.query_status().await?.status == RunState::Suspended {
            self.note_pivoting(Guest::MayRun, runs).await?;
        }
        Ok(runs)
    }

    async fn note_pivoting(&mut self, guest: Guest, waits: bool) -> Result<(), Failure> {
        if let Some(Pending::Merge {
            pivoting, paused, ..
        }) = &mut self.record.pending
        {
            *pivoting = Some(guest);
            *paused = waits;
        }
        self.save().await
    }

    /// Writes down on which disks QEMU is in the lowers by now, and whether the guest waits for us.
    /// No job may be under way any more that could switch.
    pub(super) async fn note_pivots(
        &mut self,
        lowers: &[HostPath],
        waits: bool,
    ) -> Result<(), Failure> {
        let roots = self.root_nodes().await?;
        if let Some(Pending::Merge {
            pivoted,
            paused,
            pivoting,
            ..
        }) = &mut self.record.pending
        {
            let on_lower = roots.iter().zip(lowers);
            *pivoted = on_lower
                .map(|(root, lower)| root.file == lower.as_str())
                .collect();
            (*paused, *pivoting) = (waits, None);
        }
        self.save().await
    }
}

/// Why QEMU's job has ended.
fn not_copied(error: QmpError) -> Failure {
    match &error {
        QmpError::Command { desc, .. } if says_full(desc) => {
            let message = "there is no space for what the layers hold";
            Failure::caused_by(ErrorCode::InsufficientSpace, message, error)
        }
        _ => error.into(),
    }
}

/// What marks changes for incremental backups would not see those in the overlay: it goes, and the next
/// one compares.
async fn switch_at_once(
    qmp: &QmpClient,
    nodes: &[LayerNode],
    pairs: &[(String, String)],
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    for node in nodes {
        for bitmap in node
            .bitmaps
            .iter()
            .filter(|name| name.starts_with(BITMAP_PREFIX))
        {
            qmp.remove_bitmap(&node.name, bitmap).await?;
        }
    }
    if cancel.is_cancelled() {
        return Err(super::aborted());
    }
    Ok(qmp.snapshot_overlays(pairs).await?)
}

fn holds(nodes: &[LayerNode], files: &[HostPath]) -> bool {
    let on: Vec<&str> = nodes.iter().map(|node| node.file.as_str()).collect();
    on == files.iter().map(HostPath::as_str).collect::<Vec<_>>()
}

/// Unique, as the file's name is, and short enough for QEMU's 31 characters.
fn node_name(path: &HostPath, disk: usize) -> String {
    let stem = path.as_path().file_stem().unwrap_or_default();
    let stem = stem.to_string_lossy();
    let id = stem.rsplit('-').next().unwrap_or_default();
    format!("layer-{id}-{disk}")
}
