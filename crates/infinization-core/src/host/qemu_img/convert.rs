//! `qemu-img convert`: a copy of an image, or of one of its snapshots, in another format.

use std::path::Path;

use super::command::{Measuring, QemuImg};
use super::in_use::{self, Access};
use super::info::{Sharing, info_locked};
use super::job::{blocking, supervised};
use super::partial::Partial;
use super::{
    Encryption, ImageError, ImageFormat, Inspection, Job, SnapshotName, inspect, lock, opened,
};
use crate::types::HostPath;

/// A copy to make. It holds everything, including what the source's backing files hold.
#[derive(Debug, Clone)]
pub struct ConvertImage {
    /// What is copied; no other process may be writing to it.
    pub source: HostPath,
    /// The source's format.
    pub source_format: ImageFormat,
    /// Copies this snapshot (of a qcow2) instead of the present content.
    pub snapshot: Option<SnapshotName>,
    /// Where the copy will be; nothing may be there yet.
    pub target: HostPath,
    /// The copy's format.
    pub target_format: ImageFormat,
    /// Compresses the copy's clusters (qcow2).
    pub compress: bool,
    /// Encrypts the copy. It is the source's key, too, if that is encrypted.
    pub encryption: Option<Encryption>,
    /// Agrees to a copy of an encrypted source that is not encrypted itself.
    pub decrypt: bool,
    /// Who may use the copy. Default: us. The mode is always 0600.
    pub owner: Option<(u32, u32)>,
    /// Where the source and its backing chain must be, if they are confined.
    pub allowed: Vec<HostPath>,
}

impl ConvertImage {
    /// A plain copy.
    pub fn new(source: (HostPath, ImageFormat), target: (HostPath, ImageFormat)) -> Self {
        Self {
            source: source.0,
            source_format: source.1,
            snapshot: None,
            target: target.0,
            target_format: target.1,
            compress: false,
            encryption: None,
            decrypt: false,
            owner: None,
            allowed: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), ImageError> {
        if self.compress && self.target_format != ImageFormat::Qcow2 {
            return Err(ImageError::format(
                &self.target,
                "can only be compressed as qcow2",
            ));
        }
        if self.snapshot.is_some() && self.source_format != ImageFormat::Qcow2 {
            return Err(ImageError::format(
                &self.source,
                "can only have snapshots as qcow2",
            ));
        }
        Ok(())
    }
}

/// Whether a copy's two ends are encrypted.
#[derive(Debug, Clone, Copy)]
struct Ends {
    source: bool,
    target: bool,
}

impl Ends {
    /// Nothing that is encrypted becomes plain without consent.
    fn of(image: &ConvertImage, source: bool) -> Result<Self, ImageError> {
        let path = || image.source.clone();
        let target = image.encryption.is_some() && !image.decrypt;
        let qcow2 = image.target_format == ImageFormat::Qcow2;
        match (source, &image.encryption) {
            (true, None) => Err(ImageError::KeyRequired { path: path() }),
            (false, _) if image.decrypt => Err(ImageError::format(&path(), "is not encrypted")),
            (true, Some(_)) if target && !qcow2 => Err(ImageError::PlainText {
                path: path(),
                what: "its copy in a format without encryption",
            }),
            _ if target && !qcow2 => Err(ImageError::format(
                &image.target,
                "can only be encrypted as qcow2",
            )),
            _ if target && image.compress => Err(ImageError::format(
                &image.target,
                "cannot be both encrypted and compressed",
            )),
            _ => Ok(Self { source, target }),
        }
    }
}

/// Makes the copy, reporting progress. Nothing is ever overwritten, nothing is left if it fails or
/// is cancelled, and the source is only read.
pub async fn convert(image: &ConvertImage, job: &Job) -> Result<(), ImageError> {
    image.check()?;
    let (target, image) = (&image.target, image.clone());
    supervised(job, target, move |job| make(image, job)).await
}

async fn make(image: ConvertImage, job: Job) -> Result<(), ImageError> {
    let asked = image.clone();
    let vetted = lock::shared(&image.source, move || vet(&asked));
    let (_unchanged, (ends, found)) = job.unless_cancelled(&image.source, vetted).await??;
    if let Some(name) = &image.snapshot {
        require_snapshot(&image, name).await?;
    }
    let mut measuring = Measuring::default();
    loop {
        let target = image.target.clone();
        let partial = blocking(&image.target, move || Partial::beside(&target)).await?;
        let copied = copy(&image, ends, &found, &partial, &job).await;
        if measuring.is_over(&copied).await {
            copied?;
            return blocking(&image.target, move || partial.publish(image.owner)).await;
        }
    }
}

/// Blocks.
fn vet(image: &ConvertImage) -> Result<(Ends, Inspection), ImageError> {
    let (source, format) = (&image.source, image.source_format);
    in_use::refuse_now(source, Access::Read)?;
    let ends = Ends::of(image, inspect::is_encrypted_now(source, format)?)?;
    let key = image.encryption.as_ref().map(|encryption| &encryption.key);
    let key = key.filter(|_| ends.source);
    let found = inspect::vet_now(source, format, &image.allowed, key)?;
    Ok((ends, found))
}

async fn require_snapshot(image: &ConvertImage, name: &SnapshotName) -> Result<(), ImageError> {
    let info = info_locked(&image.source, image.source_format, Sharing::Refuse).await?;
    if info
        .snapshots
        .iter()
        .any(|snapshot| snapshot.name == name.as_str())
    {
        Ok(())
    } else {
        Err(ImageError::SnapshotNotFound {
            path: image.source.clone(),
            name: name.as_str().to_owned(),
        })
    }
}

async fn copy(
    image: &ConvertImage,
    ends: Ends,
    found: &Inspection,
    partial: &Partial,
    job: &Job,
) -> Result<(), ImageError> {
    let mut command =
        QemuImg::new("convert", &image.target).args(["-p", "-O", image.target_format.as_str()]);
    if let Some(encryption) = &image.encryption {
        command = command.with_key(&encryption.key);
        if ends.target {
            command = command.args(["-o".to_owned(), encryption.options().join(",")]);
        }
    }
    if image.compress {
        command = command.args(["-c"]);
    }
    if let Some(name) = &image.snapshot {
        command = command.args(["-l", name.as_str()]);
    }
    // What an encrypted source is called is no path, which only the messages mind.
    let name = opened::name(&opened::layers(&found.encrypted_layers(&image.source)));
    let source = if ends.source {
        Path::new(&name)
    } else {
        command = command.args(["-f", image.source_format.as_str()]);
        image.source.as_path()
    };
    let copied = command
        .also_about(image.source.as_path())
        .files([source, partial.path()])
        .run_once(job)
        .await;
    match copied {
        // The new image's key fits what it was made with.
        Err(ImageError::AuthFailed { .. }) => Err(ImageError::AuthFailed {
            path: image.source.clone(),
        }),
        copied => copied.map(drop),
    }
}
