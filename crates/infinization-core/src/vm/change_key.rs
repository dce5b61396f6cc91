//! Another key for a disk, whether or not its machine runs.
//!
//! LUKS has eight places for keys, in every file of the disk. The new one is put into a free place of each and
//! has opened it; then the store is told; then the old one is erased. So at every moment what the store says
//! opens the disk, and before it is told both do. What else may open it is noted in the store meanwhile, so
//! whoever is killed in between, the same call again finishes it, and any other change of the key does too. Under a running machine QEMU itself writes the places (`x-blockdev-amend`, QEMU 5.1), as it alone may
//! write to the file, and an independent `qemu-img` tries what opens it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::live::LiveView;
use super::machine::Machine;
use super::outcome::OperationResult;
use super::resize::root_of;
use crate::config::DiskKeys;
use crate::db::sqlite::KeyChange;
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{
    ChangeKey, ImageError, ImageFormat, MEASUREMENTS, Sharing, UNMEASURED, add_key, ensure_unused,
    erase_key, flush, inspect_closed, is_encrypted, key_opens, keys_in, outwait_orphan,
};
use crate::qemu::key_of;
use crate::qmp::{QmpClient, QmpError};
use crate::types::{DiskKey, HostPath};

/// QEMU measures how slow a key can be made, and a busy host is slow at it.
const AMEND: Duration = Duration::from_secs(600);
/// For a `qemu-img` that has outlived its process to end.
const ORPHAN: Duration = Duration::from_secs(60);
/// The objects that have the two keys while places are written.
const NEW: &str = "infinization-new-key";
const OLD: &str = "infinization-old-key";

/// A change of a disk's key.
#[derive(Debug, Clone)]
pub struct DiskKeyChange {
    /// The disk's present file.
    pub path: HostPath,
    /// What opens it. Default: what QEMU was started with, or what is stored.
    pub old: Option<DiskKey>,
    /// What will open it.
    pub new: DiskKey,
    /// As [`crate::host::qemu_img::Encryption::iter_time`].
    pub iter_time: Option<Duration>,
}

impl DiskKeyChange {
    /// The one that is given, by its disk.
    pub(super) fn old_key(&self) -> DiskKeys {
        let old = self.old.clone();
        old.map(|key| (self.path.clone(), key))
            .into_iter()
            .collect()
    }
}

/// What is done to every file of the disk.
#[derive(Debug)]
struct Change {
    keys: ChangeKey,
    /// What else may open the files: the old key, and what a change that was cut short has left.
    others: Vec<DiskKey>,
}

impl Change {
    fn erasing(&self, other: &DiskKey) -> ChangeKey {
        ChangeKey {
            old: other.clone(),
            ..self.keys.clone()
        }
    }
}

/// Which of the two keys open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opens {
    old: bool,
    new: bool,
}

impl Machine {
    /// `changeDiskKey`.
    pub(super) async fn change_disk_key(
        &mut self,
        asked: &DiskKeyChange,
    ) -> Result<OperationResult, Failure> {
        let live = self.changes_allowed("given another key").await?;
        let (index, mut files) = self.context.disk_files(live.is_some(), &asked.path).await?;
        if !is_encrypted(&asked.path, ImageFormat::Qcow2).await? {
            let (path, why) = (asked.path.clone(), "is not encrypted".to_owned());
            return Err(ImageError::Format { path, why }.into());
        }
        if live.is_none() {
            files.extend(self.context.unknown_layers(&files).await?);
        }
        let at_hand = self.keys_at_hand(&asked.old_key());
        let old = self.context.key_among(&files, &at_hand).await?;
        let old = old.ok_or_else(|| self.context.key_required(&asked.path))?;
        let of_run = self.keys_at_hand(&DiskKeys::new());
        let others = self
            .context
            .other_keys(&files, [&at_hand, &of_run], &asked.new);
        let change = Change {
            others: others.await?,
            keys: ChangeKey {
                old,
                new: asked.new.clone(),
                iter_time: asked.iter_time,
            },
        };
        match live {
            Some(live) => self.change_running(&live, index, &files, &change).await?,
            None => self.change_stopped(&files, &change).await?,
        }
        self.note(&files, None, Vec::new()).await?;
        if change.keys.old == change.keys.new {
            refuse_unknown(&files).await?;
        }
        let data = json!({ "type": "diskKey", "path": asked.path });
        self.context.crud("update", data);
        Ok(OperationResult::done(
            &self.context.vm_id,
            "disk key changed",
        ))
    }

