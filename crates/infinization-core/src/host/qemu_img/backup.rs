//! Copies for backups, and back. Unlike [`super::convert`] these fill a file of the caller's own
//! folder under its final name, so that its growth can be watched; whether it is whole is told by the
//! backup's manifest, not by its name.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;

use serde_json::{Value, json};

use super::command::QemuImg;
use super::in_use::{self, Access};
use super::job::{blocking, supervised};
use super::{ImageError, ImageFormat, Job, inspect, lock};
use crate::types::{ByteSize, HostPath};

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
        let _unchanged = hold(&source, &job).await?;
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

/// What a difference is taken from, and how the new file names it.
#[derive(Debug, Clone)]
pub struct Parent {
    /// Where it is: a qcow2 whose own chain was looked at.
    pub path: HostPath,
    /// What `target`'s header will call it: a path, absolute or relative to `target`.
    pub name: String,
}

/// Stores in the new qcow2 `target` exactly what `source` holds and `parent` does not. Both are read
/// whole; `scratch` is a file name for in between.
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
        let _unchanged = hold(&source, &job).await?;
        let plain = if clusters.compressed() {
            &scratch
        } else {
            &copy
        };
        overlay(&source, plain).await?;
        compare(plain, &parent, &job).await?;
        if clusters.compressed() {
            compress(&scratch, &parent, &copy, clusters, &job).await?;
            let path = scratch.clone();
            blocking(&scratch, move || {
                std::fs::remove_file(path.as_path()).map_err(|error| ImageError::io(&path, error))
            })
            .await?;
        }
        rename_parent(&copy, &parent).await
    })
    .await
}

/// An empty qcow2 on the source: it holds what the source holds.
async fn overlay(source: &Source, overlay: &HostPath) -> Result<(), ImageError> {
    make_file(overlay).await?;
    QemuImg::new("create", &source.path)
        .args(["-q", "-f", "qcow2", "-F", source.format.as_str()])
        .path_option("-b", &source.path)
        .files([overlay.as_path()])
        .run_as(&Job::short())
        .await?;
    Ok(())
}

/// Puts the overlay on the parent, and into it whatever then would read differently.
async fn compare(overlay: &HostPath, parent: &Parent, job: &Job) -> Result<(), ImageError> {
    QemuImg::new("rebase", overlay)
        .args(["-p", "-f", "qcow2", "-F", "qcow2"])
        .path_option("-b", &parent.path)
        .on_image()
        .run_as(job)
        .await?;
    Ok(())
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
        .args(["-p", "-f", "qcow2", "-O", "qcow2", "-F", "qcow2"])
        .path_option("-B", &parent.path)
        .args(clusters.options().iter().copied())
        .files([overlay.as_path(), target.as_path()])
        .run_as(job)
        .await?;
    Ok(())
}

/// Changes the name in the header alone.
async fn rename_parent(image: &HostPath, parent: &Parent) -> Result<(), ImageError> {
    QemuImg::new("rebase", image)
        .args(["-u", "-f", "qcow2", "-F", "qcow2", "-b", &parent.name])
        .on_image()
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
) -> Result<(), ImageError> {
    make_file(target).await?;
    let mut command = QemuImg::new("create", target).args(["-q", "-u", "-f", "qcow2"]);
    if clusters == Clusters::Zstd {
        command = command.args(["-o", "compression_type=zstd"]);
    }
    if let Some(parent) = parent {
        command = command.args(["-F", "qcow2", "-b", &parent.name]);
    }
    command
        .on_image()
        .args([size.as_bytes().to_string()])
        .run_as(&Job::short())
        .await?;
    Ok(())
}

/// Writes what a chain of qcow2 files holds, nearest first, into the new image `target`. No backing
/// name out of a header is followed.
pub async fn flatten(
    links: &[HostPath],
    target: &HostPath,
    format: ImageFormat,
    job: &Job,
) -> Result<(), ImageError> {
    let (links, copy) = (links.to_vec(), target.clone());
    supervised(job, target, move |job| async move {
        let mut unchanged = Vec::new();
        for link in &links {
            unchanged.push(job.unless_cancelled(link, lock::shared(link)).await??);
            in_use::refuse(link, Access::Read).await?;
            inspect::vet_alone(link, ImageFormat::Qcow2).await?;
        }
        make_file(&copy).await?;
        let chain = format!("json:{}", opened(&links));
        QemuImg::new("convert", &copy)
            .args(["-p", "-O", format.as_str()])
            .files([chain.as_ref(), copy.as_path()])
            .run_as(&job)
            .await?;
        Ok(())
    })
    .await
}

/// The chain as QEMU's `blockdev` options.
fn opened(links: &[HostPath]) -> Value {
    links.iter().rev().fold(Value::Null, |backing, link| {
        let file = json!({ "driver": "file", "filename": link, "read-only": true });
        json!({ "driver": "qcow2", "file": file, "backing": backing })
    })
}

/// Waits until nobody changes the source, and sees that it may be read.
async fn hold(source: &Source, job: &Job) -> Result<impl Drop + use<>, ImageError> {
    let path = &source.path;
    let unchanged = job.unless_cancelled(path, lock::shared(path)).await??;
    in_use::refuse(path, Access::Read).await?;
    inspect::vet(path, source.format, &[]).await?;
    Ok(unchanged)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_opened_by_name_and_nothing_below_its_end() {
        let path = |name: &str| HostPath::parse(format!("/b/{name}")).unwrap();
        let chain = opened(&[path("new"), path("old \"x\"")]);
        assert_eq!(chain["file"]["filename"], "/b/new");
        assert_eq!(chain["backing"]["file"]["filename"], "/b/old \"x\"");
        assert_eq!(chain["backing"]["backing"], Value::Null);
    }

    #[test]
    fn the_longest_chain_fits_on_a_command_line() {
        let links = vec![HostPath::parse(format!("/{}", "x".repeat(250))).unwrap(); 256];
        // The kernel's MAX_ARG_STRLEN.
        assert!(opened(&links).to_string().len() < 128 << 10);
    }
}
