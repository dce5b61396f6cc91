//! Takes an encrypted layer off the one below it: what it needs of that is copied into it.
//!
//! `qemu-img rebase` writes the name by which it opened the new base into the header, and the one by which an
//! encrypted base can be opened is none that may stand there. So the layer is made anew beside itself, out of
//! what the lower one holds and then what it holds itself, and takes its own name once it is on disk. Until
//! then nothing has changed.

use std::cmp::Ordering;
use std::path::Path;

use super::command::QemuImg;
use super::create::write_empty;
use super::inspect::header_of;
use super::job::blocking;
use super::layer::luks_header_now;
use super::partial::Partial;
use super::{ImageError, ImageFormat, Inspection, Job, opened};
use crate::types::{ByteSize, DiskKey, HostPath};

/// Puts `image`, whose chain was found to be `found`, on `onto`, which lies below the layer that it lies on. Both
/// that one and the image are open to nobody.
pub(super) async fn off_the_layer_below(
    image: &HostPath,
    onto: &HostPath,
    found: &Inspection,
    key: &DiskKey,
    job: &Job,
) -> Result<(), ImageError> {
    let all = found.encrypted_layers(image);
    let lower = size_of(&all[1]).await?;
    let made = (image.clone(), onto.clone());
    let aside = blocking(image, move || make(&made.0, &made.1, lower)).await?;
    let target = [&[aside.place()?], &all[2..]].concat();
    copy((&all[1..], &target), onto, key, job).await?;
    resize(&target, (lower, size_of(image).await?), key, job).await?;
    let source = [std::slice::from_ref(image), &target].concat();
    write_into(&source, key, job).await?;
    blocking(image, move || aside.replace()).await
}

/// An empty one on `onto`, which what opens the image opens.
fn make(image: &HostPath, onto: &HostPath, size: ByteSize) -> Result<Partial, ImageError> {
    let luks = luks_header_now(image)?;
    let aside = Partial::in_place_of(image)?;
    write_empty(&aside, size, Some(onto), luks.as_deref())?;
    Ok(aside)
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
