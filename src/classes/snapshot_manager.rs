//! `SnapshotManager`, over the core's `host::qemu_img`.

use infinization_core::Failure;
use infinization_core::host::qemu_img::{
    ConvertImage, Encryption, ImageFormat, Sharing, SnapshotName, create_snapshot_with_key,
    delete_snapshot_with_key, list_snapshots, revert_snapshot_with_key, snapshot_exists,
};
use infinization_core::storage;
use infinization_core::types::{DiskKey, HostPath};
use napi_derive::napi;
use serde::Deserialize;

use super::qemu_img_service::{KeyOptions, job, snapshot_facts};
use super::{Cancellation, CopyProgress};
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// Internal snapshots of images that no machine runs on.
#[napi]
#[derive(Debug, Default)]
pub struct SnapshotManager {}

/// `SnapshotCreateOptions`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateOptions {
    image_path: HostPath,
    name: String,
    /// qcow2 has no room for one.
    #[serde(rename = "description")]
    _description: Option<String>,
    encryption_key: Option<DiskKey>,
}

#[napi]
impl SnapshotManager {
    /// Touches nothing.
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    #[napi]
    pub async fn create_snapshot(&self, options: Argument) -> Outcome {
        done(async {
            let options: CreateOptions = options.options("options")?;
            let name = SnapshotName::parse(options.name)?;
            let key = options.encryption_key.as_ref();
            Ok(create_snapshot_with_key(&options.image_path, &name, key).await?)
        })
        .await
    }

    #[napi]
    pub async fn list_snapshots(&self, image: Argument) -> Outcome {
        data(async {
            let found = list_snapshots(&path(image)?, Sharing::Refuse).await?;
            Ok(found.iter().map(snapshot_facts).collect::<Vec<_>>())
        })
        .await
    }

    #[napi]
    pub async fn revert_snapshot(
        &self,
        image: Argument,
        name: Argument,
        options: Argument,
    ) -> Outcome {
        done(async {
            let (image, name, key) = (path(image)?, snapshot(name)?, key(options)?);
            Ok(revert_snapshot_with_key(&image, &name, key.as_ref()).await?)
        })
        .await
    }

    /// A copy of the disk as it was at the snapshot.
    #[napi]
    pub async fn materialize_snapshot(
        &self,
        source: Argument,
        name: Argument,
        target: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
        progress: Option<&CopyProgress>,
    ) -> Outcome {
        let (job, audience) = (job(cancel), CopyProgress::audience(progress));
        done(async {
            // `signal`, their other member, is what `cancel` was made of.
            let key = key(options)?;
            let source = source.parsed("sourcePath")?;
            let name = snapshot(name)?;
            let target = target.parsed("destPath")?;
            let qcow2 = ImageFormat::Qcow2;
            let image = ConvertImage {
                snapshot: Some(name),
                encryption: key.map(Encryption::with),
                ..ConvertImage::new((source, qcow2), (target, qcow2))
            };
            Ok(storage::copy(&image, &audience, &job).await?)
        })
        .await
    }

    #[napi]
    pub async fn delete_snapshot(
        &self,
        image: Argument,
        name: Argument,
        options: Argument,
    ) -> Outcome {
        done(async {
            let (image, name, key) = (path(image)?, snapshot(name)?, key(options)?);
            Ok(delete_snapshot_with_key(&image, &name, key.as_ref()).await?)
        })
        .await
    }

    #[napi]
    pub async fn snapshot_exists(&self, image: Argument, name: Argument) -> Outcome {
        data(async {
            let (image, name) = (path(image)?, snapshot(name)?);
            Ok(snapshot_exists(&image, &name, Sharing::Refuse).await?)
        })
        .await
    }
}

fn path(argument: Argument) -> Result<HostPath, Failure> {
    argument.parsed("imagePath")
}

/// What opens an encrypted image.
fn key(options: Argument) -> Result<Option<DiskKey>, Failure> {
    let options: KeyOptions = options.options("options")?;
    Ok(options.encryption_key)
}

fn snapshot(argument: Argument) -> Result<SnapshotName, Failure> {
    Ok(SnapshotName::parse(argument.text("name")?)?)
}
