//! Volumes that come from elsewhere, and go elsewhere, as the bytes of their files.

use super::volumes::image_format;
use super::{PoolError, Pools};
use crate::config::{PoolName, UploadOptions, VolumeName};
use crate::host::qemu_img::{Incoming, IncomingImage, Job, Outgoing, sweep_partials};

impl Pools {
    /// Begins a volume whose bytes are still to come.
    pub async fn upload(
        &self,
        pool: &PoolName,
        name: &VolumeName,
        options: &UploadOptions,
        owner: Option<(u32, u32)>,
    ) -> Result<Incoming, PoolError> {
        let image = IncomingImage {
            path: self.free_path(pool, name).await?,
            format: image_format(name.format()),
            size: options.size,
            sha256: options.sha256.clone(),
            owner,
        };
        Ok(Incoming::begin(image).await?)
    }

    /// Opens a volume that nobody writes to, nor may until it is let go.
    pub async fn download(
        &self,
        pool: &PoolName,
        name: &VolumeName,
        job: &Job,
    ) -> Result<Outgoing, PoolError> {
        let path = self.path_of(pool, name).await?;
        Ok(Outgoing::begin(&path, image_format(name.format()), job).await?)
    }

    /// Removes what processes that were killed left half made in any pool. A directory that cannot be looked
    /// at is told, and looked at next time.
    pub async fn sweep(&self) -> Result<(), PoolError> {
        for directory in self.directories().await? {
            match sweep_partials(&directory).await {
                Ok(swept) if swept.is_empty() => {}
                Ok(swept) => tracing::info!(?swept, "removed half-made volumes"),
                Err(error) => tracing::warn!(%error, "half-made volumes were not looked for"),
            }
        }
        Ok(())
    }
}
