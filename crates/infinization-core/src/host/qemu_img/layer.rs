//! Layers of a chain of qcow2 images: a new overlay, committing one into what it lies on, and taking
//! one off it.
//!
//! None of these changes what a chain's uppermost image holds, however far they get: data is copied
//! before a link is changed. What a killed `qemu-img` leaves are clusters nobody uses ([`reclaim`]).

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::bitmap::drop_bitmaps;
use super::command::QemuImg;
use super::create::{check_size, write_empty};
use super::in_use::{self, Access};
use super::info::{Sharing, info_locked};
use super::inspect::{self, Inspection, header_of};
use super::job::{blocking, supervised, to_its_end};
use super::lock::Alone;
use super::partial::Partial;
use super::{ImageError, ImageFormat, Job, lift, lock};
use crate::host::process::ended;
use crate::types::{ByteSize, DiskKey, HostPath};

/// What an image says of itself; nothing else is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The disk's size.
    pub virtual_size: ByteSize,
    /// The file it lies on, as its header names it.
    pub backing: Option<HostPath>,
    /// How many internal snapshots it has.
    pub snapshots: u32,
    /// Whether it has persistent dirty bitmaps.
    pub bitmaps: bool,
    /// Whether a key is needed to read it.
    pub encrypted: bool,
    /// What its file takes on the host.
    pub allocated: ByteSize,
}

/// Reads the header of a qcow2 image.
pub async fn layer(path: &HostPath) -> Result<Layer, ImageError> {
    let image = path.clone();
    blocking(path, move || {
        let header = header_of(&image)?;
        let encrypted = header.encrypted();
        let backing = header.backing.map(|claim| {
            let directory = image.as_path().parent().unwrap_or(Path::new("/"));
            let named = directory.join(&claim.name);
            HostPath::parse(named.to_string_lossy())
                .map_err(|_invalid| ImageError::unsafe_backing(&image, claim.name))
        });
        Ok(Layer {
            virtual_size: ByteSize::bytes(header.virtual_size),
            backing: backing.transpose()?,
            snapshots: header.snapshots,
            bitmaps: header.bitmaps,
            encrypted,
            allocated: allocated_now(&image)?,
        })
    })
    .await
}

/// What an image's file takes on the host.
pub async fn allocated(path: &HostPath) -> Result<ByteSize, ImageError> {
    let image = path.clone();
    blocking(path, move || allocated_now(&image)).await
}

fn allocated_now(image: &HostPath) -> Result<ByteSize, ImageError> {
    /// The unit of `st_blocks`, whatever the file system's own is.
    const BLOCK: u64 = 512;
    let file = std::fs::metadata(image.as_path());
    let file = file.map_err(|error| ImageError::io(image, error))?;
    Ok(ByteSize::bytes(file.blocks() * BLOCK))
}

/// Makes an empty qcow2 on `backing`, which QEMU does not open: a running machine may have it. The new file
/// belongs to whoever owns that one, and is encrypted if that one is: the same keys open both.
pub async fn make_overlay(
    path: &HostPath,
    backing: &HostPath,
    size: ByteSize,
) -> Result<(), ImageError> {
    let (path, backing) = (path.clone(), backing.clone());
    check_size(&path, ImageFormat::Qcow2, size, None)?;
    blocking(&path.clone(), move || {
        let luks = luks_header_now(&backing)?;
        let file = std::fs::metadata(backing.as_path());
        let below = file.map_err(|error| ImageError::io(&backing, error))?;
        let partial = Partial::beside(&path)?;
        write_empty(&partial, size, Some(&backing), luks.as_deref())?;
        partial.publish(Some((below.uid(), below.gid())))
    })
    .await
}

