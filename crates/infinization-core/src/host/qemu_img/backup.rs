//! Copies for backups, and back. Unlike [`super::convert`] these fill a file of the caller's own
//! folder under its final name, so that its growth can be watched; whether it is whole is told by the
//! backup's manifest, not by its name.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::command::{Measuring, QemuImg};
use super::in_use::{self, Access};
use super::job::{blocking, supervised};
use super::{Encryption, ImageError, ImageFormat, Inspection, Job, inspect, lock, opened};
use crate::types::{ByteSize, DiskKey, HostPath};

/// How a copy's clusters are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clusters {
    /// As they are.
    Plain,
    /// Compressed with deflate.
    Deflate,
    /// Compressed with Zstandard.
    Zstd,
}

impl Clusters {
    fn compressed(self) -> bool {
        self != Self::Plain
    }

    /// What is added to `convert`'s options.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Deflate => &["-c"],
            Self::Zstd => &["-c", "-o", "compression_type=zstd"],
        }
    }
}

/// An image that is read and that nobody may write to meanwhile.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it is.
    pub path: HostPath,
    /// What it is.
    pub format: ImageFormat,
    /// What opens it, if it is encrypted. Its copies are encrypted with it too, have a data key of their own,
    /// and are not compressed: QEMU has no clusters that are both.
    pub encryption: Option<Encryption>,
}

impl Source {
    fn key(&self) -> Option<&DiskKey> {
        self.encryption.as_ref().map(|encryption| &encryption.key)
    }
}

/// Copies everything `source` holds, its backing files' data included, into the new qcow2 `target`.
pub async fn export(
    source: &Source,
    target: &HostPath,
    clusters: Clusters,
    job: &Job,
) -> Result<(), ImageError> {
    let (source, copy) = (source.clone(), target.clone());
    supervised(job, target, move |job| async move {
        let (_unchanged, found) = hold(&source, &job).await?;
        if let (Some(encryption), Some(size)) = (&source.encryption, found.virtual_size) {
            let layers = opened::layers(&found.encrypted_layers(&source.path));
            make_target(&copy, size, clusters, None, Some(encryption)).await?;
            return fill(&copy, &layers, encryption, &job).await;
        }
        make_file(&copy).await?;
        QemuImg::new("convert", &source.path)
            .args(["-p", "-f", source.format.as_str(), "-O", "qcow2"])
            .args(clusters.options().iter().copied())
            .files([source.path.as_path(), copy.as_path()])
            .run_as(&job)
            .await?;
        Ok(())
    })
    .await
}

/// Copies an encrypted chain into an empty image with the same key. That is made first: what a busy host takes
/// several attempts for is over before anything is copied.
async fn fill(
    target: &HostPath,
    source: &Value,
    encryption: &Encryption,
    job: &Job,
) -> Result<(), ImageError> {
    let names = [opened::name(source), opened::name(&opened::alone(target))];
    QemuImg::new("convert", target)
        .args(["-p", "-n", "--target-is-zero", "-O", "qcow2"])
        .with_key(&encryption.key)
        .files(names.iter().map(Path::new))
        .run_as(job)
        .await?;
    Ok(())
}

/// What a difference is taken from, and how the new file names it.
#[derive(Debug, Clone)]
pub struct Parent {
    /// Where it is: a qcow2 whose own chain was looked at.
    pub path: HostPath,
    /// What `target`'s header will call it: a path, absolute or relative to `target`.
    pub name: String,
}

/// The part of the work that comparing is where what differs is compressed afterwards: both disks are read whole.
const COMPARING: f64 = 0.7;

