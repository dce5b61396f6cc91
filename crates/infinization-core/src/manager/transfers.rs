//! Volumes that come and go as bytes: what is under way is held here until it ends, whoever ends it.
//!
//! A caller may stop asking at any time without a word, so each transfer has a watcher, which lets go of the file
//! when the caller's signal fires, the manager closes or the transfer's own handle is dropped.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::storage::{job, named};
use super::{Manager, Open, REST_DEADLINE, to_value};
use crate::config::{Parsed, PoolName, UploadOptions, VolumeName, parse_no_options};
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{Incoming, Outgoing};
use crate::storage::{Pools, Uses};

/// A volume that comes in.
#[derive(Debug)]
pub struct VolumeUpload {
    /// Not the manager: it may be closed before the volume is told of.
    pools: Pools,
    transfers: TaskTracker,
    pool: PoolName,
    name: VolumeName,
    transfer: Transfer<Incoming>,
}

/// A volume that goes out.
#[derive(Debug)]
pub struct VolumeDownload {
    name: VolumeName,
    length: u64,
    transfer: Transfer<Outgoing>,
}

impl Manager {
    /// `uploadVolume`, up to the first byte.
    pub async fn upload_volume(
        &self,
        pool: String,
        name: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<VolumeUpload, Failure> {
        let (pool, name): (PoolName, VolumeName) = (named("pool", pool)?, named("name", name)?);
        let open = self.open()?;
        let Parsed { config, .. } = UploadOptions::parse(&options, &name)?;
        refuse_cancelled(&cancel)?;
        let owner = open.image_owner().await?;
        let incoming = open.pools.upload(&pool, &name, &config, owner).await?;
        Ok(VolumeUpload {
            pools: open.pools.clone(),
            transfers: open.transfers.clone(),
            transfer: Transfer::of(incoming, &open, &cancel),
            pool,
            name,
        })
    }

    /// `downloadVolume`, up to the first byte.
    pub async fn download_volume(
        &self,
        pool: String,
        name: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<VolumeDownload, Failure> {
        let (pool, name): (PoolName, VolumeName) = (named("pool", pool)?, named("name", name)?);
        let open = self.open()?;
        parse_no_options(&options)?;
        refuse_cancelled(&cancel)?;
        let outgoing = open
            .pools
            .download(&pool, &name, &job(cancel.clone()))
            .await?;
        Ok(VolumeDownload {
            name,
            length: outgoing.length(),
            transfer: Transfer::of(outgoing, &open, &cancel),
        })
    }
}

impl VolumeUpload {
    /// Writes the next bytes. Whoever does not wait for it ends the upload.
    pub async fn write(&self, piece: Vec<u8>) -> Result<(), Failure> {
        let mut held = self.transfer.held.lock().await;
        let incoming = held.take().ok_or_else(|| self.transfer.over())?;
        *held = Some(incoming.write(piece).await?);
        Ok(())
    }

    /// Makes the volume out of what was written, and tells of it. A shutdown that comes in between ends it or, once
    /// the volume has its name, waits for it.
    pub async fn finish(&self) -> Result<Value, Failure> {
        // A shutdown waits for the watcher, and from before nothing is left to watch over for this.
        let _under_way = self.transfers.token();
        if self.transfer.stop.is_cancelled() {
            // What is missing of it is no fault of the source's.
            self.transfer.end().await;
            return Err(self.transfer.over());
        }
        let incoming = self.transfer.held.lock().await.take();
        let incoming = incoming.ok_or_else(|| self.transfer.over())?;
        incoming.finish(&job(self.transfer.stop.clone())).await?;
        let nobody = Uses::default();
        let made = self.pools.volume(&self.pool, &self.name, &nobody).await?;
        to_value(&made)
    }

    /// Ends it; nothing of it stays.
    pub async fn abandon(&self) {
        self.transfer.end().await;
    }
}

impl VolumeDownload {
    /// What there is to be read.
    pub fn facts(&self) -> Value {
        json!({ "size": self.length, "format": self.name.format() })
    }

    /// The next bytes; none at the end.
    pub async fn read(&self) -> Result<Vec<u8>, Failure> {
        let mut held = self.transfer.held.lock().await;
        let outgoing = held.as_mut().ok_or_else(|| self.transfer.over())?;
        Ok(outgoing.read().await?)
    }

    /// Lets go of the volume.
    pub async fn close(&self) {
        self.transfer.end().await;
    }
}

/// What is held until the transfer ends.
#[derive(Debug)]
struct Transfer<T> {
    held: Arc<Mutex<Option<T>>>,
    /// The caller's signal fired, or the manager closes.
    stop: CancellationToken,
    closing: CancellationToken,
    _handle: DropGuard,
}

impl<T: Send + 'static> Transfer<T> {
    fn of(held: T, open: &Open, cancel: &CancellationToken) -> Self {
        let held = Arc::new(Mutex::new(Some(held)));
        let (stop, dropped) = (cancel.child_token(), CancellationToken::new());
        let closing = open.services.closing.clone();
        let watch = watch(
            Arc::clone(&held),
            stop.clone(),
            closing.clone(),
            dropped.clone(),
        );
        open.transfers.spawn(watch);
        Self {
            held,
            stop,
            closing,
            _handle: dropped.drop_guard(),
        }
    }

    /// Why there is nothing to go on with.
    fn over(&self) -> Failure {
        if self.closing.is_cancelled() {
            return Failure::new(ErrorCode::Closed, "the instance was shut down");
        }
        if self.stop.is_cancelled() {
            return aborted();
        }
        Failure::new(ErrorCode::InvalidState, "the transfer has ended")
    }

    async fn end(&self) {
        drop(self.held.lock().await.take());
    }
}

async fn watch<T>(
    held: Arc<Mutex<Option<T>>>,
    stop: CancellationToken,
    closing: CancellationToken,
    dropped: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = closing.cancelled() => stop.cancel(),
        () = dropped.cancelled() => {}
    }
    drop(held.lock().await.take());
}

impl Open {
    /// Ends what is under way, and waits until nothing of it is left.
    pub(super) async fn let_go_of_transfers(&self) {
        self.transfers.close();
        if timeout(REST_DEADLINE, self.transfers.wait()).await.is_err() {
            tracing::warn!("a volume that was being transferred could not be let go");
        }
    }
}

/// A signal that fired before the call means that nothing is begun.
fn refuse_cancelled(cancel: &CancellationToken) -> Result<(), Failure> {
    if cancel.is_cancelled() {
        return Err(aborted());
    }
    Ok(())
}

fn aborted() -> Failure {
    let message = "the transfer was aborted; nothing of it stays";
    Failure::new(ErrorCode::StorageAborted, message)
}
