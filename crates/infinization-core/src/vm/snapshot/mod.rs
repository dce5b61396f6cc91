//! Snapshots of a VM, of all its disks together: inside the images, with the memory if it runs, or as a
//! tree of overlays.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | the verbs, inside the VM's task |
//! | `disks` | a VM's snapshots as one list, out of what each disk has (pure) |
//! | `live` | through the monitor of a running VM |
//! | `offline` | through `qemu-img`, with a note that lets a killed process be followed up |
//! | `quiet` | freezing the guest's file systems, with a note that lets a killed process be followed up |
//! | `external/` | the tree of overlays |
//! | `notes` | what the images have no room for: descriptions, the hardware that saved memory fits |
//!
//! Invariants: a snapshot is on all disks or it is not made; what is refused has changed nothing;
//! a guest that stands still while its memory is written is not told to listeners as suspended,
//! since the events wait until the verb is over and QEMU runs by then.

mod disks;
mod external;
mod live;
mod notes;
mod offline;
mod quiet;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use disks::Snapshot;
pub use external::{ShownLayer, ShownNode, SnapshotTree};
pub(super) use external::{files_of, frozen_of};
pub use quiet::NotedFreeze;

use self::disks::Disk;
use super::context::VmContext;
use super::live::LiveView;
use super::machine::Machine;
use super::outcome::OperationResult;
use super::spec;
use super::status::Status;
use super::stop::Interrupt;
use crate::config::{
    DiskKeys, RevertOptions, SnapshotDeleteOptions, SnapshotKind, SnapshotOptions, StopOptions,
    VmConfig,
};
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::blocking;
use crate::host::qemu_img::SnapshotName;
use crate::qmp::says_covered;

/// The statuses of a running VM whose disks may be changed under it, and of one that does not run.
const LIVE: [&str; 3] = ["running", "suspended", "paused"];
const OFFLINE: [&str; 1] = ["off"];

impl Machine {
    /// `createSnapshot`.
    pub(super) async fn create_snapshot(
        &mut self,
        name: &SnapshotName,
        options: &SnapshotOptions,
        cancel: &CancellationToken,
    ) -> Result<OperationResult, Failure> {
        if options.kind == SnapshotKind::External {
            return self.create_external(name, options, cancel).await;
        }
        let live = self.changes_allowed("snapshotted").await?;
        let context = &self.context;
        context.refuse_external(name).await?;
        let config = context.disks_config(live.is_some()).await?;
        disks::refuse_network(&config)?;
        let config = if live.is_some() && options.memory {
            context.refuse_memory(&config).await?;
            config
        } else {
            // Without the keys there would be no way back to it.
            context.with_stored_keys(config).await?
        };
        let hardware = match &live {
            Some(live) => live::create(context, live, &config, name, options, cancel).await?,
            None if options.memory => return Err(no_memory()),
            None => {
                offline::create(context, &disks::of(&config), name).await?;
                None
            }
        };
        if cancel.is_cancelled() {
            context.remove(live.as_deref(), &config, name).await?;
            return Err(aborted());
        }
        context.note(name, options, hardware).await;
        Ok(self.told(name, "create", "made"))
    }

    /// `revertSnapshot`.
    pub(super) async fn revert_snapshot(
        &mut self,
        name: &SnapshotName,
        options: &RevertOptions,
        interrupt: &Interrupt,
    ) -> Result<OperationResult, Failure> {
        if self.context.has_external(name).await? {
            return self.revert_external(name, options, interrupt).await;
        }
        let live = self.changes_allowed("put back to a snapshot").await?;
        let config = self.context.disks_config(live.is_some()).await?;
        disks::refuse_network(&config)?;
        let Some(live) = live else {
            let config = self.context.with_stored_keys(config).await?;
            let disks = disks::of(&config);
            let had_memory = offline::revert(&self.context, &disks, name).await?;
            let told = self.told(name, "revert", "reverted to");
            return Ok(told.warned(had_memory.then(memory_unused).into_iter().collect()));
        };
        let found = live::find(&live, &config, name).await?;
        if found.memory_in.is_some() {
            interrupt
                .unless_forced(self.load_memory(&live, &found, name))
                .await?;
        } else if options.restart {
            let config = self.context.with_stored_keys(config).await?;
            self.revert_between_runs(&disks::of(&config), name, interrupt)
                .await?;
        } else {
            return Err(needs_restart(name));
        }
        Ok(self.told(name, "revert", "reverted to"))
    }

