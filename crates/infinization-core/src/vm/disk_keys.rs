//! Keys of encrypted disks: whence a launch has them, where they are kept, and what cannot be done with
//! such disks.
//!
//! A key is given by the caller, or kept by the embedded store if that has a key of its own. While the VM
//! runs, its task has the keys of the run too, for a restart. Nowhere else is one kept, so a VM whose
//! QEMU was taken back by another process is started again only with a key that is given or stored.

use serde_json::json;

use super::context::VmContext;
use super::effects::image_format;
use super::machine::Machine;
use super::spec;
use crate::config::{DiskConfig, DiskKeys, StartOptions, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{ImageError, ImageFormat, is_encrypted};
use crate::types::{DiskKey, HostPath};

impl VmContext {
    /// The keys for a start: those that are given, then those that are stored.
    pub(super) async fn keys_for(
        &self,
        config: &VmConfig,
        given: &DiskKeys,
    ) -> Result<DiskKeys, Failure> {
        refuse_strangers(config, given)?;
        let Some(store) = &self.services.embedded else {
            return Ok(given.clone());
        };
        let mut stored = store.disk_keys(&self.vm_id).await?;
        let mut keys = given.clone();
        for (path, disk) in files(config) {
            let stored = stored.remove(path);
            let Some(key) = stored.filter(|_| !keys.contains_key(path)) else {
                continue;
            };
            // An image that took the place of the one the key was for may not be encrypted.
            if encrypted(path, disk).await {
                keys.insert(path.clone(), key?);
            }
        }
        Ok(keys)
    }

    /// Has the embedded store keep what opened the disks, once QEMU has. Without a key of its own it keeps
    /// none. The guest runs, so a failure is no more than a warning.
    pub(super) async fn keep_keys(&self, config: &VmConfig) -> Option<String> {
        let keys = keys_of(config);
        let store = self.services.embedded.as_ref();
        let store = store.filter(|_| !keys.is_empty())?;
        let error = store.keep_disk_keys(&self.vm_id, keys).await.err()?;
        tracing::warn!(vm = %self.vm_id, %error, "the keys of disks were not kept");
        Some(format!(
            "diskKeys could not be stored, so the next start needs them again: {error}"
        ))
    }

    /// The configuration with the keys that are stored. `KEY_REQUIRED` if one is missing.
    pub(super) async fn with_stored_keys(&self, config: VmConfig) -> Result<VmConfig, Failure> {
        let keys = self.keys_for(&config, &DiskKeys::new()).await?;
        let config = with_keys(config, &keys);
        for (path, disk) in files(&config).filter(|(_, disk)| disk.key.is_none()) {
            if is_encrypted(path, image_format(disk)).await? {
                return Err(self.key_required(path));
            }
        }
        Ok(config)
    }

    /// The stored keys of those of the files that are encrypted.
    pub(super) async fn stored_keys(&self, files: &[HostPath]) -> Result<DiskKeys, Failure> {
        let Some(store) = &self.services.embedded else {
            return Ok(DiskKeys::new());
        };
        let mut stored = store.disk_keys(&self.vm_id).await?;
        let mut keys = DiskKeys::new();
        for path in files {
            if let Some(key) = stored.remove(path)
                && is_encrypted(path, ImageFormat::Qcow2).await?
            {
                keys.insert(path.clone(), key?);
            }
        }
        Ok(keys)
    }

    /// The key of any of these files: of those at hand, then of those that are stored.
    pub(super) async fn key_among(
        &self,
        files: &[HostPath],
        at_hand: &DiskKeys,
    ) -> Result<Option<DiskKey>, Failure> {
        if let Some(key) = files.iter().find_map(|path| at_hand.get(path)) {
            return Ok(Some(key.clone()));
        }
        let Some(store) = &self.services.embedded else {
            return Ok(None);
        };
        let mut stored = store.disk_keys(&self.vm_id).await?;
        let key = files.iter().find_map(|path| stored.remove(path));
        Ok(key.transpose()?)
    }

    /// What may open these files besides `key`: any that is known of them, or that a change which was cut short
    /// may have left there.
    pub(super) async fn other_keys(
        &self,
        files: &[HostPath],
        at_hand: [&DiskKeys; 2],
        key: &DiskKey,
    ) -> Result<Vec<DiskKey>, Failure> {
        let known = at_hand.into_iter().flat_map(|keys| {
            let keys = files.iter().filter_map(|path| keys.get(path));
            keys.cloned()
        });
        let mut all: Vec<_> = known.collect();
        if let Some(store) = &self.services.embedded {
            let mut stored = store.disk_keys(&self.vm_id).await?;
            let stored = files.iter().filter_map(|path| stored.remove(path));
            // One that cannot be read is none that could be erased.
            all.extend(stored.flatten());
        }
        all.extend(self.left_keys(files).await?);
        let mut others = Vec::new();
        for one in all {
            if one != *key && !others.contains(&one) {
                others.push(one);
            }
        }
        Ok(others)
    }

    /// What changes of the key which were cut short may have left in these files.
    pub(super) async fn left_keys(&self, files: &[HostPath]) -> Result<Vec<DiskKey>, Failure> {
        let Some(store) = &self.services.embedded else {
            return Ok(Vec::new());
        };
        let mut noted = store.left_disk_keys(&self.vm_id).await?;
        let mut left = Vec::new();
        // Overlays have the keys of what they lie on, each noted for itself.
        for key in files.iter().filter_map(|path| noted.remove(path)).flatten() {
            if !left.contains(&key) {
                left.push(key);
            }
        }
        Ok(left)
    }

    pub(super) fn key_required(&self, path: &HostPath) -> Failure {
        let path = path.clone();
        Failure::from(ImageError::KeyRequired { path }).of_vm(&self.vm_id)
    }

    /// Refuses to have what encrypted disks hold written to `what` (`PLAIN_TEXT_REFUSED`).
    pub(super) async fn refuse_plain_text(
        &self,
        config: &VmConfig,
        what: &'static str,
    ) -> Result<(), Failure> {
        for (path, disk) in files(config) {
            if is_encrypted(path, image_format(disk)).await? {
                let path = path.clone();
                let refused = Failure::from(ImageError::PlainText { path, what });
                return Err(refused.of_vm(&self.vm_id));
            }
        }
        Ok(())
    }

    /// The guest's memory holds what it has read of its disks, and would be saved in the first one. Should that
    /// be encrypted, QEMU 7.2 ends on an assertion (`qcow2_co_encdec`), as memory is no whole sectors.
    pub(super) async fn refuse_memory(&self, config: &VmConfig) -> Result<(), Failure> {
        if let Some((path, first)) = files(config).next()
            && is_encrypted(path, image_format(first)).await?
        {
            let path = path.clone();
            let why = "is encrypted, and QEMU saves no memory in such an image".to_owned();
            let refused = Failure::from(ImageError::Format { path, why });
            return Err(refused.of_vm(&self.vm_id));
        }
        self.refuse_plain_text(config, "the guest's memory in another disk")
            .await
    }
}

impl Machine {
    /// What the VM is started with once more. Refused while it still runs, if a key is missing.
    pub(super) async fn restart_options(&self) -> Result<StartOptions, Failure> {
        let mut disk_keys = DiskKeys::new();
        if let Some(live) = &self.live {
            disk_keys = live.view.disk_keys.get();
        }
        // The row may have other disks than the run had.
        let config = spec::for_start(&self.context, &self.record().await?)?;
        disk_keys.retain(|path, _| is_disk_of(&config, path));
        let keys = self.context.keys_for(&config, &disk_keys).await?;
        for (path, disk) in files(&config).filter(|(path, _)| !keys.contains_key(*path)) {
            if encrypted(path, disk).await {
                return Err(self.context.key_required(path));
            }
        }
        Ok(StartOptions {
            disk_keys,
            ..StartOptions::default()
        })
    }
}

/// The configuration with the keys of its disks.
pub(super) fn with_keys(mut config: VmConfig, keys: &DiskKeys) -> VmConfig {
    for disk in &mut config.disks {
        disk.key = disk.path().and_then(|path| keys.get(path)).cloned();
    }
    config
}

/// The keys a configuration has.
pub(super) fn keys_of(config: &VmConfig) -> DiskKeys {
    files(config)
        .filter_map(|(path, disk)| Some((path.clone(), disk.key.clone()?)))
        .collect()
}

/// The disks that are files: what is on the network is encrypted elsewhere, if at all.
fn files(config: &VmConfig) -> impl Iterator<Item = (&HostPath, &DiskConfig)> {
    let disks = config.disks.iter();
    disks.filter_map(|disk| Some((disk.path()?, disk)))
}

fn is_disk_of(config: &VmConfig, path: &HostPath) -> bool {
    files(config).any(|(disk, _)| disk == path)
}

/// A disk that cannot be read is somebody else's to refuse.
async fn encrypted(path: &HostPath, disk: &DiskConfig) -> bool {
    is_encrypted(path, image_format(disk))
        .await
        .unwrap_or(false)
}

/// A key for what is no disk of the VM's is a slip: the disk it was meant for would have none.
fn refuse_strangers(config: &VmConfig, given: &DiskKeys) -> Result<(), Failure> {
    match given.keys().find(|path| !is_disk_of(config, path)) {
        None => Ok(()),
        Some(path) => {
            let message = format!("has {path}, which is no disk of this VM");
            let issue = json!({
                "path": "diskKeys",
                "message": message,
                "code": ErrorCode::InvalidConfig.as_str(),
            });
            Err(
                Failure::new(ErrorCode::InvalidConfig, format!("diskKeys {message}"))
                    .with("issues", vec![issue]),
            )
        }
    }
}