/// The LUKS header of an encrypted image: its places for keys, each of which holds the data key. Only a change of
/// its keys writes there, whatever runs on it.
pub(super) fn luks_header_now(image: &HostPath) -> Result<Option<Vec<u8>>, ImageError> {
    /// QEMU's own have 2 MiB.
    const LONGEST: u64 = 16 << 20;
    let header = header_of(image)?;
    if !header.encrypted() {
        return Ok(None);
    }
    let place = header.luks_header.filter(|(_, length)| *length <= LONGEST);
    let (at, length) =
        place.ok_or_else(|| ImageError::corrupt(image, "does not say where its keys are"))?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let (file, _) = inspect::open(image)?;
    file.read_exact_at(&mut bytes, at)
        .map_err(|error| ImageError::io(image, error))?;
    Ok(Some(bytes))
}

/// Writes what `top` holds into the file right below it, which must be `base`. `top` stays as it is, and
/// reads the same at every moment. The base's dirty bitmaps are removed first. Both have `key`, if they are
/// encrypted.
pub async fn commit_layer(
    top: &HostPath,
    base: &HostPath,
    terms: &Terms<'_>,
    job: &Job,
) -> Result<(), ImageError> {
    let (top, base) = (top.clone(), base.clone());
    let (allowed, key) = (terms.allowed.to_vec(), terms.key.cloned());
    supervised(job, &top.clone(), move |job| async move {
        let _top = job.unless_cancelled(&top, unused(&top)).await??;
        let _base = job.unless_cancelled(&base, unused(&base)).await??;
        let key = key.as_ref();
        let found = inspect::vet_with_key(&top, ImageFormat::Qcow2, &allowed, key).await?;
        require_on(&top, &base).await?;
        forget_bitmaps(&base, key.filter(|_| found.encrypted > 1)).await?;
        // Without a name it is the file right below.
        QemuImg::new("commit", &top)
            .args(["-q", "-d"])
            .also_about(base.as_path())
            .on_chain_as(ImageFormat::Qcow2, &found, key)
            .run_as(&job)
            .await?;
        flush(&base).await
    })
    .await
}

/// What holds for all layers of a disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms<'a> {
    /// Where they must be; anywhere if that is empty.
    pub allowed: &'a [HostPath],
    /// What opens those that are encrypted.
    pub key: Option<&'a DiskKey>,
}

/// How [`rebase`] comes by the same content on another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebase {
    /// What would read differently is copied first.
    Safe,
    /// Both files hold the same: the name in the header is all that changes.
    NameOnly,
}

/// Puts the image on `onto`, or on nothing.
pub async fn rebase(
    image: &HostPath,
    onto: Option<&HostPath>,
    how: Rebase,
    terms: &Terms<'_>,
    job: &Job,
) -> Result<(), ImageError> {
    let (image, onto) = (image.clone(), onto.cloned());
    let (allowed, key) = (terms.allowed.to_vec(), terms.key.cloned());
    supervised(job, &image.clone(), move |job| async move {
        let vetted = vetted(&image, &allowed, key.as_ref());
        let (_alone, found) = job.unless_cancelled(&image, vetted).await??;
        let key = key.as_ref();
        match (key, &onto) {
            (Some(key), Some(onto)) if how == Rebase::Safe && found.encrypted > 1 => {
                lift::off_the_layer_below(&image, onto, &found, key, &job).await
            }
            _ => {
                let command = rebasing(&image, onto.as_ref(), how);
                let command = match how {
                    Rebase::Safe => command.on_chain_as(ImageFormat::Qcow2, &found, key),
                    Rebase::NameOnly => command.on_image_as(ImageFormat::Qcow2, key),
                };
                command.run_as(&job).await?;
                flush(&image).await
            }
        }
    })
    .await
}

fn rebasing<'a>(image: &'a HostPath, onto: Option<&HostPath>, how: Rebase) -> QemuImg<'a> {
    let mut command = QemuImg::new("rebase", image).args(["-q"]);
    if how == Rebase::NameOnly {
        command = command.args(["-u"]);
    }
    match onto {
        Some(onto) => command.args(["-F", "qcow2"]).path_option("-b", onto),
        None => command.args(["-b", ""]),
    }
}

