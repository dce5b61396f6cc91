//! One VM's layers while a verb works on them: the record, and how it becomes true outside of it.
//!
//! The record is written before anything is changed and again when it is; spec and row follow it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::change::{Merge, Overlay};
use super::record::{Pending, Record};
use super::tree::Tree;
use crate::config::{DiskKeys, DiskLocation, VmConfig};
use crate::db::ConfigurationUpdate;
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::{blocking, file_call};
use crate::host::qemu_img::{
    ImageError, ImageFormat, Job, ensure_unused, files_below, freeze_layer, inspect_closed, layer,
    make_overlay, sweep_partials_of,
};
use crate::host::state_file::StateFileError;
use crate::types::{ByteSize, HostPath};
use crate::vm::context::VmContext;
use crate::vm::disk_uses::{directories, machine_files};
use crate::vm::live::LiveView;
use crate::vm::snapshot::disks;
use crate::vm::spec;

/// What a verb works with.
pub(super) struct Layers<'a> {
    pub(super) context: &'a VmContext,
    /// The running QEMU, if there is one.
    pub(super) live: Option<Arc<LiveView>>,
    /// What the VM runs with, or would be started with.
    pub(super) config: VmConfig,
    pub(super) record: Record,
    /// What opens encrypted disks, by what is or was their path, as far as somebody said.
    pub(super) keys: DiskKeys,
}

impl<'a> Layers<'a> {
    /// Reads the record of a VM, or begins one.
    pub(super) async fn open(
        context: &'a VmContext,
        live: Option<Arc<LiveView>>,
        config: VmConfig,
        keys: DiskKeys,
    ) -> Result<Self, Failure> {
        let record = Record::read(context).await?.unwrap_or_default();
        let mut layers = Self {
            context,
            live,
            config,
            record,
            keys,
        };
        layers.agree().await?;
        layers.refuse_other_disks()?;
        Ok(layers)
    }

    /// Only if there is a record.
    pub(super) async fn open_known(
        context: &'a VmContext,
        live: Option<Arc<LiveView>>,
        keys: DiskKeys,
    ) -> Result<Option<Self>, Failure> {
        let Some(record) = Record::read(context).await? else {
            return Ok(None);
        };
        let config = context.disks_config(live.is_some()).await?;
        Ok(Some(Self {
            context,
            live,
            config,
            record,
            keys,
        }))
    }

    /// Spec and row say which disks the VM has. Where they are behind the record, they follow it; disks
    /// it knows nothing of are the user's choice, and have no tree. A VM may run on such: its tree waits for the
    /// disks it is of. But it may not write into what others lie on.
    pub(super) async fn agree(&mut self) -> Result<(), Failure> {
        let disks: Vec<HostPath> = self.disks().cloned().collect();
        if disks == self.record.tree.active {
            if self.live.is_none() && !self.record.retired.is_empty() {
                self.record.retired.clear();
                self.save().await?;
            }
            return Ok(());
        }
        let known = self.record.files();
        let as_many = disks.len() == self.record.tree.active.len();
        if as_many && disks.iter().all(|disk| known.contains(disk)) {
            return self.publish().await.map(drop);
        }
        if self.record.tree.nodes.is_empty() {
            self.record = Record {
                tree: Tree::of(disks),
                ..Record::default()
            };
            return Ok(());
        }
        self.refuse_frozen_disks()
    }

    fn refuse_frozen_disks(&self) -> Result<(), Failure> {
        let frozen = self.record.frozen();
        let Some(disk) = self.disks().find(|disk| frozen.contains(disk)) else {
            return Ok(());
        };
        let message =
            format!("other files lie on {disk}, a layer of an external snapshot: it is no disk");
        let failure = Failure::new(ErrorCode::InvalidState, message).with("path", disk.as_str());
        Err(failure.of_vm(&self.context.vm_id))
    }

