//! Takes an encrypted layer off the one below it: what it needs of that is copied into it.
//!
//! `qemu-img rebase` writes the name by which it opened the new base into the header, and the one by which an
//! encrypted base can be opened is none that may stand there. So the layer is made anew beside itself, out of
//! what the lower one holds and then what it holds itself, and takes its own name once it is on disk. Until
//! then nothing has changed.

use std::cmp::Ordering;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::command::QemuImg;
use super::inspect::header_of;
use super::job::blocking;
use super::{ImageError, ImageFormat, Inspection, Job, make_overlay, opened, sweep_partials_of};
use crate::types::{ByteSize, DiskKey, HostPath};

/// What is made has the layer's name and this behind it.
const ASIDE: &str = ".lifted";

/// Puts `image`, whose chain was found to be `found`, on `onto`, which lies below the layer that it lies on. Both
/// that one and the image are open to nobody.
pub(super) async fn off_the_layer_below(
    image: &HostPath,
    onto: &HostPath,
    found: &Inspection,
    key: &DiskKey,
    job: &Job,
) -> Result<(), ImageError> {
    let aside = aside_of(image)?;
    remove(&aside).await?;
    sweep_partials_of(&aside).await?;
    let filled = fill(image, &aside, onto, found, key, job).await;
    if filled.is_err() {
        remove(&aside).await?;
        return filled;
    }
    let image = image.clone();
    blocking(&image.clone(), move || {
        replace(&aside, &image).map_err(|error| ImageError::io(&image, error))
    })
    .await
}

/// The file beside a layer in which it is made anew; a process that was killed may have left one.
pub fn aside_of(image: &HostPath) -> Result<HostPath, ImageError> {
    let name = format!("{image}{ASIDE}");
    HostPath::parse(name).map_err(|why| ImageError::format(image, why.to_string()))
}

async fn fill(
    image: &HostPath,
    aside: &HostPath,
    onto: &HostPath,
    found: &Inspection,
    key: &DiskKey,
    job: &Job,
) -> Result<(), ImageError> {
    let all = found.encrypted_layers(image);
    let (merged, below) = all.split_at(2);
    let lower = size_of(&merged[1]).await?;
    make_overlay(aside, onto, lower).await?;
    let target = [std::slice::from_ref(aside), below].concat();
    copy((&all[1..], &target), onto, key, job).await?;
    resize(&target, (lower, size_of(image).await?), key, job).await?;
    let source = [std::slice::from_ref(image), &target].concat();
    write_into(&source, key, job).await
}

async fn size_of(image: &HostPath) -> Result<ByteSize, ImageError> {
    let path = image.clone();
    blocking(image, move || {
        Ok(ByteSize::bytes(header_of(&path)?.virtual_size))
    })
    .await
}

/// Writes what the first of the source's layers holds itself into the first of the target's, which is empty, lies
/// on `onto`, and is as large. Zeros behind the end of `onto` are left out: only an empty target reads them there.
async fn copy(
    (source, target): (&[HostPath], &[HostPath]),
    onto: &HostPath,
    key: &DiskKey,
    job: &Job,
) -> Result<(), ImageError> {
    let [source, target] = [source, target].map(|layers| opened::name(&opened::layers(layers)));
    let qcow2 = ImageFormat::Qcow2.as_str();
    QemuImg::new("convert", onto)
        .args(["-n", "-O", qcow2, "-F", qcow2])
        .path_option("-B", onto)
        .with_key(key)
        .files([Path::new(&source), Path::new(&target)])
        .run_as(job)
        .await?;
    Ok(())
}

/// Where the first of the layers becomes larger, QEMU has it read zeros, whatever a longer one below holds there.
async fn resize(
    layers: &[HostPath],
    (from, to): (ByteSize, ByteSize),
    key: &DiskKey,
    job: &Job,
) -> Result<(), ImageError> {
    let consent: &[&str] = match to.cmp(&from) {
        Ordering::Equal => return Ok(()),
        Ordering::Greater => &[],
        Ordering::Less => &["--shrink"],
    };
    QemuImg::new("resize", &layers[0])
        .args(["-q"])
        .args(consent.iter().copied())
        .with_key(key)
        .on_node(&opened::layers(layers))
        .args([to.as_bytes().to_string()])
        .run_as(job)
        .await?;
    Ok(())
}

/// Writes what the first of the layers holds itself, its zeros too, into the second, whatever its header names.
async fn write_into(layers: &[HostPath], key: &DiskKey, job: &Job) -> Result<(), ImageError> {
    QemuImg::new("commit", &layers[0])
        .args(["-q", "-d"])
        .also_about(layers[1].as_path())
        .with_key(key)
        .on_node(&opened::layers(layers))
        .run_as(job)
        .await?;
    Ok(())
}

fn replace(aside: &HostPath, image: &HostPath) -> std::io::Result<()> {
    let (new, old) = (
        fs::File::open(aside.as_path())?,
        fs::metadata(image.as_path())?,
    );
    std::os::unix::fs::fchown(&new, Some(old.uid()), Some(old.gid()))?;
    new.sync_all()?;
    fs::rename(aside.as_path(), image.as_path())?;
    let directory = image.as_path().parent().unwrap_or(Path::new("/"));
    fs::File::open(directory)?.sync_all()
}

async fn remove(path: &HostPath) -> Result<(), ImageError> {
    let name = path.clone();
    blocking(path, move || match fs::remove_file(name.as_path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::io(&name, error))
        }
        _ => Ok(()),
    })
    .await
}