    async fn change_stopped(&self, files: &[HostPath], change: &Change) -> Result<(), Failure> {
        for file in files {
            // One that was cut short may have left a program at work.
            outwait_orphan(file, ORPHAN).await;
            ensure_unused(file).await?;
            opening(file, &change.keys, Sharing::Refuse).await?;
        }
        self.note_begun(files, change).await?;
        for file in files {
            add_key(file, &change.keys).await?;
        }
        self.keep_key(files, change).await?;
        for file in files {
            for other in &change.others {
                erase_key(file, &change.erasing(other)).await?;
            }
        }
        Ok(())
    }

    async fn change_running(
        &self,
        live: &Arc<LiveView>,
        index: usize,
        files: &[HostPath],
        change: &Change,
    ) -> Result<(), Failure> {
        let [file] = files else {
            return Err(has_layers(files));
        };
        // Whatever lies below has places of its own, which QEMU does not write.
        if inspect_closed(file, ImageFormat::Qcow2, &[])
            .await?
            .encrypted
            > 1
        {
            return Err(has_layers(files));
        }
        let qmp = &live.qmp;
        let Some((node, _)) = root_of(qmp, file).await? else {
            let message = "the running machine has this image behind another, not as a disk";
            let failure = Failure::new(ErrorCode::InvalidState, message);
            return Err(failure.with("path", file.as_str()));
        };
        let disk = Amended {
            qmp,
            node,
            file,
            secret: key_of(index),
            change,
        };
        qmp.dismiss_old_jobs().await?;
        let changed = async {
            let opens = opening(file, &change.keys, Sharing::Force).await?;
            self.note_begun(files, change).await?;
            disk.add(opens).await?;
            self.keep_key(files, change).await?;
            disk.erase().await
        };
        let changed = changed.await;
        changed.and(disk.forget().await)
    }

    /// From here on the new key may open the files, which the store does not know as theirs.
    async fn note_begun(&self, files: &[HostPath], change: &Change) -> Result<(), Failure> {
        let new = std::iter::once(&change.keys.new);
        let left = change.others.iter().chain(new).cloned().collect();
        self.note(files, None, left).await
    }

    /// From here on the new key is the one that is known, and the others are to be erased.
    async fn keep_key(&self, files: &[HostPath], change: &Change) -> Result<(), Failure> {
        let key = &change.keys.new;
        self.note(files, Some(key.clone()), change.others.clone())
            .await?;
        if let Some(live) = &self.live {
            for file in files {
                live.view.disk_keys.put(file.clone(), key.clone());
            }
        }
        Ok(())
    }

    async fn note(
        &self,
        files: &[HostPath],
        key: Option<DiskKey>,
        left: Vec<DiskKey>,
    ) -> Result<(), Failure> {
        let Some(store) = &self.context.services.embedded else {
            return Ok(());
        };
        let files = files.to_vec();
        let change = KeyChange { files, key, left };
        Ok(store.note_disk_keys(&self.context.vm_id, change).await?)
    }
}

/// A file of a running machine while its places for keys are written.
struct Amended<'a> {
    qmp: &'a QmpClient,
    node: String,
    file: &'a HostPath,
    /// The object that QEMU reads the disk's key from whenever it needs it.
    secret: String,
    change: &'a Change,
}

