//! Another key for a disk, whether or not its machine runs.
//!
//! LUKS has eight places for keys, in every file of the disk. The new one is put into a free place of each and
//! has opened it; then the store is told; then the old one is erased. So at every moment what the store says
//! opens the disk, and before it is told both do: whoever is killed in between, the same call again finishes
//! it. Under a running machine QEMU itself writes the places (`x-blockdev-amend`, QEMU 5.1), as it alone may
//! write to the file, and an independent `qemu-img` tries what opens it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::live::LiveView;
use super::machine::Machine;
use super::outcome::OperationResult;
use super::resize::root_of;
use crate::config::DiskKeys;
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{
    ChangeKey, ImageError, ImageFormat, MEASUREMENTS, Sharing, UNMEASURED, add_key, ensure_unused,
    erase_key, flush, inspect_closed, is_encrypted, key_opens, outwait_orphan,
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
        let (index, files) = self.context.disk_files(live.is_some(), &asked.path).await?;
        if !is_encrypted(&asked.path, ImageFormat::Qcow2).await? {
            let (path, why) = (asked.path.clone(), "is not encrypted".to_owned());
            return Err(ImageError::Format { path, why }.into());
        }
        let at_hand = self.keys_at_hand(&asked.old_key());
        let old = self.context.key_among(&files, &at_hand).await?;
        let old = old.ok_or_else(|| self.context.key_required(&asked.path))?;
        let change = ChangeKey {
            old,
            new: asked.new.clone(),
            iter_time: asked.iter_time,
        };
        match live {
            Some(live) => self.change_running(&live, index, &files, &change).await?,
            None => self.change_stopped(&files, &change).await?,
        }
        let data = json!({ "type": "diskKey", "path": asked.path });
        self.context.crud("update", data);
        Ok(OperationResult::done(
            &self.context.vm_id,
            "disk key changed",
        ))
    }

    async fn change_stopped(&self, files: &[HostPath], change: &ChangeKey) -> Result<(), Failure> {
        for file in files {
            // One that was cut short may have left a program at work.
            outwait_orphan(file, ORPHAN).await;
            ensure_unused(file).await?;
            opening(file, change, Sharing::Refuse).await?;
        }
        for file in files {
            add_key(file, change).await?;
        }
        self.keep_key(files, &change.new).await?;
        for file in files {
            erase_key(file, change).await?;
        }
        Ok(())
    }

    async fn change_running(
        &self,
        live: &Arc<LiveView>,
        index: usize,
        files: &[HostPath],
        change: &ChangeKey,
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
            let opens = disk.add().await?;
            self.keep_key(files, &change.new).await?;
            disk.erase(opens).await
        };
        let changed = changed.await;
        changed.and(disk.forget().await)
    }

    /// From here on the new key is the one that is known.
    async fn keep_key(&self, files: &[HostPath], key: &DiskKey) -> Result<(), Failure> {
        if let Some(store) = &self.context.services.embedded {
            let keys = files.iter().map(|file| (file.clone(), key.clone()));
            store
                .keep_disk_keys(&self.context.vm_id, keys.collect())
                .await?;
        }
        if let Some(live) = &self.live {
            for file in files {
                live.view.disk_keys.put(file.clone(), key.clone());
            }
        }
        Ok(())
    }
}

/// A file of a running machine while its places for keys are written.
struct Amended<'a> {
    qmp: &'a QmpClient,
    node: String,
    file: &'a HostPath,
    /// The object that QEMU reads the disk's key from whenever it needs it.
    secret: String,
    change: &'a ChangeKey,
}

impl Amended<'_> {
    /// The new key opens the file, on the disk. Answers what did before.
    async fn add(&self) -> Result<Opens, Failure> {
        let opens = opening(self.file, self.change, Sharing::Force).await?;
        if !opens.new {
            self.add_place().await?;
        }
        flush(self.file).await?;
        if key_opens(self.file, &self.change.new, Sharing::Force).await? {
            Ok(opens)
        } else {
            Err(wrong(self.file))
        }
    }

    /// QEMU uses the new key from now on, and it alone opens the file.
    async fn erase(&self, opens: Opens) -> Result<(), Failure> {
        self.put(&self.secret, &self.change.new).await?;
        if opens.old && self.change.old != self.change.new {
            self.erase_place().await?;
            flush(self.file).await?;
        }
        Ok(())
    }

    async fn forget(&self) -> Result<(), Failure> {
        for object in [NEW, OLD] {
            self.qmp.object_del(object).await?;
        }
        Ok(())
    }

    async fn add_place(&self) -> Result<(), Failure> {
        // It has the old key unless an earlier change was cut short.
        self.put(&self.secret, &self.change.old).await?;
        self.put(NEW, &self.change.new).await?;
        let mut places = json!({ "format": "luks", "state": "active", "new-secret": NEW });
        if let Some(time) = self.change.iter_time {
            places["iter-time"] = json!(time.as_millis().max(1));
        }
        self.amend(places).await
    }

    async fn erase_place(&self) -> Result<(), Failure> {
        self.put(OLD, &self.change.old).await?;
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