/// Removes an image's dirty bitmaps, if it has any: it is about to become a layer that others lie on.
pub async fn freeze_layer(path: &HostPath, key: Option<&DiskKey>) -> Result<(), ImageError> {
    let (image, key) = (path.clone(), key.cloned());
    to_its_end(path, async move {
        let _alone = unused(&image).await?;
        forget_bitmaps(&image, key.as_ref()).await
    })
    .await
}

/// Waits for a `qemu-img` that has outlived the process it worked for and still has the image. After
/// `deadline`, and where somebody else has it, whoever comes next is refused.
pub async fn outwait_orphan(path: &HostPath, deadline: Duration) {
    let gone = async {
        while let Err(ImageError::InUse {
            holder: Some(holder),
            ..
        }) = in_use::refuse(path, Access::Write).await
        {
            let pid = i32::try_from(holder.pid).unwrap_or_default();
            if holder.name != "qemu-img" || ended(pid).await.is_err() {
                return;
            }
        }
    };
    if timeout(deadline, gone).await.is_err() {
        tracing::warn!(%path, "an earlier qemu-img still works on the image");
    }
}

/// Frees the clusters that an interrupted command left unused. An image that somebody has open is left.
pub async fn reclaim(path: &HostPath, key: Option<&DiskKey>) -> Result<(), ImageError> {
    let (image, key) = (path.clone(), key.cloned());
    to_its_end(path, async move {
        let key = key.as_ref();
        let (_alone, _found) = vetted(&image, &[], key).await?;
        // 3: some leaks could not be freed, which harms nobody.
        QemuImg::new("check", &image)
            .args(["-q", "-r", "leaks"])
            .accept(&[3])
            .on_image_as(ImageFormat::Qcow2, key)
            .run_as(&Job::short())
            .await?;
        Ok(())
    })
    .await
}

/// Waits until nobody here has the image; `IMAGE_IN_USE` if another process has.
async fn unused(image: &HostPath) -> Result<Alone, ImageError> {
    let path = image.clone();
    let look = move || in_use::refuse_now(&path, Access::Write);
    let (alone, ()) = lock::exclusive(image, look).await?;
    Ok(alone)
}

/// The same of an image that is opened with what is below it.
async fn vetted(
    image: &HostPath,
    allowed: &[HostPath],
    key: Option<&DiskKey>,
) -> Result<(Alone, Inspection), ImageError> {
    let (path, allowed, key) = (image.clone(), allowed.to_vec(), key.cloned());
    lock::exclusive(image, move || {
        inspect::vet_unused_now(
            &path,
            ImageFormat::Qcow2,
            Access::Write,
            &allowed,
            key.as_ref(),
        )
    })
    .await
}

async fn require_on(top: &HostPath, base: &HostPath) -> Result<(), ImageError> {
    let found = layer(top).await?;
    if found.backing.as_ref() == Some(base) {
        return Ok(());
    }
    let why = format!("does not lie on {base}");
    Err(ImageError::format(top, why))
}

async fn forget_bitmaps(image: &HostPath, key: Option<&DiskKey>) -> Result<(), ImageError> {
    let found = layer(image).await?;
    if !found.bitmaps {
        return Ok(());
    }
    if found.encrypted && key.is_none() {
        let path = image.clone();
        return Err(ImageError::KeyRequired { path });
    }
    let found = info_locked(image, ImageFormat::Qcow2, Sharing::Refuse).await?;
    drop_bitmaps(image, key, &found.bitmaps).await
}

/// Puts on the disk what others have written: neither qemu-img's cache mode nor a guest's does that by itself.
pub async fn flush(image: &HostPath) -> Result<(), ImageError> {
    let path = image.clone();
    blocking(image, move || {
        let file = std::fs::File::open(path.as_path());
        let flushed = file.and_then(|file| file.sync_all());
        flushed.map_err(|error| ImageError::io(&path, error))
    })
    .await
}