impl Amended<'_> {
    /// The new key opens the file, on the disk.
    async fn add(&self, opens: Opens) -> Result<(), Failure> {
        if !opens.new {
            self.add_place().await?;
        }
        flush(self.file).await?;
        if self.opens(&self.change.keys.new).await? {
            Ok(())
        } else {
            Err(wrong(self.file))
        }
    }

    /// QEMU uses the new key from now on, and no other that is known opens the file.
    async fn erase(&self) -> Result<(), Failure> {
        self.put(&self.secret, &self.change.keys.new).await?;
        for other in &self.change.others {
            if self.opens(other).await? {
                self.erase_place(other).await?;
                flush(self.file).await?;
            }
        }
        Ok(())
    }

    async fn opens(&self, key: &DiskKey) -> Result<bool, Failure> {
        Ok(key_opens(self.file, key, Sharing::Force).await?)
    }

    async fn forget(&self) -> Result<(), Failure> {
        for object in [NEW, OLD] {
            self.qmp.object_del(object).await?;
        }
        Ok(())
    }

    async fn add_place(&self) -> Result<(), Failure> {
        // It has the old key unless an earlier change was cut short.
        let keys = &self.change.keys;
        self.put(&self.secret, &keys.old).await?;
        self.put(NEW, &keys.new).await?;
        let mut places = json!({ "format": "luks", "state": "active", "new-secret": NEW });
        if let Some(time) = keys.iter_time {
            places["iter-time"] = json!(time.as_millis().max(1));
        }
        self.amend(places).await
    }

    async fn erase_place(&self, key: &DiskKey) -> Result<(), Failure> {
        self.put(OLD, key).await?;
        let places = json!({ "format": "luks", "state": "inactive", "old-secret": OLD });
        self.amend(places).await
    }

    /// Has QEMU know the key by this name, and no other.
    async fn put(&self, object: &str, key: &DiskKey) -> Result<(), QmpError> {
        self.qmp.object_del(object).await?;
        self.qmp.add_secret(object, key).await
    }

    async fn amend(&self, places: Value) -> Result<(), Failure> {
        let arguments = Map::from_iter([
            ("node-name".to_owned(), json!(self.node)),
            (
                "options".to_owned(),
                json!({ "driver": "qcow2", "encrypt": places }),
            ),
        ]);
        for _ in 1..MEASUREMENTS {
            match self.run(&arguments).await {
                Err(QmpError::Command { desc, .. }) if desc.contains(UNMEASURED) => {}
                amended => return refused(amended),
            }
        }
        refused(self.run(&arguments).await)
    }

    async fn run(&self, arguments: &Map<String, Value>) -> Result<(), QmpError> {
        let arguments = arguments.clone();
        self.qmp.run_job("x-blockdev-amend", arguments, AMEND).await
    }
}

fn refused(amended: Result<(), QmpError>) -> Result<(), Failure> {
    amended.map_err(|error| match &error {
        QmpError::Command { class, .. } if class == "CommandNotFound" => {
            let message = "this QEMU changes no keys while a machine runs: stop it first";
            Failure::caused_by(ErrorCode::InvalidState, message, error)
        }
        _ => error.into(),
    })
}

/// Which of the keys open the file; `AUTH_FAILED` if none does.
async fn opening(file: &HostPath, change: &ChangeKey, sharing: Sharing) -> Result<Opens, Failure> {
    let opens = Opens {
        old: key_opens(file, &change.old, sharing).await?,
        new: key_opens(file, &change.new, sharing).await?,
    };
    if opens.old || opens.new {
        Ok(opens)
    } else {
        Err(wrong(file))
    }
}

/// Of a disk that had the new key already nothing but that may open it. What else does, nobody knows here: a change
/// may have been cut short where no keys are stored.
async fn refuse_unknown(files: &[HostPath]) -> Result<(), Failure> {
    for file in files {
        if keys_in(file).await? > 1 {
            let message = format!(
                "{file} has this key already, and another one that opens it too: give that as encryptionKey to \
                 have it erased"
            );
            let failure = Failure::new(ErrorCode::KeyRequired, message);
            return Err(failure.with("path", file.as_str()));
        }
    }
    Ok(())
}

fn wrong(file: &HostPath) -> Failure {
    let path = file.clone();
    ImageError::AuthFailed { path }.into()
}

fn has_layers(files: &[HostPath]) -> Failure {
    let message = "the disk lies on external snapshots, whose keys QEMU does not change while the machine \
                   runs: stop it, or delete them first";
    let files: Vec<_> = files.iter().map(ToString::to_string).collect();
    Failure::new(ErrorCode::InvalidState, message).with("files", files)
}
