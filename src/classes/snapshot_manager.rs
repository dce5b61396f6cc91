//! `SnapshotManager`, over the core's `host::qemu_img`.

use infinization_core::Failure;
use infinization_core::host::qemu_img::{
    ConvertImage, ImageFormat, Sharing, SnapshotName, convert, create_snapshot, delete_snapshot,
    list_snapshots, revert_snapshot, snapshot_exists,
};
use infinization_core::types::HostPath;
use napi_derive::napi;
use serde::Deserialize;

use super::Cancellation;
use super::qemu_img_service::{job, snapshot_facts};
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
            let options: CreateOptions = options.shaped("options")?;
            let name = SnapshotName::parse(options.name)?;
            Ok(create_snapshot(&options.image_path, &name).await?)
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
    pub async fn revert_snapshot(&self, image: Argument, name: Argument) -> Outcome {
        done(async {
            let (image, name) = (path(image)?, snapshot(name)?);
            Ok(revert_snapshot(&image, &name).await?)
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
    ) -> Outcome {
        let job = job(cancel);
        done(async {
            // Their only member, `signal`, is what `cancel` was made of.
            options.object("options")?;
            let source = source.parsed("sourcePath")?;
            let name = snapshot(name)?;
            let target = target.parsed("destPath")?;
            let qcow2 = ImageFormat::Qcow2;
            let image = ConvertImage {
                snapshot: Some(name),
                ..ConvertImage::new((source, qcow2), (target, qcow2))
            };
            Ok(convert(&image, &job).await?)
        })
        .await
    }

    #[napi]
    pub async fn delete_snapshot(&self, image: Argument, name: Argument) -> Outcome {
        done(async {
            let (image, name) = (path(image)?, snapshot(name)?);
            Ok(delete_snapshot(&image, &name).await?)
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

fn snapshot(argument: Argument) -> Result<SnapshotName, Failure> {
    Ok(SnapshotName::parse(argument.text("name")?)?)
}