    /// A verb on snapshots is about all disks of the tree, and no others.
    fn refuse_other_disks(&self) -> Result<(), Failure> {
        if self.disks().eq(&self.record.tree.active) {
            return Ok(());
        }
        let disks: Vec<_> = self.disks().map(ToString::to_string).collect();
        let message = "the VM's disks are not the ones its external snapshots were made of";
        let failure = Failure::new(ErrorCode::InvalidState, message).with("disks", disks);
        Err(failure.of_vm(&self.context.vm_id))
    }

    fn disks(&self) -> impl Iterator<Item = &HostPath> {
        self.config.disks.iter().filter_map(|disk| disk.path())
    }

    pub(super) async fn save(&self) -> Result<(), Failure> {
        self.record.write(self.context).await
    }

    pub(super) fn allowed(&self) -> Vec<HostPath> {
        self.context.allowed()
    }

    /// Only qcow2 has overlays here, as it is the only format whose chain is followed.
    pub(super) fn refuse_raw(&self) -> Result<(), Failure> {
        Ok(disks::refuse_raw(&disks::of(&self.config))?)
    }

    /// New files' names, beside the active layers.
    pub(super) fn new_files(&self) -> Result<Vec<HostPath>, Failure> {
        let id = Uuid::new_v4().simple().to_string();
        let name = &self.config.internal_name;
        let active = self.record.tree.active.iter().enumerate();
        active
            .map(|(disk, path)| {
                let directory = path.as_path().parent().unwrap_or(path.as_path());
                let file = match disk {
                    0 => format!("{name}-{}.qcow2", &id[..8]),
                    _ => format!("{name}-disk{disk}-{}.qcow2", &id[..8]),
                };
                HostPath::parse(directory.join(file).display().to_string()).map_err(|error| {
                    Failure::new(ErrorCode::DiskError, format!("an overlay's path {error}"))
                })
            })
            .collect()
    }

    /// Puts the overlays of a VM that is off in place; all, or none.
    pub(super) async fn overlay(
        &mut self,
        overlay: Overlay,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.refuse_busy(&self.record.tree.active).await?;
        let sizes = self.vet(&overlay.on).await?;
        for (disk, frozen) in self.record.tree.active.iter().enumerate() {
            if !overlay.remove.contains(frozen) {
                self.freeze(disk, frozen).await?;
            }
        }
        self.begin_overlay(&overlay, false).await?;
        match make_all(&overlay, sizes, cancel).await {
            Ok(()) => self.turn(overlay.after, overlay.remove).await,
            Err(failure) => {
                self.abandon(&overlay.after.active).await?;
                Err(failure)
            }
        }
    }

    /// Only bitmaps of an encrypted layer need its key.
    async fn freeze(&self, disk: usize, layer_file: &HostPath) -> Result<(), Failure> {
        let key = if layer(layer_file).await?.bitmaps {
            self.key(disk).await?
        } else {
            None
        };
        Ok(freeze_layer(layer_file, key.as_ref()).await?)
    }

    /// The sizes of disks that an overlay may be put on.
    async fn vet(&self, disks: &[HostPath]) -> Result<Vec<ByteSize>, Failure> {
        let allowed = self.allowed();
        let mut sizes = Vec::new();
        for path in disks {
            let found = inspect_closed(path, ImageFormat::Qcow2, &allowed).await?;
            let unknown = || ImageError::Format {
                path: path.clone(),
                why: "has no size".to_owned(),
            };
            sizes.push(found.virtual_size.ok_or_else(unknown)?);
        }
        Ok(sizes)
    }

    pub(super) async fn begin_overlay(
        &mut self,
        overlay: &Overlay,
        live: bool,
    ) -> Result<(), Failure> {
        self.record.pending = Some(Pending::Overlay {
            after: overlay.after.clone(),
            made: overlay.after.active.clone(),
            remove: overlay.remove.clone(),
            live,
        });
        self.save().await
    }

    /// Nothing was changed: what was made goes.
    pub(super) async fn abandon(&mut self, made: &[HostPath]) -> Result<(), Failure> {
        for path in made {
            sweep_partials_of(path).await?;
        }
        remove_files(made).await?;
        self.record.pending = None;
        self.save().await
    }