    /// `deleteSnapshot`: one that does not exist is deleted already.
    pub(super) async fn delete_snapshot(
        &mut self,
        name: &SnapshotName,
        options: SnapshotDeleteOptions,
        cancel: &CancellationToken,
    ) -> Result<OperationResult, Failure> {
        if self.context.has_external(name).await? {
            return self.delete_external(name, options.children, cancel).await;
        }
        let live = self.changes_allowed("relieved of a snapshot").await?;
        let config = self.context.disks_config(live.is_some()).await?;
        let context = &self.context;
        context.remove(live.as_deref(), &config, name).await?;
        context.forget_note(name).await;
        Ok(self.told(name, "delete", "deleted"))
    }

    /// Has restores ended that were replacing a disk of a VM that does not run.
    pub(super) async fn settle_restores(&self) -> Result<(), Failure> {
        let config = self.context.disks_config(false).await?;
        self.context.settle_restores(&config).await
    }

    /// Finishes or undoes what a killed process left half done on the disks, with keys that were `given` for
    /// them. When `cancel` fires, merging is left for later.
    pub(super) async fn settle_snapshots(
        &self,
        given: &DiskKeys,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.settle_external(true, given, cancel).await?;
        if self.live.is_some() {
            return Ok(());
        }
        offline::settle(&self.context).await
    }

    /// The same for what must go on all the same, without merging: a guest that was left frozen is thawed.
    /// The disks' next start tries again, and is refused if it cannot be done.
    pub(super) async fn try_to_settle_snapshots(&self) {
        quiet::thaw_left_frozen(&self.context, self.live.is_some()).await;
        let (never, none) = (CancellationToken::new(), DiskKeys::new());
        let external = self.settle_external(false, &none, &never).await;
        let internal = match self.live {
            Some(_) => Ok(()),
            None => offline::settle(&self.context).await,
        };
        if let Err(failure) = external.and(internal) {
            let vm = &self.context.vm_id;
            tracing::warn!(%vm, %failure, "an interrupted change of snapshots was not undone");
        }
    }

    async fn load_memory(
        &mut self,
        live: &LiveView,
        found: &live::Found,
        name: &SnapshotName,
    ) -> Result<(), Failure> {
        let note = self.context.note_of(name).await;
        let loaded = live::load(live, found, name, note.map(|note| note.hardware)).await;
        let still = live.qmp.query_status().await;
        if loaded.is_err() && still.is_ok_and(|status| !status.running) {
            self.becomes(Status::Suspended, "STOP", &serde_json::Value::Null)
                .await;
        }
        loaded
    }

    /// Ends the guest, puts the disks back, starts it again.
    async fn revert_between_runs(
        &mut self,
        disks: &[Disk],
        name: &SnapshotName,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        let options = self.restart_options().await?;
        let at_once = StopOptions {
            graceful: false,
            ..StopOptions::default()
        };
        self.stop(&at_once, interrupt).await?;
        offline::revert(&self.context, disks, name).await?;
        let never = CancellationToken::new();
        self.start(&options, &never, interrupt).await?;
        Ok(())
    }

    /// The running QEMU, or none for a VM that is off. Claimed rows, and all between, are refused.
    pub(super) async fn snapshots_allowed(
        &self,
        verb: &str,
    ) -> Result<Option<Arc<LiveView>>, Failure> {
        let status = self.context.status().await?;
        let live = self.live.as_ref().map(|live| Arc::clone(&live.view));
        let allowed: &[&str] = if live.is_some() { &LIVE } else { &OFFLINE };
        if allowed.contains(&status.as_str()) {
            return Ok(live);
        }
        Err(self
            .context
            .refused(verb, &status, &[&LIVE[..], &OFFLINE].concat()))
    }