/// Stores in the new qcow2 `target` exactly what `source` holds and `parent` does not. Both are read
/// whole; `scratch` is a file name for in between. A parent is encrypted with the source's key, if at all.
pub async fn difference(
    source: &Source,
    parent: &Parent,
    target: &HostPath,
    scratch: &HostPath,
    clusters: Clusters,
    job: &Job,
) -> Result<(), ImageError> {
    let (source, parent) = (source.clone(), parent.clone());
    let (copy, scratch) = (target.clone(), scratch.clone());
    supervised(job, target, move |job| async move {
        let (_unchanged, found) = hold(&source, &job).await?;
        let compressed = clusters.compressed() && source.encryption.is_none();
        let plain = if compressed { &scratch } else { &copy };
        overlay(&source, &found, plain).await?;
        let comparing = if compressed { COMPARING } else { 1.0 };
        compare(&source, &found, plain, &parent, comparing, &job).await?;
        if compressed {
            compress(&scratch, &parent, &copy, clusters, &job).await?;
            let path = scratch.clone();
            blocking(&scratch, move || {
                std::fs::remove_file(path.as_path()).map_err(|error| ImageError::io(&path, error))
            })
            .await?;
        }
        rename_parent(&copy, &parent, source.key()).await
    })
    .await
}

/// An empty qcow2 on the source: it holds what the source holds.
async fn overlay(
    source: &Source,
    found: &Inspection,
    overlay: &HostPath,
) -> Result<(), ImageError> {
    let command = QemuImg::new("create", &source.path)
        .args(["-q", "-f", "qcow2", "-F", source.format.as_str()])
        .path_option("-b", &source.path);
    let command = match (&source.encryption, found.virtual_size) {
        // Its size is said, as it is not opened.
        (Some(encryption), Some(size)) => command
            .args(["-u"])
            .encrypting(encryption)
            .files([overlay.as_path()])
            .args([size.as_bytes().to_string()]),
        _ => command.files([overlay.as_path()]),
    };
    make_image(overlay, &command).await
}

/// Puts the overlay on the parent, and into it whatever then would read differently: `part` of the job.
async fn compare(
    source: &Source,
    found: &Inspection,
    overlay: &HostPath,
    parent: &Parent,
    part: f64,
    job: &Job,
) -> Result<(), ImageError> {
    let command = QemuImg::new("rebase", overlay).part(0.0..part).args(["-p"]);
    let command = match &source.encryption {
        None => command
            .args(["-f", "qcow2", "-F", "qcow2"])
            .path_option("-b", &parent.path)
            .on_image(),
        Some(encryption) => {
            let node = beside_parent(source, found, overlay, parent).await?;
            command
                .args(["-F", "raw", "-b", PARENT])
                .with_key(&encryption.key)
                .on_node(&node)
        }
    };
    command.run_as(job).await?;
    Ok(())
}

/// The new base of an encrypted overlay, as `qemu-img rebase` opens it and writes it into the header, where it
/// does not stay: the node of [`beside_parent`].
const PARENT: &str = r#"json:{"driver":"raw","file":"parent"}"#;

/// The overlay on the source, and in the same graph the parent's chain, which no file name could open: it is
/// the backing file of the source's last one, cut to no bytes, so that nothing of it is read through there.
async fn beside_parent(
    source: &Source,
    found: &Inspection,
    overlay: &HostPath,
    parent: &Parent,
) -> Result<Value, ImageError> {
    let above = inspect::vet_with_key(&parent.path, ImageFormat::Qcow2, &[], source.key()).await?;
    let files = |image: &HostPath, found: &Inspection| {
        let all = std::iter::once(image).chain(&found.backing_chain);
        all.cloned().collect::<Vec<_>>()
    };
    let links = files(&parent.path, &above);
    let mut kept = opened::chain(&links, above.encrypted, Value::Null);
    kept["node-name"] = json!("parent");
    let nothing = json!({ "driver": "raw", "offset": 0, "size": 0, "file": kept });
    let mut layers = files(&source.path, found);
    layers.insert(0, overlay.clone());
    Ok(opened::chain(&layers, found.encrypted + 1, nothing))
}

async fn compress(
    overlay: &HostPath,
    parent: &Parent,
    target: &HostPath,
    clusters: Clusters,
    job: &Job,
) -> Result<(), ImageError> {
    make_file(target).await?;
    QemuImg::new("convert", overlay)
        .part(COMPARING..1.0)
        .args(["-p", "-f", "qcow2", "-O", "qcow2", "-F", "qcow2"])
        .path_option("-B", &parent.path)
        .args(clusters.options().iter().copied())
        .files([overlay.as_path(), target.as_path()])
        .run_as(job)
        .await?;
    Ok(())
}

