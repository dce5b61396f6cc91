//! `QemuImgService`, over the core's `host::qemu_img`.

use infinization_core::Failure;
use infinization_core::host::qemu_img::{
    ChangeKey, ConvertImage, CreateImage, Encryption, ImageError, ImageFormat, ImageInfo, Job,
    Preallocation, Resize, Sharing, SnapshotInfo, change_key, check_with_key, create, info,
    resize_with_key,
};
use infinization_core::storage;
use infinization_core::types::{ByteSize, DiskKey, HostPath};
use napi_derive::napi;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Cancellation, CopyProgress};
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// Disk images.
#[napi]
#[derive(Debug, Default)]
pub struct QemuImgService {}

/// `CreateImageOptions`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateOptions {
    path: HostPath,
    #[serde(rename = "sizeGB")]
    size_gb: Option<f64>,
    format: ImageFormat,
    cluster_size: Option<u64>,
    preallocation: Option<Preallocation>,
    backing_file: Option<HostPath>,
    encryption_key: Option<DiskKey>,
}

/// `ConvertImageOptions`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConvertOptions {
    source_path: HostPath,
    source_format: Option<ImageFormat>,
    dest_path: HostPath,
    dest_format: ImageFormat,
    compress: Option<bool>,
    encryption_key: Option<DiskKey>,
    decrypt: Option<bool>,
}

/// `ImageKeyOptions`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyOptions {
    pub(super) encryption_key: Option<DiskKey>,
}

/// `ChangeImageKeyOptions`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChangeKeyOptions {
    encryption_key: DiskKey,
    new_key: DiskKey,
}

#[napi]
impl QemuImgService {
    /// Touches nothing.
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    #[napi]
    pub async fn create_image(&self, options: Argument, cancel: Option<&Cancellation>) -> Outcome {
        let job = job(cancel);
        done(async {
            let options: CreateOptions = options.options("options")?;
            Ok(create(&options.image()?, &job).await?)
        })
        .await
    }

    #[napi]
    pub async fn get_image_info(&self, path: Argument, format: Argument) -> Outcome {
        data(async {
            let (path, format) = (path.parsed::<HostPath>("path")?, image_format(format)?);
            let found = info(&path, format, Sharing::Refuse).await?;
            Ok(info_facts(&path, format, &found))
        })
        .await
    }

    #[napi]
    pub async fn resize_image(&self, path: Argument, gib: Argument, options: Argument) -> Outcome {
        done(async {
            let path: HostPath = path.parsed("path")?;
            let size = size(&path, gib.shaped("newSizeGB")?)?;
            let options: ResizeOptions = options.options("options")?;
            let direction = if options.shrink {
                Resize::GrowOrShrink
            } else {
                Resize::Grow
            };
            let key = options.encryption_key.as_ref();
            Ok(resize_with_key(&path, options.format, size, direction, key).await?)
        })
        .await
    }

    #[napi]
    pub async fn convert_image(
        &self,
        options: Argument,
        cancel: Option<&Cancellation>,
        progress: Option<&CopyProgress>,
    ) -> Outcome {
        let (job, audience) = (job(cancel), CopyProgress::audience(progress));
        done(async {
            let options: ConvertOptions = options.options("options")?;
            Ok(storage::copy(&options.image(), &audience, &job).await?)
        })
        .await
    }

    /// Damage is a result, not an error.
    #[napi]
    pub async fn check_image(
        &self,
        path: Argument,
        format: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let job = job(cancel);
        data(async {
            // `signal`, their other member, is what `cancel` was made of.
            let options: KeyOptions = options.options("options")?;
            let (path, format) = (path.parsed("path")?, image_format(format)?);
            let found =
                check_with_key(&path, format, options.encryption_key.as_ref(), &job).await?;
            Ok(json!({
                "errors": found.errors,
                "leaks": found.leaks,
                "corruptions": found.corruptions,
                "totalClusters": found.total_clusters,
                "allocatedClusters": found.allocated_clusters,
            }))
        })
        .await
    }

    #[napi]
    pub async fn change_key(&self, path: Argument, options: Argument) -> Outcome {
        done(async {
            let path: HostPath = path.parsed("path")?;
            let options: ChangeKeyOptions = options.options("options")?;
            let change = ChangeKey {
                old: options.encryption_key,
                new: options.new_key,
                iter_time: None,
            };
            Ok(change_key(&path, &change).await?)
        })
        .await
    }
}

/// What `resizeImage` takes beside the size.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResizeOptions {
    format: ImageFormat,
    shrink: bool,
    encryption_key: Option<DiskKey>,
}

impl CreateOptions {
    fn image(self) -> Result<CreateImage, Failure> {
        // With a backing file the size is that file's.
        let size = match (&self.backing_file, self.size_gb) {
            (Some(_), _) => None,
            (None, gib) => Some(size(&self.path, gib.unwrap_or_default())?),
        };
        Ok(CreateImage {
            size,
            format: self.format,
            cluster_size: self.cluster_size.map(ByteSize::bytes),
            preallocation: self.preallocation.unwrap_or_default(),
            backing: self.backing_file,
            encryption: self.encryption_key.map(Encryption::with),
            ..CreateImage::new(self.path, ByteSize::bytes(0))
        })
    }
}

impl ConvertOptions {
    fn image(self) -> ConvertImage {
        let source = (self.source_path, self.source_format.unwrap_or_default());
        ConvertImage {
            compress: self.compress.unwrap_or_default(),
            encryption: self.encryption_key.map(Encryption::with),
            decrypt: self.decrypt.unwrap_or_default(),
            ..ConvertImage::new(source, (self.dest_path, self.dest_format))
        }
    }
}

fn size(path: &HostPath, gib: f64) -> Result<ByteSize, Failure> {
    let refused = |why| ImageError::Size {
        path: path.clone(),
        why: format!("{why}"),
    };
    Ok(ByteSize::from_gib(gib).map_err(refused)?)
}

pub(super) fn job(cancel: Option<&Cancellation>) -> Job {
    Job {
        cancel: Cancellation::token(cancel),
        ..Job::default()
    }
}

/// Absent: qcow2. It is never guessed from the image, which a guest may have written.
fn image_format(argument: Argument) -> Result<ImageFormat, Failure> {
    Ok(argument
        .shaped::<Option<ImageFormat>>("format")?
        .unwrap_or_default())
}

fn info_facts(path: &HostPath, format: ImageFormat, found: &ImageInfo) -> Value {
    let mut facts = Map::from_iter([
        ("filename".to_owned(), json!(path)),
        ("format".to_owned(), json!(format)),
        ("virtualSize".to_owned(), json!(found.virtual_size)),
        ("actualSize".to_owned(), json!(found.actual_size)),
        ("encrypted".to_owned(), json!(found.encrypted)),
    ]);
    if let Some(size) = found.cluster_size {
        facts.insert("clusterSize".to_owned(), json!(size));
    }
    if let Some(backing) = &found.backing_file {
        facts.insert("backingFile".to_owned(), json!(backing));
    }
    if !found.snapshots.is_empty() {
        let snapshots = found.snapshots.iter().map(snapshot_facts);
        facts.insert("snapshots".to_owned(), snapshots.collect());
    }
    Value::Object(facts)
}

/// `SnapshotInfo`.
pub(super) fn snapshot_facts(snapshot: &SnapshotInfo) -> Value {
    json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vmSize": snapshot.vm_state_size,
        "date": snapshot.date,
        "vmClock": snapshot.vm_clock,
    })
}