    /// [`Machine::snapshots_allowed`] for what changes the layers under a running QEMU: not while a
    /// backup copies them. QEMU would refuse that as well, but only when half is done.
    pub(super) async fn changes_allowed(
        &self,
        verb: &str,
    ) -> Result<Option<Arc<LiveView>>, Failure> {
        let live = self.snapshots_allowed(verb).await?;
        let Some(view) = &live else {
            return Ok(None);
        };
        if !view.qmp.is_backed_up().await? {
            return Ok(live);
        }
        Err(Failure::new(ErrorCode::InvalidState, is_copied(verb)).of_vm(&self.context.vm_id))
    }

    /// What became of such a change. A backup may have begun after [`Machine::changes_allowed`] has looked: then QEMU
    /// has refused, and that is why.
    pub(super) async fn explained<T>(
        &self,
        verb: &str,
        done: Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (Err(failure), Some(live)) = (&done, &self.live) else {
            return done;
        };
        if failure.code() != ErrorCode::QmpCommandFailed {
            return done;
        }
        let words = failure.context().get("desc");
        // It may be over by now.
        let was_copied = words.and_then(Value::as_str).is_some_and(says_covered);
        if !was_copied && !live.view.qmp.is_backed_up().await.unwrap_or_default() {
            return done;
        }
        done.map_err(|failure| {
            Failure::caused_by(ErrorCode::InvalidState, is_copied(verb), failure)
                .of_vm(&self.context.vm_id)
        })
    }

    fn told(&self, name: &SnapshotName, action: &str, done: &str) -> OperationResult {
        let data = json!({ "type": "snapshot", "action": action, "name": name.as_str() });
        self.context.crud("update", data);
        let message = format!("snapshot {} {done}", name.as_str());
        OperationResult::done(&self.context.vm_id, message)
    }
}

fn is_copied(verb: &str) -> String {
    format!("the VM cannot be {verb} while a backup copies its disks: wait for it")
}

impl VmContext {
    /// What `listSnapshots` answers.
    pub(super) async fn list_snapshots(
        &self,
        live: Option<Arc<LiveView>>,
    ) -> Result<Vec<Snapshot>, Failure> {
        let config = self.disks_config(live.is_some()).await?;
        let listed = match live {
            Some(live) => live::list(&live, &config).await?,
            None => offline::list(&disks::of(&config)).await?,
        };
        Ok(disks::gather(&listed, &self.notes().await))
    }

    /// One name is one snapshot, wherever it is kept.
    async fn refuse_external(&self, name: &SnapshotName) -> Result<(), Failure> {
        if !self.has_external(name).await? {
            return Ok(());
        }
        let message = format!("there is an external snapshot {} already", name.as_str());
        Err(Failure::new(ErrorCode::SnapshotAlreadyExists, message))
    }

    async fn remove(
        &self,
        live: Option<&LiveView>,
        config: &VmConfig,
        name: &SnapshotName,
    ) -> Result<(), Failure> {
        if let Some(live) = live {
            return live::delete(live, config, name).await;
        }
        let config = self.with_stored_keys(config.clone()).await?;
        offline::delete(self, &disks::of(&config), name).await
    }

    /// What the VM runs with now, or would be started with.
    async fn disks_config(&self, live: bool) -> Result<VmConfig, Failure> {
        let directory = self.directory.clone();
        if live && let Some(config) = blocking(move || spec::read(&directory)).await?? {
            return Ok(config);
        }
        let database = &self.services.database;
        let record = database.find_machine_without_password(&self.vm_id).await?;
        spec::without_console(self, &record.ok_or_else(|| self.not_found())?)
    }
}

fn no_memory() -> Failure {
    let message = "a VM that does not run has no memory to save";
    Failure::new(ErrorCode::InvalidState, message)
}

fn aborted() -> Failure {
    let message = "the snapshot was aborted, and deleted again";
    Failure::new(ErrorCode::Aborted, message)
}

fn needs_restart(name: &SnapshotName) -> Failure {
    let message = format!(
        "the snapshot {} holds no memory, so a running VM cannot go on from it: stop the VM, or \
         pass {{ restart: true }}",
        name.as_str()
    );
    Failure::new(ErrorCode::InvalidState, message)
}

fn memory_unused() -> String {
    "the VM was off, so only its disks were put back: its guest will boot from them as after a \
     power cut; start the VM and revert again to go on with its memory"
        .to_owned()
}