    /// The tree is `after` from now on, whatever happens next.
    pub(super) async fn turn(&mut self, after: Tree, remove: Vec<HostPath>) -> Result<(), Failure> {
        self.record.turns(after, remove);
        self.save().await?;
        if let Err(failure) = self.tidy().await {
            // The next verb or start does it.
            let vm = &self.context.vm_id;
            tracing::warn!(%vm, %failure, "a change of snapshots is done, but was not tidied up after");
        }
        Ok(())
    }

    /// Has spec and row follow the tree, and then removes what nobody needs.
    pub(super) async fn tidy(&mut self) -> Result<(), Failure> {
        let Some(Pending::Tidy { remove }) = self.record.pending.clone() else {
            return Ok(());
        };
        if self.publish().await? {
            self.record.retired.clear();
        }
        if self.live.is_some() {
            // A node that nothing uses any more would hold its file, and what lies below it.
            self.close_nodes(&remove).await?;
        }
        remove_files(&remove).await?;
        self.forget_keys(&remove).await;
        self.record.pending = None;
        self.save().await
    }

    /// Whether the row knows too: one that is somebody else's is left alone.
    async fn publish(&mut self) -> Result<bool, Failure> {
        let active = self.record.tree.active.clone();
        if self.context.owns_row().await {
            self.keep_keys().await?;
        }
        self.write_spec(&active).await?;
        for (disk, path) in self.config.disks.iter_mut().zip(&active) {
            disk.location = DiskLocation::File(path.clone());
        }
        if !self.context.owns_row().await {
            return Ok(false);
        }
        let paths = active.iter().map(ToString::to_string).collect();
        let update = ConfigurationUpdate {
            disk_paths: Some(Some(paths)),
            ..ConfigurationUpdate::default()
        };
        let (database, vm_id) = (&self.context.services.database, &self.context.vm_id);
        let written = database.update_machine_configuration(vm_id, update).await;
        written.map(|_written| true).map_err(|error| {
            let message = "the VM's row could not be told which files its disks are now";
            Failure::caused_by(ErrorCode::DatabaseError, message, error)
        })
    }

    /// A VM without a spec is one whose row says all there is.
    async fn write_spec(&self, active: &[HostPath]) -> Result<(), Failure> {
        let (directory, active) = (self.context.directory.clone(), active.to_vec());
        let write = move || -> Result<(), StateFileError> {
            let Some(mut known) = spec::read(&directory)? else {
                return Ok(());
            };
            let before = known.clone();
            if known.disks.len() == active.len() {
                for (disk, path) in known.disks.iter_mut().zip(active) {
                    disk.location = DiskLocation::File(path);
                }
            }
            if known == before {
                return Ok(());
            }
            spec::write(&directory, &known, false)
        };
        Ok(blocking(write).await??)
    }

    /// Somebody may have a file that is to go, as a backing file say.
    pub(super) async fn refuse_busy(&self, files: &[HostPath]) -> Result<(), Failure> {
        for path in files {
            ensure_unused(path).await?;
        }
        Ok(())
    }

    /// Another VM, which may be off, may have a file that is to go or to be written, or lie on it.
    pub(super) async fn refuse_needed(&self, files: &[HostPath]) -> Result<(), Failure> {
        self.context.refuse_needed(files).await
    }

    /// The files that a merge writes to or removes.
    pub(super) async fn refuse_needed_by(&self, merge: &Merge) -> Result<(), Failure> {
        let lower = &self.record.tree.find(&merge.lower)?.layers;
        let uppers = merge.uppers.iter();
        let uppers = uppers.flat_map(|upper| self.record.tree.layers(upper));
        let files: Vec<_> = lower.iter().chain(uppers).cloned().collect();
        self.refuse_needed(&files).await
    }

    /// Terms for work whose length grows with the disk.
    pub(super) fn job(cancel: &CancellationToken) -> Job {
        Job {
            cancel: cancel.clone(),
            ..Job::default()
        }
    }
}