/// Changes the name in the header alone.
async fn rename_parent(
    image: &HostPath,
    parent: &Parent,
    key: Option<&DiskKey>,
) -> Result<(), ImageError> {
    QemuImg::new("rebase", image)
        .args(["-u", "-F", "qcow2", "-b", &parent.name])
        .on_image_as(ImageFormat::Qcow2, key)
        .run_as(&Job::short())
        .await?;
    Ok(())
}

/// An empty qcow2 for a running QEMU to fill. It is on its parent by name only: nothing opens that.
pub async fn make_target(
    target: &HostPath,
    size: ByteSize,
    clusters: Clusters,
    parent: Option<&Parent>,
    encryption: Option<&Encryption>,
) -> Result<(), ImageError> {
    let mut command = QemuImg::new("create", target).args(["-q", "-u", "-f", "qcow2"]);
    if let Some(encryption) = encryption {
        command = command.encrypting(encryption);
    } else if clusters == Clusters::Zstd {
        command = command.args(["-o", "compression_type=zstd"]);
    }
    if let Some(parent) = parent {
        command = command.args(["-F", "qcow2", "-b", &parent.name]);
    }
    let command = command.on_image().args([size.as_bytes().to_string()]);
    make_image(target, &command).await
}

/// Writes what a chain of qcow2 files holds, nearest first, into the new image `target`. No backing
/// name out of a header is followed. With `encryption` all links are encrypted, and the image is too.
pub async fn flatten(
    links: &[HostPath],
    target: &HostPath,
    format: ImageFormat,
    encryption: Option<&Encryption>,
    job: &Job,
) -> Result<(), ImageError> {
    let (links, copy, encryption) = (links.to_vec(), target.clone(), encryption.cloned());
    supervised(job, target, move |job| async move {
        let mut unchanged = Vec::new();
        for link in &links {
            let path = link.clone();
            let vetted = lock::shared(link, move || {
                in_use::refuse_now(&path, Access::Read)?;
                inspect::vet_alone_now(&path, ImageFormat::Qcow2)
            });
            let (settled, ()) = job.unless_cancelled(link, vetted).await??;
            unchanged.push(settled);
        }
        if let Some(encryption) = &encryption {
            let chain = opened::chain(&links, links.len(), Value::Null);
            make_target(
                &copy,
                size_of(&links[0]).await?,
                Clusters::Plain,
                None,
                Some(encryption),
            )
            .await?;
            return fill(&copy, &chain, encryption, &job).await;
        }
        make_file(&copy).await?;
        let chain = opened::name(&opened::chain(&links, 0, Value::Null));
        QemuImg::new("convert", &copy)
            .args(["-p", "-O", format.as_str()])
            .files([chain.as_ref(), copy.as_path()])
            .run_as(&job)
            .await?;
        Ok(())
    })
    .await
}

async fn size_of(image: &HostPath) -> Result<ByteSize, ImageError> {
    let path = image.clone();
    blocking(image, move || {
        let header = inspect::header_of(&path)?;
        Ok(ByteSize::bytes(header.virtual_size))
    })
    .await
}

/// Waits until nobody changes the source, and sees that it may be read.
async fn hold(source: &Source, job: &Job) -> Result<(impl Drop + use<>, Inspection), ImageError> {
    let (path, format, key) = (source.path.clone(), source.format, source.key().cloned());
    let vetted = lock::shared(&source.path, move || {
        inspect::vet_unused_now(&path, format, Access::Read, &[], key.as_ref())
    });
    job.unless_cancelled(&source.path, vetted).await?
}

/// Has a `create` make an image of the file, which is new and for us alone.
async fn make_image(path: &HostPath, create: &QemuImg<'_>) -> Result<(), ImageError> {
    let mut measuring = Measuring::default();
    loop {
        make_file(path).await?;
        let made = create.run_once(&Job::short()).await;
        if measuring.is_over(&made).await {
            return made.map(drop);
        }
    }
}

/// Makes the file, for us alone. `IMAGE_ALREADY_EXISTS` if there is one.
async fn make_file(path: &HostPath) -> Result<(), ImageError> {
    let name = path.clone();
    blocking(path, move || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let made = options.open(name.as_path());
        made.map(drop).map_err(|error| ImageError::io(&name, error))
    })
    .await
}