impl VmContext {
    fn allowed(&self) -> Vec<HostPath> {
        let rules = &self.services.config.path_rules;
        rules.allowed.clone().unwrap_or_default()
    }

    /// Encrypted layers that these files of a disk lie on without being among them: whoever forgets the tree
    /// (`destroyVM`) leaves its files. `IMAGE_IN_USE` if another VM needs one.
    pub(in crate::vm) async fn unknown_layers(
        &self,
        files: &[HostPath],
    ) -> Result<Vec<HostPath>, Failure> {
        let (allowed, mut unknown) = (self.allowed(), Vec::new());
        for file in files {
            let found = inspect_closed(file, ImageFormat::Qcow2, &allowed).await?;
            for layer in found.encrypted_layers(file).into_iter().skip(1) {
                let known = [files, &unknown].concat();
                let known = common(vec![layer.clone()], known).await?;
                unknown.extend(known.is_none().then_some(layer));
            }
        }
        self.refuse_needed(&unknown).await?;
        Ok(unknown)
    }

    async fn refuse_needed(&self, files: &[HostPath]) -> Result<(), Failure> {
        if files.is_empty() {
            return Ok(());
        }
        let machines = self.services.machines_directory();
        let others = blocking(move || directories(&machines)).await??;
        for (vm_id, directory) in others {
            if vm_id == self.vm_id {
                continue;
            }
            let needed = needed_by(&directory).await?;
            let Some(path) = common(files.to_vec(), needed).await? else {
                continue;
            };
            let message = format!("{path} is needed by VM {vm_id}, whose disk it is or lies on it");
            return Err(Failure::new(ErrorCode::ImageInUse, message)
                .with("path", path.as_str())
                .with("users", vec![vm_id.as_str().to_owned()]));
        }
        Ok(())
    }
}

/// Every file that a machine has or lies on. It may change its layers meanwhile: what it has is listed again
/// once all of it was looked at.
async fn needed_by(directory: &Path) -> Result<Vec<HostPath>, Failure> {
    let list = || {
        let directory = directory.to_owned();
        blocking(move || machine_files(&directory))
    };
    let mut files = list().await??;
    loop {
        let mut needed = files.clone();
        for file in &files {
            needed.extend(files_below(file).await?);
        }
        let listed = list().await??;
        if listed == files {
            return Ok(needed);
        }
        files = listed;
    }
}

/// The first of `files` that is among the others, by whatever name.
async fn common(files: Vec<HostPath>, others: Vec<HostPath>) -> Result<Option<HostPath>, Failure> {
    fn real(path: &HostPath) -> PathBuf {
        let path = path.as_path();
        path.canonicalize().unwrap_or_else(|_| path.to_owned())
    }
    let find = move || {
        let others: Vec<PathBuf> = others.iter().map(real).collect();
        files.into_iter().find(|file| others.contains(&real(file)))
    };
    Ok(blocking(find).await?)
}

async fn make_all(
    overlay: &Overlay,
    sizes: Vec<ByteSize>,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let made = overlay.after.active.iter().zip(&overlay.on);
    for ((path, on), size) in made.zip(sizes) {
        if cancel.is_cancelled() {
            return Err(super::aborted());
        }
        make_overlay(path, on, size).await?;
    }
    Ok(())
}

/// Whether overlays stand where they were about to be made, whole.
pub(super) async fn are_whole(made: &[HostPath]) -> bool {
    for path in made {
        if layer(path).await.is_err() {
            return false;
        }
    }
    true
}

/// A file that is gone has been removed.
pub(super) async fn remove_files(files: &[HostPath]) -> Result<(), Failure> {
    for path in files {
        let name = path.clone();
        let removed = file_call(move || std::fs::remove_file(name.as_path())).await;
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("the layer {path} could not be removed: {error}");
                return Err(Failure::new(ErrorCode::HostFile, message).with("path", path.as_str()));
            }
            _ => {}
        }
    }
    Ok(())
}
